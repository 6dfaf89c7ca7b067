"""Metrics: how well scores and anomaly maps separate anomalous from normal, and the registry of them.

METRICS names every metric: its key in JSON and manifest, its label in tables, and how it is computed. The evaluation, its table
and pictures, the gate and `evaluate --record` go through it, so a new metric is its function here and its test.

All are exact: every score that occurs is a threshold, ties included. Only `pro_rd4ad` follows the 200 linear thresholds of
RD4AD, for comparison with published tables (specification section 11). Each exact one is a sum over the anomalous pixels of
how many normal (and anomalous) pixels score at least as much, so the pixels are sorted once: 4 bytes a pixel besides the
maps, 262 MB for 1,000 maps of 256x256, and at most 40 MB more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from nnet_edge.errors import ConfigError, DataError

PRO_LIMIT = 0.3  # false positive rate up to which PRO is integrated
SPRO_LIMIT = 0.05  # the one at which MVTec LOCO's authors compare
RD4AD_THRESHOLDS = 200
CHUNK = 1 << 19  # scores looked up at once: 4 MB for each array of counts


@dataclass(frozen=True)
class Scored:
    """A test set as a runner scored it; shapes as `measure` takes them."""

    labels: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None
    maps: np.ndarray

    @property
    def known_masks(self) -> np.ndarray:
        """The masks, for metrics that need them."""
        assert self.masks is not None
        return self.masks

    @cached_property
    def pixels(self) -> SortedPixels:
        """The pixels, sorted once for all metrics."""
        return sort_pixels(self.known_masks, self.maps)


@dataclass(frozen=True)
class Metric:
    """A metric in [0, 1]: what it is called and how it is computed."""

    name: str  # its key in JSON files and manifests
    label: str  # in tables
    short_label: str  # in tables with a column for many of them
    compute: Callable[[Scored], float | None]  # None where it is not defined
    needs_masks: bool = True
    is_judged: bool = True  # the gate judges precisions by it, and pictures show it


METRICS: dict[str, Metric] = {}  # by name, in the order of tables


def register(metric: Metric) -> Metric:
    """Add `metric` at the end of METRICS. Raise ConfigError for a name that is taken."""
    if metric.name in METRICS:
        raise ConfigError(f"there are two metrics called {metric.name!r}: rename one")
    METRICS[metric.name] = metric
    return metric


def judged_metrics() -> list[Metric]:
    """The metrics that the gate judges and that pictures show."""
    return [metric for metric in METRICS.values() if metric.is_judged]


class Metrics(Mapping[str, float | None]):
    """The figures of a test set by name and as attributes, each in [0, 1]; None where one cannot be computed."""

    def __init__(self, *values: float | None, **figures: float | None) -> None:
        """In the order of METRICS, or by name. Raise TypeError unless every metric has its figure."""
        figures |= zip(METRICS, values, strict=False)
        if figures.keys() != METRICS.keys():
            raise TypeError(f"metrics are {', '.join(METRICS)}, not {', '.join(figures)}")
        self._figures = {name: figures[name] for name in METRICS}

    def __getitem__(self, name: str) -> float | None:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __getattr__(self, name: str) -> float | None:
        try:
            return self.__dict__["_figures"][name]
        except KeyError:
            raise AttributeError(name) from None

    def __repr__(self) -> str:
        return f"Metrics({', '.join(f'{name}={value}' for name, value in self._figures.items())})"

    def as_dict(self) -> dict[str, float | None]:
        """The figures by name."""
        return dict(self._figures)


@dataclass(frozen=True)
class SortedPixels:
    """The scores of all normal and of all anomalous pixels of a test set, float32, each ascending."""

    normal: np.ndarray
    anomalous: np.ndarray


def measure(labels: np.ndarray, scores: np.ndarray, masks: np.ndarray | None, maps: np.ndarray) -> Metrics:
    """Every metric for labels bool (N,), scores (N,), masks bool (N, H, W) or None, maps (N, H, W).

    Peak memory besides the arguments: 4 bytes a pixel + 40 MB. Raises ConfigError for shapes that do not fit, DataError
    for a score or map that is not finite.
    """
    scored = Scored(labels, scores, masks, maps)
    return Metrics(
        **{
            metric.name: None if masks is None and metric.needs_masks else metric.compute(scored)
            for metric in METRICS.values()
        }
    )


def measure_known(
    labels: np.ndarray, scores: np.ndarray, masks: np.ndarray, maps: np.ndarray, has_mask: np.ndarray
) -> Metrics:
    """The metrics of images over all images, those of pixels over the images whose mask is known, has_mask bool (N,)."""
    if has_mask.all():
        return measure(labels, scores, masks, maps)
    of_images = measure(labels, scores, None, maps)
    if not (has_mask & labels).any():
        return of_images
    known = measure(labels[has_mask], scores[has_mask], masks[has_mask], maps[has_mask])
    return Metrics(**{name: (known if METRICS[name].needs_masks else of_images)[name] for name in METRICS})


def image_auroc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    """The chance that an anomalous image (label True) scores above a normal one, ties half; None without both kinds."""
    labels, scores = np.asarray(labels, bool), np.asarray(scores, np.float64)
    if labels.shape != scores.shape or labels.ndim != 1:
        raise ConfigError(f"labels {labels.shape} and scores {scores.shape} must both be (N,)")
    if not np.isfinite(scores).all():
        raise DataError(
            f"the score of image {int(np.flatnonzero(~np.isfinite(scores))[0])} is NaN or infinite: train again"
        )
    return area_under_roc(scores[~labels], scores[labels])


def pixel_auroc(masks: np.ndarray, maps: np.ndarray) -> float | None:
    """The chance that an anomalous pixel of the test set scores above a normal one, ties half; None without both kinds.

    Masks bool, maps float (N, H, W). Peak memory besides them: 4 bytes a pixel + 40 MB.
    """
    pixels = sort_pixels(masks, maps)
    return area_of_sorted(pixels.normal, pixels.anomalous)


def pixel_ap(masks: np.ndarray, maps: np.ndarray) -> float | None:
    """Average precision over all pixels of the test set, step-wise as in sklearn; None without both kinds of pixel.

    Masks bool, maps float (N, H, W). Peak memory besides them: 4 bytes a pixel + 40 MB.
    """
    return average_precision(sort_pixels(masks, maps))


def pro(masks: np.ndarray, maps: np.ndarray, limit: float = PRO_LIMIT) -> float | None:
    """Area under per-region overlap against false positive rate, from 0 to `limit`, divided by `limit`.

    Exact at category level: all scores are thresholds, the regions (8 neighbours) of all images count alike, the rate
    counts the normal pixels of all images, the curve is linear between thresholds and at the limit. None without both
    kinds of pixel. Masks bool, maps float (N, H, W). Peak memory besides them: 4 bytes a pixel + 40 MB.
    """
    if not 0 < limit <= 1:
        raise ConfigError(f"a PRO limit of {limit:g} is invalid: give a false positive rate above 0, at most 1")
    return area_under_pro(sort_pixels(masks, maps).normal, masks, maps, limit)


def pro_rd4ad(masks: np.ndarray, maps: np.ndarray) -> float | None:
    """PRO to 0.3 as RD4AD measures it: for each anomalous image by itself, then averaged; masks bool, maps (N, H, W).

    200 linear thresholds from the map's smallest to its largest value; false positive rates below 0.3 are divided by
    the largest of them. An image in which no such rate lies above 0 has no figure and is left out; None without any.
    """
    check_maps(masks, maps)
    areas = [area for mask, values in zip(masks, maps, strict=True) if mask.any() for area in rd4ad_areas(mask, values)]
    return float(np.mean(areas)) if areas else None


def rd4ad_areas(mask: np.ndarray, values: np.ndarray) -> Iterator[float]:
    """The area for one image, or nothing where it is not defined."""
    values = values.astype(np.float64)
    low, high = values.min(), values.max()
    thresholds = low + (high - low) / RD4AD_THRESHOLDS * np.arange(RD4AD_THRESHOLDS)
    normal = np.sort(values[~mask])
    if not len(normal):
        return
    rates = 1 - np.searchsorted(normal, thresholds, side="right") / len(normal)
    passed = np.searchsorted(thresholds, values[mask], side="left")  # how many thresholds lie below each value
    weights = np.bincount(passed, region_weights(mask), minlength=RD4AD_THRESHOLDS + 1)
    at_least = weights[::-1].cumsum()[::-1]  # region weight of the pixels above at least 0, 1, ... 200 thresholds
    overlaps = at_least[1:] / at_least[0]  # at_least[0] is the number of regions
    below = rates < PRO_LIMIT
    if below.any() and rates[below].max() > 0:
        rates, overlaps = rates[below] / rates[below].max(), overlaps[below]
        yield float(-(np.diff(rates) * (overlaps[1:] + overlaps[:-1])).sum() / 2)  # trapezoids; the rates fall


def area_under_roc(normal: np.ndarray, anomalous: np.ndarray) -> float | None:
    """The chance that one of the `anomalous` scores (N,) is above one of the `normal` (M,), ties half; None without both."""
    return area_of_sorted(np.sort(normal), np.sort(anomalous))


def area_of_sorted(normal: np.ndarray, anomalous: np.ndarray) -> float | None:
    """`area_under_roc` of scores that are in ascending order already."""
    if not len(normal) or not len(anomalous):
        return None
    twice_below = 0  # an exact integer: 65 million pixels give at most 2e15
    for start in range(0, len(anomalous), CHUNK):
        below, not_above = places(normal, anomalous[start : start + CHUNK])
        twice_below += int(below.sum()) + int(not_above.sum())
    return twice_below / (2 * len(normal) * len(anomalous))


def average_precision(pixels: SortedPixels) -> float | None:
    """The mean over the anomalous pixels of the precision at each one's score."""
    normal, anomalous = pixels.normal, pixels.anomalous
    if not len(normal) or not len(anomalous):
        return None
    total = 0.0
    for start in range(0, len(anomalous), CHUNK):
        scores = anomalous[start : start + CHUNK]
        found = len(anomalous) - np.searchsorted(anomalous, scores, side="left")
        wrong = len(normal) - np.searchsorted(normal, scores, side="left")
        total += float((found / (found + wrong)).sum())
    return total / len(anomalous)


