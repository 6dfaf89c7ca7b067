"""The staged kernel against the one that runners use: bit by bit the same images, whatever the frame. Not run on a GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnet_edge.benchmarks.gpu import kernels as measuring
from nnet_edge.errors import StreamError
from nnet_edge.geometry import Geometry
from nnet_edge.runtime.runners.trt.kernels.tables import BGR8, GRAY8, NV12, RGB8
from nnet_edge.runtime.runners.trt.ring import Picture

CHANNELS = {BGR8: 3, RGB8: 3, GRAY8: 1, NV12: 1}
STAGED = "preprocess_staged"


def noise(height: int, width: int, kind: int, seed: int = 0) -> np.ndarray:
    """Noise at full contrast: every rounding of the filter shows."""
    shape = (height * 3 // 2 if kind == NV12 else height, width, CHANNELS[kind])
    found: np.ndarray = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return found if CHANNELS[kind] == 3 else found[..., 0]


def require_same(host: Any, frames: list[np.ndarray], kinds: list[int]) -> None:
    wanted = host.preprocess(frames, kinds)
    np.testing.assert_array_equal(host.preprocess(frames, kinds, STAGED), wanted)


@pytest.mark.parametrize("kind", CHANNELS)
@pytest.mark.parametrize("size", [(2, 2), (256, 256), (254, 258), (480, 640), (1080, 1920), (64, 3840)])
def test_frames_of_cameras(host_kernels: Any, kind: int, size: tuple[int, int]) -> None:
    require_same(host_kernels, [noise(*size, kind)], [kind])
    assert host_kernels.was_staged


def test_a_row_too_wide_to_be_staged_is_read_directly(host_kernels: Any) -> None:
    require_same(host_kernels, [noise(3, 9000, BGR8)], [BGR8])
    assert not host_kernels.was_staged


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 20), st.integers(0, 20), st.booleans(),
       st.sampled_from((BGR8, RGB8, GRAY8)))  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_any_size_place_and_stride(
    host_kernels: Any, height: int, width: int, before: int, padding: int, is_flipped: bool, kind: int
) -> None:
    """Rows begin anywhere within 16 bytes, and may come from below."""
    wide = noise(height, before + width + padding, kind)
    require_same(host_kernels, [(wide[::-1] if is_flipped else wide)[:, before : before + width]], [kind])


@pytest.mark.parametrize("kind", [RGB8, BGR8, GRAY8])
def test_a_frame_of_the_inputs_size_is_copied(host_kernels: Any, kind: int) -> None:
    aligned = np.zeros(256 * 256 * 3 + 64, np.uint8)
    start = -aligned.ctypes.data % 16
    for offset in (0, 1, 5):
        frame = aligned[start + offset :][: 256 * 256 * CHANNELS[kind]].reshape(noise(256, 256, kind).shape)
        frame[:] = noise(256, 256, kind, offset)
        require_same(host_kernels, [frame], [kind])


@pytest.mark.parametrize("picture", [(100, 300), (300, 100), (96, 160), (96, 100)])
def test_letterboxes_of_other_sizes(host_kernels_at: Any, picture: tuple[int, int]) -> None:
    """Also of frames that have the input's size and are not what the letterbox was made for: they are resized into it."""
    for geometry in (Geometry(96, 160), Geometry(96, 160, "letterbox", picture)):
        host = host_kernels_at(geometry)
        require_same(host, [noise(*picture, BGR8), noise(96, 160, RGB8), noise(40, 60, NV12)], [BGR8, RGB8, NV12])


def test_a_variant_that_makes_another_image_is_refused(
    host_kernels: Any, gpu_parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is measured on a GPU."""
    monkeypatch.setattr(measuring, "pictures", lambda: {"97x61 BGR8": Picture(noise(61, 97, BGR8), BGR8)})
    device = gpu_parts.HostDevice(host_kernels)
    with device.current():
        measuring.require_equal(device, ("preprocess", STAGED))
        launch = measuring.launch_preprocess

        def spoiling(device: Any, views: int, images: int, batch: int, geometry: Any, queue: Any, kernel: str) -> None:
            launch(device, views, images, batch, geometry, queue, kernel)
            if kernel == STAGED:
                queue.put(lambda: ctypes.memset(images + 5, 0, 1) + ctypes.memset(images + 6, 255, 1))

        monkeypatch.setattr(measuring, "launch_preprocess", spoiling)
        with pytest.raises(StreamError, match="preprocess_staged makes another image of 97x61 BGR8 than preprocess"):
            measuring.require_equal(device, ("preprocess", STAGED))
        monkeypatch.undo()
        monkeypatch.setattr(measuring, "pictures", dict)
        works: dict[str, Any] = {"preprocess": (), "anomaly_map": ("anomaly_map", "anomaly_map_wide")}
        measuring.require_equal(device, **works)
        assert device.launches["anomaly_map_wide"] == 1
        launch_map = measuring.launch_anomaly_map

        def altering(*given: Any) -> None:
            launch_map(*given)
            if given[-1] == "anomaly_map_wide":
                given[-2].put(lambda: ctypes.memset(given[5] + 3, 0, 1))

        monkeypatch.setattr(measuring, "launch_anomaly_map", altering)
        with pytest.raises(StreamError, match="anomaly_map_wide makes another anomaly map than anomaly_map: it must"):
            measuring.require_equal(device, **works)
