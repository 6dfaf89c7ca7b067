"""Modules that wait until they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

from nnet_edge.lazy import LazyModule, importing


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_lazy_module_is_imported_when_a_name_of_it_is_used() -> None:
    code = "import sys; from nnet_edge.lazy import LazyModule; m = LazyModule('wave'); print('wave' in sys.modules)"
    assert run_python(f"{code}; print(m.Error.__name__, 'wave' in sys.modules)").split() == ["False", "Error", "True"]
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        LazyModule("no_such_module").anything  # noqa: B018


def test_what_cannot_be_imported_meanwhile_fails_where_it_is_needed() -> None:
    with importing("no_such_module", "wave"):
        pass
    with pytest.raises(ModuleNotFoundError):
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401


def test_a_line_without_such_a_camera_or_sink_imports_no_network_library() -> None:
    code = "import sys; from nnet_edge.settings.registry import SINKS, SOURCES; SINKS.names(), SOURCES.names()"
    found = run_python(
        f"{code}; print([name for name in ('asyncio', 'http.client', 'numpy', 'cv2') if name in sys.modules])"
    )
    assert found.strip() == "[]"


def test_openvino_s_converter_is_there_for_whoever_asks_for_it() -> None:
    code = (
        "import sys, nnet_edge.runtime.runners.openvino_runner, openvino\n"
        "print('openvino.tools.ovc' in sys.modules)\n"
        "from openvino import convert_model\n"
        "print(convert_model is openvino.convert_model is openvino.tools.ovc.convert_model, hasattr(openvino, 'nothing'))"
    )
    assert run_python(code).split() == ["False", "True", "False"]
