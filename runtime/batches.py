"""Many images through a runner, in batches that it takes."""

from __future__ import annotations

import numpy as np

from nnet_edge.frame import Outputs
from nnet_edge.runtime.runner import Runner


def infer_all(runner: Runner, images: np.ndarray, layer_maps: bool = True) -> Outputs:
    """The outputs for all images, uint8 RGB (N, 256, 256, 3), N at least 1; the layer maps unless told otherwise."""
    starts = range(0, len(images), runner.max_batch)
    parts = [runner.infer(images[start : start + runner.max_batch], layer_maps) for start in starts]
    return Outputs(
        np.concatenate([part.anomaly_map for part in parts]),
        np.concatenate([part.image_score for part in parts]),
        {name: np.concatenate([part.layer_maps[name] for part in parts]) for name in parts[0].layer_maps},
    )
