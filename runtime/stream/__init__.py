"""Frames to verdicts: buffer, batches, judge, meters and report of a line."""

from nnet_edge.moved import forward

__getattr__ = forward(
    __name__,
    {
        "run": "nnet_edge.runtime.stream.running",
        "run_line": "nnet_edge.runtime.stream.running",
        "stopping_on_signals": "nnet_edge.runtime.stream.running",
    },
)
