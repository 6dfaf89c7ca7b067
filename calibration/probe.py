"""Probe: any tensor of a graph while ONNX Runtime computes it; the only module of calibration that imports onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import numpy as np
import onnx
from onnx import TensorProto, helper

from nnet_edge.errors import CalibrationError, MissingExtraError

try:
    import onnxruntime
except ImportError as error:
    raise MissingExtraError("onnxruntime is not installed: pip install 'nnet-edge[calibrate]'") from error

INPUT = "images"
ERRORS_ONLY = 3


class Probe:
    """A graph on ONNX Runtime that gives any of its float tensors.

    Raises CalibrationError for a graph that ONNX Runtime cannot compute.
    """

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str], threads: int | None = None) -> None:
        self.tensors = list(dict.fromkeys(tensors))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        if threads is not None:
            options.intra_op_num_threads = threads
        content = with_outputs(model, self.tensors).SerializeToString()
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common base below Exception
            raise CalibrationError(f"ONNX Runtime cannot read the graph: {words(error)}; export it again") from error

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """The tensors by name for uint8 RGB images (N, 256, 256, 3)."""
        try:
            arrays = self._session.run(self.tensors, {INPUT: images})
        except Exception as error:  # as above
            raise CalibrationError(f"ONNX Runtime cannot compute the graph: {words(error)}; export it again") from error
        return dict(zip(self.tensors, arrays, strict=True))


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """A copy of `model` with exactly these tensors as outputs, which must be float."""
    copy = deepcopy(model)
    known = {item.name: item for item in model.graph.output}
    del copy.graph.output[:]
    for name in tensors:
        copy.graph.output.append(known.get(name) or helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    return copy


def map_error(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], threshold: float) -> float:
    """Mean absolute difference of two anomaly maps, in thresholds."""
    return float(np.abs(found["anomaly_map"] - expected["anomaly_map"]).mean() / threshold)


def words(error: Exception) -> str:
    """A foreign error in one line."""
    return " ".join(str(error).split())[:300]
