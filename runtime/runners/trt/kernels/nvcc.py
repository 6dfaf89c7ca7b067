"""Compilation of the kernels with the nvcc of this machine, cached for each GPU, source and compiler.

PTX written by a newer CUDA does not load on an older driver (a Jetson with CUDA 12.6), so nothing is shipped compiled.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

from nnet_edge.errors import ConfigError, EngineBuildError, MissingExtraError
from nnet_edge.files import require_private, user_cache, write_atomically
from nnet_edge.geometry import DEFAULT
from nnet_edge.sealed import read_sealed, seal

SOURCES = Path(__file__).parent
KERNELS = ("preprocess", "anomaly_map")  # file and function of each
VARIANTS = ("preprocess_staged", "anomaly_map_wide")  # that benchmarks compare with them
USUAL_PLACE = "/usr/local/cuda/bin"  # where the toolkit lies on a Jetson, which does not put it on PATH
FLAGS = ("-O3", "-std=c++17")
TIMEOUT_S = 300.0


def default_cache() -> Path:
    """Where compiled kernels lie unless told otherwise."""
    return user_cache("kernels")


def installed_nvcc() -> str | None:
    """The path of the CUDA compiler, None where there is none."""
    return shutil.which("nvcc") or shutil.which("nvcc", path=USUAL_PLACE)


def find_nvcc() -> str:
    """The path of the CUDA compiler. Raises MissingExtraError with the packages that bring it."""
    found = installed_nvcc()
    if found is None:
        raise MissingExtraError(
            f"the CUDA compiler nvcc is neither on PATH nor in {USUAL_PLACE}, and the kernels are compiled for this GPU: "
            "install the CUDA toolkit (on a Jetson: sudo apt install cuda-nvcc-12-6 cuda-cudart-dev-12-6)"
        )
    return found


def defines_for(size: tuple[int, int]) -> tuple[str, ...]:
    """The flags that compile the kernels for inputs of `size` (height, width); none for 256x256."""
    return () if size == DEFAULT.size else (f"-DNNET_HEIGHT={size[0]}", f"-DNNET_WIDTH={size[1]}")


def cubin_for(
    kernel: str, compute_capability: str, cache: Path | None = None, size: tuple[int, int] = DEFAULT.size
) -> bytes:
    """The machine code of `kernel` for a GPU of that compute capability ("8.9") and inputs of `size`, cached or compiled.

    Raises MissingExtraError without nvcc, EngineBuildError when nvcc refuses, ConfigError for a cache folder that cannot
    be written. Without nvcc the newest cached cubin of the same sources is used.
    """
    cache = cache or default_cache()
    architecture = f"sm_{compute_capability.replace('.', '')}"
    defines = defines_for(size)
    name = f"{kernel}-{architecture}-{source_hash(kernel, defines)}"
    nvcc = installed_nvcc()
    version = "*" if nvcc is None else compiler_version(nvcc)
    there = sorted(cache.glob(f"{name}-{version}.cubin"), key=lambda path: path.stat().st_mtime, reverse=True)
    for file in there:
        if (kept := read_sealed(require_private(file, "the compiled kernel"))) is not None:
            return kept
    cubin = compile_kernel(kernel, (*defines, "-cubin", f"-arch={architecture}"))
    try:
        require_private(cache, "the kernel cache")
        write_atomically(cache / f"{name}-{version}.cubin", cubin)
        seal(cache / f"{name}-{version}.cubin", cubin)
    except OSError as error:
        raise ConfigError(
            f"the compiled kernels cannot be kept in {cache} ({error.strerror}): choose another folder with --cache-dir"
        ) from error
    return cubin


@lru_cache(maxsize=4)
def compiler_version(nvcc: str) -> str:
    """The version of the compiler at `nvcc`, "13.0.88"; "unknown" where it does not say."""
    try:
        finished = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.search(r"\bV(\d+(\.\d+)*)", finished.stdout)
    return found.group(1) if found else "unknown"


def source_hash(kernel: str, defines: tuple[str, ...] = ()) -> str:
    """16 hexadecimal digits that change with the kernel's source, with any header and with the flags."""
    digest = hashlib.sha256(" ".join((*FLAGS, *defines)).encode())
    for path in (*sorted(SOURCES.glob("*.h")), SOURCES / f"{kernel}.cu"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def compile_kernel(kernel: str, target: tuple[str, ...]) -> bytes:
    """What nvcc makes of `kernel` with the flags `target`. Raises MissingExtraError and EngineBuildError."""
    nvcc = find_nvcc()
    with tempfile.TemporaryDirectory(prefix="nnet-edge-nvcc-") as folder:
        out = Path(folder) / kernel
        command = [nvcc, *FLAGS, *target, "-o", str(out), str(SOURCES / f"{kernel}.cu")]
        try:
            finished = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as error:
            raise EngineBuildError(f"nvcc took longer than {TIMEOUT_S:.0f} s for {kernel}.cu: try again") from error
        if finished.returncode != 0 or not out.is_file():
            said = " ".join((finished.stderr or finished.stdout).split())[-600:] or f"exit code {finished.returncode}"
            raise EngineBuildError(
                f"nvcc cannot compile {kernel}.cu with {' '.join(target)}: {said}; it needs a host compiler (g++) that "
                "it knows, and a CUDA toolkit that knows this GPU"
            )
        return out.read_bytes()
