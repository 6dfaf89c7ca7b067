"""N-Net, top to bottom: frozen teacher, forward student and reverse student (constrained bidirectional distillation);
and its losses, equations 1 to 7.

A reimplementation from the paper (Acta Electronica Sinica 53(3), 2025) with the resolutions that the settings name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from nnet_edge.methods.backbone import Backbone, Encoder, Features
from nnet_edge.methods.blocks import Decoder, FeatureFusion, FeatureProjection
from nnet_edge.methods.compute import Compute, chunks, to_device
from nnet_edge.methods.cosine import NO_ANCHORS, SMALLEST_DEVIATION, cosine_distances, distillation_loss
from nnet_edge.methods.expansion import with_quick_training
from nnet_edge.methods.network import Network
from nnet_edge.methods.nnet.parts import FeatureStorage
from nnet_edge.methods.nnet.settings import ModelSettings, TrainSettings
from nnet_edge.methods.nnet.student import build_student
from nnet_edge.methods.teacher_weights import Teacher

ENERGY_RATE = 0.1  # of the running mean of the projections' squared lengths
STATISTICS_IMAGES = 256  # images that the channels' means and deviations are measured on
ENTROPY_EPSILON = 1e-12


@dataclass(frozen=True)
class Branches:
    """What the losses compare: three feature maps of each kind and the memory's weights."""

    teacher: Features  # F1, F2, F3
    projected: Features  # P1, P2, P3
    reverse: Features  # D1, D2, D3
    forward: Features | None  # SF1, SF2, SF3; None without the forward branch
    forward_projected: Features | None  # SP1, SP2, SP3
    memory_weights: Tensor | None  # (N*H*W, slots); None without the memory
    teacher_anchors: Sequence[Tensor | None]  # of the cosines with F1, F2, F3; None: the plain cosine
    projected_anchors: Sequence[Tensor | None]  # of the cosines with P1, P2, P3


