"""Every lever against the base: a training a variant, category and seed where it needs one, else only another reading.

    OUT/CATEGORY/seed_1/training/                the base; `bench accuracy` with the same --out has the same one
    OUT/CATEGORY/seed_1/maps_deployed.safetensors  the layer maps of all test images, for readings
    OUT/CATEGORY/VARIANT/seed_1/...              a variant that was trained
    OUT/CATEGORY/.../reading_VARIANT.json        figures; never computed twice
    OUT/levers.json, levers.md                   the table, written anew after every row

The test images are looked at here: what the table shows is how settings compare on them, not how good they are on others.

What a lever's row keeps: the layer maps of the test images, computed once a training, and the figures of each reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from nnet_edge.anomaly_map import image_score
from nnet_edge.benchmarks.accuracy.grid import RANDOM_TEACHER, Key, Trainings, claiming, holder, require_same
from nnet_edge.benchmarks.accuracy.lever_table import LeverTable, Row
from nnet_edge.benchmarks.accuracy.levers import BASE, Variant, find_variants
from nnet_edge.calibration.predictions import TestImages, load_test
from nnet_edge.data.images import HELD_OUT_SHARE, Dataset, fingerprint
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import write_atomically
from nnet_edge.methods.backbone import build_encoder, find_backbone
from nnet_edge.methods.compute import choose_device
from nnet_edge.methods.nnet.network import NNet
from nnet_edge.methods.nnet.settings import TUNED, TrainSettings
from nnet_edge.methods.torch_runner import TorchRunner
from nnet_edge.metrics import Metrics, measure_known
from nnet_edge.runtime.runners.base import infer_all
from nnet_edge.settings.runner import require_between
from nnet_edge.training.checkpoint import Checkpoint
from nnet_edge.training.loop import Progress, TrainOptions

SCHEMA = "nnet-edge lever row 1"


def kept_layer_maps(
    path: Path, key: Key, checkpoint: Checkpoint, weights: str, images: np.ndarray, device: str
) -> dict[str, np.ndarray]:
    """The layer maps float32 (N, 1, h, w) of uint8 RGB `images` (N, 256, 256, 3), read from `path` or computed and kept.

    `weights` is one of levers.WEIGHTS. Raises ConfigError when `path` is of another key, DataError when it is damaged.
    """
    if path.exists():
        require_same(path, read_map_key(path), key)
        return load_file(path)
    maps = infer_all(TorchRunner(network_with(checkpoint, weights), device), images).layer_maps
    write_atomically(path, save(dict(maps), {"key": json.dumps(key)}))
    return dict(maps)


def network_with(checkpoint: Checkpoint, weights: str) -> NNet:
    """N-Net with weights that a training left: the running mean is the weights themselves where none was kept."""
    model = checkpoint.settings.model
    network = NNet(model, build_encoder(find_backbone(model.backbone)))
    left = {
        "deployed": checkpoint.deployed,
        "averaged": checkpoint.averaged or checkpoint.network,
        "last": checkpoint.network,
    }
    network.load_state_dict(left[weights])
    return network.eval()


def read_map_key(path: Path) -> Key:
    """The key of kept layer maps. Raises DataError when they are damaged."""
    try:
        with safe_open(path, "np") as file:
            key: Key = json.loads((file.metadata() or {})["key"])
            return key
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it, and the maps are computed again") from error


def write_figures(path: Path, key: Key, name: str, metrics: Metrics) -> None:
    """Keep the figures of the variant `name` at `path`."""
    found = {"schema": SCHEMA, "variant": name, "metrics": metrics.as_dict(), "key": key}
    write_atomically(path, json.dumps(found, indent=2, allow_nan=False).encode() + b"\n")


def read_figures(path: Path, key: Key) -> Metrics:
    """What `write_figures` wrote. Raises ConfigError when it is of another run, DataError when damaged."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        found, metrics = known["key"], Metrics(**known["metrics"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}): delete it, and it is measured again") from error
    require_same(path, found, key)
    return metrics


