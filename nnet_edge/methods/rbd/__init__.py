"""RBD: reconstruction-based distillation, in the style of the paper's abstract."""

from nnet_edge.methods.base import METHODS
from nnet_edge.methods.rbd.method import RbdMethod

METHODS.register(RbdMethod())
