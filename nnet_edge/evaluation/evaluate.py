"""Evaluation of any runner on a test set: scores, maps, metrics, and the cost of the verdicts at the threshold."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nnet_edge.bits import Depth
from nnet_edge.data.copies import equal_parts
from nnet_edge.data.dataset import Dataset, Sample, Saturation
from nnet_edge.data.images import Skipped, load_images, load_masks
from nnet_edge.data.masks import find_mask_like
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.frame import Outputs
from nnet_edge.geometry import DEFAULT, Geometry, PictureSizes
from nnet_edge.image_files import read_labels
from nnet_edge.image_path import columns_of, measure_all
from nnet_edge.imaging import MaskRule, resize_mask
from nnet_edge.metrics import Metrics, measure_known, spro
from nnet_edge.scoring import Threshold
from nnet_edge.text import printable

Progress = Callable[[int, int], None]  # steps done, steps in all; every image is read, later judged: two steps


class Infers(Protocol):
    """What is evaluated: anything that gives outputs for uint8 RGB images (N, H, W, 3) and says what it is."""

    @property
    def name(self) -> str: ...  # the library that computes, for reports

    @property
    def precision(self) -> str: ...

    def infer(self, images: np.ndarray) -> Outputs: ...


@dataclass(frozen=True)
class Recall:
    """What became of the images of one kind of defect."""

    rejected: int
    found: int | None  # a region above the threshold overlaps the defect's mask; None where no mask is known
    marked: int  # with a mask
    of: int

    @property
    def words(self) -> str:
        """As counts."""
        text = f"{self.rejected} of {self.of} rejected"
        return text if self.found is None else f"{text}, {self.found} of {self.marked} found"


@dataclass(frozen=True)
class Evaluation:
    """What a runner said about a test set of N images, and how right it was."""

    category: str
    root: Path
    runner: str
    precision: str
    threshold: float  # image score above this is rejected
    samples: tuple[Sample, ...]  # the N images that were judged, in the order of the arrays
    labels: np.ndarray  # bool (N,), True: anomalous
    scores: np.ndarray  # float64 (N,)
    maps: np.ndarray  # float32 (N, H, W); a half float would lose small products
    masks: np.ndarray  # bool (N, H, W), False where an image has no mask
    has_mask: np.ndarray  # bool (N,), whether the true mask is known; it is for every good image
    metrics: Metrics  # those of pixels over the images whose mask is known
    skipped: tuple[Skipped, ...]  # images that could not be read
    seconds: Mapping[str, float]  # spent on read, infer, measure
    distinct: int | None = None  # images without those of equal pixels; None: not counted
    mask_like: tuple[Path, ...] = ()  # images that look like masks
    depth: Depth | None = None  # of its pictures of 16 bits; None: there are none
    image_path: Mapping[str, np.ndarray] = field(default_factory=dict)  # measures of its good images, else of all
    warnings: tuple[str, ...] = ()  # what every report of this artefact must say, as of a teacher with random weights
    promised: Threshold | None = None  # what the bundle's threshold is expected to cost; None for weights alone
    geometry: Geometry = DEFAULT  # of the input; maps and masks are of its window, which has the pictures
    notes: tuple[str, ...] = ()  # on the size of the pictures, and on what of them is not judged
    spro: float | None = None  # for a set that says how much of a defect is enough (MVTec LOCO), to SPRO_LIMIT

    @property
    def names(self) -> tuple[str, ...]:
        """The images' paths below the root of the test set."""
        return tuple(name_below(sample.path, self.root) for sample in self.samples)

    @property
    def relative_scores(self) -> np.ndarray:
        """Scores divided by the threshold (N,): 1.0 is the line."""
        return self.scores / self.threshold

    @property
    def rejected(self) -> np.ndarray:
        """The verdicts, bool (N,)."""
        return self.scores > self.threshold

    @property
    def false_rejects(self) -> np.ndarray:
        """Indices of the good images that were rejected, the highest score first."""
        wrong = np.flatnonzero(self.rejected & ~self.labels)
        return wrong[np.argsort(-self.scores[wrong], kind="stable")]

    @property
    def missed_defects(self) -> np.ndarray:
        """Indices of the anomalous images that were passed, the lowest score first."""
        wrong = np.flatnonzero(~self.rejected & self.labels)
        return wrong[np.argsort(self.scores[wrong], kind="stable")]

    @cached_property
    def is_marked(self) -> np.ndarray:
        """Whether a mask says where the image's defect is, bool (N,)."""
        return np.asarray(self.labels & self.has_mask & self.masks.any(axis=(1, 2)))

    @cached_property
    def peaks(self) -> np.ndarray:
        """The highest value of the map inside the image's mask (N,), -inf where there is no mask."""
        rows = zip(self.maps, self.masks, self.is_marked, strict=True)
        return np.array([float(one[mask].max()) if is_marked else -np.inf for one, mask, is_marked in rows])

    @property
    def found(self) -> np.ndarray:
        """Whether the image was rejected and a region above the threshold overlaps its defect, bool (N,)."""
        return self.rejected & (self.peaks > self.threshold)

    @property
    def recall_by_defect(self) -> dict[str, Recall]:
        """For each kind of defect: how many of its images were rejected, how many found, and how many there are."""
        kinds = np.array([sample.defect if sample.is_anomalous else "" for sample in self.samples], object)
        return {str(kind): self.recall_of(self.labels & (kinds == kind)) for kind in sorted(set(kinds[self.labels]))}

    def recall_of(self, rows: np.ndarray) -> Recall:
        """That of these images, bool (N,)."""
        marked = int((self.is_marked & rows).sum())
        found = int((self.found & rows).sum()) if marked else None
        return Recall(int((self.rejected & rows).sum()), found, marked, int(rows.sum()))

    @property
    def mask_disagreements(self) -> tuple[str, ...]:
        """Names of the images whose known mask, brought to the map's size, says something else than their label.

        A defect of a few pixels may vanish there: its image then counts as anomalous among the images and as normal
        among the pixels.
        """
        differs = self.has_mask & (np.array(self.masks.any(axis=(1, 2))) != self.labels)
        return tuple(self.names[index] for index in np.flatnonzero(differs))

    def as_dict(self) -> dict[str, Any]:
        """Everything but the pixels, as JSON can hold it."""
        good, anomalous = int((~self.labels).sum()), int(self.labels.sum())
        total = sum(self.seconds.values())
        found = (bool(hit) if is_marked else None for hit, is_marked in zip(self.found, self.is_marked, strict=True))
        rows = zip(self.samples, self.names, self.scores, self.relative_scores, self.rejected, found, strict=True)
        return {
            "category": self.category,
            "runner": self.runner,
            "precision": self.precision,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "threshold": self.threshold,
            "bits": None if self.depth is None else self.depth.bits,
            "images": {"good": good, "anomalous": anomalous, "skipped": len(self.skipped)},
            "distinct_images": self.distinct,
            "look_like_masks": [name_below(path, self.root) for path in self.mask_like],
            "metrics": self.metrics.as_dict(),
            "spro": self.spro,
            "false_rejects": {"count": len(self.false_rejects), "of": good},
            "missed_defects": {"count": len(self.missed_defects), "of": anomalous},
            "rejected_defects": asdict(self.recall_of(self.labels)),
            "recall_by_defect": {kind: asdict(recall) for kind, recall in self.recall_by_defect.items()},
            "promised": None if self.promised is None else self.promised.as_dict(),
            "without_mask": [self.names[index] for index in np.flatnonzero(~self.has_mask)],
            "mask_disagreements": list(self.mask_disagreements),
            "skipped": [{"name": name_below(s.path, self.root), "reason": s.reason} for s in self.skipped],
            "seconds": dict(self.seconds),
            "share_of_time": {stage: seconds / total if total else None for stage, seconds in self.seconds.items()},
            "scores": [
                {
                    "name": name,
                    "defect": sample.defect if sample.is_anomalous else None,
                    "is_anomalous": sample.is_anomalous,
                    "score": float(score),
                    "relative_score": float(relative),
                    "rejected": bool(is_rejected),
                    "found": is_found,
                }
                for sample, name, score, relative, is_rejected, is_found in rows
            ],
        }


