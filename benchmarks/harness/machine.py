"""The machine in words, for the head of every report, and the energy that its own meters tell; nothing is estimated.

Processor, GPU, clocks, power mode, versions, and how busy it was: a Jetson in its 15 W mode is another machine than the same
board at full power, and a governor that saves power makes the first second slow. What cannot be found out is left out or
"unknown", never guessed.

Energy: NVML counts the joules of a whole GPU since the driver was loaded. tegrastats prints what a whole Jetson takes, watts,
which are summed here over time. A figure per frame is the whole card's or module's, what it takes idle included.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnet_edge.bundle import versions
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.machine import find_libraries, find_processor, has_module, program_output, usable_cores
from nnet_edge.runtime.runners.trt.library import JETSON_RELEASE

SYSTEM = Path("/sys")
GPU_DEVICES = ("*gpu*", "*ga10b*", "*gv11b*", "*gp10b*")  # of a Jetson, by the names of its kernels
STATE = ("clocks.sm", "clocks.max.sm", "clocks.mem", "power.limit", "temperature.gpu", "utilization.gpu", "pstate")
PATIENCE = 10.0  # times the time that a program is given elsewhere: jetson_clocks is slow
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
        "threads": f"{threads or usable_cores()} for every candidate",
        "versions": ", ".join(f"{name} {version}" for name, version in known_versions().items()),
    }


def power_and_clocks(system: Path = SYSTEM) -> str:
    """In words: "power mode MAXN; CPU 2.20 of 2.20 GHz (schedutil); GPU 1300 of 1300 MHz (...)", or "unknown"."""
    mode = re.search(r"Power Mode\s*:\s*(\S+)", output(["nvpmodel", "-q"]))
    mode_text = f"power mode {mode.group(1)}" if mode else ""
    parts = (mode_text, cpu_clock(system), jetson_gpu_clock(system))
    return "; ".join(part for part in parts if part) or "unknown"


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
    for folder in (folder for pattern in GPU_DEVICES for folder in sorted(system.glob(f"class/devfreq/{pattern}"))):
        now, most = _number(folder / "cur_freq"), _number(folder / "max_freq")
        if now and most:
            return f"GPU {now / 1e6:.0f} of {most / 1e6:.0f} MHz ({_text(folder / 'governor') or 'no governor'})"
    return ""


def describe_gpu(gpu: GpuFacts) -> dict[str, str]:
    """GPU, driver, clocks and power."""
    facts = {
        "gpu": f"{gpu.name}, compute capability {gpu.compute_capability}, {gpu.memory_mib} MiB",
        "driver": f"{gpu.driver or 'unknown'}, CUDA {gpu.cuda}",
    }
    if JETSON_RELEASE.exists():
        return facts | jetson_state()
    lines = output(["nvidia-smi", f"--query-gpu={','.join(STATE)}", "--format=csv,noheader"]).splitlines()
    fields = [field.strip() for field in lines[0].split(",")] if lines else []
    if len(fields) != len(STATE):
        return facts | {"clocks and power": "unknown: nvidia-smi does not say"}
    return facts | dict(zip(STATE, fields, strict=True))


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


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """torch on `number` threads; as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def torch_has_cuda() -> bool:
    """Whether torch is here and computes on a GPU."""
    if not has_module("torch"):
        return False
    import torch

    return bool(torch.cuda.is_available())


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdigit() else None


NVML_LIBRARY = "libnvidia-ml.so.1"
EVERY_MS = 100  # between two lines of tegrastats
BOARD_RAILS = ("VDD_IN", "POM_5V_IN")  # what the whole module takes, by the generation of the Jetson


@dataclass(frozen=True)
class EnergyMeter:
    """A running count of joules; `source` says what counts them."""

    source: str
    joules: Callable[[], float | None]  # the count now; None where it is not known

    def since(self, before: float | None) -> float | None:
        """Joules since an earlier count; None where either is not known."""
        now = self.joules()
        return None if now is None or before is None else now - before


def no_meter(why: str) -> EnergyMeter:
    """That of a machine that tells no energy."""
    return EnergyMeter(f"not told: {why}", lambda: None)


@contextmanager
def measuring_energy(library: str = NVML_LIBRARY) -> Iterator[EnergyMeter]:
    """The meter of this machine, for as long as the block takes."""
    program = shutil.which("tegrastats")
    if program is None:
        yield open_nvml(library)
        return
    counted: list[float] = []  # the joules so far, once two lines were read; one thread alone writes it

    def read(lines: Iterator[str]) -> None:
        before_s = None
        for line in lines:
            watts, now_s = watts_of(line), time.monotonic()
            if watts is not None and before_s is not None:
                counted[:] = [sum(counted) + watts * (now_s - before_s)]
            before_s = now_s

    command = [program, "--interval", str(EVERY_MS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        thread = threading.Thread(target=read, args=(process.stdout,), name="tegrastats", daemon=True)
        thread.start()
        try:
            yield EnergyMeter("tegrastats, the whole module", lambda: sum(counted) if counted else None)
        finally:
            process.terminate()
            thread.join()


def watts_of(line: str) -> float | None:
    """What the module takes by a line of tegrastats ("VDD_IN 5230mW/5100mW", older "POM_5V_IN 2300/2300"); None: not said."""
    found = re.search(rf"\b(?:{'|'.join(BOARD_RAILS)}) (\d+)(?:mW)?/", line)
    return int(found.group(1)) / 1e3 if found else None


def open_nvml(library: str = NVML_LIBRARY) -> EnergyMeter:
    """The energy counter of the first card, or why there is none."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return no_meter(f"neither tegrastats nor {library} is here")
    device = ctypes.c_void_p()
    if status := nvml.nvmlInit_v2():
        return no_meter(f"NVML does not start (error {status})")
    if status := nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
        return no_meter(f"NVML finds no card (error {status})")

    def joules() -> float | None:
        millijoules = ctypes.c_ulonglong()
        failed = nvml.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules))
        return None if failed else millijoules.value / 1e3

    return (
        EnergyMeter("NVML, the whole card", joules)
        if joules() is not None
        else no_meter("this card has no energy counter")
    )
