"""BiKD's network and losses: a forward student, a backward branch, and what they learn of each other.

In the style of the paper's abstract (Wang, Wang, Pan, Wang, Neural Computing and Applications, 2024, DOI
10.1007/s00521-024-10172-8), whose text could not be had: architecture, losses and augmentation are a design of this project,
and published figures are no promise. It is N-Net's frame without projections and memory, with pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nnet_edge.methods.backbone import Encoder, Features, build_encoder
from nnet_edge.methods.bikd.settings import ModelSettings, TrainSettings
from nnet_edge.methods.blocks import Decoder, FeatureFusion, FeatureProjection
from nnet_edge.methods.cosine import cosine_distances, distillation_loss
from nnet_edge.methods.expansion import with_quick_training
from nnet_edge.methods.network import Network


@dataclass(frozen=True)
class View:
    """Both branches' features of one image: the good one, or its damaged copy."""

    forward: Features  # SF
    backward: Features  # D of the reverse student, or P of the adapter


@dataclass(frozen=True)
class Views:
    """What the losses compare."""

    teacher: Features  # Fn, of the good image
    good: View
    damaged: View | None  # None for held-out images, and without denoising


class BiKD(Network):
    """The whole network; `forward` gives the layer maps that `settings.maps` names."""

    method = TrainSettings.method
    settings: ModelSettings

    def __init__(self, settings: ModelSettings, teacher: Encoder) -> None:
        super().__init__(settings, teacher)
        self.forward_student = with_quick_training(build_encoder(self.backbone))
        self.backward_branch = ReverseStudent(self) if settings.backward == "reverse_student" else Adapter(self)

    def view(self, normalised: Tensor, teacher: Features) -> View:
        """Both branches for normalised images and their teacher features."""
        return View(self.forward_student(normalised), self.backward_branch(teacher))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The layer maps (N, 1, h, w) in [0, 2]: 1 - cos(F, SF) forward, 1 - cos(F, D) or 1 - cos(P, SF) backward."""
        normalised = self.normalise(images)
        teacher = self.teacher_features(normalised)
        needs_student = self.settings.maps != "backward" or self.settings.backward == "teacher_adapter"
        student = self.forward_student(normalised) if needs_student else ()
        maps = cosine_distances(teacher, student) if self.settings.maps != "backward" else []
        if self.settings.maps != "forward":
            target = teacher if self.settings.backward == "reverse_student" else student
            maps += cosine_distances(target, self.backward_branch(teacher))
        return self.levelled(maps, teacher)


class ReverseStudent(nn.Module):
    """A decoder behind the one-class bottleneck, which always restores normal features."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.bottleneck = FeatureFusion(network.backbone, use_ffc=False)
        self.decoder = Decoder(network.backbone, not network.backbone.has_linear_taps)

    def forward(self, teacher: Features) -> Features:
        """D1, D2, D3, of the teacher's shapes."""
        return self.decoder(self.bottleneck(teacher), teacher[2])


class Adapter(nn.Module):
    """Projections of the teacher's features, which learn from the student's: backward distillation read the other way."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.projections = nn.ModuleList(FeatureProjection(channels) for channels in network.backbone.channels)

    def forward(self, teacher: Features) -> Features:
        """P1, P2, P3, of the teacher's shapes."""
        first, second, third = (part(value) for part, value in zip(self.projections, teacher, strict=True))
        return first, second, third


def bikd_losses(views: Views, settings: TrainSettings, epoch: int) -> dict[str, Tensor]:
    """The weighted terms of the loss in `epoch` (from 0); their sum is the loss.

    forward: L(SF(x_n), Fn) + L(SF(x_a), Fn). backward: L(D(x_n), Fn) + L(D(x_a), Fn), of an adapter L(SF, P) for both images.
    exchange: L(SF, sg(D)) + L(sg(SF), D) of the damaged image (the good one without denoising), ramped up.
    """
    seen = [views.good] if views.damaged is None else [views.good, views.damaged]
    forward = torch.stack([distillation_loss(views.teacher, view.forward) for view in seen]).sum()
    if settings.model.backward == "reverse_student":
        backward = [distillation_loss(views.teacher, view.backward) for view in seen]
    else:
        backward = [distillation_loss(fixed(view.forward), view.backward) for view in seen]
    terms = {
        "forward": settings.forward_weight * forward,
        "backward": settings.backward_weight * torch.stack(backward).sum(),
    }
    if weight := settings.exchange_at(epoch):
        last = seen[-1]
        exchanged = distillation_loss(fixed(last.backward), last.forward)
        if settings.model.backward == "reverse_student":  # an adapter learns from the student by its own loss
            exchanged = exchanged + distillation_loss(fixed(last.forward), last.backward)
        terms["exchange"] = weight * exchanged
    return terms


def fixed(features: Features) -> list[Tensor]:
    """The features without a gradient."""
    return [value.detach() for value in features]