def evaluate(
    runner: Infers,
    dataset: Dataset,
    threshold: float,
    batch: int = 8,
    skip_bad: bool = False,
    mask_rule: MaskRule = "half",
    progress: Progress | None = None,
    bits: int | None = None,
    geometry: Geometry = DEFAULT,
    learned: PictureSizes | None = None,
) -> Evaluation:
    """The evaluation of `runner` on the test images of `dataset`, `batch` of them at a time.

    `mask_rule` is how masks come to the map's size (imaging.resize_mask); pictures of 16 bits are read with `bits`.
    Needs 0.52 MB of memory an image of 256x256 while it judges, 0.6 MB while it measures; 0.33 MB stay. Raises ConfigError for
    an invalid threshold or batch; DataError for a test set without images, an image that cannot be read (unless `skip_bad`), a
    mask that does not fit, or NaN or infinite outputs.
    """
    if not (math.isfinite(threshold) and threshold > 0):
        raise ConfigError(f"the threshold {threshold} is invalid: give a positive score")
    if batch < 1:
        raise ConfigError(f"a batch of {batch} images is invalid: give at least 1")
    if not dataset.test:
        raise DataError(f"no test image under {dataset.root} (layout {dataset.layout}): evaluation needs some")
    total, began = len(dataset.test), time.perf_counter()
    report = progress or (lambda done, steps: None)
    images = load_images(
        [sample.path for sample in dataset.test], skip_bad, lambda done, _: report(done, 2 * total), bits, geometry
    )
    sample_of = {sample.path: replace(sample, defect=printable(sample.defect)) for sample in dataset.test}
    samples = tuple(sample_of[path] for path in images.paths)
    masks, has_mask = load_masks(samples, mask_rule, geometry)
    read = time.perf_counter()
    maps = np.empty((len(samples), *geometry.size), np.float32)
    scores = np.empty(len(samples), np.float64)
    for start in range(0, len(samples), batch):
        here = slice(start, start + batch)
        maps[here], scores[here] = infer_checked(runner, images.images[here], samples[here])
        report(total + min(start + batch, len(samples)) + len(images.skipped), 2 * total)
    sizes = dict(zip(images.paths, images.sizes, strict=True))
    skipped, depth, distinct = images.skipped, images.depth, len(set(equal_parts(images.images)))
    mask_like = tuple(find_mask_like(images.images, images.paths))
    labels = np.array([sample.is_anomalous for sample in samples])
    like_learned = np.flatnonzero(labels == labels.min())
    image_path = measure_all(images.images[like_learned]) | columns_of([images.files[row] for row in like_learned])
    del images  # before the pixels are sorted
    rows, columns = geometry.window.inside
    maps, masks = (np.ascontiguousarray(each[:, rows, columns]) for each in (maps, masks))
    inferred = time.perf_counter()
    metrics = measure_known(labels, scores, masks, maps, has_mask)
    regions = find_regions(samples, dataset.saturation, mask_rule, geometry)
    saturated = spro(masks, maps, regions) if regions and has_mask.all() else None
    seconds = {"read": read - began, "infer": inferred - read, "measure": time.perf_counter() - inferred}
    return Evaluation(
        category=printable(dataset.category), root=dataset.root, runner=runner.name, precision=runner.precision,
        threshold=threshold, samples=samples, labels=labels, scores=scores, maps=maps, masks=masks, has_mask=has_mask,
        metrics=metrics, skipped=skipped, seconds=seconds, distinct=distinct, mask_like=mask_like, depth=depth,
        image_path=image_path, geometry=geometry,
        spro=saturated,
        notes=(*other_sizes(sizes, learned, geometry), *left_out(labels & has_mask & ~masks.any(axis=(1, 2)), geometry)),
    )  # fmt: skip


