"""The trainings that accuracy, ablations and hyper-parameters are measured on: data sets, common settings, and the trainer.

A training lies in a folder of its own beside the key that it was begun with: its settings, what it learned from, its
teacher's weights and the precision that was asked for. A folder of another key is refused, so one `--out` holds rows of one
kind only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from nnet_edge.benchmarks.harness.grid import Key, Stopped, require_same
from nnet_edge.benchmarks.harness.rounds import Say, quiet
from nnet_edge.data.images import Dataset, fingerprint
from nnet_edge.data.layouts import find_categories, read_dataset
from nnet_edge.data.seen import AskedInput, settle_input
from nnet_edge.data.training_data import TrainingData, load_training_data
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.geometry import Geometry
from nnet_edge.imaging import MaskRule
from nnet_edge.methods.base import DEFAULT_METHOD, METHODS, MethodSettings
from nnet_edge.methods.network import Network, restore_network
from nnet_edge.scoring import HELD_OUT_SHARE
from nnet_edge.training.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint
from nnet_edge.training.loop import Progress, TrainOptions, train

RANDOM_TEACHER = "THE TEACHER HAS RANDOM WEIGHTS: the figures mean nothing"


@dataclass(frozen=True)
class GridSettings:
    """What all trainings of a grid have in common. Raises ConfigError for an invalid setting."""

    training: MethodSettings = METHODS.find(DEFAULT_METHOD).protocols["tuned"]  # each seed replaces its own
    options: TrainOptions = field(default_factory=TrainOptions)
    seeds: tuple[int, ...] = (1, 2, 3)
    asked: AskedInput = field(
        default_factory=AskedInput
    )  # fit, tiles and crop of the input, whose size the training has
    held_out_share: float = HELD_OUT_SHARE
    skip_bad: bool = False
    mask_rule: MaskRule = "half"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds {', '.join(map(str, self.seeds)) or 'none'}: give at least one, each once")


@dataclass(frozen=True)
class Watch:
    """Who looks on: `stop` is asked after every training step, `report` is given the progress, `say` a line."""

    report: Callable[[Progress], None] = lambda progress: None
    stop: Callable[[], bool] = lambda: False
    say: Say = quiet


NOBODY = Watch()


def read_datasets(
    roots: Sequence[Path],
    layout: str = "auto",
    categories: Sequence[str] = (),
    split_csv: Path | None = None,
    mask_mark: str = "auto",
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
    return [read_dataset(places[name], layout, name, split_csv, mask_mark) for name in categories or places]


def category_names(datasets: Sequence[Dataset]) -> tuple[str, ...]:
    """Their categories. Raises ConfigError for none and for a name twice, DataError for one without test images."""
    names = tuple(dataset.category for dataset in datasets)
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"categories {', '.join(names) or 'none'}: give at least one, each once")
    for dataset in datasets:
        if not dataset.test:
            raise DataError(f"no test image under {dataset.root} ({dataset.category}): figures are measured on some")
    return names


class Trainings:
    """Trainings on one data set; they differ in settings and seed."""

    def __init__(self, dataset: Dataset, settings: GridSettings, watch: Watch) -> None:
        self.dataset, self.settings, self.watch = dataset, settings, watch
        self.data_key = {
            "category": dataset.category,
            "train": fingerprint(dataset.train),
            "held_out_share": settings.held_out_share,
        }
        cut = {
            name: value for name in ("tiles", "overlap", "crop") if (value := getattr(settings.asked, name)) is not None
        }
        self.data_key |= {"input": cut} if cut else {}  # a key of before has none
        teacher = weights_key(settings.options.teacher_weights)
        self.computed = {"precision": settings.options.precision, "teacher": teacher}
        self.load = lru_cache(maxsize=1)(self._load)  # every row of a seed learns from the same images

    @cached_property
    def test(self) -> str:
        """What tells the test images from others."""
        return fingerprint([sample.path for sample in self.dataset.test])

    def key(self, training: MethodSettings) -> Key:
        """What tells this training from another."""
        return as_json({"training": training.as_dict(), "data": self.data_key, "computed": self.computed})

    def begun(self, training: MethodSettings, folder: Path) -> Checkpoint | None:
        """The training in `folder` as far as it is; raises ConfigError when it is another one."""
        if not (folder / CHECKPOINT).exists():
            return None
        found = read_checkpoint(folder)
        require_same(folder, found.facts["data"].get("key", {}), self.key(training))
        return found

    def finish(self, training: MethodSettings, folder: Path, what: str) -> Checkpoint:
        """The finished training in `folder`, begun or gone on with where it is not; `what` names it to the person.

        Raises Stopped, ConfigError when `folder` holds another training, TrainingError when it cannot be trained.
        """
        resume = self.begun(training, folder)
        if resume is not None and resume.is_finished:
            return resume
        data, key = self.load(training.seed), self.key(training)
        shown = self.geometry.pieces * len(data.learned)
        training = replace(training, batch=min(training.batch, shown), input=self.geometry)
        self.watch.say(f"{what}: {'training' if resume is None else f'training on from epoch {resume.epoch + 1}'}")
        asking = nullcontext(self.watch.stop)
        trained = train(data.learned, data.held_out, training, folder, self.settings.options,
                        {**data.facts, "key": key}, resume, self.watch.report, lambda: asking)  # fmt: skip
        if not trained.finished:
            raise Stopped
        return read_checkpoint(folder)

    @cached_property
    def geometry(self) -> Geometry:
        """Of the input: that of the settings, its fit, tiles and crop by the pictures of this data set."""
        size, name = self.settings.training.input.size, self.dataset.category
        say = self.watch.say if "input" in self.data_key else quiet
        return settle_input(self.dataset.train, size, self.settings.asked, lambda line: say(f"{name}: {line}"))

    def _load(self, seed: int) -> TrainingData:
        data = load_training_data(self.dataset, seed, self.settings.held_out_share, self.settings.skip_bad,
                                  geometry=self.geometry)  # fmt: skip
        for one, other in data.duplicates[:1]:
            self.watch.say(f"warning: {len(data.duplicates)} test images are training images too ({one} is {other})")
        return data


def rebuild(checkpoint: Checkpoint, weights: str) -> Network:
    """The network with weights that a training left: deployed, last, or averaged, the EMA, which is the last without one."""
    left = {"deployed": checkpoint.deployed, "averaged": checkpoint.averaged or checkpoint.network,
            "last": checkpoint.network}  # fmt: skip
    return restore_network(checkpoint.settings, left[weights])


def weights_key(teacher_weights: str | None) -> str:
    """What tells the teacher's weights from others: "default", "random", or what the file holds."""
    if teacher_weights is None or teacher_weights == "random":
        return teacher_weights or "default"
    return fingerprint([Path(teacher_weights)])


def as_json(values: Mapping[str, Any]) -> Key:
    """Plain values as JSON gives them back."""
    found: Key = json.loads(json.dumps(values))
    return found
