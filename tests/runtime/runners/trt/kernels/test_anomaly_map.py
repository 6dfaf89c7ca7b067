"""Layer maps to anomaly map and score: the kernel's arithmetic against `nnet_edge/anomaly_map.py`."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnet_edge.anomaly_map import LAYER_MAPS, PAPER_FUSION, Fusion, anomaly_map, fuse_maps, image_score
from nnet_edge.errors import ConfigError
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.runtime.runners.trt.kernels.tables import (
    BAND,
    COEFFICIENT_BITS,
    MAPS,
    STRIP_ROWS,
    VIEW,
    enlarging_type,
    fill_maps,
    filter_type,
    strip_height,
)

POINTER = ctypes.c_void_p
RTOL = 1e-5  # FP32 arithmetic: some 40 operations on numbers of one sign, 6e-8 each
SUM = Fusion(False, (0.5, 1.0, 2.0), (0.1, 1.0, 0.25), "sum")
TUNED = Fusion(False, (0.5, 1.0, 2.0), (0.0, 1.0, 0.25))
FORWARD_ONLY = LAYER_MAPS[:3]


def layer_maps(
    seed: int = 0, batch: int = 2, names: tuple[str, ...] = LAYER_MAPS, kind: type = np.float32
) -> dict[str, np.ndarray]:
    """Distances as a network gives them: mostly small, some up to 2."""
    rng = np.random.default_rng(seed)
    return {
        name: (2 * rng.random((batch, 1, int(name[-2:]), int(name[-2:]))) ** 4).astype(kind) for name in names
    }  # fmt: skip


def agree(found: np.ndarray, reference: np.ndarray) -> None:
    np.testing.assert_allclose(found, reference, rtol=RTOL, atol=RTOL * 1e-2 * np.abs(reference).max())


def as_float64(maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values.astype(np.float64) for name, values in maps.items()}


@pytest.mark.parametrize("fusion", [PAPER_FUSION, TUNED, Fusion(True, (1.0, 0.0, 3.0), (1.0, 1.0, 0.0)), SUM])
@pytest.mark.parametrize(
    "names", [LAYER_MAPS, FORWARD_ONLY, LAYER_MAPS[3:], ("forward_64", "reverse_32", "forward_16")]
)
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_maps_equal_the_reference(host_kernels, fusion: Fusion, names: tuple[str, ...], kind: type) -> None:
    maps = layer_maps(names=names, kind=kind)
    agree(host_kernels.fuse(maps, fusion), fuse_maps(as_float64(maps), fusion)[:, 0])
    found, peaks = host_kernels.anomaly_map(maps, fusion)
    agree(found, anomaly_map(maps, fusion=fusion)[:, 0])
    np.testing.assert_array_equal(peaks.max(axis=1), image_score(found))


@pytest.mark.parametrize("fusion", [PAPER_FUSION, TUNED, SUM])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_the_wide_kernel_gives_the_same_to_the_last_bit(host_kernels, fusion: Fusion, kind: type) -> None:
    """The variant that benchmarks compare."""
    maps = layer_maps(seed=3, batch=3, kind=kind)
    maps["forward_32"][2, 0, 5, 6] = np.nan
    for found, wanted in zip(
        host_kernels.anomaly_map(maps, fusion, "anomaly_map_wide"), host_kernels.anomaly_map(maps, fusion), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 5), st.booleans(),
    st.tuples(*[st.floats(0, 3)] * 3).filter(any), st.tuples(*[st.floats(0, 2)] * 3).filter(any),
)  # fmt: skip
@settings(max_examples=25, deadline=None)
def test_any_fusion(host_kernels, seed, batch, align_corners, exponents, weights) -> None:
    fusion, maps = Fusion(align_corners, exponents, weights), layer_maps(seed, batch)
    found, _ = host_kernels.anomaly_map(maps, fusion)
    agree(found, anomaly_map(maps, fusion=fusion)[:, 0])


@pytest.mark.parametrize("place", [(0, 0), (0, 63), (63, 0), (63, 63), (31, 40)])
@pytest.mark.parametrize("fusion", [PAPER_FUSION, Fusion(align_corners=False)])
def test_a_single_peak_at_borders_and_corners(host_kernels, fusion: Fusion, place: tuple[int, int]) -> None:
    maps = {name: np.ones_like(values) for name, values in layer_maps(batch=1).items()}
    maps["forward_64"][(0, 0, *place)] = 1000.0
    found, peaks = host_kernels.anomaly_map(maps, fusion)
    agree(found, anomaly_map(maps, fusion=fusion)[:, 0])
    assert peaks.max() == found.max()


@pytest.mark.parametrize("value", [0.0, 1e-30, 1e-7, -1e-7, 2.0, 1e6])
@pytest.mark.parametrize("fusion", [PAPER_FUSION, TUNED])
def test_extreme_values(host_kernels, fusion: Fusion, value: float) -> None:
    maps = {name: np.full_like(values, value) for name, values in layer_maps(batch=1).items()}
    found, _ = host_kernels.anomaly_map(maps, fusion)
    reference = anomaly_map(maps, fusion=fusion)[:, 0]
    np.testing.assert_allclose(found, reference, rtol=3e-5 if fusion is TUNED else RTOL, atol=1e-37)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("fusion", [PAPER_FUSION, Fusion(False, (0.5, 1.0, 2.0), (0.1, 1.0, 0.25)), SUM])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("name", LAYER_MAPS)
def test_what_is_no_number_reaches_the_score(host_kernels, fusion: Fusion, bad: float, kind: type, name: str) -> None:
    side = int(name[-2:])
    for place in ((0, 0), (side - 1, side - 1), (side // 2, side // 3)):
        maps = layer_maps(kind=kind)
        maps[name][(1, 0, *place)] = bad
        found, peaks = host_kernels.anomaly_map(maps, fusion)
        assert np.isfinite(peaks[0]).all()
        assert not np.isfinite(peaks[1].max())
        assert not np.isfinite(found[1].sum())


def test_negative_maps_have_a_negative_peak(host_kernels) -> None:
    maps = {name: np.full_like(values, -1.0) for name, values in layer_maps().items()}
    found, peaks = host_kernels.anomaly_map(maps, PAPER_FUSION)
    np.testing.assert_allclose(peaks, -8.0, rtol=RTOL)
    np.testing.assert_allclose(found, -8.0, rtol=RTOL)


def test_every_half_becomes_the_same_float(host_kernels) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    floats = np.empty(1 << 16, np.float32)
    host_kernels.library.floats_of_halves(halves.ctypes.data_as(POINTER), floats.ctypes.data_as(POINTER), len(halves))
    np.testing.assert_array_equal(floats, halves.view(np.float16).astype(np.float32))


def test_the_order_of_floats_is_that_of_their_values(host_kernels) -> None:
    values = np.array([-np.inf, -3e38, -1, -1e-40, -0.0, 0.0, 1e-40, 1, 3e38, np.inf, np.nan], np.float32)
    orders, back = np.empty(len(values), np.int32), np.empty_like(values)
    host_kernels.library.through_order(*(a.ctypes.data_as(POINTER) for a in (values, orders, back)), len(values))
    assert (np.diff(orders.astype(np.int64)) > 0).all()
    np.testing.assert_array_equal(back, values)


def test_the_layouts_are_those_of_the_compiler(host_kernels) -> None:
    require_layouts(host_kernels, DEFAULT)


def require_layouts(kernels, geometry: Geometry) -> None:
    found = np.zeros(25, np.int64)
    kernels.library.layouts(found.ctypes.data_as(POINTER))
    kinds = (VIEW, MAPS, enlarging_type(geometry), filter_type(geometry))
    view, maps, enlarging, filter_ = ({name: kind.fields[name][1] for name in kind.names} for kind in kinds)
    assert found.tolist() == [
        VIEW.itemsize, view["chroma"], view["columns"], view["row_bytes"], view["height"], view["format"],
        MAPS.itemsize, maps["second"], maps["weights"], maps["exponents"], maps["half_first"], maps["half_second"],
        maps["is_sum"],
        kinds[2].itemsize, enlarging["down"], enlarging["left"], enlarging["across"],
        kinds[3].itemsize, filter_["rows"], filter_["first_column"], filter_["columns"],
        BAND, strip_height(geometry), STRIP_ROWS[strip_height(geometry)], COEFFICIENT_BITS,
    ]  # fmt: skip


OTHERS = [  # the last two have strips of 16 and 8 rows
    Geometry(96, 160), Geometry(96, 160, "letterbox", (100, 100)), Geometry(96, 160, "crop", (100, 100)), Geometry(64, 928),
    Geometry(64, 1504),
]  # fmt: skip


@pytest.mark.parametrize("geometry", OTHERS, ids=lambda geometry: f"{geometry.text}-{geometry.fit}")
@pytest.mark.parametrize("fusion", [PAPER_FUSION, SUM])
def test_maps_of_other_sizes_and_fits_equal_the_reference(host_kernels_at, geometry: Geometry, fusion: Fusion) -> None:
    kernels, rng = host_kernels_at(geometry), np.random.default_rng(4)
    require_layouts(kernels, geometry)
    height, width = geometry.size
    maps = {
        name: (2 * rng.random((2, 1, height * int(name[-2:]) // 256, width * int(name[-2:]) // 256)) ** 4).astype(np.float32)
        for name in LAYER_MAPS
    }  # fmt: skip
    agree(kernels.fuse(maps, fusion), fuse_maps(as_float64(maps), fusion)[:, 0])
    found, peaks = kernels.anomaly_map(maps, fusion)
    for value, wanted in zip(kernels.anomaly_map(maps, fusion, "anomaly_map_wide"), (found, peaks), strict=True):
        np.testing.assert_array_equal(value, wanted)
    agree(found, anomaly_map(maps, fusion, geometry.window)[:, 0])
    np.testing.assert_array_equal(peaks.max(axis=1), image_score(found))
    outside = np.ones(geometry.size, bool)
    outside[geometry.window.inside] = False
    assert (found[:, outside] == 0).all()
    maps["reverse_64"][1, 0, 0, 0] = np.nan  # in a corner, which a letterbox leaves out: no good part may come of it
    assert np.isnan(kernels.anomaly_map(maps, fusion)[1][1].max())


@pytest.mark.parametrize(
    "fusion",
    [Fusion(exponents=(1.0, 0.0, 0.0)), Fusion(exponents=(1.0, 0.0, 0.0), weights=(0.0, 1.0, 1.0))],
)
def test_a_fusion_that_leaves_nothing_is_refused(fusion: Fusion) -> None:
    with pytest.raises(ConfigError, match="leaves none of forward_32"):
        fill_maps(fusion, {"forward_32": 16})


def test_worst_difference_over_many_fusions(host_kernels) -> None:
    """The figure that reports quote: pytest tests/runtime/kernels -k worst -rP"""
    rng = np.random.default_rng(0)
    worst = 0.0
    for number in range(60):
        exponents = (1.0, 1.0, 1.0) if number < 10 else tuple(rng.uniform(0, 3, 3))
        fusion = Fusion(bool(number % 2), exponents, tuple(rng.uniform(0, 2, 3)))
        maps = layer_maps(number, 4, kind=np.float32 if number % 3 else np.float16)
        found, _ = host_kernels.anomaly_map(maps, fusion)
        worst = max(worst, float(np.abs(found / anomaly_map(maps, fusion=fusion)[:, 0] - 1).max()))
    print(f"anomaly_map: worst relative difference {worst:.1e} over 60 fusions of 4 images")  # noqa: T201
    assert worst < 3e-6