def find_regions(
    samples: Sequence[Sample], saturation: Sequence[Saturation], rule: MaskRule, geometry: Geometry
) -> list[tuple[int, np.ndarray, float]]:
    """The defects of the samples for sPRO: image, where it is in the window, the share that is enough; a mask is a defect.

    Nothing without `saturation`. Raises DataError for a mask of a value that it does not name.
    """
    known = {one.value: one for one in saturation}
    rows, columns = geometry.window.inside
    regions = []
    for row, sample in enumerate(samples if saturation else ()):
        for path in sample.masks if sample.is_anomalous else ():
            values = read_labels(path).values
            there = np.asarray(values.reshape(*values.shape[:2], -1).any(axis=2))
            if there.any() and (value := int(values.max())) not in known:
                raise DataError(f"mask {path} has the value {value}, of which defects_config.json says nothing")
            if there.any():
                share = known[value].share(int(there.sum()))
                regions.append((row, resize_mask(there, geometry, rule)[rows, columns], share))
    return regions


def other_sizes(
    sizes: Mapping[Path, tuple[int, int]], learned: PictureSizes | None, geometry: Geometry
) -> tuple[str, ...]:
    """A note where pictures have another size or shape than those that were learned from; none where all have theirs."""
    if learned is None:
        return ()
    told = {path: told for path, size in sizes.items() if (told := learned.differs(*size, geometry))}
    first = next(iter(told.items()), None)
    if first is None:
        return ()
    return (f"{len(told)} of {len(sizes)} images (first: {printable(first[0].name)}): {first[1]}",)


def left_out(vanished: np.ndarray, geometry: Geometry) -> tuple[str, ...]:
    """A note where the fit leaves a part of every picture out; `vanished`, bool (N,): defects that no mask shows any more."""
    if not geometry.leaves_out:
        return ()
    height, width = geometry.shares
    count = int(vanished.sum())
    defects = f"; {count} defects lie outside of it or are too small, so nobody looks at them" if count else ""
    return (
        f"the fit crop judges the middle {height:.0%} of each picture's height and {width:.0%} of its width; "
        f"the rest is not judged{defects}",
    )


def infer_checked(runner: Infers, images: np.ndarray, samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """The anomaly maps and scores of a batch; raises DataError naming the first image whose outputs are NaN or infinite."""
    outputs = runner.infer(images)
    broken = outputs.broken()
    if len(broken):
        path = samples[int(broken[0])].path
        name = f"{runner.name} ({runner.precision})"
        raise DataError(f"{name} gives NaN or infinite outputs for {path}: train or export again")
    return outputs.anomaly_map, outputs.image_score


def name_below(path: Path, root: Path) -> str:
    """The path below `root`, with forward slashes and printable; the whole path when it lies elsewhere."""
    return printable((path.relative_to(root) if path.is_relative_to(root) else path).as_posix())
