"""Settings of the runner, and the checks that all settings share.

The command line parses its options into settings once; below it nothing reads an option or the environment.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from nnet_edge.errors import ConfigError

CPU_RUNNER_KINDS = ("openvino", "onnxruntime")  # of a graph
GPU_RUNNER_KINDS = ("tensorrt", "cuda")  # of an engine; of a graph, by ONNX Runtime
CUDA_RUNNER = "onnxruntime-cuda"  # the name of the kind "cuda" in gates, thresholds and verdicts
RUNNER_KINDS = ("auto", *CPU_RUNNER_KINDS, *GPU_RUNNER_KINDS)
PRECISIONS = ("fp32", "bf16")
HINTS = ("latency", "throughput")
LARGEST_BATCH = 256  # 256 images of 256x256 need 50 MB for the input and far more inside the network
MOST_GPUS = 64
NOWHERE = "none"  # in place of a cache folder


@dataclass(frozen=True)
class RunnerSettings:
    """How a graph is computed. Raises ConfigError for an invalid setting."""

    kind: str = (
        "auto"  # of a bundle what `choose_runner` finds; of a graph OpenVINO where it is installed, else ONNX Runtime
    )
    precision: str = "fp32"  # always set: OpenVINO would otherwise choose BF16 by itself where the processor has it
    threads: int | None = None  # None: the library's choice, one a core
    hint: str = "latency"  # "latency": all cores on one image; "throughput": an image for each core
    cache_dir: Path | None = None  # of what is compiled, by default in ~/.cache/nnet-edge; "none": keep no graphs
    max_batch: int = 8  # images in one infer
    gpu: int = 0  # of tensorrt and cuda, as CUDA counts them

    def __post_init__(self) -> None:
        require_choice("runner", self.kind, RUNNER_KINDS)
        require_choice("precision", self.precision, PRECISIONS)
        require_choice("hint", self.hint, HINTS)
        if self.threads is not None:
            require_between("threads", self.threads, 1, 1024)
        require_between("batch", self.max_batch, 1, LARGEST_BATCH)
        require_between("gpu", self.gpu, 0, MOST_GPUS - 1)

    @property
    def kept_in(self) -> Path | None:
        """The folder that was named for what is compiled; None where none was, or "none"."""
        return None if self.cache_dir is None or self.cache_dir.name == NOWHERE else self.cache_dir


def require_choice(what: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ConfigError unless `value` is one of `choices`."""
    if value not in choices:
        known = f"{', '.join(choices[:-1])} or {choices[-1]}" if len(choices) > 1 else choices[0]
        raise ConfigError(f"{what} {value!r} is unknown: choose {known}")


def require_between(what: str, value: int, smallest: int, largest: int) -> None:
    """Raise ConfigError unless `value` is a whole number in the range, both ends included."""
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value <= largest:
        raise ConfigError(f"{what} is {value!r}: it must be a whole number from {smallest} to {largest}")


def require_seconds(what: str, value: float, above: float | None = None) -> None:
    """Raise ConfigError unless `value` is a finite number of seconds, 0 or more, or larger than `above`."""
    if isinstance(value, bool) or not math.isfinite(value) or value < 0 or (above is not None and value <= above):
        bound = "0 or more" if above is None else f"above {above:g}"
        raise ConfigError(f"{what} are {value}: it must be a finite number, {bound}")


def require_positive(what: str, value: float) -> None:
    """Raise ConfigError unless `value` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{what} is {value!r}: it must be a finite number above 0")
