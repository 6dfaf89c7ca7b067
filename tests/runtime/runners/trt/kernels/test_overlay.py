"""The coloured picture: the kernel's arithmetic against `runtime/overlay.py` (OpenCV)."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from nnet_edge.runtime.sinks.overlay import HEAT_SHARE, SCALE_END, colour, colour_table

SIZES = ((240, 64), (256, 256), (333, 517), (720, 960))


def reference(panel: np.ndarray, anomaly_map: np.ndarray, threshold: float) -> np.ndarray:
    """What `draw_heat` paints before the outlines."""
    enlarged = cv2.resize(anomaly_map, panel.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    grey = cv2.cvtColor(cv2.cvtColor(panel, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    return cv2.addWeighted(colour(enlarged, threshold), HEAT_SHARE, grey, 1 - HEAT_SHARE, 0)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_picture_equals_opencv(host_kernels, height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    panel = rng.integers(0, 256, (height, width, 3), np.uint8)
    anomaly_map = (3 * rng.random((256, 256)) ** 2).astype(np.float32)
    found = host_kernels.overlay(panel, anomaly_map, colour_table(), SCALE_END * 0.7, HEAT_SHARE)
    difference = np.abs(found.astype(int) - reference(panel, anomaly_map, 0.7)).max(axis=2)
    # OpenCV interpolates with coefficients of its own rounding: where the colour's place falls on a half, it is the next
    step = int(np.ceil(HEAT_SHARE * np.abs(np.diff(colour_table().astype(int), axis=0)).max())) + 1
    assert (difference <= 1).mean() > 0.999
    assert difference.max() <= step


def test_colours_at_the_ends(host_kernels) -> None:
    panel = np.zeros((256, 256, 3), np.uint8)
    for value, place in ((-5.0, 0), (np.nan, 0), (1.0, 128), (2.0, 255), (1e30, 255)):
        anomaly_map = np.full((256, 256), value, np.float32)
        found = host_kernels.overlay(panel, anomaly_map, colour_table(), 2.0, 1.0)
        assert (found == colour_table()[place]).all()
