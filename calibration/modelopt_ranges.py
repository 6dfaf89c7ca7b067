"""Activation ranges by NVIDIA Model Optimizer on the CPU; the only module that imports modelopt."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from nnet_edge.calibration.qdq import LARGEST_INT8, Plan
from nnet_edge.errors import CalibrationError, MissingExtraError

METHODS = {"max": "max", "entropy": "entropy", "auto": "entropy"}  # ours -> its own for INT8: it has no other
SLOWEST_CHOICE = "cpu"


def modelopt_ranges(plan: Plan, frames: np.ndarray, method: str) -> dict[str, float]:
    """Activation -> the value that becomes 127, as Model Optimizer finds it on `frames`, uint8 RGB (N, 256, 256, 3).

    `method` is "max" or "entropy". Raises MissingExtraError where it is not installed, CalibrationError when it fails or
    leaves an activation of the plan without a scale.
    """
    if find_spec("modelopt") is None:
        raise MissingExtraError("nvidia-modelopt is not installed: pip install 'nnet-edge[modelopt]'")
    quantized = run_modelopt(plan, frames, method)
    values = {item.name: item for item in quantized.graph.initializer}
    scales = {
        node.input[0]: float(numpy_helper.to_array(values[node.input[1]]))
        for node in quantized.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in plan.tensors
    }
    missing = [name for name in plan.tensors if name not in scales]
    if missing:
        left = f"{len(missing)} of {len(plan.tensors)} activations without a scale, {missing[0]} for one"
        raise CalibrationError(f"Model Optimizer left {left}: use --tool onnxruntime")
    return {name: scale * LARGEST_INT8 for name, scale in scales.items()}


def run_modelopt(plan: Plan, frames: np.ndarray, method: str) -> onnx.ModelProto:
    """The plan's convolutions and additions as Model Optimizer quantizes them; it works on a copy, as it alters its input."""
    from modelopt.onnx.quantization import quantize

    others = [node.name for node in plan.model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    chosen = {node.name for node in plan.convolutions}
    with tempfile.TemporaryDirectory(prefix="nnet-edge-modelopt-") as folder, quiet():
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(plan.model, source)
        try:
            quantize(
                str(source),
                quantize_mode="int8",
                calibration_data={"images": frames},
                calibration_method=method,
                calibration_eps=[SLOWEST_CHOICE],
                op_types_to_quantize=["Conv", "ConvTranspose", "Add"],
                nodes_to_exclude=[name for name in others if name not in chosen],
                high_precision_dtype="fp32",
                output_path=str(target),
                log_level="ERROR",
            )
            return onnx.load(target)
        except Exception as error:  # it raises whatever its many libraries raise
            words = " ".join(str(error).split())[:300]
            raise CalibrationError(f"Model Optimizer cannot quantize it: {words}; use --tool onnxruntime") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep its progress bars, log lines and deprecation warnings off the user's terminal."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
