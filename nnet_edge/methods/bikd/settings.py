"""Settings of BiKD: its architecture, its losses, and the named protocols."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from nnet_edge.anomaly_map import Fusion
from nnet_edge.methods.base import PairSettings, require_at_least, require_not_negative, three_maps
from nnet_edge.settings.runner import require_choice
from nnet_edge.settings.synthesis import Synthesis

BRANCHES = {"both": ("forward", "backward"), "forward": ("forward",), "backward": ("backward",)}


@dataclass(frozen=True)
class ModelSettings:
    """The architecture of BiKD and the maps that it fuses."""

    backbone: str = "efficientnet_lite0"
    backward: str = (
        "reverse_student"  # reverse_student: a decoder restores the teacher's | teacher_adapter: projections of the
    )
    # teacher's features learn from the forward student's
    maps: str = "both"  # both | forward | backward: the layer maps that are fused
    fusion_rule: str = "product"  # product | sum: of the scales' sums
    align_corners: bool = True
    scale_exponents: tuple[float, ...] = (1.0, 1.0, 1.0)  # of the scales 64, 32, 16; factors in a sum
    exponent_power: float = 0.0  # above 0: the exponents are chosen on good images, see fusion_search.py
    forward_weights: tuple[float, ...] = (1.0, 1.0, 1.0)  # of the forward maps in the sums of the scales 64, 32, 16

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        require_choice("backward", self.backward, ("reverse_student", "teacher_adapter"))
        require_choice("maps", self.maps, tuple(BRANCHES))
        require_not_negative("exponent_power", self.exponent_power)
        self.fusion  # noqa: B018 - raises for an invalid one

    @property
    def fusion(self) -> Fusion:
        """How the layer maps become one map."""
        return Fusion(
            self.align_corners, self.scale_exponents, self.forward_weights, self.fusion_rule, BRANCHES[self.maps]
        )

    @property
    def map_strides(self) -> dict[str, int]:
        """Layer map -> its stride."""
        return three_maps(*BRANCHES[self.maps])


@dataclass(frozen=True)
class TrainSettings(PairSettings):
    """What BiKD is trained with."""

    method = "bikd"
    model_type = ModelSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    forward_weight: float = 1.0  # of forward distillation
    backward_weight: float = 1.0  # of backward distillation
    exchange_weight: float = 0.1  # of the reciprocal exchange; 0: left out
    exchange_epochs: int = 20  # over which that weight rises; with image_steps a tenth of the epochs
    denoising: bool = True  # students see damaged copies, too, and aim at the clean features
    synthesis: Synthesis = field(default_factory=lambda: Synthesis(noise=2.0))

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        super().__post_init__()
        for name in ("forward_weight", "backward_weight", "exchange_weight"):
            require_not_negative(name, getattr(self, name))
        require_at_least("exchange_epochs", self.exchange_epochs, 0)

    def with_length_for(self, images: int) -> TrainSettings:
        """The settings with the epochs that `image_steps` means for so many images; over a tenth of them the exchange rises."""
        if not self.image_steps:
            return self
        settings = super().with_length_for(images)
        return replace(settings, exchange_epochs=max(1, round(settings.epochs / 10)))

    def exchange_at(self, epoch: int) -> float:
        """The weight of the reciprocal exchange in `epoch` (from 0): a ramp up to `exchange_weight`."""
        return self.exchange_weight * min(1.0, (epoch + 1) / max(self.exchange_epochs, 1))


DESIGN = TrainSettings()
TUNED = TrainSettings(
    image_steps=1000,
    look_every=200,
    augmentation_copies=4,
    batch=8,
    schedule="cosine",
    ema_decay=0.98,
    place_powers=(0.5, 1.0),
    model=ModelSettings(scale_exponents=(0.3, 0.3, 1.0), exponent_power=4.0),
)
PROTOCOLS = {"design": DESIGN, "tuned": TUNED}
