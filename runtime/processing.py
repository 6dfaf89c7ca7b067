"""Frames to a batch, and a batch's outputs to predictions: the reference paths of the CPU runners."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnet_edge.errors import StreamError
from nnet_edge.frame import Frame, FrameOutputs, Outputs, Prediction
from nnet_edge.imaging import SIDE, resize, to_rgb
from nnet_edge.scoring import find_regions


def preprocess(frames: Sequence[Frame]) -> np.ndarray:
    """The frames' images as the graph takes them: uint8 RGB (N, 256, 256, 3)."""
    images = np.empty((len(frames), SIDE, SIDE, 3), np.uint8)
    for image, frame in zip(images, frames, strict=True):
        image[...] = resize(to_rgb(frame.image))
    return images


def postprocess(
    frames: Sequence[Frame],
    outputs: Outputs | FrameOutputs,
    threshold: float,
    min_area: float = 0.0,
    wants_maps: bool = True,
) -> list[Prediction]:
    """One prediction a frame, in their order; regions (in pixels of the frame) for those above the threshold.

    A map on a GPU is fetched for frames above the threshold, and for the others where `wants_maps`. Raises StreamError for
    a score that is not a finite number: it is neither good nor bad.
    """
    predictions = []
    for index, (frame, score) in enumerate(zip(frames, outputs.image_score, strict=True)):
        is_free = isinstance(outputs, Outputs) or wants_maps
        anomaly_map = outputs.anomaly_map[index] if is_free or not score <= threshold else None
        predictions.append(predict(frame, float(score), threshold, anomaly_map, min_area))
    return predictions


def predict(
    frame: Frame, image_score: float, threshold: float, anomaly_map: np.ndarray | None, min_area: float = 0.0
) -> Prediction:
    """The verdict on one frame; `anomaly_map` float32 (256, 256) goes into it, an anomalous frame needs one."""
    if not np.isfinite(image_score):
        raise StreamError(
            f"frame {frame.index}{f' ({frame.name})' if frame.name else ''} has the score {image_score}: "
            "the graph is broken; export the bundle again"
        )
    prediction = Prediction(frame, image_score, threshold, anomaly_map)
    if not prediction.is_anomalous or anomaly_map is None:
        return prediction
    height, width = frame.image.shape[:2]
    regions = find_regions(anomaly_map, threshold, height, width, min_area)
    return Prediction(frame, image_score, threshold, anomaly_map, regions)
