"""What the page may do: the bundles that it offers are found without walking at each question."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.web import controls
from nnet_edge.settings.web import WebSettings


def test_the_bundle_folder_is_looked_through_again_only_when_it_changed(
    tmp_path: Path, make_runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_bundle(name: str) -> None:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "manifest.json").touch()

    looks: list[Path] = []
    look = controls.find_bundles
    monkeypatch.setattr(controls, "find_bundles", lambda folder: looks.append(folder) or look(folder))
    now_s = time.time()
    monkeypatch.setattr(controls.time, "time", lambda: now_s)
    make_bundle("one")
    make_bundle("group/two")
    found = controls.Controls(Line(Model("m", None, make_runner(), 0.5)), WebSettings(bundle_folder=tmp_path))
    for _ in range(20):
        assert found.bundles() == ["group/two", "one"]
    assert len(looks) == 1
    now_s += 100  # nothing has changed
    assert found.bundles() == ["group/two", "one"]
    now_s += 100
    assert found.bundles() == ["group/two", "one"]
    assert len(looks) == 2  # the first look may have met a folder that was just changing
    make_bundle("group/three")
    now_s += 2
    assert found.bundles() == ["group/three", "group/two", "one"]
    (tmp_path / "one" / "manifest.json").unlink()
    now_s += 2
    assert found.bundles() == ["group/three", "group/two"]
    shutil.rmtree(tmp_path / "group")
    now_s += 2
    assert found.bundles() == []
