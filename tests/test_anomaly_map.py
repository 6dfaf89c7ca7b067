"""The reference of fusion, enlargement and blur against scipy, torch and arithmetic by hand."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from nnet_edge import anomaly_map as reference
from nnet_edge.errors import ConfigError

FLOAT32_ATOL = 1e-6  # maps lie in [0, 8], one rounding to float32 is below 5e-7 relative


def random_layer_maps(batch: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    shape_of = {name: (batch, 1, int(name.split("_")[1]), int(name.split("_")[1])) for name in reference.LAYER_MAPS}
    return {name: random.uniform(0, 2, shape).astype(np.float32) for name, shape in shape_of.items()}


def test_names_are_the_six_of_the_graph() -> None:
    expected = ("forward_64", "forward_32", "forward_16", "reverse_64", "reverse_32", "reverse_16")
    assert expected == reference.LAYER_MAPS


def test_taps_are_33_symmetric_and_sum_to_one() -> None:
    taps = reference.gaussian_taps()
    assert taps.shape == (33,)
    assert taps.sum() == pytest.approx(1, abs=1e-15)
    np.testing.assert_array_equal(taps, taps[::-1])
    assert taps[16 + 4] / taps[16] == pytest.approx(np.exp(-0.5))  # one sigma from the middle


@pytest.mark.parametrize(("height", "width"), [(256, 256), (40, 72), (9, 5)])  # (9, 5): the border repeats twice
def test_blur_equals_scipy(height: int, width: int) -> None:
    from scipy.ndimage import gaussian_filter

    maps = np.random.default_rng(1).uniform(0, 2, (3, 1, height, width))
    expected = np.stack([gaussian_filter(one[0], sigma=4)[None] for one in maps])
    np.testing.assert_allclose(reference.blur(maps), expected, atol=1e-13)
    in_float32 = reference.blur(maps.astype(np.float32))
    assert in_float32.dtype == np.float32
    np.testing.assert_allclose(in_float32, expected, atol=FLOAT32_ATOL)


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("size", "side"), [(16, 64), (32, 64), (64, 64), (64, 256), (1, 8), (7, 20)])
def test_enlarge_equals_torch(size: int, side: int, align_corners: bool) -> None:
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(2).uniform(0, 2, (2, 1, size, size))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(maps), size=(side, side), mode="bilinear", align_corners=align_corners
    )
    np.testing.assert_allclose(reference.enlarge(maps, (side, side), align_corners), expected.numpy(), atol=1e-12)


def test_enlarge_keeps_corners_and_fills_the_middle() -> None:
    maps = np.array([[[[0.0, 1.0], [2.0, 3.0]]]])
    np.testing.assert_allclose(reference.enlarge(maps, (3, 3))[0, 0], [[0, 0.5, 1], [1, 1.5, 2], [2, 2.5, 3]])


def test_fusion_is_the_product_of_the_sums() -> None:
    constants = {"forward_64": 0.1, "reverse_64": 0.2, "forward_32": 0.3, "reverse_32": 0.4, "reverse_16": 0.6}
    maps = {name: np.full((1, 1, int(name[-2:]), int(name[-2:])), value) for name, value in constants.items()}
    maps["forward_16"] = np.full((1, 1, 16, 16), 0.5)
    fused = reference.fuse_maps(maps)
    assert fused.shape == (1, 1, 64, 64)
    np.testing.assert_allclose(fused, 0.3 * 0.7 * 1.1)


def test_missing_maps_leave_their_branch_or_scale_out() -> None:
    maps = random_layer_maps()
    reverse_only = {name: value for name, value in maps.items() if name.startswith("reverse")}
    expected = np.prod([reference.enlarge(reverse_only[f"reverse_{s}"], (64, 64)) for s in (64, 32, 16)], axis=0)
    np.testing.assert_allclose(reference.fuse_maps(reverse_only), expected, rtol=1e-6)
    one_scale = {"forward_64": maps["forward_64"]}
    np.testing.assert_array_equal(reference.fuse_maps(one_scale), maps["forward_64"])


def test_whole_tail_equals_torch_and_scipy() -> None:
    torch = pytest.importorskip("torch")
    from scipy.ndimage import gaussian_filter

    maps = random_layer_maps(batch=3, seed=4)

    def torch_enlarge(tensor: Any, side: int) -> Any:
        return torch.nn.functional.interpolate(tensor, size=(side, side), mode="bilinear", align_corners=True)

    fused = 1.0
    for scale in (64, 32, 16):
        branches = (
            torch.from_numpy(maps[f"forward_{scale}"]).double(),
            torch.from_numpy(maps[f"reverse_{scale}"]).double(),
        )
        fused = fused * torch_enlarge(branches[0] + branches[1], 64)
    expected = np.stack([gaussian_filter(one[0], sigma=4)[None] for one in torch_enlarge(fused, 256).numpy()])
    found = reference.anomaly_map(maps)
    assert found.shape == (3, 1, 256, 256)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_array_equal(reference.image_score(found), found.max(axis=(1, 2, 3)))


def test_each_image_of_a_batch_is_alone() -> None:
    maps = random_layer_maps(batch=2, seed=5)
    second = {name: value[1:] for name, value in maps.items()}
    np.testing.assert_array_equal(reference.anomaly_map(maps)[1:], reference.anomaly_map(second))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sideways_64": np.ones((2, 1, 64, 64))}, "unknown layer map 'sideways_64'"),
        ({"reverse_64": np.ones((2, 64, 64))}, "reverse_64 has shape"),
        ({"reverse_16": np.ones((3, 1, 16, 16))}, "one batch"),
        ({"reverse_32": np.ones((2, 1, 31, 32))}, "scale 32"),
    ],
)
def test_maps_that_do_not_fit_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reference.anomaly_map(random_layer_maps() | change)


def test_no_maps_are_refused() -> None:
    with pytest.raises(ConfigError, match="no layer map"):
        reference.fuse_maps({})


def test_shared_matrices_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        reference.blurring_matrix(256)[0, 0] = 1.0


def test_fusion_with_weights_and_exponents_by_hand() -> None:
    levels = {
        "forward_64": 0.5,
        "reverse_64": 0.3,
        "forward_32": 0.2,
        "reverse_32": 0.4,
        "forward_16": 1.0,
        "reverse_16": 0.1,
    }
    maps = {name: np.full((1, 1, int(name[-2:]), int(name[-2:])), level) for name, level in levels.items()}
    fusion = reference.Fusion(exponents=(0.5, 2.0, 1.0), weights=(1.0, 0.5, 0.1))
    expected = (0.3 + 0.5) ** 0.5 * (0.4 + 0.5 * 0.2) ** 2 * (0.1 + 0.1 * 1.0)
    np.testing.assert_allclose(reference.fuse_maps(maps, fusion), expected, rtol=1e-12)


def test_a_scale_with_exponent_zero_is_left_out() -> None:
    maps = random_layer_maps()
    fusion = reference.Fusion(exponents=(0.0, 0.0, 1.0))
    deepest = {name: value for name, value in maps.items() if name.endswith("_16")}
    np.testing.assert_allclose(reference.fuse_maps(maps, fusion), reference.fuse_maps(deepest), rtol=1e-6)


@pytest.mark.parametrize("values", [(1.0, 1.0), (-1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (float("nan"), 1.0, 1.0)])
@pytest.mark.parametrize("name", ["exponents", "weights"])
def test_a_fusion_that_cannot_be_meant(name: str, values: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match=name):
        reference.Fusion(**{name: values})


def test_a_sum_weighs_the_scales_by_their_exponents() -> None:
    maps = random_layer_maps(2)
    fusion = reference.Fusion(exponents=(0.5, 2.0, 0.0), weights=(1.0, 0.5, 0.1), rule="sum")
    large = {name: reference.enlarge(values, (64, 64)) for name, values in maps.items()}
    expected = 0.5 * (large["forward_64"] + large["reverse_64"]) + 2 * (0.5 * large["forward_32"] + large["reverse_32"])
    np.testing.assert_allclose(reference.fuse_maps(maps, fusion), expected, rtol=1e-6)


def test_one_branch_with_one_map_is_that_map() -> None:
    head = np.random.default_rng(0).random((2, 1, 64, 64))
    fusion = reference.Fusion(weights=(0.0, 0.0, 1.0), branches=("segmentation",))
    np.testing.assert_array_equal(reference.fuse_maps({"segmentation_64": head}, fusion), head)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"rule": "mean"}, "fusion rule 'mean' is unknown: choose product or sum"),
        ({"branches": ()}, "give one or two names of letters"),
        ({"branches": ("a", "b", "c")}, "give one or two names of letters"),
        ({"branches": ("a_1",)}, "give one or two names of letters"),
        ({"speed": 1}, "a fusion of another version of nnet-edge"),
    ],
)
def test_a_wrong_fusion_is_refused(values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        reference.Fusion.from_dict(values)


def test_a_fusion_comes_back_from_plain_values_of_any_version() -> None:
    fusion = reference.Fusion(False, (0.1, 1.0, 1.0), (1.0, 1.0, 0.5), "sum", ("normality", "abnormality"))
    assert reference.Fusion.from_dict(json.loads(json.dumps(asdict(fusion)))) == fusion
    old = {"align_corners": False, "exponents": [0.1, 0.1, 1.0], "forward_weights": [1.0, 1.0, 0.5]}
    assert reference.Fusion.from_dict(old) == reference.Fusion(False, (0.1, 0.1, 1.0), (1.0, 1.0, 0.5))
