"""Engine errors: the messages of TensorRT's parser and builder as one line that says what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnet_edge.errors import EngineBuildError
from nnet_edge.runtime.runners.trt.library import TensorrtLibrary, plain

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


def parse_error(library: TensorrtLibrary, graph: Path, errors: Sequence[Any]) -> EngineBuildError:
    """The parser's errors (of type ParserError) as one."""
    reasons = []
    for complaint in errors:
        operator = complaint.node_operator()
        where = f"node {complaint.node_name()} ({operator}): " if operator else ""
        reasons.append(where + "; ".join(telling(complaint.desc().splitlines())))
    text = shortened(reasons)
    return EngineBuildError(f"{library.title} cannot read {graph}: {text}; {advice(text, UNREADABLE)}")


def build_error(
    library: TensorrtLibrary,
    graph: Path,
    problems: Sequence[str],
    workspace_mib: int | None = None,
    largest_batch: int = 0,
) -> EngineBuildError:
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
