"""The paper's Tables 4 to 7 on a data set of one's own: a training a row and seed, an evaluation in PyTorch, one table.

    OUT/row_4.5/seed_111/training/      checkpoint and log; a training that was stopped goes on from there
    OUT/row_4.5/seed_111/both.json      its evaluation with the maps both, reverse or forward; never computed twice
    OUT/table_4.json                    the table, written anew after every row

Rows that are the same network have one training: 5.1 is 4.1, 5.4 is 4.3, 6.1 is 4.2, 6.4 is 4.4, and all of Table 7 is
4.5 with other maps. With one OUT the four tables need nine trainings a seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nnet_edge.benchmarks.ablation_table import TABLES, AblationTable, rows_of
from nnet_edge.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint
from nnet_edge.compute import choose_device
from nnet_edge.config import require_choice
from nnet_edge.data import Dataset, fingerprint
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.evaluate import evaluate
from nnet_edge.files import write_atomically
from nnet_edge.imaging import MaskRule
from nnet_edge.metrics import Metrics
from nnet_edge.model.backbone import build_encoder, find_backbone
from nnet_edge.model.nnet import NNet
from nnet_edge.model.torch_runner import TorchRunner
from nnet_edge.protocol import ABLATIONS, PAPER, ablated
from nnet_edge.runtime.batches import infer_all
from nnet_edge.scoring import choose_threshold, with_margin
from nnet_edge.settings import TrainSettings
from nnet_edge.train import Progress, TrainOptions, train
from nnet_edge.training_data import HELD_OUT_SHARE, TrainingData, load_training_data

Key = dict[str, Any]
RANDOM_TEACHER = "THE TEACHER HAS RANDOM WEIGHTS: the figures mean nothing"


@dataclass(frozen=True)
class AblationSettings:
    """What the rows have in common. Raises ConfigError for what cannot be meant."""

    training: TrainSettings = PAPER  # each row changes it, each seed replaces its own
    options: TrainOptions = field(default_factory=TrainOptions)
    seeds: tuple[int, ...] = (111,)
    held_out_share: float = HELD_OUT_SHARE
    skip_bad: bool = False
    mask_rule: MaskRule = "half"
    batch: int = 8  # of the evaluation

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds {', '.join(map(str, self.seeds)) or 'none'}: give at least one, each once")


DEFAULTS = AblationSettings()


def run_table(
    table: int,
    dataset: Dataset,
    out: Path,
    settings: AblationSettings = DEFAULTS,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> AblationTable:
    """Table 4, 5, 6 or 7 measured on `dataset`; rows that `out` holds already are not computed again.

    `stop` is asked after every training step; the table then comes back unfinished and another call goes on from there.
    Raises ConfigError for another table and for an `out` that holds rows of other settings or data, DataError for a data
    set without test images, TrainingError when a row cannot be trained.
    """
    require_choice("table", str(table), tuple(map(str, TABLES)))
    if not dataset.test:
        raise DataError(f"no test image under {dataset.root}: an ablation compares figures on some")
    bench = Bench(dataset, out, settings, report, stop, say)
    for seed in settings.seeds:
        for row in rows_of(table):
            if not bench.measure(row, seed):
                return bench.table(table)
            bench.write(table)
    return bench.table(table)


class Bench:
    """The rows of a data set, measured or read back one by one."""

    def __init__(
        self,
        dataset: Dataset,
        out: Path,
        settings: AblationSettings,
        report: Callable[[Progress], None],
        stop: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self.dataset, self.out, self.settings = dataset, out, settings
        self.report, self.stop, self.say = report, stop, say
        self.measured: dict[str, list[Metrics]] = {}
        self.facts: dict[str, Any] = {}  # of the last row: teacher, precision, counts of images
        self.data_key = {
            "category": dataset.category,
            "train": fingerprint(dataset.train),
            "test": fingerprint([sample.path for sample in dataset.test]),
            "held_out_share": settings.held_out_share,
            "mask_rule": settings.mask_rule,
        }
        self.load = lru_cache(maxsize=1)(self._load)  # every row of a seed learns from the same images

    def measure(self, row: str, seed: int) -> bool:
        """The row's figures with this seed; False when its training was stopped."""
        training, maps = trained_as(self.settings.training, row, seed)
        folder = self.out / f"row_{training_row(self.settings.training, row)}" / f"seed_{seed}"
        path, key, what = folder / f"{maps}.json", key_of(training, self.data_key), f"row {row}, seed {seed}"
        if not path.exists():
            checkpoint = self.train(training, key, folder / "training", what)
            if checkpoint is None:
                return False
            self.say(f"{what}: evaluating")
            found = {"key": key, "maps": maps, **self.evaluate(checkpoint, maps)}
            write_atomically(path, json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")
        known = read_row(path, key)
        self.facts = known["facts"]
        self.measured.setdefault(row, []).append(Metrics(**known["evaluation"]["metrics"]))
        return True

    def train(self, training: TrainSettings, key: Key, folder: Path, what: str) -> Checkpoint | None:
        """The finished training in `folder`, begun or gone on with where it is not; None when it was stopped."""
        resume = None
        if (folder / CHECKPOINT).exists():
            resume = read_checkpoint(folder)
            require_same(folder, resume.facts["data"]["key"], key)
            if resume.is_finished:
                return resume
        data = self.load(training.seed)
        training = replace(training, batch=min(training.batch, len(data.learned)))
        self.say(f"{what}: {'training' if resume is None else f'training on from epoch {resume.epoch + 1}'}")
        facts, options = {**data.facts, "key": key}, self.settings.options
        asking = nullcontext(self.stop)
        trained = train(
            data.learned, data.held_out, training, folder, options, facts, resume, self.report, lambda: asking
        )
        return read_checkpoint(folder) if trained.finished else None

    def evaluate(self, checkpoint: Checkpoint, maps: str) -> dict[str, Any]:
        """What a row's file holds: facts of the training, and the evaluation of its weights with these maps."""
        device = choose_device(self.settings.options.device)
        runner = TorchRunner(with_maps(checkpoint, maps), device, self.settings.batch)
        held_out = self.load(checkpoint.settings.seed).held_out
        threshold = with_margin(choose_threshold(infer_all(runner, held_out).image_score))
        batch, skip_bad, rule = self.settings.batch, self.settings.skip_bad, self.settings.mask_rule
        evaluation = evaluate(runner, self.dataset, threshold.value, batch, skip_bad, rule)
        facts = {name: checkpoint.facts[name] for name in ("teacher", "data", "precision", "seconds")}
        return {"facts": facts, "evaluation": evaluation.as_dict()}

    def table(self, table: int) -> AblationTable:
        """The table as far as it was measured."""
        settings = self.settings.training
        header = {
            "ours": f"{self.dataset.category} ({self.dataset.layout}), {settings.model.backbone}, {settings.epochs} epochs, "
            f"batch {settings.batch} at most, seeds {', '.join(map(str, self.settings.seeds))}",
            "paper": "mean of the 15 categories of MVTec AD, wide_resnet50_2, 200 epochs; P-PRO is set beside RD4AD's "
            "estimator, which reads higher than the exact one",
        }
        if self.facts:
            data = self.facts["data"]
            header |= {
                "images": f"{data['learned']} learned from, {data['held_out']} held out, {len(self.dataset.test)} judged",
                "teacher": self.facts["teacher"]["origin"],
                "precision": f"trained in {self.facts['precision']}, evaluated in PyTorch in fp32",
            }
        is_random = bool(self.facts) and self.facts["teacher"]["is_random"]
        warnings = (RANDOM_TEACHER,) if is_random else ()
        return AblationTable(table, header, warnings, self.settings.seeds, self.measured)

    def write(self, table: int) -> None:
        """Put the table, as far as it was measured, into its file."""
        content = json.dumps(self.table(table).as_dict(), indent=2, allow_nan=False)
        write_atomically(self.out / f"table_{table}.json", content.encode() + b"\n")

    def _load(self, seed: int) -> TrainingData:
        data = load_training_data(self.dataset, seed, self.settings.held_out_share, self.settings.skip_bad)
        for one, other in data.duplicates[:1]:
            self.say(f"warning: {len(data.duplicates)} test images are training images too ({one} is {other})")
        return data


def trained_as(base: TrainSettings, row: str, seed: int) -> tuple[TrainSettings, str]:
    """The settings that a row is trained with, and the maps that it is evaluated with: "both", "reverse" or "forward"."""
    changed = ablated(base, row)
    return replace(changed, seed=seed, model=replace(changed.model, maps="both")), changed.model.maps


def training_row(base: TrainSettings, row: str) -> str:
    """The first row of Tables 4 to 7 whose training is that of `row`."""
    wanted = trained_as(base, row, base.seed)[0]
    return next(other for other in ABLATIONS if trained_as(base, other, base.seed)[0] == wanted)


def with_maps(checkpoint: Checkpoint, maps: str) -> NNet:
    """The checkpoint's network, to deploy, that fuses these maps."""
    model = replace(checkpoint.settings.model, maps=maps)
    network = NNet(model, build_encoder(find_backbone(model.backbone)))
    network.load_state_dict(checkpoint.deployed)
    return network.eval()


def key_of(training: TrainSettings, data: Mapping[str, Any]) -> Key:
    """What tells one training from another, as JSON gives it back."""
    values: Key = json.loads(json.dumps({"training": training.as_dict(), "data": dict(data)}))
    return values


def read_row(path: Path, key: Key) -> dict[str, Any]:
    """What `Bench.evaluate` wrote. Raises ConfigError when it is of other settings or data, DataError when damaged."""
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = known["key"], known["facts"], known["evaluation"]["metrics"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it, and the row is measured again") from error
    require_same(path, found[0], key)
    return known


def require_same(path: Path, found: Key, wanted: Key) -> None:
    """Nothing, when the two keys agree. Raises ConfigError that names the first difference."""
    before, now = dict(flat(found)), dict(flat(wanted))
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
