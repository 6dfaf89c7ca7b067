"""`nnet-edge config init` begins a settings file that can be used as it is and says of every key what it does."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.bundle import Bundle
from nnet_edge.cli.main import run
from nnet_edge.settings.camera import kind_by_name
from nnet_edge.settings.line import read_line_config, schema


def said_of(table: dict[str, Any], place: str = "") -> Iterator[tuple[str, str]]:
    """Each key of the schema, all the way down, and its description."""
    for key, about in table.get("properties", {}).items():
        yield f"{place}{key}", about.get("description", "")
        content = about.get("items", about)
        for below in content.get("oneOf", [content]):
            yield from said_of(below, f"{place}{key}.")


def test_the_schema_says_of_every_key_what_it_does() -> None:
    found = dict(said_of(schema()))
    assert len(found) > 250
    assert [key for key, text in found.items() if len(text) < 6] == []
    assert found["stream.camera.stall_s"] == "Without a frame for so long, the source is opened again"
    assert found["web"].endswith("Left out: no page")
    assert not any("Raises" in text for text in found.values())


def test_what_init_writes_can_be_used(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, below = tmp_path / "line.toml", tmp_path / "part"
    shutil.copytree(bundle.path, below)
    words = [
        "config",
        "init",
        str(file),
        "--bundle",
        str(below),
        "--source",
        "left=synthetic:3",
        "--source",
        str(tmp_path),
    ]
    assert run([*words, "--page", "127.0.0.1:8081"]) == 0
    assert run(["config", "check", str(file)]) == 0
    assert "line.toml can be used" in capsys.readouterr().out
    settings = read_line_config(file)
    assert settings.bundle == below
    assert 'bundle = "part"' in file.read_text()  # the folder may be moved as a whole
    assert [(one.name, one.camera.address) for one in settings.streams] == [
        ("left", "synthetic:3"), ("camera-1", str(tmp_path)),
    ]  # fmt: skip
    assert settings.web is not None
    assert settings.web.port == 8081
    assert [sink.kind for sink in settings.sinks] == ["json-lines", "rejects"]


def test_every_default_that_it_shows_is_one(tmp_path: Path) -> None:
    file = tmp_path / "line.toml"
    assert run(["config", "init", str(file), "--page", "8080", "--source", "rtsp://camera-1/stream"]) == 0
    plain = read_line_config(file)
    text = file.read_text()
    before, sinks_and_page = text.split("[[sink]]", 1)
    switched_on = re.sub(r"^# (\[?\[?[a-z_.]+\]?\]?(?: = [^<].*)?)$", r"\1", before, flags=re.M)
    assert before.count("\n# ") - switched_on.count("\n# ") > 15
    file.write_text(f"{switched_on}[[sink]]{sinks_and_page}")
    found = read_line_config(file)
    for settings in (found, plain):  # options that are given at all are kept as such
        camera, kind = settings.streams[0].camera, kind_by_name("rtsp://camera-1/stream")
        assert kind is not None
        assert camera.options_for(kind) == plain.streams[0].camera.options_for(kind)
        object.__setattr__(camera, "options", {})
    assert found == plain


def test_init_overwrites_nothing_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "line.toml"
    file.write_text("mine")
    assert run(["config", "init", str(file)]) == 2
    assert "line.toml is there already: choose another name, or replace it with --force" in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert run(["config", "init", str(file), "--force"]) == 0
    assert file.read_text() != "mine"
    for wrong, told in ((["--source", "a=0", "--source", "a=1"], "called 'a'"), (["--page", "x"], "neither a port")):
        assert run(["config", "init", str(tmp_path / "new.toml"), *wrong]) == 2
        assert told in capsys.readouterr().err
    assert not (tmp_path / "new.toml").exists()
