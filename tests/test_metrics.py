"""Every metric against an independent brute force on small random maps with ties, and against closed forms."""

from __future__ import annotations

import tracemalloc
from itertools import pairwise

import numpy as np
import pytest

from nnet_edge import metrics
from nnet_edge.errors import ConfigError, DataError


def random_case(seed: int, count: int = 4, side: int = 12, levels: int | None = 7) -> tuple[np.ndarray, np.ndarray]:
    """Masks with several regions and maps that know something of them, rounded to few `levels` so that many tie."""
    random = np.random.default_rng(seed)
    masks = random.random((count, side, side)) > 0.8
    masks[0] = False  # a normal image
    maps = random.random((count, side, side)) + 0.5 * masks
    if levels:
        maps = np.round(maps * levels) / levels
    return masks, maps.astype(np.float32)


def brute_pro(masks: np.ndarray, maps: np.ndarray, limit: float) -> float:
    """Threshold by threshold, region by region, labels from scikit-image."""
    from skimage.measure import label

    regions = []
    for mask, values in zip(masks, maps, strict=True):
        numbered = label(mask, connectivity=2)
        regions += [values[numbered == number] for number in range(1, numbered.max() + 1)]
    return brute_overlap(masks, maps, regions, [float(region.size) for region in regions], limit)


def brute_overlap(
    masks: np.ndarray, maps: np.ndarray, regions: list[np.ndarray], enough: list[float], limit: float
) -> float:
    """The area by trapezoids on the cut curve; of each region so many pixels are enough."""
    rates, overlaps = [0.0], [0.0]
    for threshold in np.unique(maps)[::-1]:
        rates.append(np.mean(maps[~masks] >= threshold))
        found = [np.sum(region >= threshold) for region in regions]
        overlaps.append(np.mean([min(count / most, 1) for count, most in zip(found, enough, strict=True)]))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(zip(rates, overlaps, strict=True)):
        if x1 <= limit:
            area += (x1 - x0) * (y0 + y1) / 2
        elif x0 < limit:
            y_limit = y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
            area += (limit - x0) * (y0 + y_limit) / 2
    return area / limit


def brute_pro_rd4ad(masks: np.ndarray, maps: np.ndarray) -> float:
    """The published procedure, step by step, with one binary map for each threshold."""
    from skimage.measure import label, regionprops
    from sklearn.metrics import auc

    areas = []
    for mask, values in zip(masks, maps.astype(np.float64), strict=True):
        if not mask.any():
            continue
        rows = []
        for step in range(200):
            binary = values > values.min() + (values.max() - values.min()) / 200 * step
            overlaps = [binary[r.coords[:, 0], r.coords[:, 1]].mean() for r in regionprops(label(mask, connectivity=2))]
            rows.append((np.mean(overlaps), (binary & ~mask).sum() / (~mask).sum()))
        kept = np.array([row for row in rows if row[1] < 0.3])
        areas.append(auc(kept[:, 1] / kept[:, 1].max(), kept[:, 0]))
    return float(np.mean(areas))


@pytest.mark.parametrize("levels", [3, 7, None])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_and_ap_equal_sklearn(seed: int, levels: int | None) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    masks, maps = random_case(seed, levels=levels)
    assert metrics.pixel_auroc(masks, maps) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert metrics.pixel_ap(masks, maps) == pytest.approx(
        average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12
    )
    labels, scores = masks[:, 0, :].ravel(), maps[:, 0, :].ravel()
    assert metrics.image_auroc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@pytest.mark.parametrize("levels", [3, 7, None])
def test_auroc_is_the_share_of_pairs_in_order(levels: int | None) -> None:
    masks, maps = random_case(20, count=2, levels=levels)
    wins = maps[masks][:, None] > maps[~masks]
    ties = maps[masks][:, None] == maps[~masks]
    assert metrics.pixel_auroc(masks, maps) == pytest.approx(np.mean(wins + 0.5 * ties), abs=1e-12)


