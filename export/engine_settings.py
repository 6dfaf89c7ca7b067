"""Settings of an engine build: target, profile, limits."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.gpu import GpuFacts, find_gpu
from nnet_edge.runtime.runners.trt.flavours import flavours_on
from nnet_edge.runtime.runners.trt.library import FLAVOURS, JETSON_RELEASE, how_to_install, installed_flavours
from nnet_edge.runtime.runners.trt.record import COMPATIBILITY
from nnet_edge.settings.runner import LARGEST_BATCH, require_between, require_choice

# target -> compute capability: the ones that TensorRT-RTX 1.7 names (none for Orin, Hopper or Thor); of others it is asked
RTX_TARGETS = {"sm75": "7.5", "sm80": "8.0", "sm86": "8.6", "sm89": "8.9", "sm120": "12.0", "sm121": "12.1"}
BUILDER_OPTIMIZATION = 3  # TensorRT's own default of 0 to 5


@dataclass(frozen=True)
class Profile:
    """The batches that an engine takes: from `smallest` to `largest`, fastest at `best`. Raises ConfigError."""

    smallest: int = 1
    best: int = 8
    largest: int = 32

    def __post_init__(self) -> None:
        for name, value in (("smallest", self.smallest), ("best", self.best), ("largest", self.largest)):
            require_between(f"the {name} batch", value, 1, LARGEST_BATCH)
        if not self.smallest <= self.best <= self.largest:
            raise ConfigError(f"batches {self.as_tuple()} do not ascend: give smallest,best,largest as 1,8,32")

    @classmethod
    def parse(cls, text: str) -> Profile:
        """The profile of "1,8,32", or of "8": batches from 1 to 8, fastest at 8. Raises ConfigError."""
        try:
            numbers = [int(part) for part in text.split(",")]
        except ValueError as error:
            raise ConfigError(f"{text!r} is no batch: give one number, or smallest,best,largest as 1,8,32") from error
        if len(numbers) == 1:
            return cls(1, numbers[0], numbers[0])
        if len(numbers) != 3:
            raise ConfigError(f"{text!r} has {len(numbers)} numbers: give one, or smallest,best,largest as 1,8,32")
        return cls(*numbers)

    def as_tuple(self) -> tuple[int, int, int]:
        """Smallest, best, largest."""
        return self.smallest, self.best, self.largest


@dataclass(frozen=True)
class Target:
    """Where an engine is to run, and which TensorRT builds it."""

    name: str  # "local", "jetson" or "rtx:sm86,sm89"
    flavour: str  # "tensorrt" or "tensorrt_rtx"
    compute_capabilities: tuple[str, ...] = ()  # of the named cards; empty: the GPU of this machine

    @property
    def needs_gpu(self) -> bool:
        """Whether the engine can only be built on the GPU that it is for."""
        return not self.compute_capabilities

    @property
    def slug(self) -> str:
        """The target in a file name, "rtx-sm86-sm89"."""
        return self.name.replace(":", "-").replace(",", "-")


def parse_target(text: str, jetson_release: Path = JETSON_RELEASE, gpu_index: int = 0) -> Target:
    """The target of "local", "jetson" or "rtx:sm86,sm89"; "local" means the first flavour that runs on this GPU.

    Raises ConfigError for one that is invalid, or that this machine cannot build for; MissingExtraError for "local"
    where no TensorRT is installed.
    """
    if text == "local":
        flavours = installed_flavours()
        if not flavours:
            ways = " or ".join(dict.fromkeys(how_to_install(flavour) for flavour in FLAVOURS))
            raise MissingExtraError(f"neither TensorRT nor TensorRT-RTX is installed: {ways}")
        gpu = find_gpu(gpu_index)
        refused = {item.flavour for item in flavours_on(gpu) if item.runs is False} if isinstance(gpu, GpuFacts) else ()
        return Target("local", next((flavour for flavour in flavours if flavour not in refused), flavours[0]))
    if text == "jetson":
        if platform.machine() != "aarch64" or not jetson_release.exists():
            raise ConfigError(
                "--target jetson: TensorRT builds an engine for a Jetson only on that Jetson; copy the bundle there "
                "and run the same command (docs/jetson.md)"
            )
        return Target("jetson", "tensorrt")
    kind, _, names = text.partition(":")
    if kind == "rtx" and names:
        wanted, known = set(names.split(",")), ", ".join(RTX_TARGETS)
        if unknown := sorted(name for name in wanted if not re.fullmatch(r"sm\d{2,3}", name)):
            raise ConfigError(f"--target {text}: cards are written as {known}, not as {', '.join(unknown)}")
        ordered = sorted(wanted, key=lambda name: int(name[2:]))
        return Target(f"rtx:{','.join(ordered)}", "tensorrt_rtx", tuple(f"{name[2:-1]}.{name[-1]}" for name in ordered))
    raise ConfigError(f"target {text!r} is unknown: choose local, jetson or rtx: and cards, as rtx:sm86,sm89,sm120")


@dataclass(frozen=True)
class EngineSettings:
    """How an engine is built. Raises ConfigError for an invalid setting."""

    target: Target
    profile: Profile = Profile()
    workspace_mib: int | None = None  # device memory that one layer may use; None: all
    optimization: int = BUILDER_OPTIMIZATION  # 0 builds quickest, 5 tries most
    hardware_compatibility: str = "none"
    version_compatible: bool = False
    gpu: int = 0  # of this machine, as CUDA counts them

    def __post_init__(self) -> None:
        if self.workspace_mib is not None:
            require_between("workspace (MiB)", self.workspace_mib, 1, 1 << 20)
        require_between("optimization", self.optimization, 0, 5)
        require_choice("hardware compatibility", self.hardware_compatibility, COMPATIBILITY)
        is_rtx = self.target.flavour == "tensorrt_rtx"
        if is_rtx and self.hardware_compatibility != "none":
            raise ConfigError(
                "TensorRT-RTX has no hardware compatibility levels: name the cards, --target rtx:sm86,sm89"
            )
        if is_rtx and self.version_compatible:
            raise ConfigError("TensorRT-RTX builds no version compatible engines: leave --version-compatible out")
