"""Images: layouts on disk, reading, augmentation, synthetic anomalies."""

from nnet_edge.moved import forward

__getattr__ = forward(__name__)
