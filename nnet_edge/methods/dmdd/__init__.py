"""DMDD: dual-modeling decouple distillation, in the style of the paper's abstract."""

from nnet_edge.methods.base import METHODS
from nnet_edge.methods.dmdd.method import DmddMethod

METHODS.register(DmddMethod())
