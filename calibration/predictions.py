"""Predictions of one runner for held-out frames and labelled images, with the threshold and the metrics that follow.

Needs no onnx: engines are judged on boxes that have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nnet_edge.data.images import Dataset, load_images, load_masks
from nnet_edge.errors import TrainingError
from nnet_edge.frame import Outputs
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.metrics import judged_metrics, measure_known
from nnet_edge.runtime.runners.base import Runner, infer_all
from nnet_edge.scoring import TIGHTEST, Threshold, ThresholdRule


@dataclass(frozen=True)
class TestImages:
    """Labelled images that no threshold was chosen on."""

    __test__ = False  # pytest: no class of tests

    images: np.ndarray  # uint8 RGB (N, height, width, 3)
    labels: np.ndarray  # bool (N,), True: anomalous
    masks: np.ndarray  # bool (N, height, width)
    has_mask: np.ndarray  # bool (N,)
    kinds: tuple[str, ...] = ()  # of defect, one an image ("good" too); empty where they are not known

    def rows(self, rows: np.ndarray) -> TestImages:
        """Those of these rows, int (M,)."""
        kinds = tuple(self.kinds[row] for row in rows) if self.kinds else ()
        return TestImages(self.images[rows], self.labels[rows], self.masks[rows], self.has_mask[rows], kinds)


@dataclass(frozen=True)
class Predictions:
    """The predictions of one runner for all images."""

    runner: str
    held_out: Outputs | None  # None where only images count that nothing was chosen on
    test: Outputs | None
    threshold: Threshold | None  # None where there is a fault
    metrics: Mapping[str, float | None]  # empty without defects
    fault: str = ""  # why nothing can be compared with them

    @property
    def parts(self) -> list[Outputs]:
        """All outputs, held-out frames first."""
        return [part for part in (self.held_out, self.test) if part is not None]

    @property
    def scores(self) -> np.ndarray:
        """Scores over the threshold, held-out frames first, float64 (N,). Only of predictions without a fault."""
        assert self.threshold is not None
        return np.concatenate([part.image_score.astype(np.float64) for part in self.parts]) / self.threshold.value

    def for_rows(self, test: TestImages, rows: np.ndarray, held_out: bool) -> Predictions:
        """Those for these rows of the `test` images, int (M,), and for the held-out frames where `held_out` says so."""
        assert self.test is not None
        some = Outputs(self.test.anomaly_map[rows], self.test.image_score[rows], {})
        metrics = {} if self.fault else metrics_of(test.rows(rows), some)
        return replace(self, held_out=self.held_out if held_out else None, test=some, metrics=metrics)


def predict(
    runner: Runner, held_out: np.ndarray, test: TestImages | None = None, rule: ThresholdRule = TIGHTEST
) -> Predictions:
    """The predictions of `runner`, with its threshold by `rule` and, where there are defects, its metrics; or their fault."""
    kept = infer_all(runner, held_out, layer_maps=False)
    tested = None if test is None else infer_all(runner, test.images, layer_maps=False)
    predictions = Predictions(runner.name, kept, tested, None, {})
    named = (("held-out frame", kept), ("labelled image", tested))
    broken = [(name, int(row)) for name, part in named if part is not None for row in part.broken()]
    if broken:
        total = sum(len(part.image_score) for part in predictions.parts)
        (name, row), what = broken[0], f"{runner.precision} on {runner.name}"
        count = f"{len(broken)} of {total} images get a score or a map that is NaN or infinite"
        return replace(predictions, fault=f"{count} ({what}; the first is {name} number {row + 1})")
    try:
        threshold = rule.choose(kept.image_score)
    except TrainingError as error:
        return replace(predictions, fault=str(error))
    metrics = {} if test is None or tested is None else metrics_of(test, tested)
    return replace(predictions, threshold=threshold, metrics=metrics)


def metrics_of(test: TestImages, outputs: Outputs) -> dict[str, float | None]:
    """The metrics that the gate judges; empty without defects."""
    if not test.labels.any():
        return {}
    found = measure_known(test.labels, outputs.image_score, test.masks, outputs.anomaly_map, test.has_mask)
    return {metric.name: found[metric.name] for metric in judged_metrics()}


def load_test(
    dataset: Dataset, skip_bad: bool, bits: int | None = None, geometry: Geometry = DEFAULT
) -> TestImages | None:
    """The labelled test images of `dataset` with their masks, None when it has none; see `load_images` for `bits`."""
    if not dataset.test:
        return None
    images = load_images([sample.path for sample in dataset.test], skip_bad, bits=bits, geometry=geometry)
    sample_of = {sample.path: sample for sample in dataset.test}
    samples = [sample_of[path] for path in images.paths]
    masks, has_mask = load_masks(samples, geometry=geometry)
    kinds = tuple(sample.defect for sample in samples)
    return TestImages(images.images, np.array([sample.is_anomalous for sample in samples]), masks, has_mask, kinds)
