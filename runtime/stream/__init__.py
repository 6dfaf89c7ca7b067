"""Frames to verdicts: buffer, batches, judge, meters and report of a line."""

from nnet_edge.moved import forward

__getattr__ = forward(__name__)
