"""NVIDIA Model Optimizer as the other measurer of ranges; skipped where it is not installed."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest

from nnet_edge.calibration.qdq import Plan
from nnet_edge.calibration.quantize import QuantizeSettings, modelopt_ranges
from nnet_edge.calibration.ranges import Activations
from nnet_edge.errors import ConfigError, MissingExtraError


@pytest.mark.slow
@pytest.mark.skipif(
    find_spec("modelopt") is None, reason="NVIDIA Model Optimizer is not installed: nnet-edge[modelopt]"
)
def test_its_ranges_by_max_are_those_that_onnxruntime_measures(
    planned: Plan, activations: Activations, frames: np.ndarray
) -> None:
    before = planned.model.SerializeToString()
    found = modelopt_ranges(planned, frames[:4], "max")
    assert set(found) == set(planned.tensors)
    assert planned.model.SerializeToString() == before, "it alters the file that it is given, so it gets a copy"
    largest = [name for name in planned.tensors if found[name] > 1.5 * activations.ranges[name]]
    assert len(largest) < len(planned.tensors) / 4, "on half the frames most maxima lie near the ranges of auto"


def test_a_method_that_it_lacks_is_refused_and_the_one_that_runs_is_named() -> None:
    with pytest.raises(ConfigError, match="modelopt has no calibration method 'percentile': choose max, entropy, auto"):
        QuantizeSettings("modelopt", "percentile")
    assert QuantizeSettings("modelopt").method_that_runs == "entropy"
    assert QuantizeSettings("onnxruntime").method_that_runs == "auto"


def test_its_absence_is_said(planned: Plan, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnet_edge.calibration.quantize.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nnet-edge\[modelopt\]'"):
        modelopt_ranges(planned, frames, "max")