def test_the_area_does_not_ask_for_an_order() -> None:
    rng = np.random.default_rng(4)
    normal, anomalous = (rng.integers(0, 9, size).astype(np.float32) for size in (31, 17))
    pairs = (normal[:, None] < anomalous).mean() + 0.5 * (normal[:, None] == anomalous).mean()
    assert metrics.area_under_roc(normal, anomalous) == pytest.approx(pairs)
    assert metrics.area_under_roc(np.sort(normal)[::-1], anomalous) == pytest.approx(pairs)


@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("levels", [2, 3, 7, None])
@pytest.mark.parametrize("seed", range(4))
def test_pro_equals_brute_force(seed: int, levels: int | None, limit: float) -> None:
    masks, maps = random_case(seed, levels=levels)
    assert metrics.pro(masks, maps, limit) == pytest.approx(brute_pro(masks, maps, limit), abs=1e-12)


@pytest.mark.parametrize("levels", [7, 40, None])
@pytest.mark.parametrize("seed", range(4))
def test_pro_rd4ad_equals_brute_force(seed: int, levels: int | None) -> None:
    masks, maps = random_case(seed, side=20, levels=levels)
    assert metrics.pro_rd4ad(masks, maps) == pytest.approx(brute_pro_rd4ad(masks, maps), abs=1e-12)


def two_regions() -> tuple[np.ndarray, np.ndarray]:
    masks = np.zeros((2, 10, 10), bool)
    masks[0, 0, 0] = True  # one pixel
    masks[0, 5:7, 5:7] = True  # four pixels
    return masks, np.zeros((2, 10, 10), np.float32)


def test_perfect_maps_give_one() -> None:
    masks, _ = two_regions()
    labels = np.array([True, False])
    measured = metrics.measure(labels, np.array([2.0, 1.0]), masks, masks.astype(np.float32))
    assert (measured.image_auroc, measured.pixel_auroc, measured.pixel_ap) == (1, 1, 1)
    assert measured.pro == pytest.approx(1, abs=1e-12)
    assert measured.pro_rd4ad is None  # no rate between 0 and 0.3 occurs in a map of two values


def test_constant_maps_know_nothing() -> None:
    masks, maps = two_regions()
    assert metrics.image_auroc(np.array([True, False, True]), np.ones(3)) == 0.5
    assert metrics.pixel_auroc(masks, maps) == 0.5
    assert metrics.pixel_ap(masks, maps) == pytest.approx(5 / 200)
    assert metrics.pro(masks, maps) == pytest.approx(0.15)  # the diagonal up to 0.3: 0.3 * 0.3 / 2 / 0.3
    assert metrics.pro(masks, maps, limit=1.0) == pytest.approx(0.5)


@pytest.mark.parametrize("levels", [3, None])
@pytest.mark.parametrize("share", [0.01, 0.4, 1])
def test_spro_equals_brute_force(share: float, levels: int | None) -> None:
    masks, maps = random_case(3, levels=levels)
    halves = [
        (row, masks[row] & (np.arange(12) < 6 if left else np.arange(12) >= 6)) for row in (1, 2) for left in (0, 1)
    ]
    masks = np.zeros_like(masks)
    for row, half in halves:
        masks[row] |= half
    regions = [maps[row][half] for row, half in halves]
    enough = [max(share * region.size, 1) for region in regions]
    measured = metrics.spro(masks, maps, [(row, half, share) for row, half in halves], 0.3)
    assert measured == pytest.approx(brute_overlap(masks, maps, regions, enough, 0.3), abs=1e-6)
    assert metrics.spro(masks, maps, [(1, np.zeros_like(masks[1]), 1.0)]) is None


def test_pro_counts_regions_alike_whatever_their_size() -> None:
    masks, maps = two_regions()
    maps[0, 0, 0] = 2  # the small region is found before everything
    maps[1] = 1  # then a normal image, 100 of 195 normal pixels: beyond the limit
    assert metrics.pro(masks, maps) == pytest.approx(0.5)
    maps[1] = 0
    maps[1, 0, :] = 1  # 10 of 195 normal pixels, then all others together with the large region
    slope = (0.3 - 10 / 195) / (1 - 10 / 195)  # how far the last straight line is climbed at the limit
    assert metrics.pro(masks, maps) == pytest.approx((0.3 * 0.5 + (0.3 - 10 / 195) * 0.5 * slope / 2) / 0.3)


