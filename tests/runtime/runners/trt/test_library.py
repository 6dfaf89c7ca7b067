"""Which TensorRT is taken, what a missing one says, and what its messages become."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.runtime.runners.trt import library as tensorrt_library
from nnet_edge.runtime.runners.trt.library import (
    collecting_log,
    how_to_install,
    installed_flavours,
    load_tensorrt,
    parse_version,
    plain,
)


@pytest.fixture(autouse=True)
def _no_module_is_left() -> Iterator[None]:
    """What a test installed as `tensorrt` is forgotten at its end."""
    before = sys.modules.get("tensorrt")
    yield
    sys.modules.pop("tensorrt", None)
    if before is not None:
        sys.modules["tensorrt"] = before


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    """Put a module `tensorrt` of that source where Python looks first."""
    (folder / "tensorrt.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    sys.modules.pop("tensorrt", None)


def test_versions_are_compared_as_numbers() -> None:
    assert parse_version("10.3.0.post1") == (10, 3, 0)
    assert parse_version("10.0") > parse_version("5.1")
    assert parse_version("unknown") == ()


def test_a_missing_flavour_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "find_spec", lambda name: None)
    assert installed_flavours() == ()
    with pytest.raises(MissingExtraError, match=r"TensorRT-RTX is not installed: pip install 'nnet-edge\[rtx\]'"):
        load_tensorrt("tensorrt_rtx")


def test_on_a_jetson_tensorrt_comes_with_jetpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.0\n")
    monkeypatch.setattr(tensorrt_library, "JETSON_RELEASE", release)
    assert "sudo apt install nvidia-jetpack" in how_to_install("tensorrt")
    assert "--system-site-packages" in how_to_install("tensorrt")


def test_a_flavour_that_cannot_be_loaded_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "raise OSError('libnvinfer.so.10: cannot open shared object file')")
    assert installed_flavours()[0] == "tensorrt"
    with pytest.raises(MissingExtraError, match=r"cannot be loaded \(libnvinfer.so.10: cannot open"):
        load_tensorrt("tensorrt")


def test_an_old_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "__version__ = '8.6.1'")
    with pytest.raises(ConfigError, match=r"TensorRT 8\.6\.1 is too old, 10\.3 is the oldest"):
        load_tensorrt("tensorrt")
    install(tmp_path, monkeypatch, "__version__ = '10.16.1.11'")
    library = load_tensorrt("tensorrt")
    assert isinstance(library.trt, ModuleType)
    assert (library.title, library.is_rtx) == ("TensorRT 10.16.1.11", False)


def test_errors_are_collected_and_the_rest_is_not() -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
    library = load_tensorrt("tensorrt_rtx")
    log = collecting_log(library)
    severity = library.trt.ILogger.Severity
    for kind, message in (
        (severity.INFO, "hello"),
        (severity.WARNING, "hm"),
        (severity.ERROR, "no"),
        (severity.INTERNAL_ERROR, "oh"),
    ):
        log.log(kind, message)
    assert log.problems == ["no", "oh"]


def test_a_message_loses_its_source_lines() -> None:
    told = "[localCheckMacros.cpp::getErrorStr::132] Error Code 2: OutOfMemory (Requested size was 5 bytes.)"
    assert plain(told) == "Error Code 2: OutOfMemory (Requested size was 5 bytes.)"
    told = (
        "IBuilder::x: Error Code 4: API Usage Error (No profile. In validate at /_src/optimizer/api/network.cpp:4023)"
    )
    assert plain(told) == "IBuilder::x: Error Code 4: API Usage Error (No profile.)"
