"""BiKD: forward and backward distillation with reciprocal exchange, in the style of the paper's abstract."""

from nnet_edge.methods.base import METHODS
from nnet_edge.methods.bikd.method import BikdMethod

METHODS.register(BikdMethod())
