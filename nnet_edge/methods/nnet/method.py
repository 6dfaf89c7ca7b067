"""N-Net as a Method; torch is imported by what computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nnet_edge.errors import ConfigError
from nnet_edge.methods.base import Batch, Compressor, Method, require_at_least
from nnet_edge.methods.exponents import ChoosesExponents
from nnet_edge.methods.nnet.settings import (
    ABLATIONS,
    LEARN_ON,
    PAPER_LEARNING_RATE,
    PROTOCOLS,
    ModelSettings,
    TrainSettings,
    ablated,
)
from nnet_edge.settings.runner import require_choice

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from nnet_edge.methods.backbone import Encoder, Features
    from nnet_edge.methods.compute import Compute
    from nnet_edge.methods.nnet.network import Branches, NNet


class NNetMethod(ChoosesExponents, Method["NNet", TrainSettings]):
    """Constrained bidirectional distillation: a forward and a reverse student, projections, and a memory of the normal."""

    name = TrainSettings.method
    title = "N-Net"
    origin = "reimplemented from the paper (Acta Electronica Sinica 53(3), 2025), with the resolutions that its settings name"
    settings = TrainSettings
    protocols = PROTOCOLS
    paper_learning_rate = PAPER_LEARNING_RATE
    ablations = ABLATIONS
    losses_shown = ("reverse", "forward", "align", "query")
    validated_loss = "reverse"

    def build(self, model: ModelSettings, teacher: Encoder) -> NNet:
        """N-Net."""
        from nnet_edge.methods.nnet.network import NNet

        return NNet(model, teacher)

    def ablated(self, settings: TrainSettings, row: str) -> TrainSettings:
        """`settings` changed to a row of the paper's Tables 4 to 7, as "4.2"."""
        return ablated(settings, row)

    def prepare(self, network: NNet, images: np.ndarray, compute: Compute) -> None:
        """Measure the mean and deviation of the teacher's channels, where the settings standardise them."""
        if network.settings.standardise:
            network.measure_channels(images, compute)

    def prepare_students(self, network: NNet, features: Features, settings: TrainSettings) -> None:
        """Start the memory from features of the deepest scale, where the settings say so."""
        import torch

        if settings.model.memory_init != "uniform" and network.memory is not None:
            generator = torch.Generator().manual_seed(settings.seed)
            network.memory.remember(features[2], generator, settings.model.memory_init == "coreset")

    def forward(self, network: NNet, batch: Batch, settings: TrainSettings) -> Branches:
        """Every feature map that equations 1 to 5 compare."""
        return network.branches(network.student_input(batch.images), batch.teacher)

    def losses(self, compared: Branches, settings: TrainSettings, epoch: int) -> dict[str, Tensor]:
        """The terms of equation 7."""
        from nnet_edge.methods.nnet.network import nnet_losses

        return nnet_losses(compared, settings, epoch)

    def can_capture(self, settings: TrainSettings) -> bool:
        """But for anchored cosines, whose lengths are made on the host."""
        return not settings.model.anchor

    def phase(self, settings: TrainSettings, epoch: int) -> int:
        """Whether the projections are still aligned."""
        return int(bool(settings.align_weight) and epoch < settings.align_epochs)

    def check(self, compared: Branches, settings: TrainSettings, where: str) -> str | None:
        """That the memory is dying."""
        from nnet_edge.methods.nnet.network import empty_row_share
        from nnet_edge.methods.nnet.parts import MAX_EMPTY_ROWS

        if compared.memory_weights is None or (share := empty_row_share(compared.memory_weights)) <= MAX_EMPTY_ROWS:
            return None
        return (
            f"{share:.0%} of the memory's weights are all zero {where}, so it recalls nothing; at most "
            f"{MAX_EMPTY_ROWS:.0%} may be. Lower memory_lambda_times_slots (now "
            f"{settings.model.memory_lambda_times_slots}) or memory_temperature"
        )

    def parameter_groups(self, settings: TrainSettings) -> dict[str, float]:
        """Memory and projections learn at rates of their own (the specification's open point A-12).

        Projections are a group apart only where their rate differs: an optimiser's state counts parameters by group.
        """
        shares = {"memory.": settings.memory_rate}
        if settings.projection_rate != 1:
            shares |= dict.fromkeys(("teacher_projections.", "student_projections."), settings.projection_rate)
        return shares

    def compressor(self, settings: TrainSettings) -> Compressor[NNet, TrainSettings] | None:
        """As `compression` of the settings says."""
        if not settings.compression.images:
            return None
        from nnet_edge.methods.nnet.compression import NNetCompressor

        return NNetCompressor(settings)

    def learning_on(
        self, settings: TrainSettings, images: int, passes: int | None, batch: int | None, protocol: str | None = None
    ) -> TrainSettings | None:
        """By imitating itself on painted damage; each image is shown once at least."""
        if passes is not None:
            require_at_least("epochs", passes, 1)
        if batch is not None:
            require_at_least("batch", batch, 2)  # batch norm has no variance over one image
        shown = max(LEARN_ON, images) if passes is None else passes * images
        if protocol is None:
            return settings.learning_on(shown, batch)
        require_choice("protocol", protocol, tuple(PROTOCOLS))
        if not (wanted := PROTOCOLS[protocol].compression).images:
            smaller = " or ".join(f"--protocol {name}" for name, one in PROTOCOLS.items() if one.compression.images)
            raise ConfigError(
                f"a bundle goes on with its own settings: leave out --protocol {protocol}; {smaller} makes it small"
            )
        return settings.learning_on(shown, batch, wanted)
