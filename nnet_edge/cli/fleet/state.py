"""What is known of a fleet's trainings: fleet.json and fleet.csv in its folder, and what running ones say meanwhile.

OUT/bundles/NAME     the bundle of each finished part
OUT/trainings/NAME   its checkpoint and log; said.txt: what its training said
OUT/fleet.json       the state of every part
OUT/fleet.csv        the same as a table
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError
from nnet_edge.files import require_writable, write_atomically
from nnet_edge.text import safe_cell

STATE, TABLE, LOCK = "fleet.json", "fleet.csv", ".fleet.lock"
BUNDLES, TRAININGS = "bundles", "trainings"
WORKER, DONE, SAID = "worker.json", "done.json", "said.txt"  # in a part's folder of trainings
SCHEMA = 1
LOCK_TRIES, LOCK_WAIT_S = 5, 0.1  # somebody may be looking at the state in this moment
STATES = ("waiting", "running", "finished", "kept", "failed")  # kept: it was finished before, by the same key


@dataclass
class PartState:
    """One part now."""

    name: str
    data: str
    state: str = "waiting"
    tries: int = 0  # that were begun
    minutes: float | None = None  # of its last try
    images: int | None = None  # learned from
    epochs: int | None = None
    threshold: float | None = None
    expected_false_rejects: float | None = None
    bundle: str | None = None
    host: str | None = None
    error: str | None = None  # of its last try that failed


@dataclass
class FleetState:
    """A fleet now."""

    out: Path
    parts: dict[str, PartState]
    file: str = ""
    began: str = ""
    ended: str | None = None  # None: not yet, or the command was killed
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)

    def count(self, *states: str) -> int:
        """How many parts are in one of these states."""
        return sum(part.state in states for part in self.parts.values())

    def as_dict(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        return {
            "schema": SCHEMA, "file": self.file, "out": str(self.out), "began": self.began, "ended": self.ended,
            "host": self.host, "pid": self.pid, "counts": {state: self.count(state) for state in STATES},
            "parts": [asdict(part) for part in self.parts.values()],
        }  # fmt: skip

    def write(self) -> None:
        """Write fleet.json and fleet.csv, each atomically."""
        write_atomically(self.out / STATE, json.dumps(self.as_dict(), indent=1).encode())
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [known.name for known in fields(PartState)]
        writer.writerow(names)
        for part in self.parts.values():
            writer.writerow([safe_cell(getattr(part, name)) for name in names])
        write_atomically(self.out / TABLE, text.getvalue().encode(errors="backslashreplace"))

    def lines(self) -> list[str]:
        """The table for a terminal."""
        rows: list[tuple[str, ...]] = [
            ("part", "state", "tries", "minutes", "images", "epochs", "threshold", "false rejects", "host")
        ]
        for part in self.parts.values():
            share = None if part.expected_false_rejects is None else f"{100 * part.expected_false_rejects:.1f} %"
            minutes = None if part.minutes is None else f"{part.minutes:.1f}"
            threshold = None if part.threshold is None else f"{part.threshold:.6g}"
            cells = (part.name, part.state, part.tries, minutes, part.images, part.epochs, threshold, share, part.host)
            rows.append(tuple("-" if cell is None else str(cell) for cell in cells))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        faults = [f"{part.name}: {part.error}" for part in self.parts.values() if part.state == "failed"]
        return [*table, *faults]


def now_text() -> str:
    """Now as ISO 8601 has it, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """The fleet's folder, made and held for this command alone. Raises ConfigError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        require_writable(out)
        handle = os.open(out / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"the folder {out} cannot be written ({error.strerror}): give another --out") from error
    try:
        for _ in range(LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            time.sleep(LOCK_WAIT_S)
        else:
            raise ConfigError(f"another fleet is being trained into {out}: wait for it, or give another --out")
        yield
    finally:
        os.close(handle)


def is_locked(out: Path) -> bool:
    """Whether a command trains into the folder now."""
    try:
        handle = os.open(out / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in the file; None where there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def read_state(out: Path) -> tuple[FleetState, bool]:
    """The fleet in the folder, parts that are being trained among them, and whether its command runs. Raises ConfigError."""
    found = read_json(out / STATE)
    if found is None or found.get("schema") != SCHEMA:
        raise ConfigError(f"{out} holds no fleet ({STATE} cannot be read): name the out of nnet-edge fleet train")
    try:
        parts = {part["name"]: PartState(**part) for part in found["parts"]}
        state = FleetState(out, parts, found["file"], found["began"], found["ended"], found["host"], found["pid"])
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"{out / STATE} is damaged ({error!r}): train the fleet again, finished parts are kept"
        ) from error
    runs = is_locked(out)
    for part in state.parts.values() if runs else ():
        place = out / TRAININGS / part.name
        if part.state == "waiting" and (worker := read_json(place / WORKER)) is not None:
            take_worker(part, worker)
            with suppress(OSError):
                part.epochs = max(0, len((place / "training/log.csv").read_text().splitlines()) - 1)
    return state, runs


def take_worker(part: PartState, worker: Mapping[str, Any]) -> None:
    """Note who trains the part."""
    part.state, part.host = "running", str(worker.get("host"))
    part.minutes = max(0.0, time.time() - float(worker.get("began", time.time()))) / 60
