"""How fast the machine was allowed to run: power mode and clocks, for the machine line of every benchmark.

A Jetson in its 15 W mode is another machine than the same board at full power, and a governor that saves power makes the
first second slow. What cannot be found out is left out, never guessed.
"""

from __future__ import annotations

import re
from pathlib import Path

from nnet_edge.machine import program_output

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
