"""Settings of DMDD: its architecture, its losses, its two stages, and the named protocols."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnet_edge.anomaly_map import Fusion
from nnet_edge.errors import ConfigError
from nnet_edge.methods.base import PairSettings, require_not_negative, three_maps
from nnet_edge.settings.runner import require_choice

SEGMENTATION = "segmentation"  # the branch of the learned head, one map at stride 4
BRANCHES = {"both": ("abnormality", "normality"), "normality": ("normality",), "abnormality": ("abnormality",)}
MAPS = (SEGMENTATION, *BRANCHES)


@dataclass(frozen=True)
class ModelSettings:
    """The architecture of DMDD and the maps that it gives."""

    backbone: str = "efficientnet_lite0"
    maps: str = (
        SEGMENTATION  # segmentation: the head's map | both, normality, abnormality: distances, fused without the head
    )
    head_width: int = 128  # channels of the head; with 128 it costs 4 GMACs, many times a small teacher
    channel_attention: bool = True  # of the head
    spatial_attention: bool = True
    perceptions: int = 3  # parallel convolutions of the head, dilations 1, 3 and 6, of which so many are there
    fusion_rule: str = "product"  # product | sum: of the distances
    align_corners: bool = True
    scale_exponents: tuple[float, ...] = (1.0, 1.0, 1.0)  # of the scales 64, 32, 16; factors in a sum
    exponent_power: float = 0.0  # above 0: of distances the exponents are chosen on good images, see fusion_search.py

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        require_choice("maps", self.maps, MAPS)
        require_not_negative("exponent_power", self.exponent_power)
        if self.head_width < 8 or self.head_width % 8:
            raise ConfigError(f"head_width is {self.head_width}; it must be a multiple of 8")
        if not 1 <= self.perceptions <= 3:
            raise ConfigError(f"perceptions is {self.perceptions}; it must be 1, 2 or 3")
        self.fusion  # noqa: B018 - raises for an invalid one

    @property
    def has_head(self) -> bool:
        """Whether the head's map is the one that counts."""
        return self.maps == SEGMENTATION

    @property
    def fusion(self) -> Fusion:
        """How the layer maps become one map; the head's is it already."""
        if self.has_head:
            return Fusion(self.align_corners, branches=(SEGMENTATION,))
        return Fusion(self.align_corners, self.scale_exponents, rule=self.fusion_rule, branches=BRANCHES[self.maps])

    @property
    def map_strides(self) -> dict[str, int]:
        """Layer map -> its stride."""
        return {f"{SEGMENTATION}_64": 4} if self.has_head else three_maps(*BRANCHES[self.maps])


@dataclass(frozen=True)
class TrainSettings(PairSettings):
    """What DMDD is trained with: first student and decoupling heads, then, on what they give, the segmentation head."""

    method = "dmdd"
    model_type = ModelSettings
    model: ModelSettings = field(default_factory=ModelSettings)
    normality_weight: float = 1.0  # lambda of L_NGM
    abnormality_weight: float = 1.0  # lambda of L_AIM
    segmentation_weight: float = 1.0  # lambda of L_seg
    abnormality_target: str = "anomalous"  # anomalous | normal: whose teacher features are pushed away from
    abnormality_loss: str = "mask"  # mask: L1 of distance and mask | hinge: pushed up to 1 where the mask is
    focal_gamma: float = 4.0  # of the focal loss in L_seg
    head_share: float = 0.4  # of the training, at its end, in which the head learns and the rest stands still
    head_rate: float = 0.2  # learning rate of the head, as a share of the student's

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        super().__post_init__()
        require_choice("abnormality_target", self.abnormality_target, ("anomalous", "normal"))
        require_choice("abnormality_loss", self.abnormality_loss, ("mask", "hinge"))
        for name in ("normality_weight", "abnormality_weight", "segmentation_weight", "focal_gamma", "head_rate"):
            require_not_negative(name, getattr(self, name))
        if not 0 < self.head_share < 1:
            raise ConfigError(f"head_share is {self.head_share}; it must be above 0 and below 1")

    @property
    def head_from(self) -> int:
        """The epoch (from 0) from which the head learns; `epochs` without one."""
        return min(self.epochs - 1, round(self.epochs * (1 - self.head_share))) if self.model.has_head else self.epochs


DESIGN = TrainSettings()
TUNED = TrainSettings(
    image_steps=3000,
    head_share=0.6,
    head_rate=1.0,
    look_every=200,
    augmentation_copies=4,
    batch=8,
    schedule="cosine",
    ema_decay=0.98,
    place_powers=(0.5, 1.0),
    model=ModelSettings(head_width=48, exponent_power=4.0),
)
PROTOCOLS = {"design": DESIGN, "tuned": TUNED}
