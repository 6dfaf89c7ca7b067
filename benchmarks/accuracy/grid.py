"""Rows that several processes share: whoever claims a row's folder does it, the others pass on to the next.

The claim is a lock of the kernel's on FOLDER/.claim. It ends with the process that holds it, however that one ends, so the
row of a killed process is free again at once and no stale claim has to be recognised. The file itself stays: to remove it
would let two processes lock two files of one name.

Which categories a benchmark runs over, and to which of the paper's data sets they belong.

The trainings that tables are made of: each begun once, gone on with where it was stopped, and never mixed with another.

A training lies in a folder of its own beside the key that it was begun with: its settings, what it learned from, its
teacher's weights and the precision that was asked for. A folder of another key is refused, so one `--out` holds rows of one
kind only.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnet_edge.data.images import HELD_OUT_SHARE, Dataset, TrainingData, fingerprint, load_training_data
from nnet_edge.data.layouts import find_categories, read_dataset
from nnet_edge.errors import ConfigError
from nnet_edge.methods.nnet.settings import TrainSettings
from nnet_edge.training.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint
from nnet_edge.training.loop import Progress, TrainOptions, train

MVTEC_TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
MVTEC_OBJECTS = ("bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor",
                 "zipper")  # fmt: skip
VISA_CATEGORIES = ("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3",
                   "pcb4", "pipe_fryum")  # fmt: skip
PAPER_SETS = {"MVTec AD": (*MVTEC_TEXTURES, *MVTEC_OBJECTS), "VisA": VISA_CATEGORIES}


def read_datasets(
    roots: Sequence[Path], layout: str = "auto", categories: Sequence[str] = (), split_csv: Path | None = None
) -> list[Dataset]:
    """Every category under the folders `roots`, or those of the names `categories`, in their order; no image is opened.

    Raises ConfigError when a name is not there or two folders hold one name, and what `read_dataset` raises.
    """
    places: dict[str, Path] = {}
    for root in roots:
        for name in find_categories(root, layout, split_csv):
            if name in places:
                raise ConfigError(f"category {name} lies in {places[name]} and in {root}: give one of them")
            places[name] = root
    for name in categories:
        if name not in places:
            raise ConfigError(f"no category {name!r} in the folders given: choose of {', '.join(places) or 'none'}")
    return [read_dataset(places[name], layout, name, split_csv) for name in categories or places]


def paper_set_of(category: str) -> str | None:
    """The paper's data set that has a category of this name, None for data of one's own."""
    return next((name for name, known in PAPER_SETS.items() if category in known), None)


Key = dict[str, Any]
BEFORE_IT_WAS_KEPT = {
    "computed.precision": "auto",
    "computed.teacher": "default",
    "training.model.exponent_power": 0.0,
}  # what older keys, which lack it, meant
RANDOM_TEACHER = "THE TEACHER HAS RANDOM WEIGHTS: the figures mean nothing"


class Trainings:
    """Trainings on one data set; they differ in settings and seed. `stop` is asked after every step."""

    def __init__(
        self,
        dataset: Dataset,
        options: TrainOptions,
        held_out_share: float = HELD_OUT_SHARE,
        skip_bad: bool = False,
        report: Callable[[Progress], None] = lambda progress: None,
        stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.dataset, self.options = dataset, options
        self.held_out_share, self.skip_bad = held_out_share, skip_bad
        self.report, self.stop, self.say = report, stop, say
        self.data_key = {
            "category": dataset.category,
            "train": fingerprint(dataset.train),
            "held_out_share": held_out_share,
        }
        self.computed = {"precision": options.precision, "teacher": weights_key(options.teacher_weights)}
        self.load = lru_cache(maxsize=1)(self._load)  # every row of a seed learns from the same images

    def key(self, training: TrainSettings) -> Key:
        """What tells this training from another, as JSON gives it back."""
        values: Key = json.loads(json.dumps({"training": training.as_dict(), "data": self.data_key,
                                             "computed": self.computed}))  # fmt: skip
        return values

    def finished(self, training: TrainSettings, folder: Path) -> Checkpoint | None:
        """The training in `folder` when it is finished; raises ConfigError when it is another one."""
        if not (folder / CHECKPOINT).exists():
            return None
        found = read_checkpoint(folder)
        require_same(folder, found.facts["data"].get("key", {}), self.key(training))
        return found if found.is_finished else None

    def finish(self, training: TrainSettings, folder: Path, what: str) -> Checkpoint | None:
        """The finished training in `folder`, begun or gone on with where it is not; None when it was stopped.

        `what` names it to the person. Raises ConfigError when `folder` holds another training, TrainingError when it cannot
        be trained.
        """
        key, resume = self.key(training), None
        if (folder / CHECKPOINT).exists():
            resume = read_checkpoint(folder)
            require_same(folder, resume.facts["data"].get("key", {}), key)
            if resume.is_finished:
                return resume
        data = self.load(training.seed)
        training = replace(training, batch=min(training.batch, len(data.learned)))
        self.say(f"{what}: {'training' if resume is None else f'training on from epoch {resume.epoch + 1}'}")
        asking = nullcontext(self.stop)
        trained = train(
            data.learned,
            data.held_out,
            training,
            folder,
            self.options,
            {**data.facts, "key": key},
            resume,
            self.report,
            lambda: asking,
        )
        return read_checkpoint(folder) if trained.finished else None

    def _load(self, seed: int) -> TrainingData:
        data = load_training_data(self.dataset, seed, self.held_out_share, self.skip_bad)
        for one, other in data.duplicates[:1]:
            self.say(f"warning: {len(data.duplicates)} test images are training images too ({one} is {other})")
        return data


def weights_key(teacher_weights: str | None) -> str:
    """What tells the teacher's weights from others: "default", "random", or what the file holds."""
    if teacher_weights is None or teacher_weights == "random":
        return teacher_weights or "default"
    return fingerprint([Path(teacher_weights)])


def require_same(path: Path, found: Key, wanted: Key) -> None:
    """Nothing, when the two keys agree. Raises ConfigError that names the first difference."""
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


CLAIM = ".claim"


@contextmanager
def claiming(folder: Path) -> Iterator[bool]:
    """Whether this process may work in `folder`, which is made; if so no other one may until the block ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / CLAIM).open("a+b") as file:
        is_mine = try_lock(file.fileno())
        if is_mine:
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


def try_lock(descriptor: int) -> bool:
    """Whether the exclusive lock on an open file could be had without waiting."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
