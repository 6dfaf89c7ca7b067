"""The NVIDIA GPU of this process, asked of the driver: nothing to install, and it works on a Jetson too."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

DRIVER_LIBRARY = "libcuda.so.1"
DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")
NAME_BYTES, UUID_BYTES = 128, 16
MAJOR, MINOR = 75, 76  # CUdevice_attribute of cuda.h


@dataclass(frozen=True)
class GpuFacts:
    """A GPU and the driver it runs with."""

    name: str
    compute_capability: str  # "8.9"
    driver: str | None  # "580.65.06", None where the kernel does not say
    cuda: str  # the newest CUDA that the driver knows, "13.0"
    memory_mib: int
    index: int = 0  # as CUDA counts the GPUs
    uuid: str | None = None  # 32 hexadecimal digits; None where the driver does not say

    @property
    def target(self) -> str:
        """The compute capability as TensorRT-RTX writes it, "sm89"."""
        return f"sm{self.compute_capability.replace('.', '')}"


@dataclass(frozen=True)
class NoGpu:
    """Why there is no GPU."""

    reason: str


def find_gpu(index: int = 0, library: str = DRIVER_LIBRARY) -> GpuFacts | NoGpu:
    """The GPU of that index as CUDA counts them, or why there is none. Makes no CUDA context."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return NoGpu(f"there is no NVIDIA driver here ({library} cannot be loaded)")
    number = ctypes.c_int()
    if status := cuda.cuInit(0):
        return NoGpu(f"the NVIDIA driver finds no GPU (cuInit: error {status})")
    if status := cuda.cuDeviceGetCount(ctypes.byref(number)):
        return NoGpu(f"the NVIDIA driver does not count its GPUs (cuDeviceGetCount: error {status})")
    if index >= number.value:
        return NoGpu(f"there is no GPU {index}: the NVIDIA driver lists {number.value}")
    device, major, minor, newest = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(NAME_BYTES), ctypes.c_size_t()
    for call, arguments in (
        ("cuDeviceGet", (ctypes.byref(device), index)),
        ("cuDeviceGetName", (name, NAME_BYTES, device)),
        ("cuDeviceGetAttribute", (ctypes.byref(major), MAJOR, device)),
        ("cuDeviceGetAttribute", (ctypes.byref(minor), MINOR, device)),
        ("cuDeviceTotalMem_v2", (ctypes.byref(memory), device)),
        ("cuDriverGetVersion", (ctypes.byref(newest),)),
    ):
        if status := getattr(cuda, call)(*arguments):
            return NoGpu(f"the NVIDIA driver cannot describe GPU {index} ({call}: error {status})")
    capability, cuda_version = f"{major.value}.{minor.value}", f"{newest.value // 1000}.{newest.value % 1000 // 10}"
    title = name.value.decode(errors="replace")
    return GpuFacts(title, capability, driver_version(), cuda_version, memory.value >> 20, index, uuid_of(cuda, device))


def uuid_of(cuda: ctypes.CDLL, device: ctypes.c_int) -> str | None:
    """What tells this very GPU from others of its kind; None where the driver does not say."""
    held = (ctypes.c_ubyte * UUID_BYTES)()
    ask = getattr(cuda, "cuDeviceGetUuid", None)
    return bytes(held).hex() if ask is not None and ask(held, device) == 0 else None


def driver_version(file: Path = DRIVER_VERSION_FILE) -> str | None:
    """The version of the loaded kernel driver, "580.65.06"; None where the kernel does not say."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.search(r"\s(\d{3,}\.\d+(?:\.\d+)?)\s", text)
    return found.group(1) if found else None
