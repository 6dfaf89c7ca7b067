"""How good the other methods are: each learns a category in its own environment, and our metrics measure its raw maps.

    OUT/METHOD/CATEGORY/seed_1/fp32.json    a row, as schemas/accuracy_row.json says; never computed twice, and refused
                                            where its key says that it is of other settings or other images
    OUT/METHOD/CATEGORY/seed_1/learned/     what learn.py left: facts, exports, log

A method sees the pixels that N-Net sees (256x256 after our resize) and learns from every good training image up to
`images`, those that N-Net holds out for its threshold included.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.benchmarks.accuracy.tables import ROW_SCHEMA
from nnet_edge.benchmarks.harness.grid import Elsewhere, claimed, read_row, require_same, run_grid
from nnet_edge.benchmarks.harness.report import write_json
from nnet_edge.benchmarks.harness.rounds import Say, quiet
from nnet_edge.benchmarks.peers.environment import ANOMALIB, process_variables, run_module
from nnet_edge.benchmarks.peers.methods import RANDOM, SAME_BACKBONE, Method
from nnet_edge.data.images import Dataset, fingerprint, load_images, load_masks
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.evaluation.evaluate import measure_known
from nnet_edge.settings.runner import require_between

INT8_EXPORT = "openvino-int8"  # as learn.py names it
LEARN = "nnet_edge.benchmarks.peers.learn"
RAW = "maps and scores as the method computes them: exported without anomalib's post-processor, which scales and clamps"
ADAPTED = {
    "reverse_distillation": "ResNet-18's bottleneck and decoder behind the taps, split into signs and padded to its widths"
}


@dataclass(frozen=True)
class LearnSettings:
    """How the methods learn. Raises ConfigError for an invalid setting."""

    seed: int = 1
    images: int = 150  # good training images, at most: PatchCore's coreset takes time with the square of them
    epochs: int | None = None  # None: anomalib's own
    minutes: float | None = None  # of one training, at most; what is cut short says so. None: no limit
    threads: int = 1
    int8: bool = True  # measure anomalib's INT8 (post-training quantisation by NNCF) too

    def __post_init__(self) -> None:
        require_between("images", self.images, 2, 1_000_000)
        require_between("threads", self.threads, 1, 1024)
        if self.epochs is not None:
            require_between("epochs", self.epochs, 1, 1_000_000)
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ConfigError(f"a limit of {self.minutes} minutes is invalid: give a positive number")

    def key(self, method: Method) -> dict[str, Any]:
        """What tells a training of `method` from another; limits count only where they can cut one short."""
        limited = method.is_iterative and self.minutes is not None
        return {
            "seed": self.seed,
            "images": self.images,
            "epochs": self.epochs if method.is_iterative else None,
            "minutes": self.minutes if limited else None,
            "threads": self.threads if limited else None,  # what a minute is worth
            "backbone": SAME_BACKBONE,
            "anomalib": ANOMALIB,
        }


@dataclass(frozen=True)
class LearnCell:
    """A method on a category: its row files, or why it could not learn."""

    python: Path
    method: Method
    dataset: Dataset
    out: Path
    settings: LearnSettings
    command: str
    say: Say = quiet

    @property
    def folder(self) -> Path:
        """Where its rows lie, and below it in learned/ what it learned."""
        return row_folder(self.out, self.method, self.dataset.category, self.settings.seed)

    @property
    def key(self) -> dict[str, Any]:
        """What tells its rows from those of other settings or images."""
        return {"learning": self.settings.key(self.method), "data": data_key(self.dataset)}

    def is_done(self) -> bool:
        """Whether the rows are there, INT8 among them when it is wanted and could be made.

        Raises ConfigError when they are of other settings or images.
        """
        row = read_row_if_any(self.folder / "fp32.json")
        if row is None:
            return False
        require_same(self.folder / "fp32.json", row.get("key", {}), self.key)
        return not self.settings.int8 or INT8_EXPORT in row["peer"]["exports"]

    def row(self) -> str | None:
        """None, or why it failed. Raises Elsewhere."""
        try:
            paths = self.learn()
        except Elsewhere:
            raise
        except DataError as error:
            self.say(f"warning: {error}")
            return str(error)
        self.say(f"{self.method.title} on {self.dataset.category}: {', '.join(str(path) for path in paths)}")
        return None

    def learn(self) -> list[Path]:
        """The row files, computed where they are missing; anew where INT8 was left out and is wanted.

        Raises DataError when the method's process fails, with its last line and its log, and Elsewhere; then no row is
        written. ConfigError when the row that is there is of other settings or images.
        """
        learned, what = self.folder / "learned", f"{self.method.title} on {self.dataset.category}"
        if not self.is_done():
            with claimed(self.folder, what):
                for row in self.folder.glob("*.json"):
                    row.unlink()
                learned.mkdir(exist_ok=True)
                with tempfile.TemporaryDirectory(prefix="nnet-edge-peer-") as scratch:
                    run_job(
                        self.python, self.method, self.write_job(Path(scratch)), learned, self.settings.threads, what
                    )
                    self.write_rows()
                for maps in (*learned.glob("maps-*.npy"), *learned.glob("scores-*.npy")):
                    maps.unlink()  # 170 MB for 650 images
        return sorted(self.folder.glob("*.json"))

    def write_job(self, scratch: Path) -> Path:
        """The job file in `scratch`, with the images to learn as PNG files and those to judge as one array."""
        from PIL import Image

        pngs, settings = scratch / "train", self.settings
        pngs.mkdir()
        for number, image in enumerate(load_images(chosen(self.dataset.train, settings)).images):
            Image.fromarray(image).save(pngs / f"{number:05d}.png", compress_level=1)
        np.save(scratch / "test.npy", load_images([sample.path for sample in self.dataset.test]).images)
        job = {"method": self.method.name, "backbone": SAME_BACKBONE, "seed": settings.seed, "train": str(pngs),
               "test": str(scratch / "test.npy"), "out": str((self.folder / "learned").absolute()),
               "epochs": settings.epochs, "minutes": settings.minutes, "threads": settings.threads,
               "int8": settings.int8}  # fmt: skip
        write_json(scratch / "job.json", job)
        return scratch / "job.json"

    def write_rows(self) -> None:
        """fp32.json, written last, and int8.json where there are maps: the metrics of the maps that learn.py left."""
        test, learned = self.dataset.test, self.folder / "learned"
        facts = json.loads((learned / "facts.json").read_text())
        labels = np.array([sample.is_anomalous for sample in test])
        masks, has_mask = load_masks(test)
        for precision in ("int8", "fp32"):
            maps_file = learned / f"maps-{precision}.npy"
            if maps_file.exists():
                scores = np.load(learned / f"scores-{precision}.npy").astype(np.float64)
                metrics = measure_known(labels, scores, masks, np.load(maps_file), has_mask)
                row = self.describe(precision, facts) | {"metrics": metrics.as_dict()}
                write_json(self.folder / f"{precision}.json", row)

    def describe(self, precision: str, facts: dict[str, Any]) -> dict[str, Any]:
        """A row without its metrics: schemas/accuracy_row.json, and what only these methods have under "peer"."""
        method, test = self.method, self.dataset.test
        anomalous = sum(sample.is_anomalous for sample in test)
        return {
            "schema": ROW_SCHEMA,
            "method": f"{method.title} (anomalib)",
            "backbone": SAME_BACKBONE if method.name not in ADAPTED else f"{SAME_BACKBONE} (adapted)",
            "precision": precision,
            "dataset": self.dataset.root.name,
            "category": self.dataset.category,
            "seed": self.settings.seed,
            "images": {"train": facts["training"]["images"], "good": len(test) - anomalous, "anomalous": anomalous},
            "runner": "torch" if precision == "fp32" else "openvino",
            "training_s": facts["training"]["seconds"],
            "trained_in": f"anomalib {facts['versions']['anomalib']}",
            "command": self.command,
            "peer": {**facts, "raw": RAW, "adapted": ADAPTED.get(method.name)},
            "key": self.key,
        }


def learn_all(
    python: Path, methods: Sequence[Method], datasets: Sequence[Dataset], out: Path, settings: LearnSettings,
    command: str, say: Say,
) -> dict[tuple[str, str], str]:  # fmt: skip
    """Every method with the same backbone on every category; (method, category) -> why it has no row.

    Raises ConfigError, before anything is learned, when `out` holds rows of other settings or images.
    """
    cells = {
        (method.name, dataset.category): LearnCell(python, method, dataset, out, settings, command, say)
        for dataset in datasets for method in methods if method.takes_same_backbone
    }  # fmt: skip
    found = run_grid(cells, lambda found: None, say)
    elsewhere = dict.fromkeys(cells.keys() - found.keys(), "another process is at it")
    return elsewhere | {place: reason for place, reason in found.items() if reason is not None}


def require_images(path: Path, dataset: Dataset) -> None:
    """Raise ConfigError unless the row `path`, if there is one, is of these images."""
    if row := read_row_if_any(path):
        require_same(path, row.get("key", {}).get("data", {}), data_key(dataset))


def read_row_if_any(path: Path) -> dict[str, Any] | None:
    """A row file, None where there is none. Raises DataError when it cannot be read."""
    return read_row(path, lambda known: dict(known), "the row is made again") if path.exists() else None


@lru_cache(maxsize=64)
def data_key(dataset: Dataset) -> dict[str, Any]:
    """What tells this category's images and masks from others."""
    drawings = "".join(repr(sample.drawing) for sample in dataset.test if sample.drawing is not None)
    return {
        "category": dataset.category,
        "train": fingerprint(dataset.train),
        "test": fingerprint([sample.path for sample in dataset.test]),
        "masks": fingerprint([sample.mask_path for sample in dataset.test if sample.mask_path is not None]),
        **({"drawings": hashlib.sha256(drawings.encode()).hexdigest()} if drawings else {}),
    }


