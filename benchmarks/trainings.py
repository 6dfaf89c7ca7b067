"""The trainings that tables are made of: each begun once, gone on with where it was stopped, and never mixed with another.

A training lies in a folder of its own beside the key that it was begun with: its settings, what it learned from, its
teacher's weights and the precision that was asked for. A folder of another key is refused, so one `--out` holds rows of one
kind only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnet_edge.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint
from nnet_edge.data import Dataset, fingerprint
from nnet_edge.errors import ConfigError
from nnet_edge.settings import TrainSettings
from nnet_edge.train import Progress, TrainOptions, train
from nnet_edge.training_data import HELD_OUT_SHARE, TrainingData, load_training_data

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
