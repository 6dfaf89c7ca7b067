"""N-Net: constrained bidirectional distillation."""

from nnet_edge.methods.base import METHODS
from nnet_edge.methods.nnet.method import NNetMethod

METHODS.register(NNetMethod())
