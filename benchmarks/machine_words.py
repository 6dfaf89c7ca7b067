"""The machine in words, for the head of every report: what a reader must know to judge its numbers."""

from __future__ import annotations

import os
import platform

from nnet_edge.benchmarks.gpu_machine import describe_gpu
from nnet_edge.bundle import versions
from nnet_edge.machine import find_libraries, find_processor
from nnet_edge.power import power_and_clocks
from nnet_edge.runtime.gpu_facts import NoGpu, find_gpu
from nnet_edge.runtime.graph_runner import cores

IDLE_LOOK_S = 1.0
BUSY_PERCENT = 10.0  # above it a report warns
ENGINE_LIBRARIES = ("tensorrt", "tensorrt_rtx")


def describe_machine(threads: int | None) -> dict[str, str]:
    """Processor, memory, threads, GPU, driver, clocks and power mode, operating system and versions, in words."""
    processor = find_processor()
    memory = "" if processor.memory_gib is None else f", {processor.memory_gib:.0f} GiB"
    gpu = find_gpu()
    return {
        **({"gpu": f"none: {gpu.reason}"} if isinstance(gpu, NoGpu) else describe_gpu(gpu)),
        "processor": f"{processor.model}, {processor.cores} cores, {processor.usable_cores} usable{memory}; "
        f"{', '.join(processor.features)}",
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        "power and clocks": power_and_clocks(),
        "threads": f"{threads or cores()} for every contender",
        "versions": ", ".join(f"{name} {version}" for name, version in known_versions().items()),
    }


def known_versions() -> dict[str, str]:
    """Every installed library that can change a number."""
    found = {name: version for name, version in versions().items() if version is not None}
    engines = {one.module: one.version for one in find_libraries() if one.module in ENGINE_LIBRARIES}
    return found | {name: version for name, version in engines.items() if version is not None}


def busy_percent() -> float:
    """How busy others keep all cores, 0 to 100, over IDLE_LOOK_S in which this process sleeps."""
    import psutil

    return float(psutil.cpu_percent(IDLE_LOOK_S))


def busy_warning(percent: float) -> list[str]:
    """The sentence that a report begins with when the machine was not idle; threads that wait for each other suffer most."""
    if percent <= BUSY_PERCENT:
        return []
    return [f"THE MACHINE WAS NOT IDLE ({percent:.0f} % busy before): quote none of this, measure again"]


def load_words(percent: float) -> str:
    """How busy the machine was before, with the load of the last minute."""
    return f"{percent:.0f} % of all cores, load {os.getloadavg()[0]:.1f}"
