"""Frames to a batch, and a batch's outputs to predictions: the reference paths of the CPU runners."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnet_edge.errors import StreamError
from nnet_edge.frame import Frame, Outputs, Prediction
from nnet_edge.imaging import SIDE, resize, to_rgb
from nnet_edge.scoring import find_regions


def preprocess(frames: Sequence[Frame]) -> np.ndarray:
    """The frames' images as the graph takes them: uint8 RGB (N, 256, 256, 3)."""
    images = np.empty((len(frames), SIDE, SIDE, 3), np.uint8)
    for image, frame in zip(images, frames, strict=True):
        image[...] = resize(to_rgb(frame.image))
    return images


def postprocess(frames: Sequence[Frame], outputs: Outputs, threshold: float, min_area: float = 0.0) -> list[Prediction]:
    """One prediction a frame, in their order; regions (in pixels of the frame) for those above the threshold.

    Raises StreamError for a score that is not a finite number: it is neither good nor bad.
    """
    return [
        predict(frame, float(score), threshold, anomaly_map, min_area)
        for frame, score, anomaly_map in zip(frames, outputs.image_score, outputs.anomaly_map, strict=True)
    ]


def predict(
    frame: Frame, image_score: float, threshold: float, anomaly_map: np.ndarray, min_area: float = 0.0
) -> Prediction:
    """The verdict on one frame; `anomaly_map` float32 (256, 256) goes into it."""
    if not np.isfinite(image_score):
        raise StreamError(
            f"frame {frame.index}{f' ({frame.name})' if frame.name else ''} has the score {image_score}: "
            "the graph is broken; export the bundle again"
        )
    prediction = Prediction(frame, image_score, threshold, anomaly_map)
    if not prediction.is_anomalous:
        return prediction
    height, width = frame.image.shape[:2]
    regions = find_regions(anomaly_map, threshold, height, width, min_area)
    return Prediction(frame, image_score, threshold, anomaly_map, regions)
