"""The paper's Tables 4 to 7 on data sets of one's own: a training a row and seed, an evaluation in PyTorch, one table.

    OUT/CATEGORY/row_4.5/seed_111/training/   checkpoint and log; a training that was stopped goes on from there
    OUT/CATEGORY/row_4.5/seed_111/both.json   its evaluation with the maps both, reverse or forward; never computed twice
    OUT/table_4.json                          the table over all categories (schemas/ablation.json), written anew after every
                                              row and never without one

Rows that are the same network have one training: 5.1 is 4.1, 5.4 is 4.3, 6.1 is 4.2, 6.4 is 4.4, and all of Table 7 is
4.5 with other maps. With one OUT the four tables need nine trainings a seed and category. Several processes may share an
OUT: each row is done by the one that claims it (claims.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from nnet_edge import __version__
from nnet_edge.benchmarks.accuracy.ablation_table import TABLES, AblationTable, averaged, rows_of
from nnet_edge.benchmarks.accuracy.grid import RANDOM_TEACHER, Key, Trainings, claiming, holder, require_same
from nnet_edge.bundle import made_on, now
from nnet_edge.data.images import HELD_OUT_SHARE, Dataset, fingerprint
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.evaluation.evaluate import evaluate
from nnet_edge.files import write_atomically
from nnet_edge.imaging import MaskRule
from nnet_edge.methods.backbone import build_encoder, find_backbone
from nnet_edge.methods.compute import choose_device
from nnet_edge.methods.nnet.network import NNet
from nnet_edge.methods.nnet.settings import ABLATIONS, PAPER, TrainSettings, ablated
from nnet_edge.methods.torch_runner import TorchRunner
from nnet_edge.metrics import Metrics
from nnet_edge.runtime.runners.base import infer_all
from nnet_edge.scoring import choose_threshold, with_margin
from nnet_edge.settings.runner import require_choice
from nnet_edge.training.checkpoint import Checkpoint
from nnet_edge.training.loop import Progress, TrainOptions

SCHEMA = "nnet-edge ablation 1"


class Outcome(Enum):
    """How an attempt at a row ended."""

    DONE = "done"
    STOPPED = "stopped"
    ELSEWHERE = "elsewhere"  # another process is at it


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
    datasets: Sequence[Dataset],
    out: Path,
    settings: AblationSettings = DEFAULTS,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
    command: str = "run_table",
) -> AblationTable:
    """Table 4, 5, 6 or 7 measured on `datasets` and averaged; rows that `out` holds already are not computed again.

    `stop` is asked after every training step; the table then comes back unfinished and another call goes on from there.
    Raises ConfigError for another table and for an `out` that holds rows of other settings or data, DataError for a data
    set without test images, TrainingError when a row cannot be trained.
    """
    require_choice("table", str(table), tuple(map(str, TABLES)))
    for dataset in datasets:
        if not dataset.test:
            raise DataError(f"no test image under {dataset.root}: an ablation compares figures on some")
    names = [dataset.category for dataset in datasets]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"categories {', '.join(names) or 'none'}: give at least one, each once")
    benches = [Bench(dataset, out / dataset.category, settings, report, stop, say) for dataset in datasets]

    head = {"command": command, "categories": names, "made": {"nnet_edge": __version__, "when": now(), **made_on()}}

    def write() -> AblationTable:
        found = averaged([bench.table(table) for bench in benches])
        if any(bench.measured for bench in benches):
            content = json.dumps({"schema": SCHEMA, **head, **found.as_dict()}, indent=2, allow_nan=False)
            write_atomically(out / f"table_{table}.json", content.encode() + b"\n")
        return found

    todo = [(row, seed, bench) for seed in settings.seeds for row in rows_of(table) for bench in benches]
    elsewhere = []
    for row, seed, bench in sorted(todo, key=lambda one: not one[2].is_done(*one[:2])):
        outcome = bench.measure(row, seed)
        if outcome is Outcome.STOPPED:
            return write()
        if outcome is Outcome.ELSEWHERE:
            elsewhere.append((row, seed, bench))
        write()
    left = 0
    for row, seed, bench in elsewhere:  # again: what other processes finished, or gave up, meanwhile
        outcome = bench.measure(row, seed)
        if outcome is Outcome.STOPPED:
            return write()
        left += outcome is Outcome.ELSEWHERE
    if left:
        say(f"{left} of {len(todo)} are under way elsewhere: the same command reads them when they are done")
    return write()


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
        self.dataset, self.out, self.settings, self.say = dataset, out, settings, say
        self.trainings = Trainings(
            dataset, settings.options, settings.held_out_share, settings.skip_bad, report, stop, say
        )
        self.measured: dict[str, dict[int, Metrics]] = {}
        self.facts: dict[str, Any] = {}  # of the last row: teacher, precision, counts of images
        self.test_key = {
            "test": fingerprint([sample.path for sample in dataset.test]),
            "mask_rule": settings.mask_rule,
        }

    def path(self, row: str, seed: int) -> Path:
        """The file of the row with this seed."""
        folder = self.out / f"row_{training_row(self.settings.training, row)}" / f"seed_{seed}"
        return folder / f"{trained_as(self.settings.training, row, seed)[1]}.json"

    def is_done(self, row: str, seed: int) -> bool:
        """Whether the row's file is there."""
        return self.path(row, seed).exists()

    def measure(self, row: str, seed: int) -> Outcome:
        """The row's figures with this seed, computed or read."""
        training, maps = trained_as(self.settings.training, row, seed)
        path, key = self.path(row, seed), self.trainings.key(training) | {"test": self.test_key}
        folder = path.parent
        what = f"{self.dataset.category}, row {row}, seed {seed}"
        if not path.exists():
            with claiming(folder) as is_mine:
                if not is_mine:
                    self.say(f"{what}: {holder(folder)} is at it")
                    return Outcome.ELSEWHERE
                checkpoint = self.trainings.finish(training, folder / "training", what)
                if checkpoint is None:
                    return Outcome.STOPPED
                self.say(f"{what}: evaluating")
                found = {"key": key, "maps": maps, **self.evaluate(checkpoint, maps)}
                write_atomically(path, json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")
        known = read_row(path, key)
        self.facts = known["facts"]
        self.measured.setdefault(row, {})[seed] = Metrics(**known["evaluation"]["metrics"])
        return Outcome.DONE

    def evaluate(self, checkpoint: Checkpoint, maps: str) -> dict[str, Any]:
        """What a row's file holds: facts of the training, and the evaluation of its weights with these maps."""
        device = choose_device(self.settings.options.device)
        runner = TorchRunner(with_maps(checkpoint, maps), device, self.settings.batch)
        held_out = self.trainings.load(checkpoint.settings.seed).held_out
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


def read_row(path: Path, key: Key) -> dict[str, Any]:
    """What `Bench.evaluate` wrote. Raises ConfigError when it is of other settings or data, DataError when damaged."""
    try:
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = known["key"], known["facts"], known["evaluation"]["metrics"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it, and the row is measured again") from error
    require_same(path, found[0], key)
    return known
