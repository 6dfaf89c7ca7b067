"""Pictures and one small trained run that the tests share; everything is made here, nothing is downloaded.

`make test` runs them in one worker of pytest-xdist more than there are cores. What is dear is made once for all of them
(`made_once`), a port belongs to one test of one worker (`free_port`), and a test marked `alone` runs while no other does.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from pathlib import Path

import cv2
import numpy as np
import pytest
from filelock import FileLock

import nnet_edge
from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.cli.main import run
from nnet_edge.gpu import GpuFacts, find_gpu
from tests.private_network import private_network

ROOT = Path(__file__).parent.parent
LEARNED, HELD_OUT = 14, 10
IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MOST_WORKERS = 8  # each holds torch, OpenVINO and TensorRT; more than eight would wait for the longest tests
FIRST_PORT, PORTS = 20_000, 12_000  # below those that the kernel gives to connections


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: a worker a core that this process may use, a virtual one too, and one more; with a single core none.

    Tests of cameras, sinks and brokers wait most of their time: with one more no core waits with them.
    """
    return min(CORES + 1, MOST_WORKERS) if CORES > 1 else 0


def pytest_configure(config: pytest.Config) -> None:
    """Before torch is loaded, here and in the workers: they share the cores, and none burns one while its threads wait."""
    os.environ.setdefault("GOMP_SPINCOUNT", "0")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if workers := getattr(config.option, "numprocesses", None):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES // workers)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that none is left to one worker at the end; last those that must be alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.get_closest_marker("alone") is not None, item.path not in slow))


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the tests compile is kept in a folder of their own, not in the user's."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@contextmanager
def one_at_a_time(folder: Path, is_alone: bool) -> Iterator[None]:
    """With `is_alone` nothing else that asked in the same `folder` runs meanwhile; others run beside each other.

    Everyone comes in through a door, which one that wants to be alone keeps shut: it need not wait for ever.
    """
    import fcntl

    with (folder / "door.lock").open("w") as door, (folder / "room.lock").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH)
        if not is_alone:
            fcntl.flock(door, fcntl.LOCK_UN)
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` measures time: no other worker's test runs beside it."""
    with ExitStack() as stack:
        if IS_WORKER:
            folder = item.config._tmp_path_factory.getbasetemp().parent  # type: ignore[attr-defined]
            stack.enter_context(one_at_a_time(folder, item.get_closest_marker("alone") is not None))
        return (yield)


MadeOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """A function that gives the folder `name`, which the worker that asks first fills for all; no test changes it."""
    base = tmp_path_factory.getbasetemp()
    root = base.parent if IS_WORKER else base

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        folder, is_whole = root / name, root / f"{name}.whole"
        with FileLock(root / f"{name}.lock"):
            if not is_whole.exists():
                shutil.rmtree(folder, ignore_errors=True)  # what a worker left that could not make it
                folder.mkdir()
                fill(folder)
                is_whole.touch()
        return folder

    return made


@pytest.fixture(scope="module")
def no_broadcast() -> Iterator[None]:
    """Who asks for cameras asks nobody outside."""
    with private_network(is_needed=False):
        yield


@pytest.fixture
def free_port() -> Iterator[Callable[[], int]]:
    """A function that gives a port of 127.0.0.1 where nobody listens, for servers that must be told one.

    Until the test ends no other worker, nor another run of the tests on this machine, is given the same, and the kernel gives
    it to no connection: a server may stop there and start again. The sign that it is taken is a UDP socket of its number.
    """
    numbers = iter(range(PORTS))
    with ExitStack() as held:

        def give() -> int:
            for number in numbers:
                port = FIRST_PORT + (101 * os.getpid() + number) % PORTS
                try:
                    held.enter_context(socket.socket(type=socket.SOCK_DGRAM)).bind(("127.0.0.1", port))
                    with socket.socket() as probe:
                        probe.bind(("127.0.0.1", port))
                except OSError:
                    continue
                return port
            raise AssertionError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS} is free")

        yield give


def good_part(seed: int, side: int = 96) -> np.ndarray:
    """A grey washer on a dark belt, uint8 BGR (side, side, 3), a little different with every seed."""
    rng = np.random.default_rng(seed)
    picture = np.full((side, side, 3), 40, np.uint8)
    centre = tuple(int(value) for value in side // 2 + rng.integers(-2, 3, 2))
    cv2.circle(picture, centre, side // 3, (150, 155, 160), -1, cv2.LINE_AA)
    cv2.circle(picture, centre, side // 8, (45, 45, 45), -1, cv2.LINE_AA)
    noise = rng.normal(0, 3, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def bad_part(seed: int, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A washer with a bright stain, and the stain's mask, bool (side, side)."""
    picture = good_part(seed, side)
    mask = np.zeros((side, side), np.uint8)
    cv2.circle(mask, (side // 2 + side // 5, side // 2), side // 10, 255, -1)
    picture[mask > 0] = (30, 220, 240)
    return picture, mask > 0


HEIGHT, WIDTH = 6, 4  # of `rgb` and `deep`, which tests of images share


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def deep() -> np.ndarray:
    values = np.random.default_rng(2).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
    values[0, :, 0] = (0, 128, 129, 65535)  # 128 / 257 rounds down, 129 / 257 up
    return values


def over_257(deep: np.ndarray) -> np.ndarray:
    return np.round(deep / 257).astype(np.uint8)


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.fixture(scope="session")
def washers() -> np.ndarray:
    """Washers of slightly different brightness and place, uint8 RGB (6, 256, 256, 3); not to be written to."""
    pictures = np.full((6, 256, 256, 3), 50, np.uint8)
    for number, picture in enumerate(pictures):
        cv2.circle(picture, (128 + 3 * number, 128), 80, (140 + 9 * number, 150, 160), -1)
        cv2.circle(picture, (128 + 3 * number, 128), 30, (60, 50, 40), -1)
    return pictures


@pytest.fixture(scope="session")
def small_washers(washers: np.ndarray) -> np.ndarray:
    """The same as uint8 RGB (6, 64, 64, 3): where a training's size is not the point, it takes a third of the time."""
    return np.stack([cv2.resize(picture, (64, 64), interpolation=cv2.INTER_AREA) for picture in washers])


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread: the tests' networks are too small to share between threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def parts_folder(made_once: MadeOnce) -> Path:
    """A plain folder: good/ 24, test_good/ 4, bad/stain 4 with masks."""
    return made_once("parts", fill_parts)


def fill_parts(root: Path) -> None:
    for name in ("good", "test_good", "bad/stain", "masks/stain"):
        (root / name).mkdir(parents=True)
    for seed in range(LEARNED + HELD_OUT):
        assert cv2.imwrite(str(root / "good" / f"{seed:02d}.png"), good_part(seed))
    for seed in range(4):
        picture, mask = bad_part(200 + seed)
        assert cv2.imwrite(str(root / "test_good" / f"{seed}.png"), good_part(100 + seed))
        assert cv2.imwrite(str(root / "bad/stain" / f"{seed}.png"), picture)
        assert cv2.imwrite(str(root / "masks/stain" / f"{seed}.png"), 255 * mask.astype(np.uint8))


@pytest.fixture(scope="session")
def trained_run(parts_folder: Path, made_once: MadeOnce) -> Path:
    """What `nnet-edge train` leaves for `parts_folder` after a few epochs: training/ and bundle/."""

    def fill(folder: Path) -> None:
        quick = ["--set", "augmentation_copies=0", "--set", "model.memory_slots=128", "--checkpoint-every", "2"]
        few = ["--epochs", "4", "--batch", "7", *quick]
        assert run(["train", str(parts_folder), "--out", str(folder / "parts"), *few]) == 0

    return made_once("runs", fill) / "parts"


@pytest.fixture(scope="session")
def second_run(parts_folder: Path, made_once: MadeOnce) -> Path:
    """The same network trained anew for 64x64 pixels, one epoch, by a call that passes over a truncated image.

    data/, run/{training,bundle}/, said.txt, what was said on standard error, and trained.pickle, what the call gave.
    """

    def fill(folder: Path) -> None:
        data = shutil.copytree(parts_folder, folder / "data")
        (data / "good/truncated.png").write_bytes((data / "good/00.png").read_bytes()[:200])
        few = {"augmentation_copies": 0, "model.memory_slots": 128}
        with (folder / "said.txt").open("w") as said, redirect_stderr(said):
            trained = nnet_edge.train(data, folder / "run", skip_bad_images=True, epochs=1, size=64, set=few)
        (folder / "trained.pickle").write_bytes(pickle.dumps(trained))

    return made_once("second", fill)


@pytest.fixture(scope="session")
def camera_pack(made_once: MadeOnce, second_run: Path) -> Path:
    """What `nnet-edge pack` makes for a PC with this Python: the wheels of the constraints, and the bundle of `second_run`."""

    def fill(folder: Path) -> None:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        places = ["--out", str(folder / "pack"), "--constraint", str(ROOT / "constraints.txt")]
        assert run(["pack", str(second_run / "run/bundle"), "--for", "cpu", "--python", python, *places]) == 0

    return made_once("packs", fill) / "pack"


@pytest.fixture(scope="session")
def camera_box(made_once: MadeOnce, camera_pack: Path) -> Path:
    """An empty environment that the pack's install.sh made with the network off; gives its folder of programs."""

    def fill(folder: Path) -> None:
        environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable}
        with private_network(is_needed=False):
            subprocess.run(["sh", camera_pack / "install.sh", folder / "box"], check=True, env=environment)

    return made_once("boxes", fill) / "box/env/bin"


@pytest.fixture
def desk(second_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the examples are typed: runs/part/bundle, photos/ and part.png lie there."""
    shutil.copytree(second_run / "run/bundle", tmp_path / "runs/part/bundle")
    shutil.copytree(second_run / "data", tmp_path / "photos")
    (tmp_path / "photos/good/truncated.png").unlink()
    shutil.copy(tmp_path / "photos/good/00.png", tmp_path / "part.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def bundle(trained_run: Path) -> Bundle:
    """The bundle of `trained_run`; tests that change it copy the folder first."""
    return read_bundle(trained_run / "bundle")


@pytest.fixture
def gpu_here(request: pytest.FixtureRequest) -> GpuFacts:
    """The GPU of this machine; without one the test is skipped and says so."""
    found = find_gpu()
    if not isinstance(found, GpuFacts):
        pytest.skip(f"NO GPU ({found.reason}): {request.node.name} was NOT run")
    return found


@pytest.fixture
def engines_run_here(gpu_here: GpuFacts) -> None:
    """A TensorRT that runs on this GPU: one that refuses it skips the test and says so, one that breaks on it fails it."""
    from nnet_edge.runtime.runners.trt.flavours import flavours_on

    answers = flavours_on(gpu_here)
    assert not any(answer.is_broken for answer in answers), "; ".join(answer.sentence() for answer in answers)
    if not any(answer.runs for answer in answers):
        said = "; ".join(answer.sentence() for answer in answers) or "no TensorRT is installed"
        pytest.skip(f"THIS GPU CANNOT ({gpu_here.name}: {said}): engines were NOT run")
