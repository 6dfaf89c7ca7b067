"""nnet-edge: from a folder of good photographs to a live verdict on every part (N-Net, ONNX, TensorRT).

from nnet_edge import load

inspector = load("runs/part/bundle")
result = inspector("part.png")
print(result.is_anomalous, result.score)
"""

from importlib import import_module
from typing import TYPE_CHECKING

from nnet_edge.errors import NnetEdgeError
from nnet_edge.moved import install
from nnet_edge.silence import silence

if TYPE_CHECKING:
    from nnet_edge.cli.python import Measurement, Training, evaluate, train
    from nnet_edge.frame import Frame, Outputs, Prediction, Region
    from nnet_edge.runtime.inspector.inspector import Inspector, load
    from nnet_edge.runtime.inspector.result import Result

__version__ = "0.1.0"
__all__ = [
    "Frame", "Inspector", "Measurement", "NnetEdgeError", "Outputs", "Prediction", "Region", "Result", "Training",
    "__version__", "evaluate", "load", "train",
]  # fmt: skip
HOMES = {  # name -> the module that it is imported from when it is asked for: `import nnet_edge` stays light
    **dict.fromkeys(("Frame", "Outputs", "Prediction", "Region"), "nnet_edge.frame"),
    **dict.fromkeys(("Inspector", "load"), "nnet_edge.runtime.inspector.inspector"),
    **dict.fromkeys(("Measurement", "Training", "evaluate", "train"), "nnet_edge.cli.python"),
    "Result": "nnet_edge.runtime.inspector.result",
}

silence()  # before anything imports a library that sends telemetry
install()


def __getattr__(name: str) -> object:
    """The names of HOMES."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(HOMES[name]), name)
