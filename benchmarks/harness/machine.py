"""The machine in words, for the head of every report: what a reader must know to judge its numbers.

How fast the machine was allowed to run: power mode and clocks, for the machine line of every benchmark.

A Jetson in its 15 W mode is another machine than the same board at full power, and a governor that saves power makes the
first second slow. What cannot be found out is left out, never guessed.

The GPU in words, with what decides how fast it is today: clocks, power limit, a Jetson's power mode.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from nnet_edge.bundle import versions
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.machine import find_libraries, find_processor, program_output
from nnet_edge.runtime.runners.graph import cores
from nnet_edge.runtime.runners.trt.library import JETSON_RELEASE

SYSTEM = Path("/sys")
GPU_DEVICES = ("*gpu*", "*ga10b*", "*gv11b*", "*gp10b*")  # of a Jetson, by the names of its kernels
SMI_FIELDS = "clocks.sm,clocks.max.sm,clocks.mem,power.limit,pstate"


def power_and_clocks(system: Path = SYSTEM) -> str:
    """In words: "power mode MAXN; CPU 2.20 of 2.20 GHz (schedutil); GPU 1300 of 1300 MHz (...)", or "unknown"."""
    parts = [power_mode(), cpu_clock(system), jetson_gpu_clock(system) or nvidia_clock()]
    return "; ".join(part for part in parts if part) or "unknown"


def power_mode() -> str:
    """The power mode that nvpmodel reports, on a Jetson only."""
    found = re.search(r"Power Mode\s*:\s*(\S+)", said_by("nvpmodel", "-q"))
    return f"power mode {found.group(1)}" if found else ""


def cpu_clock(system: Path) -> str:
    """The fastest core's clock now, the most it may reach, and the governor."""
    folders = sorted(system.glob("devices/system/cpu/cpu[0-9]*/cpufreq"))
    now = [value for folder in folders if (value := _number(folder / "scaling_cur_freq"))]
    most = [value for folder in folders if (value := _number(folder / "scaling_max_freq"))]
    if not now or not most:
        return ""
    governors = sorted({text for folder in folders if (text := _text(folder / "scaling_governor"))})
    return f"CPU {max(now) / 1e6:.2f} of {max(most) / 1e6:.2f} GHz ({', '.join(governors) or 'no governor'})"


def jetson_gpu_clock(system: Path) -> str:
    """The clock of a Jetson's GPU now and the most it may reach."""
    for pattern in GPU_DEVICES:
        for folder in sorted(system.glob(f"class/devfreq/{pattern}")):
            now, most = _number(folder / "cur_freq"), _number(folder / "max_freq")
            if now and most:
                return f"GPU {now / 1e6:.0f} of {most / 1e6:.0f} MHz ({_text(folder / 'governor') or 'no governor'})"
    return ""


def nvidia_clock() -> str:
    """The clocks of the first card as nvidia-smi reports them."""
    lines = said_by("nvidia-smi", f"--query-gpu={SMI_FIELDS}", "--format=csv,noheader,nounits").splitlines()
    fields = [field.strip() for field in lines[0].split(",")] if lines else []
    if len(fields) != len(SMI_FIELDS.split(",")) or not fields[0].isdigit():
        return ""
    now, most, memory, limit, state = fields
    return f"GPU {now} of {most} MHz, memory {memory} MHz, limit {limit} W, state {state}"


def said_by(*command: str) -> str:
    """What a program prints, "" where it is absent, fails or takes too long."""
    return program_output(command)[0] or ""


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdigit() else None


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