def test_pixels_that_touch_at_a_corner_are_one_region() -> None:
    masks = np.zeros((1, 8, 8), bool)
    masks[0, 2, 2] = masks[0, 3, 3] = True
    maps = np.zeros((1, 8, 8), np.float32)
    maps[0, 2, 2] = 1  # half of the one region
    expected = 0.5 + 0.5 * 0.15
    assert metrics.pro(masks, maps) == pytest.approx(expected)


def test_exact_metrics_do_not_see_a_monotone_transform() -> None:
    masks, maps = random_case(30, side=24, levels=None)
    cubed = (maps.astype(np.float64) ** 3).astype(np.float32)
    assert len(np.unique(cubed)) == len(np.unique(maps))
    for metric in (metrics.pixel_auroc, metrics.pixel_ap, metrics.pro):
        assert metric(masks, cubed) == metric(masks, maps)


def test_measure_agrees_with_each_metric_and_half_floats_are_taken() -> None:
    masks, maps = random_case(40, count=6, side=32)
    labels = np.array(masks.any(axis=(1, 2)))
    scores = maps.max(axis=(1, 2))
    assert metrics.measure(labels, scores, masks, maps).as_dict() == {
        "image_auroc": metrics.image_auroc(labels, scores),
        "pixel_auroc": metrics.pixel_auroc(masks, maps),
        "pixel_ap": metrics.pixel_ap(masks, maps),
        "pro": metrics.pro(masks, maps),
        "pro_rd4ad": metrics.pro_rd4ad(masks, maps),
    }
    halves = maps.astype(np.float16)
    assert metrics.pro(masks, halves) == metrics.pro(masks, halves.astype(np.float32))


def test_what_cannot_be_computed_is_none() -> None:
    nothing = np.zeros((2, 8, 8), bool)
    maps = np.random.default_rng(0).random((2, 8, 8), np.float32)
    for masks in (nothing, ~nothing):
        for metric in (metrics.pixel_auroc, metrics.pixel_ap, metrics.pro, metrics.pro_rd4ad):
            assert metric(masks, maps) is None
    assert metrics.image_auroc(np.array([True, True]), np.array([0.1, 0.2])) is None
    without_masks = metrics.measure(np.array([True, False]), np.array([0.2, 0.1]), None, maps)
    assert without_masks == metrics.Metrics(1.0, None, None, None, None)


def test_arguments_that_do_not_fit_are_refused() -> None:
    masks, maps = two_regions()
    with pytest.raises(ConfigError, match="must be bool and float"):
        metrics.pixel_ap(masks.astype(np.uint8), maps)
    with pytest.raises(ConfigError, match="must be bool and float"):
        metrics.pro(masks[:1], maps)
    with pytest.raises(ConfigError, match="limit of 0"):
        metrics.pro(masks, maps, limit=0.0)
    with pytest.raises(ConfigError, match="both be"):
        metrics.image_auroc(np.array([True]), np.array([1.0, 2.0]))


def test_values_that_are_no_numbers_are_refused() -> None:
    masks, maps = two_regions()
    maps[1, 3, 3] = np.nan
    for metric in (metrics.pixel_auroc, metrics.pixel_ap, metrics.pro, metrics.pro_rd4ad):
        with pytest.raises(DataError, match="image 1 holds"):
            metric(masks, maps)
    with pytest.raises(DataError, match="image 2"):
        metrics.image_auroc(np.array([True, False, True]), np.array([1.0, 2.0, np.inf]))


def test_memory_stays_at_four_bytes_a_pixel() -> None:
    random = np.random.default_rng(0)
    maps = random.random((160, 256, 256), np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[::2, 100:160, 100:180] = True
    masks[::4] ^= random.random(masks[::4].shape) > 0.95  # and thousands of small regions
    labels = np.array(masks.any(axis=(1, 2)))
    tracemalloc.start()
    try:
        metrics.measure(labels, maps.max(axis=(1, 2)), masks, maps)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * maps.size + 40e6  # as the docstring says; 1,000 maps: 302 MB
