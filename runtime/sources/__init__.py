"""Where frames come from: one file for each kind of source, which registers itself."""

from nnet_edge.moved import forward

__getattr__ = forward(__name__)
