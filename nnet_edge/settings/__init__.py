"""Settings as frozen dataclasses, read from flags or TOML by one reader."""

from nnet_edge.moved import forward

__getattr__ = forward(__name__)