def area_under_pro(normal: np.ndarray, masks: np.ndarray, maps: np.ndarray, limit: float) -> float | None:
    """The area for normal scores that are sorted already.

    At the score of an anomalous pixel the curve climbs by that pixel's share of its region, on a straight line between
    the rates of normal pixels above it and at least as high. What it adds right of the climb, up to the limit, is its
    part of the area; images are taken one by one.
    """
    regions, area = 0, 0.0
    for mask, values in zip(masks, maps, strict=True):
        if not mask.any():
            continue
        weights = region_weights(mask)
        scores = values[mask].astype(np.float32)
        order = np.argsort(scores)
        area += climbed(normal, scores[order], weights[order], limit)
        regions += round(float(weights.sum()))
    return area / regions / limit if regions and len(normal) else None


def climbed(normal: np.ndarray, scores: np.ndarray, weights: np.ndarray, limit: float) -> float:
    """What anomalous pixels add to the area, each its weight; both scores in ascending order."""
    below, not_above = places(normal, scores)
    above, not_below = 1 - not_above / max(len(normal), 1), 1 - below / max(len(normal), 1)
    climb = np.maximum(not_below - above, np.finfo(float).tiny)
    inside = np.clip((limit - above) / climb, 0, 1) * np.clip(limit - above, 0, climb) / 2  # under the slope
    return float((weights * (inside + np.maximum(limit - not_below, 0))).sum())


