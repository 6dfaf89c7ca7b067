"""Settings of a fleet: its parts, how each is trained, and the key by which a finished one is known again.

    out = "runs/fleet"
    cpus = 2                 # of each training, which has as many threads
    [train]                  # options of `nnet-edge train`, for all parts
    epochs = 20
    set = { augmentation_copies = 0 }
    [[part]]
    name = "bolt"
    data = "photos/bolt"
    train.size = "512"       # for this part

Relative paths start at the file's folder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from nnet_edge.cli.keywords import arguments_of, options_of
from nnet_edge.errors import ConfigError
from nnet_edge.settings.line import read_toml
from nnet_edge.settings.reader import build, require_plain, unknown_key
from nnet_edge.settings.runner import require_between
from nnet_edge.settings.stream import require_name

FIXED = {"out", "resume", "force", "resume_from", "add", "no_worse_than", "log", "help"}  # what a fleet says itself
MOST_PARTS = 100_000
MOST_TRIES = 100


def train_options() -> dict[str, click.Option]:
    """The options of `nnet-edge train` that a fleet's file may give, by their keys: false_rejects is --false-rejects."""
    from nnet_edge.cli.train import command

    return {key: option for key, option in options_of(command).items() if key not in FIXED}


@dataclass(frozen=True)
class TrainFlags:
    """Options of `nnet-edge train`, as a table of the file gives them."""

    values: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_table(cls, table: Any, where: str, folder: Path) -> TrainFlags:
        """The options in `table`, paths from `folder` on. Raises ConfigError for an unknown key or a value that is refused."""
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where} is {table!r}: it must be a table of options of nnet-edge train")
        known, values = train_options(), dict(table)
        for key, value in values.items():
            if key not in known:
                raise ConfigError(unknown_key(key, list(known), where))
            if isinstance(known[key].type, click.Path) and isinstance(value, str):
                values[key] = str((folder / value).absolute())
        flags = cls(values)
        flags.check(where)
        return flags

    def check(self, where: str) -> None:
        """Raise ConfigError for a value that `nnet-edge train` would refuse."""
        from nnet_edge.cli.train import command

        try:
            command.make_context("train", ["DATA", *self.arguments(where)])
        except click.UsageError as error:
            raise ConfigError(f"{where}: {' '.join(error.format_message().split())}") from error

    def arguments(self, where: str = "train", leave_out: tuple[str, ...] = ()) -> list[str]:
        """What to type behind `nnet-edge train DATA`. Raises ConfigError for a value that no option could have."""
        known = train_options()
        kept = {key: value for key, value in self.values.items() if known[key].name not in leave_out}
        return arguments_of(known, kept, where)

    def over(self, other: TrainFlags) -> TrainFlags:
        """These options over those of `other`; tables of --set are joined."""
        mine, theirs = self.values.get("set"), other.values.get("set")
        both = {**theirs, **mine} if isinstance(mine, Mapping) and isinstance(theirs, Mapping) else None
        return TrainFlags({**other.values, **self.values} | ({} if both is None else {"set": both}))


@dataclass(frozen=True)
class Part:
    """One part: its photographs, and what its training has of its own."""

    name: str
    data: Path
    cpus: int | None = None  # None: the fleet's
    gpus: float | None = None
    train: TrainFlags = TrainFlags()

    def __post_init__(self) -> None:
        require_name("a part", self.name)
        require_resources(self.cpus, self.gpus)


@dataclass(frozen=True)
class FleetSettings:
    """The parts of a fleet and how they are trained."""

    parts: tuple[Part, ...] = field(default=(), metadata={"key": "part", "entries": True, "needed": True})
    out: Path = Path("runs/fleet")  # where bundles, trainings and the table go
    cpus: int = 1  # of each training, which has as many threads
    gpus: float = 0.0  # of each training; 0.5: two share one
    retries: int = 2  # of a part whose worker was lost
    train: TrainFlags = TrainFlags()

    def __post_init__(self) -> None:
        require_resources(self.cpus, self.gpus)
        require_between("retries", self.retries, 0, MOST_TRIES)
        names = [part.name for part in self.parts]
        if not names:
            raise ConfigError("it names no part: write a [[part]] with name and data for each")
        require_between("parts", len(names), 1, MOST_PARTS)
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"two parts are called {twice[0]!r}: give each a name of its own, its bundle is called so"
            )

    def cpus_of(self, part: Part) -> int:
        """Processors, and threads, of its training."""
        return part.cpus or self.cpus

    def gpus_of(self, part: Part) -> float:
        """GPUs, or the share of one."""
        return self.gpus if part.gpus is None else part.gpus

    def flags_of(self, part: Part) -> TrainFlags:
        """The options of its training."""
        flags = part.train.over(self.train)
        return TrainFlags({"threads": self.cpus_of(part), **flags.values})


def require_resources(cpus: int | None, gpus: float | None) -> None:
    """Raise ConfigError for what no machine has."""
    if cpus is not None:
        require_between("cpus", cpus, 1, 4096)
    if gpus is not None and not (0 <= gpus <= 1 or gpus in range(2, 65)):
        raise ConfigError(f"gpus is {gpus:g}: give a share from 0 to 1, or a whole number")


def read_fleet(path: Path) -> FleetSettings:
    """The fleet that the file at `path` describes, its data folders found. Raises ConfigError."""
    table = read_toml(path)
    require_plain(table, path.name)
    folder = path.resolve().parent
    settings = build(FleetSettings, {"out": "runs/fleet", **table}, path.name, folder)
    for part in settings.parts:
        if not part.data.is_dir():
            raise ConfigError(
                f"{path.name}: [[part]] {part.name!r}: the folder {part.data} of its photographs is not there: correct data"
            )
        settings.flags_of(part).check(f"{path.name}: [[part]] {part.name!r}: train")
    return settings


def key_of(data: Path, arguments: list[str]) -> str:
    """A hash of the training's options and of name, size and time of every file in its data. Raises ConfigError."""
    found = []
    try:
        for folder, folders, names in os.walk(data, followlinks=True):
            folders.sort()
            for name in sorted(names):
                facts = os.stat(os.path.join(folder, name))
                found.append((os.path.relpath(os.path.join(folder, name), data), facts.st_size, facts.st_mtime_ns))
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be looked at: {error.strerror}") from error
    text = json.dumps([arguments, found], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
