"""Where frames come from: one file for each kind of source, which registers itself."""

from nnet_edge.moved import forward

__getattr__ = forward(
    __name__,
    {
        "open_source": "nnet_edge.runtime.sources.open",
        "open_source_of": "nnet_edge.runtime.sources.open",
        "Source": "nnet_edge.runtime.sources.base",
    },
)
