"""Settings of RBD: its architecture, its corruption, its losses, and the named protocols."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnet_edge.anomaly_map import Fusion
from nnet_edge.errors import ConfigError
from nnet_edge.methods.base import PairSettings, require_not_negative, three_maps
from nnet_edge.settings.runner import require_choice


@dataclass(frozen=True)
class ModelSettings:
    """The architecture of RBD: teacher, bottleneck (OCBE) and reverse student, the graph of reverse distillation."""

    backbone: str = "efficientnet_lite0"
    fusion_rule: str = "sum"  # sum (RD4AD) | product: of the three maps
    align_corners: bool = True
    scale_exponents: tuple[float, ...] = (1.0, 1.0, 1.0)  # of the scales 64, 32, 16; factors in a sum
    exponent_power: float = 0.0  # above 0: the exponents are chosen on good images, see fusion_search.py

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        require_not_negative("exponent_power", self.exponent_power)
        self.fusion  # noqa: B018 - raises for an invalid one

    @property
    def fusion(self) -> Fusion:
        """How the layer maps become one map."""
        return Fusion(self.align_corners, self.scale_exponents, rule=self.fusion_rule, branches=("reconstruction",))

    @property
    def map_strides(self) -> dict[str, int]:
        """Layer map -> its stride."""
        return three_maps("reconstruction")


@dataclass(frozen=True)
class TrainSettings(PairSettings):
    """What RBD is trained with."""

    method = "rbd"
    model_type = ModelSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    corruption: str = "both"  # both | mask (of the features) | synthesis (of the image): what is reconstructed from
    mask_least: float = 0.3  # share of the cells that a mask covers, drawn between the two
    mask_most: float = 0.5
    synthesis_share: float = 0.5  # of the images that are corrupted by synthesis, where both are
    consistency_weight: float = 1.0  # of the loss that makes predictions of training and inference agree; 0: left out

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        super().__post_init__()
        require_choice("corruption", self.corruption, ("both", "mask", "synthesis"))
        require_not_negative("consistency_weight", self.consistency_weight)
        if not 0 <= self.mask_least <= self.mask_most < 1:
            raise ConfigError(
                f"mask_least {self.mask_least} and mask_most {self.mask_most} are invalid: 0 <= mask_least <= mask_most < 1"
            )
        if not 0 <= self.synthesis_share <= 1:
            raise ConfigError(f"synthesis_share is {self.synthesis_share}; it must be from 0 to 1")


DESIGN = TrainSettings()
TUNED = TrainSettings(
    image_steps=3000,
    look_every=200,
    augmentation_copies=4,
    batch=8,
    schedule="cosine",
    ema_decay=0.98,
    place_powers=(0.5, 1.0),
    model=ModelSettings(fusion_rule="product", scale_exponents=(0.3, 0.3, 1.0), exponent_power=4.0),
)
PROTOCOLS = {"design": DESIGN, "tuned": TUNED}
