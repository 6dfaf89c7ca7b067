"""The resumable grid: cells of category, seed and variant, each made once and kept as a file, and a table of all of them.

Several processes may share the folder of a grid: whoever claims a cell's folder makes it, the others pass on to the next. The
claim is a lock of the kernel's on FOLDER/.claim. It ends with the process that holds it, however that one ends, so the cell of
a killed process is free again at once and no stale claim has to be recognised. The file itself stays: to remove it would
let two processes lock two files of one name.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any, Protocol, TypeVar

from nnet_edge.benchmarks.harness.report import write_json
from nnet_edge.benchmarks.harness.rounds import Say, quiet
from nnet_edge.errors import ConfigError, DataError

CLAIM = ".claim"
Key = dict[str, Any]
BEFORE_IT_WAS_KEPT = {  # what older keys, which lack it, meant
    "computed.precision": "auto",
    "computed.teacher": "default",
    "training.model.exponent_power": 0.0,
    "test.runner": "openvino",
}
Place = TypeVar("Place", bound=Hashable)
Row = TypeVar("Row")
Row_co = TypeVar("Row_co", covariant=True)


class Stopped(Exception):
    """The person stopped the work; the same command goes on with it."""


class Elsewhere(DataError):
    """Another process is at it."""


class Cell(Protocol[Row_co]):
    """One place of a grid."""

    def is_done(self) -> bool:
        """Whether its files are there."""
        ...

    def row(self) -> Row_co:
        """Its row, made or read back. Raises Stopped, Elsewhere, and ConfigError for a row of another run."""
        ...


def run_grid(
    cells: Mapping[Place, Cell[Row]], keep: Callable[[dict[Place, Row]], None], say: Say = quiet, counted_as: str = ""
) -> dict[Place, Row]:
    """The rows that there are in the end; `keep` is given all that there are after each that was made, and at the end.

    Finished cells come first, so that rows of another run are refused before work begins; those that other processes were at
    are asked for once more at the end. With `counted_as`, what a cell is called, the time that is left is said.
    """
    found: dict[Place, Row] = {}
    order = sorted(cells, key=lambda place: not cells[place].is_done())
    minutes: list[float] = []
    for place in (*order, *order):
        if place in found:
            continue
        began_s, was_done = time.monotonic(), cells[place].is_done()
        try:
            found[place] = cells[place].row()
        except Elsewhere as error:
            say(str(error))
            continue
        except Stopped:
            break
        if was_done:
            continue
        keep(found)
        minutes.append((time.monotonic() - began_s) / 60)
        if counted_as and (left := sum(not cell.is_done() for cell in cells.values())):
            say(f"{left} of {len(cells)} {counted_as} left, about {left * mean(minutes):.0f} min")
    else:
        if left := len(cells) - len(found):
            say(f"{left} of {len(cells)} are under way elsewhere: the same command reads them when they are done")
    if found:
        keep(found)
    return found


@contextmanager
def claimed(folder: Path, what: str) -> Iterator[None]:
    """`folder` for this process alone. Raises Elsewhere, which names `what`, when another process has it."""
    with claiming(folder) as is_mine:
        if not is_mine:
            raise Elsewhere(f"{what}: {holder(folder)} is at it")
        yield


@contextmanager
def claiming(folder: Path) -> Iterator[bool]:
    """Whether this process may work in `folder`, which is made; if so no other one may until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CLAIM).open("a+b") as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            is_mine = False
        else:
            is_mine = True
            file.truncate(0)
            file.write(f"process {os.getpid()} on {platform.node()}\n".encode())
            file.flush()
        yield is_mine


def holder(folder: Path) -> str:
    """Who claimed `folder` last, as "process 12 on bench-3"; for a message, the lock alone decides."""
    try:
        return (folder / CLAIM).read_text(encoding="utf-8").strip() or "another process"
    except OSError:
        return "another process"


def kept_row(
    path: Path, key: Key, what: str, make: Callable[[], dict[str, Any]], parse: Callable[[dict[str, Any]], Row]
) -> Row:
    """What `parse` takes from the row at `path`; where there is none, this process alone writes `key` and what `make` gives.

    Raises Elsewhere, which names `what`, ConfigError for a row of another key, DataError for one that cannot be read.
    """
    if not path.exists():
        with claimed(path.parent, what):
            write_json(path, {"key": key, **make()})
    its_key, row = read_row(path, lambda known: (known["key"], parse(known)))
    require_same(path, its_key, key)
    return row


def read_row(path: Path, parse: Callable[[dict[str, Any]], Row], again: str = "the row is measured again") -> Row:
    """What `parse` makes of the JSON file. Raises DataError when it cannot be read or lacks something."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it, and {again}") from error


def require_same(path: Path, found: Key, wanted: Key) -> None:
    """Raise ConfigError, which names the first difference, unless the two keys agree."""
    before, now = dict(flat(found)), dict(flat(wanted))
    for name in (name for name in BEFORE_IT_WAS_KEPT if name in now):
        before.setdefault(name, BEFORE_IT_WAS_KEPT[name])
    for name in dict.fromkeys([*before, *now]):
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"{path} is of another run ({name} was {before.get(name)}, is {now.get(name)}): "
                "choose another --out, or give the settings and data that it began with"
            )


def flat(values: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """(dotted name, value) of everything in nested dictionaries."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        found += flat(value, f"{above}{name}.") if isinstance(value, Mapping) else [(above + name, value)]
    return found
