"""Memory of a training, estimated before it starts, so that a large input ends in a sentence and not in a killed process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nnet_edge.errors import TrainingError
from nnet_edge.machine import free_memory
from nnet_edge.methods.backbone import STRIDES, build_encoder, find_backbone
from nnet_edge.methods.base import METHODS, Batch, MethodSettings, PairSettings
from nnet_edge.methods.compute import CHUNK
from nnet_edge.training.early_stopping import COPIES
from nnet_edge.training.start import SMALL_SET, learned_count

PROBE = 64  # height and width of the images that the step's memory is counted on
PROBE_BATCH = 2
PASS_BYTES = 4 * 2 * 24  # a pixel of the teacher's widest pass: in and out of a layer of 96 channels at stride 2, FP32
SMALL_STEP = 4 * 128 * 128  # pixels; what every machine that trains at all has room for, and not worth the counting
# weights, gradients, Adam's two moments, EMA, best; and half as many while a checkpoint is written
COPIES_OF_WEIGHTS = 9
GIB = 2**30


def require_memory(settings: MethodSettings, images: int, feature_limit: int, device: str = "cpu") -> None:
    """Raise TrainingError when `images` pictures, held-out ones among them, need more memory than there is.

    What a GPU computes with is its own memory, which is not looked at.
    """
    free = free_memory()
    settings = replace(settings, batch=max(2, min(settings.batch, images)))
    needed = needed_memory(settings, images, feature_limit, device)
    if needed > free:
        batch, size = settings.batch, settings.input.text
        raise TrainingError(
            f"training on {images} images of {size} with a batch of {batch} needs about {needed / GIB:.1f} GiB of memory and "
            f"{free / GIB:.1f} GiB are free: give a smaller --size or --batch"
        )


def needed_memory(settings: MethodSettings, images: int, feature_limit: int, device: str = "cpu") -> int:
    """Bytes at the widest moment: pictures, their features, and a step or the teacher's pass, whichever is wider."""
    network = settings.input.network
    pixels, canvases = network.height * network.width, 0
    if settings.input.tiles is not None:
        canvases = 3 * images * settings.input.height * settings.input.width
        images = learned_count(images, settings)
    asked = settings.augmentation_copies if images <= SMALL_SET else 1
    copies = max(settings.augmentation.copies, asked, 1)
    channels = find_backbone(settings.model.backbone).channels
    features = sum(4 * count * pixels // stride**2 for count, stride in zip(channels, STRIDES, strict=True))
    kept = canvases + images * copies * 3 * pixels + min(feature_limit, images * copies * features)
    validation = (
        COPIES * pixels * (3 + 1 + 4 + 8) if settings.look_every else 0
    )  # copies, masks, maps in both precisions
    if device != "cpu":
        return kept + validation
    step = weights = 0
    if settings.batch * pixels > SMALL_STEP:
        small, weights = step_bytes(settings)
        step = small * settings.batch * pixels // (PROBE_BATCH * PROBE**2)
    passing = min(CHUNK, images) * PASS_BYTES * pixels
    return kept + validation + COPIES_OF_WEIGHTS * weights + max(step, passing)


def step_bytes(settings: MethodSettings) -> tuple[int, int]:
    """Bytes that a step on a batch of PROBE_BATCH small images keeps for its gradients, and those of the weights."""
    method = METHODS.find(settings.method)
    with torch.random.fork_rng(devices=[]):
        network = method.build(settings.model, build_encoder(find_backbone(settings.model.backbone)))
    network.train()
    method.begin_epoch(network, settings, 0)
    images = torch.zeros(PROBE_BATCH, PROBE, PROBE, 3, dtype=torch.uint8)
    normalised = network.normalise(images)
    kept: dict[int, int] = {}

    def keep(values: Tensor) -> Tensor:
        kept[values.untyped_storage().data_ptr()] = values.untyped_storage().nbytes()
        return values

    batch = Batch(normalised, network.teacher_features(normalised))
    if isinstance(settings, PairSettings) and method.needs_pairs(settings):
        masks = torch.from_numpy(np.ones((PROBE_BATCH, 1, PROBE, PROBE), bool))
        batch = Batch(normalised, batch.teacher, normalised, masks)
    before = {value.untyped_storage().data_ptr() for value in network.state_dict().values()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda values: values):
        compared = method.forward(network, batch, settings)
        losses = method.losses(compared, settings, 0)
    del losses
    weights = sum(value.nbytes for value in network.state_dict().values())
    return sum(size for place, size in kept.items() if place not in before), weights
