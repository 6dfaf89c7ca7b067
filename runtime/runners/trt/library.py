"""Import of TensorRT or TensorRT-RTX, and its messages: collected, and told as one line that says what to do.

`tensorrt` (TensorRT 10.3 to 11.x; on a Jetson it comes with JetPack) and `tensorrt_rtx` (TensorRT-RTX 1.7) have one API, as
far as nnet-edge uses it; `tests/data/tensorrt_api` holds the names of each version. Nothing else imports either.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, EngineBuildError, MissingExtraError

FLAVOURS = ("tensorrt", "tensorrt_rtx")  # also the names of the modules
TITLES = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
OLDEST = {"tensorrt": (10, 3), "tensorrt_rtx": (1, 7)}
JETSON_RELEASE = Path("/etc/nv_tegra_release")  # JetPack's own mark
SHOWN = 3  # messages; the first ones name the cause, the rest follow from it
ADVICE = (  # what TensorRT says -> what to do; the first that fits
    (r"out ?of ?memory", "give the builder more memory: close what else uses the GPU, or lower --batch"),
    (r"libnvinfer_(lean|builder|plugin)", "this installation of TensorRT is not complete: install it again"),
    (r"no importer|unsupported operator|plugin.*not found|checkFallbackPluginImporter",
     "this TensorRT does not know the operator: write the graph again with `export` or `calibrate`"),
    (r"zero.?point", "INT8 must be symmetric: write the graph again with `calibrate`"),
    (r"must have type|of same type",
     "TensorRT does not take these number types together: write the graph again with `export` or `calibrate`"),
    (r"driver version is insufficient|no CUDA-capable|cudaError (35|100)|CUDA initialization",
     "it needs an NVIDIA GPU and its driver: name cards as --target rtx:sm86,sm89 to build without one"),
    (r"could not find any implementation",
     "no kernel fits: give more --workspace, or build with --optimization 3 or above"),
    (r"compute capab|\bSM ?\d+ is not supported|unsupported SM",
     "this TensorRT does not build for that GPU: name another --target"),
)  # fmt: skip
NO_DRIVER = r"driver version is insufficient|no CUDA-capable"  # said beside every other error where there is no driver
UNREADABLE = "write the graph again with `export` or `calibrate`"
OTHERWISE = "report it with the versions that `nnet-edge doctor` prints"

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


def capability_named(trt: Any, compute_capability: str) -> Any:
    """TensorRT-RTX's own value for "8.9", also for one that it has no name for: then it says that it refuses it."""
    return trt.ComputeCapability(int(compute_capability.replace(".", "")))


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


def parse_error(library: TensorrtLibrary, graph: Path, errors: Sequence[Any]) -> EngineBuildError:
    """The parser's errors (of type ParserError) as one."""
    reasons = []
    for complaint in errors:
        operator = complaint.node_operator()
        where = f"node {complaint.node_name()} ({operator}): " if operator else ""
        reasons.append(where + "; ".join(telling(complaint.desc().splitlines())))
    text = shortened(reasons)
    return EngineBuildError(f"{library.title} cannot read {graph}: {text}; {advice(text, UNREADABLE)}")


def build_error(library: TensorrtLibrary, graph: Path, problems: Sequence[str], workspace_mib: int | None = None,
                largest_batch: int = 0) -> EngineBuildError:  # fmt: skip
    """The builder's errors, as its log collected them, as one."""
    text = shortened(telling(problems))
    what_to_do = advice(text)
    if workspace_mib is not None and re.search(ADVICE[0][0], text, re.IGNORECASE):
        batches = f"batches up to {largest_batch}"
        what_to_do = f"--workspace {workspace_mib} MiB is too little for {batches}: give more of it, or lower --batch"
    return EngineBuildError(f"{library.title} cannot build an engine of {graph}: {text}; {what_to_do}")


def telling(messages: Sequence[str]) -> list[str]:
    """The messages in plain words; that there is no driver is left out where something else was said too."""
    words = [word for message in messages if (word := plain(message))]
    others = [word for word in words if not re.search(NO_DRIVER, word)]
    return others or words


def advice(text: str, otherwise: str = OTHERWISE) -> str:
    """What to do about a complaint."""
    return next((words for pattern, words in ADVICE if re.search(pattern, text, re.IGNORECASE)), otherwise)


def shortened(reasons: Sequence[str]) -> str:
    """The first few different reasons, and how many more there are."""
    different = list(dict.fromkeys(reason for reason in reasons if reason)) or ["it gave no reason"]
    more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    return "; ".join(different[:SHOWN]) + more
