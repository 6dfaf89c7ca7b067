"""Frames to a batch, the reference path of the CPU runners, and a score to a verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnet_edge.errors import StreamError
from nnet_edge.frame import Frame, Prediction
from nnet_edge.imaging import SIDE, to_input


def preprocess(frames: Sequence[Frame]) -> np.ndarray:
    """The frames' images as the graph takes them: uint8 RGB (N, 256, 256, 3)."""
    images = np.empty((len(frames), SIDE, SIDE, 3), np.uint8)
    for image, frame in zip(images, frames, strict=True):
        to_input(frame.image, image)
    return images


def predict(frame: Frame, image_score: float, threshold: float) -> Prediction:
    """The bare verdict on one frame, without map and regions. Raises StreamError for a score that is not a finite number:
    it is neither good nor bad.
    """
    if not np.isfinite(image_score):
        raise StreamError(
            f"frame {frame.index}{f' ({frame.name})' if frame.name else ''} has the score {image_score}: "
            "the graph is broken; export the bundle again"
        )
    return Prediction(frame, image_score, threshold, None)
