"""Energy that the machine's own meters tell: a GPU through NVML, a Jetson through tegrastats; nothing is estimated.

NVML counts the joules of the whole card since the driver was loaded. tegrastats prints watts, which are summed here over
time. A figure per frame is the whole card's or module's, what it takes idle included.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NVML_LIBRARY = "libnvidia-ml.so.1"
EVERY_MS = 100  # between two lines of tegrastats
BOARD_RAILS = ("VDD_IN", "POM_5V_IN")  # what the whole module takes, by the generation of the Jetson


class EnergyMeter:
    """A running count of joules; `source` says what counts them."""

    source: str

    def joules(self) -> float | None:
        """The count now; None where it is not known."""
        raise NotImplementedError

    def since(self, before: float | None) -> float | None:
        """Joules since an earlier count; None where either is not known."""
        now = self.joules()
        return None if now is None or before is None else now - before


class NoMeter(EnergyMeter):
    """A machine that tells no energy."""

    def __init__(self, why: str) -> None:
        self.source = f"not told: {why}"

    def joules(self) -> float | None:
        """None."""
        return None


class NvmlMeter(EnergyMeter):
    """The energy counter of the first card; `nvml` is the library, loaded and initialised."""

    source = "NVML, the whole card"

    def __init__(self, nvml: Any, device: ctypes.c_void_p) -> None:
        self._nvml, self._device = nvml, device

    def joules(self) -> float | None:
        """The count now; None when the driver does not answer."""
        millijoules = ctypes.c_ulonglong()
        if self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device, ctypes.byref(millijoules)):
            return None
        return millijoules.value / 1e3


class TegraMeter(EnergyMeter):
    """The power that tegrastats prints, summed over time by a thread that reads its lines."""

    source = "tegrastats, the whole module"

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._joules: float | None = None
        self._thread = threading.Thread(target=self._read, name="tegrastats", daemon=True)
        self._thread.start()

    def joules(self) -> float | None:
        """The sum so far; None before the first two lines."""
        return self._joules

    def close(self) -> None:
        """End tegrastats and the thread that reads it."""
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        before_s = None
        for line in self._process.stdout:
            watts, now_s = watts_of(line), time.monotonic()
            if watts is not None and before_s is not None:
                self._joules = (self._joules or 0.0) + watts * (now_s - before_s)  # this thread alone writes it
            before_s = now_s
        self._process.stdout.close()


def watts_of(line: str) -> float | None:
    """What the module takes by a line of tegrastats ("VDD_IN 5230mW/5100mW", older "POM_5V_IN 2300/2300"); None: not said."""
    found = re.search(rf"\b(?:{'|'.join(BOARD_RAILS)}) (\d+)(?:mW)?/", line)
    return int(found.group(1)) / 1e3 if found else None


@contextmanager
def measuring_energy(library: str = NVML_LIBRARY) -> Iterator[EnergyMeter]:
    """The meter of this machine, for as long as the block takes."""
    program = shutil.which("tegrastats")
    if program is None:
        yield open_nvml(library)
        return
    tegra = TegraMeter(subprocess.Popen([program, "--interval", str(EVERY_MS)], stdout=subprocess.PIPE, text=True))
    try:
        yield tegra
    finally:
        tegra.close()


def open_nvml(library: str = NVML_LIBRARY) -> EnergyMeter:
    """The counter of the first card, or why there is none."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return NoMeter(f"neither tegrastats nor {library} is here")
    device = ctypes.c_void_p()
    if status := nvml.nvmlInit_v2():
        return NoMeter(f"NVML does not start (error {status})")
    if status := nvml.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(device)):
        return NoMeter(f"NVML finds no card (error {status})")
    meter = NvmlMeter(nvml, device)
    return meter if meter.joules() is not None else NoMeter("this card has no energy counter")
