"""DMDD as a Method; torch is imported by what computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnet_edge.methods.base import Batch, Method
from nnet_edge.methods.dmdd.settings import PROTOCOLS, ModelSettings, TrainSettings
from nnet_edge.methods.exponents import ChoosesExponents

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from nnet_edge.anomaly_map import Fusion
    from nnet_edge.methods.backbone import Encoder
    from nnet_edge.methods.compute import Compute
    from nnet_edge.methods.dmdd.network import DMDD, Compared
    from nnet_edge.methods.network import Network


class DmddMethod(ChoosesExponents, Method["DMDD", TrainSettings]):
    """Dual-modeling decouple distillation: normality and abnormality features, and a segmentation head that reads both."""

    name = TrainSettings.method
    title = "DMDD"
    origin = (
        "in the style of the abstract of Liu, Wang, Leng and Zhang (arXiv 2408.03888, 2024); layers, losses and schedule are "
        "our design, not a reproduction"
    )
    settings = TrainSettings
    protocols = PROTOCOLS
    losses_shown = ("normality", "abnormality", "segmentation")
    validated_loss = "normality"
    sees_masks = True

    def needs_pairs(self, settings: TrainSettings) -> bool:
        """Always: abnormality is learned on damaged copies."""
        return True

    def validates_from(self, settings: TrainSettings) -> int:
        """The second stage's first epoch, where there is a head."""
        return settings.head_from if settings.model.has_head else 0

    def build(self, model: ModelSettings, teacher: Encoder) -> DMDD:
        """DMDD."""
        from nnet_edge.methods.dmdd.network import DMDD

        return DMDD(model, teacher)

    def begin_epoch(self, network: DMDD, settings: TrainSettings, epoch: int) -> None:
        """In the second stage the head alone trains."""
        if network.head is None:
            return
        is_second = epoch >= settings.head_from
        for part in (network.student, network.decouple):
            part.train(not is_second)
            part.requires_grad_(not is_second)
        network.head.train(is_second)
        network.head.requires_grad_(is_second)

    def forward(self, network: DMDD, batch: Batch, settings: TrainSettings) -> Compared:
        """The features of both images, or in the second stage the head's map of the damaged copy."""
        import torch

        from nnet_edge.methods.dmdd.network import Compared

        if batch.anomalous is None or batch.masks is None:
            return Compared(batch.teacher, network.decoupled(batch.images))
        damaged = network.teacher_features(batch.anomalous)
        if network.head is not None and network.head.training:
            with torch.no_grad():
                decoupled = network.decoupled(batch.anomalous)
            return Compared(batch.teacher, masks=batch.masks, segmentation=network.segment(damaged, decoupled))
        good, of_damaged = network.decoupled(batch.images), network.decoupled(batch.anomalous)
        return Compared(batch.teacher, good, damaged, of_damaged, batch.masks)

    def losses(self, compared: Compared, settings: TrainSettings, epoch: int) -> dict[str, Tensor]:
        """Normality and abnormality in the first stage, segmentation in the second."""
        from nnet_edge.methods.dmdd.network import dmdd_losses

        return dmdd_losses(compared, settings)

    def parameter_groups(self, settings: TrainSettings) -> dict[str, float]:
        """The head has a rate of its own."""
        return {"head.": settings.head_rate} if settings.model.has_head else {}

    def settle(self, network: Network, held_out: np.ndarray, compute: Compute) -> Fusion:
        """Of distances as usual; the head's map needs no exponents."""
        return network.map_fusion if network.settings.has_head else super().settle(network, held_out, compute)
