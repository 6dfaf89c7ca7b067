"""The driver's answers, from a library with the driver's functions that is compiled here, and from this machine itself."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from nnet_edge.gpu import GpuFacts, NoGpu, driver_version, find_gpu

DRIVER = """
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = 40 + index; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "RTX of a test", length); return device == 41 ? 0 : 1; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 12 : 1; return device != 41; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)24 << 30; return 0; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
"""


@pytest.fixture
def driver(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The path of a library with the driver's functions; its parameter is what cuInit answers."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here: the driver's answers cannot be tried")
    source, library = tmp_path / "driver.c", tmp_path / "libdriver.so"
    source.write_text(DRIVER)
    status = getattr(request, "param", 0)
    subprocess.run(["gcc", "-shared", "-fPIC", f"-DINIT={status}", "-o", library, source], check=True)
    return str(library)


def test_the_drivers_answers_are_understood(driver: str) -> None:
    gpu = find_gpu(1, driver)
    assert isinstance(gpu, GpuFacts)
    assert (gpu.name, gpu.compute_capability, gpu.target) == ("RTX of a test", "12.1", "sm121")
    assert (gpu.cuda, gpu.memory_mib) == ("13.2", 24 * 1024)


def test_a_gpu_that_the_driver_cannot_describe_is_none(driver: str) -> None:
    assert find_gpu(0, driver) == NoGpu("the NVIDIA driver cannot describe GPU 0 (cuDeviceGetName: error 1)")


def test_a_gpu_beyond_the_last_is_none(driver: str) -> None:
    assert find_gpu(2, driver) == NoGpu("there is no GPU 2: the NVIDIA driver lists 2")


@pytest.mark.parametrize("driver", [100], indirect=True)
def test_a_driver_without_a_gpu_says_so(driver: str) -> None:
    assert find_gpu(0, driver) == NoGpu("the NVIDIA driver finds no GPU (cuInit: error 100)")


def test_no_driver_is_no_gpu() -> None:
    assert find_gpu(0, "libabsent.so.1") == NoGpu("there is no NVIDIA driver here (libabsent.so.1 cannot be loaded)")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27\nGCC version: gcc 12.3.0\n",
            "580.65.06",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n", "540.4.0"),
        ("nothing of the kind\n", None),
    ],
)
def test_the_drivers_version_is_the_kernels(text: str, version: str | None, tmp_path: Path) -> None:
    file = tmp_path / "version"
    file.write_text(text)
    assert driver_version(file) == version
    assert driver_version(tmp_path / "absent") is None
