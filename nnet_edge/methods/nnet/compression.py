"""Compression: what a trained N-Net becomes at its end, a smaller one that gives the same maps (not in the paper).

The forward student keeps the strongest inner channels and the first blocks of the trained one and begins with the teacher's
stem; of the bottleneck's residual blocks the first ones stay. Then forward and reverse student learn on. On good images their
targets are the paper's, the teacher's features and projections. On damaged ones they are what the trained students gave there:
what tells a defect is where a student does not follow the teacher, and a student that learns from good parts alone does that
in its own way. Seen (cookie, three seeds): the same small student trained from the start loses 4 points of AP.

Memory and projections of the teacher stay as they are.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from torch import Tensor

from nnet_edge.methods.backbone import Encoder, Features, build_encoder
from nnet_edge.methods.base import Batch, Compressor
from nnet_edge.methods.compute import Compute, to_device
from nnet_edge.methods.cosine import distillation_loss
from nnet_edge.methods.expansion import with_quick_training
from nnet_edge.methods.nnet.network import NNet
from nnet_edge.methods.nnet.settings import TrainSettings
from nnet_edge.methods.nnet.student import Strengths, cut_student, measure_strengths

MEASURED = 16  # good images that the strength of channels is measured on
STUDENTS = ("forward_student.", "student_projections.", "fusion.", "reverse_student.")  # that learn on


class NNetCompressor(Compressor[NNet, TrainSettings]):
    """Makes forward student and bottleneck smaller, of the trained ones' strongest channels and first blocks."""

    def __init__(self, settings: TrainSettings) -> None:
        wanted = settings.compression
        self.settings, self.images, self.batch = settings, wanted.images, wanted.batch
        self.anomalous = min(math.ceil(wanted.anomalous * wanted.batch), wanted.batch - 1)
        self.is_smaller = wanted.of(settings.model) != settings.model

    def begin(self, network: NNet, images: np.ndarray, compute: Compute) -> tuple[NNet, TrainSettings]:
        """As of every compressor; forward and reverse student and the fusion between them learn on."""
        deployed = self.settings.as_deployed()
        model = deployed.model
        small = NNet(model, build_encoder(network.backbone))
        small.at(network.geometry)
        cut = network.forward_student if self.is_smaller else None
        if cut is not None:
            student = build_encoder(network.backbone)
            student.load_state_dict(cut.state_dict())
            strengths = strengths_of(student.to(network.mean.device), network, images, compute)
            small.forward_student = with_quick_training(cut_student(student, model, strengths))
        weights = network.state_dict()
        others = [name for name in small.state_dict() if not (cut is not None and name.startswith("forward_student."))]
        small.load_state_dict({name: weights[name] for name in others}, strict=False)
        small.to(network.mean.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        for name, value in small.named_parameters():
            value.requires_grad_(name.startswith(STUDENTS))
        return small.eval(), deployed

    def losses(self, small: NNet, whole: NNet, batch: Batch) -> dict[str, Tensor]:
        """Equations 1 and 2, but that the targets of the anomalous images are what `whole` gives of them."""
        found = small.branches(small.student_input(batch.images), batch.teacher)
        reverse, forward = batch.teacher, found.projected
        if self.anomalous:
            damaged = cast(Features, tuple(values[: self.anomalous] for values in batch.teacher))
            with torch.no_grad():
                followed = whole.branches(whole.student_input(batch.images[: self.anomalous]), damaged)
            reverse = beginning_with(followed.reverse, reverse)
            if followed.forward_projected is not None:
                forward = beginning_with(followed.forward_projected, forward)
        terms = {"reverse": distillation_loss(reverse, found.reverse, anchors=found.teacher_anchors)}
        if found.forward_projected is not None:
            terms["forward"] = distillation_loss(forward, found.forward_projected, anchors=found.projected_anchors)
        return terms


def strengths_of(student: Encoder, network: NNet, images: np.ndarray, compute: Compute) -> Strengths:
    """The strengths of the forward student's inner channels on some of the images."""
    some = images[np.linspace(0, len(images) - 1, min(len(images), MEASURED)).astype(int)]
    with compute.autocast():
        return measure_strengths(student, network.normalise(to_device(some, network.mean.device)))


def beginning_with(first: Features, features: Features) -> Features:
    """`features` with those of the first images replaced by `first`."""
    pairs = zip(first, features, strict=True)
    return cast(Features, tuple(torch.cat([some.to(rest.dtype), rest[len(some) :]]) for some, rest in pairs))