class NNet(Network):
    """The whole network; `forward` gives the layer maps that `settings.maps` names."""

    method = TrainSettings.method
    settings: ModelSettings
    projected_energy: (
        Tensor  # running mean of the squared length of the vectors of P1, P2, P3; an anchor is a share of it
    )

    def __init__(self, settings: ModelSettings, teacher: Encoder) -> None:
        super().__init__(settings, teacher)
        backbone = self.backbone
        self.forward_student = with_quick_training(build_student(settings, backbone)) if settings.use_forward else None
        self.teacher_projections = build_projections(settings, backbone)
        self.student_projections = build_projections(settings, backbone) if settings.use_forward else None
        self.memory = build_memory(settings, backbone) if settings.use_nfs else None
        self.fusion = FeatureFusion(backbone, settings.residual_blocks, settings.use_ffc)
        ends_in_relu = not (backbone.has_linear_taps or settings.standardise)
        self.reverse_student = Decoder(backbone, ends_in_relu, settings.decoder_order, settings.recall_residual,
                                       settings.decoder_depth)  # fmt: skip
        for scale, channels in enumerate(backbone.channels):
            self.register_buffer(f"feature_mean_{scale}", torch.zeros(1, channels, 1, 1))
            self.register_buffer(f"feature_scale_{scale}", torch.ones(1, channels, 1, 1))
        self.register_buffer("projected_energy", torch.tensor([float(channels) for channels in backbone.channels]))

    @torch.no_grad()
    def teacher_features(self, normalised: Tensor) -> Features:
        """F1, F2, F3 of normalised images, standardised where the settings say so."""
        return self.compared(super().teacher_features(normalised))

    def compared(self, features: Features) -> Features:
        """The teacher's feature maps, standardised where the settings say so."""
        if not self.settings.standardise:
            return features
        return cast(Features, tuple(self.standardised(value, scale) for scale, value in enumerate(features)))

    def standardised(self, features: Tensor, scale: int) -> Tensor:
        """The teacher's feature map of one scale, each channel with mean 0 and deviation 1 over the good images."""
        return (features - getattr(self, f"feature_mean_{scale}")) * getattr(self, f"feature_scale_{scale}")

    @torch.no_grad()
    def measure_channels(self, images: np.ndarray, compute: Compute) -> None:
        """Set the standardisation from the teacher's features of uint8 RGB `images` (N, H, W, 3)."""
        count = 0
        sums = [torch.zeros(channels, dtype=torch.float64) for channels in self.backbone.channels]
        squares = [torch.zeros(channels, dtype=torch.float64) for channels in self.backbone.channels]
        for chunk in chunks(images[:: math.ceil(len(images) / STATISTICS_IMAGES)]):
            with compute.autocast():
                maps = self.teacher(self.normalise(to_device(chunk, self.mean.device)))
            count += len(chunk)
            for total, square, values in zip(sums, squares, maps, strict=True):
                values = values.double()
                total += values.mean(dim=(2, 3)).sum(dim=0).cpu()
                square += values.square().mean(dim=(2, 3)).sum(dim=0).cpu()
        for scale, (total, square) in enumerate(zip(sums, squares, strict=True)):
            mean = total / count
            deviation = (square / count - mean.square()).clamp_min(0).sqrt()
            floor = SMALLEST_DEVIATION * float(deviation.mean()) + 1e-12
            getattr(self, f"feature_mean_{scale}").copy_(mean.float().reshape(1, -1, 1, 1))
            inverse = (1 / deviation.clamp_min(floor)).float().reshape(1, -1, 1, 1)
            getattr(self, f"feature_scale_{scale}").copy_(inverse)

    def student_input(self, normalised: Tensor) -> Tensor:
        """What the forward student begins with: the normalised images, or what the teacher's stem makes of them."""
        if not self.settings.shared_stem:
            return normalised
        with torch.no_grad():
            return self.teacher.stem(normalised)

    def branches(self, begun: Tensor, teacher: Features) -> Branches:
        """Every feature map that a loss or a layer map compares, of what `student_input` gives and the teacher's features."""
        weights = None
        third = teacher[2]
        if self.memory is not None:
            third, weights = self.memory(third)
        recalled = (teacher[0], teacher[1], third)
        projected = project(self.teacher_projections, recalled)
        reverse = self.reverse_student(self.fusion(projected), third)
        forward = forward_projected = None
        if self.forward_student is not None:
            if self.settings.forward_p3_source == "raw":
                projected = (projected[0], projected[1], self.teacher_projections[2](teacher[2]))
            forward = self.forward_student(begun)
            forward_projected = project(cast(nn.ModuleList, self.student_projections), forward)
        if self.training and self.settings.anchor:
            self.follow_energy(projected)
        return Branches(teacher, projected, reverse, forward, forward_projected, weights, *self.anchors())

    @torch.no_grad()
    def follow_energy(self, projected: Features) -> None:
        """Move the running mean of the projections' squared lengths towards those of this batch."""
        energy = torch.stack([value.float().square().sum(dim=1).mean() for value in projected])
        self.projected_energy.lerp_(energy, ENERGY_RATE)

    def anchors(self) -> tuple[Sequence[Tensor | None], Sequence[Tensor | None]]:
        """The squared anchors of the cosines with F and with P: anchor^2 times the mean squared length of a vector.

        A standardised vector has a mean squared length of its channels' number.
        """
        if not self.settings.anchor:
            return NO_ANCHORS, NO_ANCHORS
        share = self.settings.anchor**2
        teacher = self.projected_energy.new_tensor([float(channels) for channels in self.backbone.channels])
        return (share * teacher).unbind(), (share * self.projected_energy).unbind()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The layer maps (N, 1, h, w) in [0, 2] in the order of `output_names`, for uint8 RGB images (N, H, W, 3)."""
        normalised = self.normalise(images)
        begun = self.student_input(normalised)
        whole = begun is normalised  # else the teacher goes on from its stem, which is computed once
        teacher = self.teacher_features(normalised) if whole else self.compared(self.teacher.after_stem(begun))
        return self.levelled(self.layer_maps(self.branches(begun, teacher)), teacher)

    def layer_maps(self, branches: Branches) -> tuple[Tensor, ...]:
        """The layer maps of `output_names`: 1 - cos(P_i, SP_i) for the forward, 1 - cos(F_i, D_i) for the reverse branch."""
        maps: list[Tensor] = []
        student = branches.forward if self.settings.forward_map == "student" else branches.forward_projected
        if student is not None and self.settings.maps != "reverse":
            maps += cosine_distances(branches.projected, student, branches.projected_anchors)
        if self.settings.maps != "forward":
            maps += cosine_distances(branches.teacher, branches.reverse, branches.teacher_anchors)
        return tuple(maps)


def project(projections: nn.ModuleList, features: Features) -> Features:
    """P1, P2, P3: each feature map through its own projection."""
    first, second, third = (projection(value) for projection, value in zip(projections, features, strict=True))
    return first, second, third


def build_projections(settings: ModelSettings, backbone: Backbone) -> nn.ModuleList:
    """Three FPMs, or three identities without them; teacher and student have their own (A-3)."""
    if not settings.use_fpm:
        return nn.ModuleList(nn.Identity() for _ in backbone.channels)
    return nn.ModuleList(
        FeatureProjection(channels, settings.fpm_reduction, settings.fpm_mid) for channels in backbone.channels
    )


def build_memory(settings: ModelSettings, backbone: Backbone) -> FeatureStorage:
    """The memory of normal features of the third scale."""
    return FeatureStorage(
        settings.memory_slots, backbone.channels[2], settings.memory_temperature, settings.memory_lambda_times_slots,
        settings.memory_addressing,
    )  # fmt: skip


def build_nnet(settings: ModelSettings, teacher: Teacher, seed: int) -> NNet:
    """N-Net with `teacher` and everything else initialised at random from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NNet(settings, teacher.encoder)


def query_entropy(weights: Tensor) -> Tensor:
    """Mean over the queries of the entropy of the memory's weights (rows, slots); equation 5 with the mean of A-4."""
    return -(weights * torch.log(weights + ENTROPY_EPSILON)).sum(dim=1).mean()


def empty_row_share(weights: Tensor) -> float:
    """Share of the queries whose weights were all shrunk to zero, 0 to 1; above 1 % the memory is dying."""
    return float((weights.sum(dim=1) == 0).float().mean())


def nnet_losses(branches: Branches, settings: TrainSettings, epoch: int) -> dict[str, Tensor]:
    """The weighted terms of equation 7 that are active in `epoch` (from 0); their sum is the loss.

    reverse: L_RKD (eq. 2). forward: alpha L_KD (eq. 1), its gradient reaches the projections of the teacher (A-11).
    align: beta L_align (eq. 3, 4), only while beta is above 0. query: delta L_query (eq. 5).
    """
    terms = {
        "reverse": distillation_loss(branches.teacher, branches.reverse, settings.distance, branches.teacher_anchors)
    }
    if branches.forward is not None and branches.forward_projected is not None:
        if settings.kd_weight:
            kd = distillation_loss(
                branches.projected, branches.forward_projected, settings.distance, branches.projected_anchors
            )
            terms["forward"] = settings.kd_weight * kd
        if settings.align_weight and epoch < settings.align_epochs:
            align = distillation_loss(branches.forward, branches.projected, settings.distance)
            terms["align"] = settings.align_weight * align
    if branches.memory_weights is not None and settings.query_weight:
        terms["query"] = settings.query_weight * query_entropy(branches.memory_weights)
    return terms
