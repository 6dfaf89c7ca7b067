"""What the tests of calibration share: the small trained graph, its plan, frames and what was measured of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from nnet_edge.bundle import read_bundle
from nnet_edge.calibration.qdq import Plan, plan
from nnet_edge.calibration.quantize import QuantizeSettings, measure_activations
from nnet_edge.calibration.ranges import Activations


@pytest.fixture(scope="session")
def fp32(trained_run: Path) -> onnx.ModelProto:
    """The FP32 graph of EfficientNet-Lite0; tests must not change it."""
    return onnx.load(trained_run / "bundle/nnet.onnx")


@pytest.fixture(scope="session")
def frames(trained_run: Path) -> np.ndarray:
    """Real frames, uint8 RGB (8, 256, 256, 3)."""
    return read_bundle(trained_run / "bundle").frames("held_out")[:8]


@pytest.fixture(scope="session")
def planned(fp32: onnx.ModelProto) -> Plan:
    return plan(fp32)


@pytest.fixture(scope="session")
def activations(planned: Plan, frames: np.ndarray) -> Activations:
    return measure_activations(planned, frames, QuantizeSettings(threads=1), lambda done, total: None)
