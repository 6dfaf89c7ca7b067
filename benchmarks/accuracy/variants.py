"""What every hyper-parameter brings: a training a variant, category and seed where it needs one, else another reading.

    OUT/CATEGORY/seed_1/training/                the base; `bench accuracy` with the same --out has the same one
    OUT/CATEGORY/seed_1/maps_deployed.safetensors  the layer maps of all test images, for readings
    OUT/CATEGORY/VARIANT/seed_1/...              a variant that was trained
    OUT/CATEGORY/.../reading_VARIANT.json        figures; never computed twice
    OUT/levers.json, levers.md                   the table, written anew after every row

The test images are looked at here: what the table shows is how settings compare on them, not how good they are on others.

A difference to the base, taken seed by seed, counts as clear when all seeds, three at least, have it in the same direction and
its mean exceeds its own standard deviation over the seeds. A variant is better when its pixel AP (its image AUROC where there
are no masks) is clearly higher in every category and no figure is clearly lower in any; it is worse when the opposite holds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from nnet_edge.benchmarks.accuracy.hyperparameters import BASE, Variant, find_variants
from nnet_edge.benchmarks.accuracy.tables import BySeed, means_by_seed, spread_text
from nnet_edge.benchmarks.accuracy.trainings import (
    NOBODY,
    RANDOM_TEACHER,
    GridSettings,
    Trainings,
    Watch,
    as_json,
    category_names,
    rebuild,
)
from nnet_edge.benchmarks.harness.grid import Key, Stopped, claimed, kept_row, require_same, run_grid
from nnet_edge.benchmarks.harness.report import plain_fields, render, write_report
from nnet_edge.calibration.predictions import TestImages, load_test
from nnet_edge.data.images import Dataset, fingerprint
from nnet_edge.errors import DataError
from nnet_edge.evaluation.evaluate import measure_known
from nnet_edge.files import write_atomically
from nnet_edge.methods.base import MethodSettings
from nnet_edge.methods.compute import Compute, choose_device, choose_precision
from nnet_edge.methods.network import Network, TorchRunner
from nnet_edge.metrics import Metrics
from nnet_edge.runtime.runners.base import infer_all
from nnet_edge.settings.runner import require_between
from nnet_edge.training.checkpoint import Checkpoint
from nnet_edge.training.settling import settled_otherwise
from nnet_edge.training.start import learned_count

SCHEMA, ROW_SCHEMA = "nnet-edge levers 1", "nnet-edge lever row 1"
FIGURES = {"pixel_ap": "pixel AP", "pro": "PRO", "image_auroc": "image AUROC"}
FEWEST_SEEDS = 3
Place = tuple[str, str, int, str]  # hyper-parameter, variant, seed, category


@dataclass(frozen=True)
class VariantSettings(GridSettings):
    """What is compared, and what all have in common. Raises ConfigError for an invalid setting."""

    hyperparameters: tuple[str, ...] = ()  # in this order; none: all
    variants: tuple[str, ...] = ()  # of these only those named; none: all
    with_training: bool = True  # False: the base is trained, and of the variants only readings are measured
    test_limit: int | None = None  # good and bad test images each, at most

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.test_limit is not None:
            require_between("test limit", self.test_limit, 1, 1_000_000)
        find_variants(self.training, self.hyperparameters, self.variants)


class CategoryBench:
    """The trainings and test images of one category; `facts` are those of its latest base training."""

    def __init__(
        self, dataset: Dataset, out: Path, settings: GridSettings, watch: Watch, test_limit: int | None = None
    ) -> None:
        self.trainings = Trainings(dataset, settings, watch)
        self.dataset, self.out, self.settings = limited(dataset, test_limit), out, settings
        self.test_key = {"test": fingerprint([sample.path for sample in self.dataset.test])}
        self.facts: dict[str, Any] = {}

    @cached_property
    def test(self) -> TestImages:
        """The test images with labels and masks."""
        found = load_test(self.dataset, self.settings.skip_bad, geometry=self.trainings.geometry)
        if found is None or not found.labels.any() or found.labels.all():
            raise DataError(f"{self.dataset.root} needs good and bad test images: variants are compared on them")
        return found

    def trained(self, folder: Path, training: MethodSettings, what: str) -> Checkpoint:
        """The finished training in `folder`. Raises Stopped, Elsewhere."""
        known = self.trainings.begun(training, folder / "training")
        if known is not None and known.is_finished:
            return known
        what = f"{self.dataset.category}, {what}"
        with claimed(folder, what):
            return self.trainings.finish(training, folder / "training", what)

    def read(self, folder: Path, checkpoint: Checkpoint, variant: Variant) -> Metrics:
        """The figures of this variant's reading of the training in `folder`. Raises Stopped, Elsewhere."""
        trained, reading = dict(checkpoint.facts["data"]["key"]), variant.reading
        reading = replace(reading, rule=reading.rule or checkpoint.settings.model.fusion.rule)
        key = trained | {"test": self.test_key, "reading": as_json(asdict(reading))}
        key |= {"settles": list(variant.settles)} if variant.settles else {}
        return kept_row(
            reading_path(folder, variant), key, f"{self.dataset.category}, {variant.name}",
            lambda: self.judge(folder, checkpoint, variant), lambda known: Metrics(**known["metrics"]),
        )  # fmt: skip

    def judge(self, folder: Path, checkpoint: Checkpoint, variant: Variant) -> dict[str, Any]:
        """The row of the training's layer maps, read as the variant says. Raises Stopped."""
        if self.trainings.watch.stop():
            raise Stopped
        geometry, inside = self.trainings.geometry, (slice(None), *self.trainings.geometry.window.inside)
        images, device = geometry.cut(self.test.images), choose_device(self.settings.options.device)
        if variant.settles:
            network = self.settled(checkpoint, variant, device)
            maps, fusion = layer_maps(network, images, device), network.map_fusion
        else:
            weights, fusion = variant.reading.weights, checkpoint.settings.model.fusion
            key = dict(checkpoint.facts["data"]["key"]) | {"test": self.test_key}
            maps = kept_layer_maps(folder / f"maps_{weights}.safetensors", key, checkpoint, weights, images, device)
        read = geometry.stitch(variant.reading.maps(maps, fusion))[inside]
        scores, masks = variant.reading.scores(read), np.ascontiguousarray(self.test.masks[inside])
        metrics = measure_known(self.test.labels, scores, masks, np.ascontiguousarray(read), self.test.has_mask)
        return {"schema": ROW_SCHEMA, "variant": variant.name, "metrics": metrics.as_dict()}

    def settled(self, checkpoint: Checkpoint, variant: Variant, device: str) -> Network:
        """The training's network, settled as the variant says."""
        settings = variant.settings(checkpoint.settings, self.settings.training.image_steps)
        data, precision = self.trainings.load(settings.seed), choose_precision(self.settings.options.precision, device)
        return settled_otherwise(checkpoint, settings, data.learned, data.held_out, Compute(device, precision))