def reading_key(variant: Variant) -> dict[str, Any]:
    """What tells one reading from another, as JSON gives it back."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(variant.reading)))
    return values


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
class LeverSettings:
    """What is compared, and what all have in common. Raises ConfigError for what cannot be meant."""

    training: TrainSettings = TUNED
    options: TrainOptions = field(default_factory=TrainOptions)
    seeds: tuple[int, ...] = (1, 2, 3)
    levers: tuple[str, ...] = ()  # in this order; none: all
    variants: tuple[str, ...] = ()  # of the levers only these; none: all
    with_training: bool = True  # False: the base is trained, and of the variants only readings are measured
    test_limit: int | None = None  # good and bad test images each, at most
    held_out_share: float = HELD_OUT_SHARE
    skip_bad: bool = False

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ConfigError(f"seeds {', '.join(map(str, self.seeds)) or 'none'}: give at least one, each once")
        if self.test_limit is not None:
            require_between("test limit", self.test_limit, 1, 1_000_000)
        find_variants(self.levers, self.variants)


class CategoryBench:
    """The rows of one category."""

    def __init__(self, dataset: Dataset, out: Path, settings: LeverSettings, trainings: Trainings) -> None:
        self.dataset = limited(dataset, settings.test_limit)
        self.out, self.settings, self.trainings, self.say = out, settings, trainings, trainings.say
        self.test_key = {"test": fingerprint([sample.path for sample in self.dataset.test])}
        self.facts: dict[str, Any] = {}

    @cached_property
    def test(self) -> TestImages:
        """The test images with labels and masks."""
        found = load_test(self.dataset, self.settings.skip_bad)
        if found is None or not found.labels.any() or found.labels.all():
            raise DataError(f"{self.dataset.root} needs good and bad test images: levers are compared on them")
        return found

    def measure(self, variant: Variant, seed: int) -> tuple[Metrics, bool] | None:
        """The variant's figures, and whether it is the base itself; None when it was stopped or is done elsewhere."""
        base_folder = self.out / f"seed_{seed}"
        base = self.trained(base_folder, replace(self.settings.training, seed=seed), f"seed {seed}")
        if base is None:
            return None
        self.facts = base.facts
        if not variant.is_trained:
            found = self.read(base_folder, base, variant)
            return None if found is None else (found, False)
        wanted = variant.settings(cast(TrainSettings, base.settings), self.settings.training.image_steps)
        images = int(base.facts["data"]["learned"]) * wanted.augmentation.copies
        if wanted.with_length_for(images) == base.settings:
            found = self.read(base_folder, base, BASE)
            return None if found is None else (found, True)
        folder = self.out / slug(variant.name) / f"seed_{seed}"
        checkpoint = self.trained(folder, wanted, f"{variant.name}, seed {seed}")
        found = None if checkpoint is None else self.read(folder, checkpoint, variant)
        return None if found is None else (found, False)

    def trained(self, folder: Path, training: TrainSettings, what: str) -> Checkpoint | None:
        """The finished training in `folder`; None when it was stopped or another process is at it."""
        known = self.trainings.finished(training, folder / "training")
        if known is not None:
            return known
        with claiming(folder) as is_mine:
            if is_mine:
                return self.trainings.finish(training, folder / "training", f"{self.dataset.category}, {what}")
        self.say(f"{self.dataset.category}, {what}: {holder(folder)} is at it")
        return None

    def read(self, folder: Path, checkpoint: Checkpoint, variant: Variant) -> Metrics | None:
        """The figures of this variant's reading of the training in `folder`; None when another process is at it."""
        path = folder / f"reading_{slug(variant.name)}.json"
        key = dict(checkpoint.facts["data"]["key"]) | {"test": self.test_key, "reading": reading_key(variant)}
        if not path.exists():
            with claiming(folder) as is_mine:
                if not is_mine:
                    return None
                metrics = self.judge(folder, checkpoint, variant)
                write_figures(path, key, variant.name, metrics)
        return read_figures(path, key)

    def judge(self, folder: Path, checkpoint: Checkpoint, variant: Variant) -> Metrics:
        """The figures of the training's layer maps, read as the variant says."""
        weights = variant.reading.weights
        key = dict(checkpoint.facts["data"]["key"]) | {"test": self.test_key}
        path, device = folder / f"maps_{weights}.safetensors", choose_device(self.settings.options.device)
        maps = kept_layer_maps(path, key, checkpoint, weights, self.test.images, device)
        read = variant.reading.maps(maps, checkpoint.settings.model.fusion)
        return measure_known(self.test.labels, image_score(read), self.test.masks, read, self.test.has_mask)