def row_folder(out: Path, method: Method, category: str, seed: int) -> Path:
    """Where a method's row and what it learned lie."""
    return out / method.name / category / f"seed_{seed}"


def chosen(paths: Sequence[Path], settings: LearnSettings) -> list[Path]:
    """At most `settings.images` of the paths, drawn by the seed, in their order."""
    if len(paths) <= settings.images:
        return list(paths)
    drawn = np.random.default_rng(settings.seed).permutation(len(paths))[: settings.images]
    return [paths[index] for index in sorted(drawn.tolist())]


def export_random(python: Path, method: Method, out: Path, threads: int) -> Path:
    """The folder with exports of `method` as anomalib builds it, with random weights: for its speed and size only."""
    learned = out / method.name / RANDOM
    if not (learned / "facts.json").exists():
        learned.mkdir(parents=True, exist_ok=True)
        job = {"method": method.name, "backbone": RANDOM, "seed": 0, "out": str(learned.absolute()),
               "threads": threads, "int8": False}  # fmt: skip
        write_json(learned / "job.json", job)
        run_job(python, method, learned / "job.json", learned, threads, f"{method.title} with random weights")
    return learned


def run_job(python: Path, method: Method, job: Path, learned: Path, threads: int, what: str) -> None:
    """learn.py on the job. Raises DataError with the last line of its log when it fails."""
    log = learned / "learn.log"
    with tempfile.TemporaryDirectory(prefix="nnet-edge-peer-work-") as work:
        variables = {**process_variables(threads), **method.variables}
        code = run_module(python, LEARN, [str(job.absolute())], variables, Path(work), log)
    if code:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise DataError(f"{what} failed ({said[-1] if said else f'exit code {code}'}): see {log}")