@dataclass(frozen=True)
class VariantCell:
    """A variant on one category with one seed."""

    bench: CategoryBench
    variant: Variant
    seed: int

    @property
    def folder(self) -> Path:
        """Where its training lies."""
        out = self.bench.out / slug(self.variant.name) if self.variant.is_trained else self.bench.out
        return out / f"seed_{self.seed}"

    def is_done(self) -> bool:
        """Whether the file of its figures is there."""
        return reading_path(self.folder, self.variant).exists()

    def row(self) -> tuple[Metrics, bool]:
        """The figures, and whether the variant is the base itself here."""
        bench, variant, given = self.bench, self.variant, self.bench.settings.training
        folder = bench.out / f"seed_{self.seed}"  # of the base
        base = bench.trained(folder, replace(given, seed=self.seed), f"seed {self.seed}")
        bench.facts = base.facts
        if not variant.is_trained:
            return bench.read(folder, base, variant), False
        wanted = variant.settings(base.settings, given.image_steps)
        images = learned_count(int(base.facts["data"]["learned"]), base.settings)
        if wanted.with_length_for(images * wanted.augmentation.copies) == base.settings:
            return bench.read(folder, base, BASE), True
        checkpoint = bench.trained(self.folder, wanted, f"{variant.name}, seed {self.seed}")
        return bench.read(self.folder, checkpoint, variant), False


