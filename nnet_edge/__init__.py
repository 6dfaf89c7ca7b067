"""nnet-edge: from a folder of good photographs to a live verdict on every part (N-Net, ONNX, TensorRT)."""

from typing import TYPE_CHECKING

from nnet_edge.errors import NnetEdgeError
from nnet_edge.moved import install
from nnet_edge.silence import silence

if TYPE_CHECKING:
    from nnet_edge.frame import Frame, Outputs, Prediction, Region

__version__ = "0.1.0"
__all__ = ["Frame", "NnetEdgeError", "Outputs", "Prediction", "Region", "__version__"]

silence()  # before anything imports a library that sends telemetry
install()


def __getattr__(name: str) -> object:
    """The nouns of `frame.py`, which `--help` does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from nnet_edge import frame

    return getattr(frame, name)
