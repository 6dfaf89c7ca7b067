"""BiKD as a Method; torch is imported by what computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnet_edge.methods.base import Batch, Method
from nnet_edge.methods.bikd.settings import PROTOCOLS, ModelSettings, TrainSettings
from nnet_edge.methods.exponents import ChoosesExponents

if TYPE_CHECKING:
    from torch import Tensor

    from nnet_edge.methods.backbone import Encoder
    from nnet_edge.methods.bikd.network import BiKD, Views


class BikdMethod(ChoosesExponents, Method["BiKD", TrainSettings]):
    """Bidirectional distillation: a forward student, a backward branch, and their reciprocal exchange."""

    name = TrainSettings.method
    title = "BiKD"
    origin = (
        "in the style of the abstract of Wang, Wang, Pan and Wang (Neural Computing and Applications, 2024); architecture and "
        "losses are our design, not a reproduction"
    )
    settings = TrainSettings
    protocols = PROTOCOLS
    losses_shown = ("forward", "backward", "exchange")
    validated_loss = "forward"

    def needs_pairs(self, settings: TrainSettings) -> bool:
        """Whether students see damaged copies."""
        return settings.denoising

    def build(self, model: ModelSettings, teacher: Encoder) -> BiKD:
        """BiKD."""
        from nnet_edge.methods.bikd.network import BiKD

        return BiKD(model, teacher)

    def forward(self, network: BiKD, batch: Batch, settings: TrainSettings) -> Views:
        """Both branches of the good images, and of their damaged copies."""
        from nnet_edge.methods.bikd.network import Views

        damaged = None
        if batch.anomalous is not None:
            damaged = network.view(batch.anomalous, network.teacher_features(batch.anomalous))
        return Views(batch.teacher, network.view(batch.images, batch.teacher), damaged)

    def losses(self, compared: Views, settings: TrainSettings, epoch: int) -> dict[str, Tensor]:
        """Forward and backward distillation, and the exchange."""
        from nnet_edge.methods.bikd.network import bikd_losses

        return bikd_losses(compared, settings, epoch)