def run_variants(
    datasets: Sequence[Dataset], out: Path, settings: VariantSettings, command: str, watch: Watch = NOBODY
) -> VariantTable:
    """The table over `datasets`: the base first, then readings, then variants that must be trained.

    `watch.stop` is asked after every training step; the table then comes back unfinished and another call goes on from there.
    Raises ConfigError for an `out` that holds rows of other settings or data, DataError for a data set that cannot be
    judged on, TrainingError when a row cannot be trained.
    """
    category_names(datasets)
    benches = [CategoryBench(one, out / one.category, settings, watch, settings.test_limit) for one in datasets]
    known = find_variants(settings.training, settings.hyperparameters, settings.variants)
    chosen = [(name, variant) for name, variant in known if settings.with_training or not variant.is_trained]
    ordered = [("base", BASE), *sorted(chosen, key=lambda pair: pair[1].is_trained)]
    cells = {
        (name, variant.name, seed, bench.dataset.category): VariantCell(bench, variant, seed)
        for name, variant in ordered for seed in settings.seeds for bench in benches
    }  # fmt: skip

    def table_of(found: Mapping[Place, tuple[Metrics, bool]]) -> VariantTable:
        measured: dict[tuple[str, str], dict[str, dict[int, Metrics]]] = {}
        same: dict[tuple[str, str], set[str]] = {}
        for (name, variant, seed, category), (metrics, is_base) in found.items():
            measured.setdefault((name, variant), {}).setdefault(category, {})[seed] = metrics
            if is_base:
                same.setdefault((name, variant), set()).add(category)
        rows = tuple(
            Row(name, variant.name, f"{command} --lever {name}", measured.get((name, variant.name), {}),
                tuple(sorted(same.get((name, variant.name), ()))))
            for name, variant in chosen
        )  # fmt: skip
        header, warnings = describe(benches, settings, command)
        categories = tuple(one.dataset.category for one in benches)
        base, missing = measured.get(("base", BASE.name), {}), len(cells) - len(found)
        return VariantTable(header, warnings, settings.seeds, categories, base, rows, missing)

    def keep(found: Mapping[Place, tuple[Metrics, bool]]) -> None:
        write_report(out, "levers", table_of(found))

    return table_of(run_grid(cells, keep, watch.say))


