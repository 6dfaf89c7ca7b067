"""The labelled images that precisions are judged on. Needs no onnx: engines are judged on boxes that have none."""

from __future__ import annotations

import numpy as np

from nnet_edge.calibration.answers import TestImages
from nnet_edge.data import Dataset, load_images, load_mask


def load_test(dataset: Dataset, skip_bad: bool) -> TestImages | None:
    """The labelled test images of `dataset` with their masks, None when it has none."""
    if not dataset.test:
        return None
    images = load_images([sample.path for sample in dataset.test], skip_bad)
    sample_of = {sample.path: sample for sample in dataset.test}
    samples = [sample_of[path] for path in images.paths]
    masks = np.zeros(images.images.shape[:3], bool)
    for mask, sample in zip(masks, samples, strict=True):
        if sample.mask_path is not None:
            mask[:] = load_mask(sample)
    has_mask = np.array([sample.mask_path is not None or not sample.is_anomalous for sample in samples])
    kinds = tuple(sample.defect for sample in samples)
    return TestImages(images.images, np.array([sample.is_anomalous for sample in samples]), masks, has_mask, kinds)
