"""The GPU in words, with what decides how fast it is today: clocks, power limit, a Jetson's power mode."""

from __future__ import annotations

import platform

from nnet_edge.machine import find_processor, program_output
from nnet_edge.runtime.gpu_facts import GpuFacts
from nnet_edge.runtime.tensorrt_library import JETSON_RELEASE

PATIENCE = 10.0  # times the time that a program is given elsewhere: jetson_clocks is slow
QUERY = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu", "utilization.gpu")


def describe_gpu(gpu: GpuFacts) -> dict[str, str]:
    """What a reader must know to judge the numbers: processor, GPU, driver, clocks and power; "unknown" where nobody says."""
    processor = find_processor()
    facts = {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{processor.model}, {processor.usable_cores} usable cores",
        "gpu": f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_mib} MiB",
        "driver": f"{gpu.driver or 'unknown'}, CUDA {gpu.cuda}",
    }
    return facts | (jetson_state() if JETSON_RELEASE.exists() else card_state())


def card_state() -> dict[str, str]:
    """Clocks, power and temperature of a card, as nvidia-smi says them before anything is measured."""
    text = output(["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"])
    values = [value.strip() for value in text.split(",")] if text else []
    if len(values) != len(QUERY):
        return {"clocks and power": "unknown: nvidia-smi does not say"}
    return dict(zip(QUERY, values, strict=True))


def jetson_state() -> dict[str, str]:
    """Release, power mode and clocks of a Jetson; the clocks are readable for root only."""
    release = JETSON_RELEASE.read_text(encoding="utf-8", errors="replace").splitlines()
    return {
        "jetson": release[0].lstrip("# ") if release else "unknown",
        "power mode": " ".join(output(["nvpmodel", "-q"]).split()) or "unknown: nvpmodel does not say",
        "clocks": " ".join(output(["jetson_clocks", "--show"]).split()) or "unknown: run as root to see jetson_clocks",
    }


def output(command: list[str]) -> str:
    """What a program writes to standard output, "" when it is absent, fails or does not answer."""
    return program_output(command, PATIENCE)[0] or ""