def describe(
    benches: Sequence[CategoryBench], settings: VariantSettings, command: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """What a reader must know to judge the table, and warnings."""
    judged = []
    for one in benches:
        bad = sum(sample.is_anomalous for sample in one.dataset.test)
        judged.append(f"{one.dataset.category}: {len(one.dataset.test) - bad} good and {bad} bad test images")
    limit = "" if settings.test_limit is None else f" (limited to {settings.test_limit} of each kind)"
    header = {"command": command, "judged on": ", ".join(judged) + limit,
              "mean ± deviation over seeds": ", ".join(map(str, settings.seeds))}  # fmt: skip
    facts = next((one.facts for one in benches if one.facts), None)
    if facts is None:
        return header, ()
    teacher = facts["teacher"]
    header["trained"] = f"{settings.training.model.backbone}, {teacher['origin']}, in {facts['precision']}"
    return header, (RANDOM_TEACHER,) if teacher["is_random"] else ()


def kept_layer_maps(
    path: Path, key: Key, checkpoint: Checkpoint, weights: str, images: np.ndarray, device: str
) -> dict[str, np.ndarray]:
    """The layer maps float32 (N, 1, h, w) of uint8 RGB `images` (N, H, W, 3), read from `path` or computed and kept.

    `weights` is one of hyperparameters.WEIGHTS. Raises ConfigError when `path` is of another key, DataError when damaged.
    """
    if path.exists():
        try:
            with safe_open(path, "np") as file:
                its_key: Key = json.loads((file.metadata() or {})["key"])
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise DataError(f"{path} cannot be read ({error}): delete it, and the maps are computed again") from error
        require_same(path, its_key, key)
        return load_file(path)
    maps = layer_maps(rebuild(checkpoint, weights), images, device)
    write_atomically(path, save(maps, {"key": json.dumps(key)}))
    return maps


def layer_maps(network: Network, images: np.ndarray, device: str) -> dict[str, np.ndarray]:
    """The layer maps float32 (N, 1, h, w) of uint8 RGB `images` (N, H, W, 3)."""
    return dict(infer_all(TorchRunner(network, device), images).layer_maps)


def reading_path(folder: Path, variant: Variant) -> Path:
    """Where the figures of a reading of the training in `folder` lie."""
    return folder / f"reading_{slug(variant.name)}.json"


def slug(name: str) -> str:
    """A variant's name as a file's."""
    return re.sub(r"[^a-z0-9.=_]+", "-", name.lower()).strip("-")


def limited(dataset: Dataset, limit: int | None) -> Dataset:
    """`dataset` with at most `limit` good and as many bad test images, evenly spread over their names."""
    if limit is None:
        return dataset
    kept = []
    for is_anomalous in (False, True):
        kind = [sample for sample in dataset.test if sample.is_anomalous == is_anomalous]
        rows = np.linspace(0, len(kind) - 1, min(limit, len(kind))).astype(int)
        kept += [kind[row] for row in rows]
    return replace(dataset, test=tuple(sorted(kept, key=lambda sample: sample.path)))


@dataclass(frozen=True)
class Difference:
    """A figure of a variant less that of the base, in points, one a seed."""

    points: tuple[float, ...]

    @property
    def direction(self) -> int:
        """1 clearly higher, -1 clearly lower, 0 neither."""
        if len(self.points) < FEWEST_SEEDS or abs(mean(self.points)) <= stdev(self.points):
            return 0
        return 1 if min(self.points) > 0 else -1 if max(self.points) < 0 else 0

    def text(self) -> str:
        """Mean and deviation, "-" without any."""
        return spread_text(self.points, "+")


@dataclass(frozen=True)
class Row:
    """A variant, over the categories."""

    hyperparameter: str
    variant: str
    command: str
    measured: Mapping[str, BySeed]  # category -> seed -> figures
    same_as_base: tuple[str, ...] = ()  # categories in which it changes nothing


@dataclass(frozen=True)
class VariantTable:
    """The base and what every variant changes."""

    header: Mapping[str, str]
    warnings: tuple[str, ...]
    seeds: tuple[int, ...]
    categories: tuple[str, ...]
    base: Mapping[str, BySeed]
    rows: tuple[Row, ...]
    missing: int  # rows of one category and seed that are not measured yet

    def difference(self, row: Row, category: str, figure: str) -> Difference:
        """The row less the base, over the seeds that both have."""
        ours, base = (means_by_seed([values.get(category, {})], figure) for values in (row.measured, self.base))
        return Difference(tuple(ours[seed] - base[seed] for seed in self.seeds if seed in ours and seed in base))

    def verdict(self, row: Row) -> str:
        """better, worse, mixed or no clear change; or why nothing can be said."""
        differences = [{figure: self.difference(row, name, figure) for figure in FIGURES} for name in self.categories]
        if any(len(by_figure["image_auroc"].points) < FEWEST_SEEDS for by_figure in differences):
            return f"fewer than {FEWEST_SEEDS} seeds"
        leading = [by["pixel_ap" if by["pixel_ap"].points else "image_auroc"].direction for by in differences]
        every = {one.direction for by_figure in differences for one in by_figure.values()}
        if all(value == 1 for value in leading) and -1 not in every:
            return "better"
        if all(value == -1 for value in leading) and 1 not in every:
            return "worse"
        return "no clear change" if every == {0} else "mixed"

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = []
        for row in self.rows:
            points = {name: {figure: list(self.difference(row, name, figure).points) for figure in FIGURES}
                      for name in self.categories}  # fmt: skip
            rows.append({"lever": row.hyperparameter, "variant": row.variant, "command": row.command,
                         "same_as_base": list(row.same_as_base), "points": points,
                         "verdict": self.verdict(row)})  # fmt: skip
        return {"schema": SCHEMA, **plain_fields(self), "rows": rows}

    def markdown(self) -> str:
        """The table below its header: the base in %, every variant's differences in points."""
        columns = [(name, figure) for name in self.categories for figure in FIGURES]
        base = [
            spread_text(list(means_by_seed([self.base.get(name, {})], figure).values())) for name, figure in columns
        ]
        return render("accuracy/levers.md.j2", table=self, columns=columns, base=base, figures=FIGURES)
