"""RBD as a Method; torch is imported by what computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from nnet_edge.methods.base import Batch, Method
from nnet_edge.methods.exponents import ChoosesExponents
from nnet_edge.methods.rbd.settings import PROTOCOLS, ModelSettings, TrainSettings

if TYPE_CHECKING:
    from torch import Tensor

    from nnet_edge.methods.backbone import Encoder
    from nnet_edge.methods.rbd.network import RBD, Reconstructions


class RbdMethod(ChoosesExponents, Method["RBD", TrainSettings]):
    """Reconstruction-based distillation: a reverse student that restores normal features from corrupted ones."""

    name = TrainSettings.method
    title = "RBD"
    origin = (
        "in the style of the abstract of Zhao and Guo (Computers & Graphics 132:104328, 2025); corruption and losses are our "
        "design, not a reproduction"
    )
    settings = TrainSettings
    protocols = PROTOCOLS
    losses_shown = ("reconstruction", "consistency")
    validated_loss = "reconstruction"

    def needs_pairs(self, settings: TrainSettings) -> bool:
        """Whether some images are corrupted by synthesis."""
        return settings.corruption != "mask"

    def build(self, model: ModelSettings, teacher: Encoder) -> RBD:
        """RBD."""
        from nnet_edge.methods.rbd.network import RBD

        return RBD(model, teacher)

    def forward(self, network: RBD, batch: Batch, settings: TrainSettings) -> Reconstructions:
        """The reconstructions of the features as they are, and in training of corrupted ones."""
        from nnet_edge.methods.rbd.network import Reconstructions, corrupt

        if not network.training:
            return Reconstructions(batch.teacher, network.reconstruct(batch.teacher), None)
        rng = np.random.default_rng([*batch.draw, 7])
        anomalous = None if batch.anomalous is None else network.teacher_features(batch.anomalous)
        corrupted = corrupt(network, batch.teacher, anomalous, settings, rng)
        return Reconstructions(batch.teacher, network.reconstruct(batch.teacher), network.reconstruct(corrupted))

    def losses(self, compared: Reconstructions, settings: TrainSettings, epoch: int) -> dict[str, Tensor]:
        """Reconstruction and prediction consistency."""
        from nnet_edge.methods.rbd.network import rbd_losses

        return rbd_losses(compared, settings)