def spro(
    masks: np.ndarray, maps: np.ndarray, regions: Sequence[tuple[int, np.ndarray, float]], limit: float = SPRO_LIMIT
) -> float | None:
    """Area under saturated per-region overlap against false positive rate, to `limit`, divided by it, as MVTec LOCO defines it.

    `regions` has of each defect its image, its mask bool (H, W), and the share of it that is enough: a defect of which so much
    is found counts as found whole. The rate counts the pixels that no defect marks, `masks` bool (N, H, W). Exact as `pro`; a
    region without a pixel is left out; None without a region or a normal pixel.
    """
    normal, count, area = sort_pixels(masks, maps).normal, 0, 0.0
    for row, mask, share in regions:
        scores = np.sort(maps[row][mask].astype(np.float32))
        if len(scores):
            enough = max(share * len(scores), 1.0)  # pixels; the highest of them carry all the weight
            weights = np.clip(enough - np.arange(len(scores)), 0, 1)[::-1] / enough
            area += climbed(normal, scores, weights, limit)
            count += 1
    return area / count / limit if count and len(normal) else None


def region_weights(mask: np.ndarray) -> np.ndarray:
    """For each pixel of mask[mask]: 1 / pixels of its region (8 neighbours); they sum to the number of regions."""
    _, labels = cv2.connectedComponents(np.ascontiguousarray(mask, np.uint8), connectivity=8)
    inside = labels[mask].astype(np.intp)
    return 1 / np.bincount(inside)[inside]


