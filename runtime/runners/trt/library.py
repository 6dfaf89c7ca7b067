"""Import of TensorRT or TensorRT-RTX, and a logger that collects its messages.

`tensorrt` (TensorRT 10.3 to 11.x; on a Jetson it comes with JetPack) and `tensorrt_rtx` (TensorRT-RTX 1.7) have one API, as
far as nnet-edge uses it; `tests/data/tensorrt_api` holds the names of each version. Nothing else imports either.
"""

from __future__ import annotations

import importlib
import logging
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, MissingExtraError

FLAVOURS = ("tensorrt", "tensorrt_rtx")  # also the names of the modules
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
OLDEST = {"tensorrt": (10, 3), "tensorrt_rtx": (1, 7)}
JETSON_RELEASE = Path("/etc/nv_tegra_release")  # JetPack's own mark

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TensorrtLibrary:
    """An imported TensorRT. `trt` is the module; code that uses it says `trt.Name`, so that a test can read the names."""

    flavour: str  # one of FLAVOURS
    version: str  # as "10.3.0" or "1.7.1.116"
    trt: Any

    @property
    def title(self) -> str:
        """Name and version, as "TensorRT-RTX 1.7.1.116"."""
        return f"{TITLES[self.flavour]} {self.version}"

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX."""
        return self.flavour == "tensorrt_rtx"


def installed_flavours() -> tuple[str, ...]:
    """The flavours that are installed; nothing is imported."""
    return tuple(flavour for flavour in FLAVOURS if find_spec(flavour) is not None)


def load_tensorrt(flavour: str) -> TensorrtLibrary:
    """The flavour "tensorrt" or "tensorrt_rtx", imported.

    Raises MissingExtraError that names what to install, or says why an installed one cannot be loaded; ConfigError for a
    version older than the first that is supported.
    """
    title = TITLES[flavour]
    if find_spec(flavour) is None:
        raise MissingExtraError(f"{title} is not installed: {how_to_install(flavour)}")
    try:
        module = importlib.import_module(flavour)
        version = str(module.__version__)
    except Exception as error:  # a library of CUDA that is missing comes as OSError, ImportError or RuntimeError
        reason = " ".join(str(error).split())
        advice = how_to_install(flavour)
        raise MissingExtraError(f"{title} is installed but cannot be loaded ({reason}): {advice}") from error
    if parse_version(version) < OLDEST[flavour]:
        oldest = ".".join(str(part) for part in OLDEST[flavour])
        raise ConfigError(f"{title} {version} is too old, {oldest} is the oldest that nnet-edge knows: update it")
    return TensorrtLibrary(flavour, version, module)


def how_to_install(flavour: str) -> str:
    """The command that brings a flavour to this machine."""
    if flavour == "tensorrt_rtx":
        return "pip install 'nnet-edge[rtx]'"
    if JETSON_RELEASE.exists():
        return (
            "it comes with JetPack (sudo apt install nvidia-jetpack); "
            "make the environment with python3 -m venv --system-site-packages"
        )
    return "pip install 'nnet-edge[tensorrt]'"


def parse_version(text: str) -> tuple[int, ...]:
    """The numbers that `text` begins with: (10, 3, 0) for "10.3.0.post1"; compared as numbers, "10.3" is above "5.1"."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


def collecting_log(library: TensorrtLibrary) -> Any:
    """A logger for TensorRT whose `problems` are the error messages so far; all messages go on to `logging`.

    TensorRT keeps no reference: hold the logger as long as what was made with it.
    """
    trt: Any = library.trt
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
        trt.ILogger.Severity.INFO: logging.DEBUG,
        trt.ILogger.Severity.VERBOSE: logging.DEBUG,
    }

    class CollectingLog(trt.ILogger):
        """Keeps the errors; the rest goes to `logging`."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.problems: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT, from any of its threads."""
            if levels[severity] == logging.ERROR:
                self.problems.append(message)
            logger.log(min(levels[severity], logging.INFO), "%s: %s", library.title, message)

    return CollectingLog()


def plain(message: str) -> str:
    """A message of TensorRT in one line, without the file and line of its source."""
    text = re.sub(r"^\[[\w.]+::[\w:~]+::\d+\]\s*", "", " ".join(message.split()))
    text = re.sub(r"\s*In [\w:~]+ at \S+:\d+", "", text)
    return re.sub(r"\s+\(\s*", " (", text).replace("( ", "(").strip(" .")
