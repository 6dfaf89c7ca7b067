"""nnet-edge: from a folder of good photographs to a live verdict on every part (N-Net, ONNX, TensorRT)."""

from nnet_edge.errors import NnetEdgeError
from nnet_edge.frame import Frame, Outputs, Prediction, Region
from nnet_edge.moved import install

__version__ = "0.1.0"
__all__ = ["Frame", "NnetEdgeError", "Outputs", "Prediction", "Region", "__version__"]

install()
