"""Training of a fleet: one task a part, lost workers tried again, finished parts kept."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnet_edge import __version__
from nnet_edge.cli.fleet.cluster import Cluster, WorkerLostError
from nnet_edge.cli.fleet.parts import FleetSettings, Part, key_of
from nnet_edge.cli.fleet.state import (
    BUNDLES,
    DONE,
    SAID,
    TRAININGS,
    WORKER,
    FleetState,
    PartState,
    now_text,
    read_json,
)
from nnet_edge.errors import NnetEdgeError
from nnet_edge.files import write_atomically
from nnet_edge.threads import COUNTS, SPINS

KEY = "key"  # the file of a training that says what it is of
LOOK_EVERY_S = 1.0
THREADS = (*COUNTS, "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")


@dataclass(frozen=True)
class Order:
    """What a worker is told; every path is seen by all machines."""

    name: str
    data: str
    arguments: tuple[str, ...]  # of `nnet-edge train`, behind DATA
    resumed: tuple[str, ...]  # those of a training that goes on, whose settings are fixed
    key: str
    out: str
    cpus: int
    version: str = __version__

    @property
    def place(self) -> Path:
        """The folder of the part's training."""
        return Path(self.out) / TRAININGS / self.name

    @property
    def bundle(self) -> Path:
        """Where its bundle goes."""
        return Path(self.out) / BUNDLES / self.name


def set_threads(cpus: int) -> None:
    """Give this process, which has not loaded torch yet, so many threads, which sleep while they wait."""
    os.environ.update({name: str(cpus) for name in THREADS} | {SPINS: "0"})


def train_part(order: Order) -> dict[str, Any]:
    """Train a part in this process, a worker's; gives its facts, or under "error" a sentence, with "again" where it may pass.

    A checkpoint of the same key is gone on with. The bundle is whole before the part counts as done.
    """
    began = time.time()
    outcome: dict[str, Any] = {"host": socket.gethostname()}
    try:
        if order.version != __version__:
            raise NnetEdgeError(f"nnet-edge {__version__} is installed on {outcome['host']}, and {order.version} asks")
        set_threads(order.cpus)
        order.place.mkdir(parents=True, exist_ok=True)
        write_atomically(order.place / WORKER, json.dumps({**outcome, "pid": os.getpid(), "began": began}).encode())
        outcome |= learn(order)
    except (Exception, KeyboardInterrupt) as error:
        words = str(error) if isinstance(error, NnetEdgeError) else f"{type(error).__name__}: {error}"
        outcome |= {"error": " ".join(words.split()), "again": not isinstance(error, NnetEdgeError)}
    return outcome | {"minutes": (time.time() - began) / 60}


def learn(order: Order) -> dict[str, Any]:
    """Train, or go on, and put the bundle in its place; gives the facts of it. Raises what `nnet-edge train` raises."""
    from nnet_edge.bundle import read_bundle
    from nnet_edge.cli.train import command
    from nnet_edge.training.checkpoint import CHECKPOINT

    place = order.place
    kept = place / KEY
    is_same = kept.is_file() and kept.read_text() == order.key
    goes_on = is_same and ((place / "training" / CHECKPOINT).exists() or (place / "folds" / CHECKPOINT).exists())
    if not goes_on:
        for name in ("training", "folds", "candidates", "bundle", "tracked"):
            shutil.rmtree(place / name, ignore_errors=True)
        write_atomically(kept, order.key.encode())
    arguments = ["--resume", *order.resumed] if goes_on else list(order.arguments)
    with (place / SAID).open("a", encoding="utf-8", errors="backslashreplace") as said, redirect_stderr(said):
        code = command.main([order.data, "--out", str(place), *arguments], "nnet-edge train", standalone_mode=False)
    if code:
        raise InterruptedError(f"the training ended with exit code {code}: see {place / SAID}")
    bundle = read_bundle(place / "bundle")
    facts = {
        "images": bundle.manifest["data"]["learned"], "epochs": bundle.manifest["trained"]["epochs"],
        "threshold": bundle.threshold.value, "expected_false_rejects": bundle.threshold.expected_false_rejects,
    }  # fmt: skip
    (place / DONE).unlink(missing_ok=True)
    shutil.rmtree(order.bundle, ignore_errors=True)
    order.bundle.parent.mkdir(parents=True, exist_ok=True)
    (place / "bundle").rename(order.bundle)
    write_atomically(place / DONE, json.dumps({"key": order.key, "facts": facts}).encode())
    return facts