def places(ascending: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each of the scores: how many of the ascending ones lie below it, and how many do not lie above it."""
    return np.searchsorted(ascending, scores, side="left"), np.searchsorted(ascending, scores, side="right")


def sort_pixels(masks: np.ndarray, maps: np.ndarray) -> SortedPixels:
    """The pixels of masks bool and maps float (N, H, W), apart and in order; 4 bytes each."""
    check_maps(masks, maps)
    anomalous = np.empty(np.count_nonzero(masks), np.float32)
    normal = np.empty(masks.size - len(anomalous), np.float32)
    normals = anomalies = 0
    for mask, values in zip(masks, maps, strict=True):
        count = int(np.count_nonzero(mask))
        anomalous[anomalies : anomalies + count] = values[mask]
        normal[normals : normals + mask.size - count] = values[~mask]
        anomalies, normals = anomalies + count, normals + mask.size - count
    anomalous.sort()
    normal.sort()
    return SortedPixels(normal, anomalous)


def check_maps(masks: np.ndarray, maps: np.ndarray) -> None:
    """Raise ConfigError for masks and maps that do not fit, DataError for a map that is not finite."""
    if masks.dtype != bool or masks.ndim != 3 or masks.shape != maps.shape:
        raise ConfigError(f"masks {masks.dtype} {masks.shape} and maps {maps.shape} must be bool and float (N, H, W)")
    for index, values in enumerate(maps):
        if not np.isfinite(values).all():
            raise DataError(f"the anomaly map of image {index} holds NaN or infinite values: train again")


register(Metric("image_auroc", "image AUROC", "image", lambda it: image_auroc(it.labels, it.scores), needs_masks=False))
register(
    Metric("pixel_auroc", "pixel AUROC", "pixel", lambda it: area_of_sorted(it.pixels.normal, it.pixels.anomalous))
)
register(Metric("pixel_ap", "pixel AP", "AP", lambda it: average_precision(it.pixels)))
register(Metric("pro", "PRO", "PRO", lambda it: area_under_pro(it.pixels.normal, it.known_masks, it.maps, PRO_LIMIT)))
register(Metric("pro_rd4ad", "PRO (RD4AD)", "RD4AD", lambda it: pro_rd4ad(it.known_masks, it.maps), is_judged=False))