def run_levers(
    datasets: Sequence[Dataset],
    out: Path,
    settings: LeverSettings,
    command: str,
    report: Callable[[Progress], None] = lambda progress: None,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda line: None,
) -> LeverTable:
    """The table of `settings.levers` over `datasets`: the base first, then readings, then variants that must be trained.

    `stop` is asked after every training step; the table then comes back unfinished and another call goes on from there.
    Raises ConfigError for an `out` that holds rows of other settings or data, DataError for a data set that cannot be
    judged on, TrainingError when a row cannot be trained.
    """
    names = [dataset.category for dataset in datasets]
    if not names or len(set(names)) != len(names):
        raise ConfigError(f"categories {', '.join(names) or 'none'}: give at least one, each once")
    benches = [
        CategoryBench(one, out / one.category, settings,
                      Trainings(one, settings.options, settings.held_out_share, settings.skip_bad, report, stop, say))
        for one in datasets
    ]  # fmt: skip
    chosen = [(lever, variant) for lever, variant in find_variants(settings.levers, settings.variants)
              if settings.with_training or not variant.is_trained]  # fmt: skip
    found: dict[tuple[str, str], dict[str, dict[int, Metrics]]] = {}
    same: dict[tuple[str, str], set[str]] = {}
    ordered = [("base", BASE), *sorted(chosen, key=lambda pair: pair[1].is_trained)]
    for lever, variant in (*ordered, *ordered):  # again: what other processes finished, or gave up, meanwhile
        for seed in settings.seeds:
            for bench in benches:
                name = bench.dataset.category
                if seed in found.get((lever, variant.name), {}).get(name, {}) or stop():
                    continue
                measured = bench.measure(variant, seed)
                if measured is not None:
                    found.setdefault((lever, variant.name), {}).setdefault(name, {})[seed] = measured[0]
                    if measured[1]:
                        same.setdefault((lever, variant.name), set()).add(name)
        if found:
            write_table(out, table_of(benches, settings, command, chosen, found, same))
    table = table_of(benches, settings, command, chosen, found, same)
    if table.missing and not stop():
        say(f"{table.missing} rows are under way elsewhere: the same command reads them when they are done")
    return table


def table_of(
    benches: Sequence[CategoryBench],
    settings: LeverSettings,
    command: str,
    chosen: Sequence[tuple[str, Variant]],
    found: Mapping[tuple[str, str], Mapping[str, Mapping[int, Metrics]]],
    same: Mapping[tuple[str, str], set[str]],
) -> LeverTable:
    """What was measured so far."""
    wanted = (1 + len(chosen)) * len(benches) * len(settings.seeds)
    done = sum(len(by_seed) for by_category in found.values() for by_seed in by_category.values())
    counts = {one.dataset.category: sum(sample.is_anomalous for sample in one.dataset.test) for one in benches}
    judged = ", ".join(f"{one.dataset.category}: {len(one.dataset.test) - counts[one.dataset.category]} good and "
                       f"{counts[one.dataset.category]} bad test images" for one in benches)  # fmt: skip
    if settings.test_limit is not None:
        judged += f" (limited to {settings.test_limit} of each kind)"
    facts = next((one.facts for one in benches if one.facts), None)
    header = {
        "command": command,
        "judged on": judged,
        "mean ± deviation over seeds": ", ".join(map(str, settings.seeds)),
    }
    if facts is not None:
        header["trained"] = f"{settings.training.model.backbone}, {facts['teacher']['origin']}, in {facts['precision']}"
    warnings = (RANDOM_TEACHER,) if facts is not None and facts["teacher"]["is_random"] else ()
    rows = tuple(
        Row(lever, variant.name, f"{command} --lever {lever}", found.get((lever, variant.name), {}),
            tuple(sorted(same.get((lever, variant.name), ()))))
        for lever, variant in chosen
    )  # fmt: skip
    base = found.get(("base", BASE.name), {})
    categories = tuple(one.dataset.category for one in benches)
    return LeverTable(header, warnings, settings.seeds, categories, base, rows, wanted - done)


def write_table(out: Path, table: LeverTable) -> None:
    """The table, kept as levers.json and levers.md too."""
    write_atomically(out / "levers.json", json.dumps(table.as_dict(), indent=2, allow_nan=False).encode() + b"\n")
    write_atomically(out / "levers.md", table.markdown().encode() + b"\n")