def orders_of(settings: FleetSettings, out: Path, log: tuple[str, ...]) -> dict[str, Order]:
    """What each part's worker is told. Raises ConfigError."""
    from nnet_edge.cli.training_settings import SETTING_OPTIONS

    logs = [word for name in log for word in ("--log", name)]

    def order(part: Part) -> Order:
        flags, data = settings.flags_of(part), part.data.resolve()
        arguments = flags.arguments()
        key = key_of(data, flags.arguments(leave_out=("threads", "nice")))
        return Order(part.name, str(data), (*arguments, *logs), (*flags.arguments(leave_out=SETTING_OPTIONS), *logs), key,
                     str(out.resolve()), settings.cpus_of(part))  # fmt: skip

    return {part.name: order(part) for part in settings.parts}


def done_before(order: Order) -> dict[str, Any] | None:
    """The facts of a part that was finished by the same key; None where it is still to do."""
    done = read_json(order.place / DONE)
    if done is None or done.get("key") != order.key or not (order.bundle / "manifest.json").is_file():
        return None
    facts: dict[str, Any] = done["facts"]
    return facts


def train_fleet(
    settings: FleetSettings, out: Path, cluster: Cluster, log: tuple[str, ...] = (), file: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> FleetState:  # fmt: skip
    """Train every part that is not done yet on the cluster, into the folder `out`, which is locked; gives what became of each.

    A part whose worker was lost is tried again, `retries` times, from its last checkpoint; one that is refused is not.
    """
    orders = orders_of(settings, out, log)
    parts = {part.name: PartState(part.name, orders[part.name].data) for part in settings.parts}
    state = FleetState(out.resolve(), parts, file, now_text())
    for name, order in orders.items():
        if (facts := done_before(order)) is not None:
            take_facts(parts[name], order, facts, "kept")
    todo = [part for part in settings.parts if parts[part.name].state == "waiting"]
    kept = f", {state.count('kept')} are finished already" if state.count("kept") else ""
    say(f"{len(todo)} of {len(parts)} parts to train on {cluster.cpus} processors{kept}")
    for cpus, gpus in {(settings.cpus_of(part), settings.gpus_of(part)) for part in todo}:
        cluster.require(cpus, gpus)
    state.write()

    def begin(part: Part) -> Any:
        (orders[part.name].place / WORKER).unlink(missing_ok=True)
        parts[part.name].tries += 1
        return cluster.submit(train_part, orders[part.name], cpus=settings.cpus_of(part), gpus=settings.gpus_of(part))

    with ending(state):
        waiting = {begin(part): part for part in todo}
        while waiting:
            for task in cluster.wait(list(waiting), LOOK_EVERY_S):
                part = waiting.pop(task)
                known, order = parts[part.name], orders[part.name]
                try:
                    outcome = cluster.result(task)
                except WorkerLostError as error:
                    outcome = {"error": str(error), "again": True}
                known.host, known.minutes = outcome.get("host", known.host), outcome.get("minutes")
                known.error = outcome.get("error")
                if known.error is None and done_before(order) is None:
                    known.error = (
                        f"{known.host} wrote its bundle where {socket.gethostname()} does not see it: share {out}"
                    )
                if known.error is None:
                    take_facts(known, order, outcome, "finished")
                    left = len(parts) - state.count("finished", "kept", "failed")
                    say(f"{part.name}: finished in {known.minutes or 0:.1f} min on {known.host}, {left} to go")
                elif outcome.get("again") and known.tries <= settings.retries:
                    say(f"{part.name}: {known.error}; tried again ({known.tries} of {settings.retries})")
                    waiting[begin(part)] = part
                else:
                    known.state = "failed"
                    say(f"{part.name}: FAILED: {known.error}")
                state.write()
    return state


@contextmanager
def ending(state: FleetState) -> Iterator[None]:
    """Note in the state when it ended, however it does."""
    try:
        yield
    finally:
        state.ended = now_text()
        state.write()


def take_facts(part: PartState, order: Order, facts: dict[str, Any], state: str) -> None:
    """Note what a finished part is."""
    part.state, part.bundle, part.error = state, str(order.bundle), None
    for name in ("images", "epochs", "threshold", "expected_false_rejects"):
        setattr(part, name, facts[name])
