"""Old module names: each gives the very module that took its place, and says so at the line that uses it."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import nnet_edge.runtime.stream
from nnet_edge.moved import MOVED


@pytest.mark.filterwarnings("ignore:nnet_edge.model has moved")
@pytest.mark.parametrize("old", sorted(name for name in MOVED if ":" not in name))
def test_each_old_name_stands_for_a_module_of_today(old: str) -> None:
    parent, _, name = old.rpartition(".")
    if parent not in MOVED:
        (folder,) = importlib.import_module(parent).__path__
        assert not [*Path(folder).glob(f"{name}.py"), *Path(folder, name).glob("__init__.py")], f"{old} is there itself"
    found, today = importlib.util.find_spec(old), importlib.util.find_spec(MOVED[old])
    assert found is not None
    assert today is not None
    assert found.origin == today.origin


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("nnet_edge.line_config", "nnet_edge.settings.line"),
        ("nnet_edge.model", "nnet_edge.methods"),
        ("nnet_edge.model.backbone", "nnet_edge.methods.backbone"),
        ("nnet_edge.model.cosine", "nnet_edge.methods.cosine"),  # in no table: the folder moved
        ("nnet_edge.runtime.kernels.tables", "nnet_edge.runtime.runners.trt.kernels.tables"),
        ("nnet_edge.runtime.terminal", "nnet_edge.runtime.stream.terminal"),
    ],
)
def test_an_old_name_gives_the_same_module_and_says_where_it_is(old: str, new: str) -> None:
    for name in [name for name in sys.modules if name == old]:
        del sys.modules[name]
    package = old.rpartition(".")[0]
    if package in MOVED and package not in sys.modules:
        with pytest.warns(DeprecationWarning, match=package):
            importlib.import_module(package)
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {new}"):
        assert importlib.import_module(old) is importlib.import_module(new)
    assert importlib.import_module(new).__name__ == new


def test_a_package_forwards_what_its_module_held() -> None:
    from nnet_edge.runtime.stream.running import run

    with pytest.warns(DeprecationWarning, match=r"nnet_edge\.runtime\.stream\.running\.run"):
        assert nnet_edge.runtime.stream.run is run
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        nnet_edge.runtime.stream.nothing  # noqa: B018


def test_the_warning_is_shown_at_the_line_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import nnet_edge\nimport nnet_edge.web_settings\nfrom nnet_edge.runtime.sources import open_source\n"
    )
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stderr
    assert f"{script}:2: DeprecationWarning: nnet_edge.web_settings has moved" in said
    assert f"{script}:3: DeprecationWarning: nnet_edge.runtime.sources.open_source has moved" in said


def test_an_old_name_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "nnet_edge.benchmarks.gpu_question", "--help"]
    assert "Usage:" in subprocess.check_output(command, text=True)
