"""The levers: what a training or a reading of its layer maps can be changed in, each against everything else as tuned.

A variant with `changes` is a training of its own. It starts from the settings that the base training settled on (the
augmentation chosen, the length known), so that one thing alone differs. A variant with a `Reading` needs no training: it
reads the saved layer maps of the base otherwise, or those of other weights that the base training left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from nnet_edge.anomaly_map import BLUR_SIGMA, FUSED_SIDE, IMAGE_SIDE, SCALES, Fusion, blur, enlarge, fuse_maps
from nnet_edge.errors import ConfigError
from nnet_edge.methods.nnet.settings import TrainSettings, overridden
from nnet_edge.settings.runner import require_choice

WEIGHTS = ("deployed", "averaged", "last")  # what stopping.py kept; the running mean at the end; the weights at the end
RULES = ("product", "sum")


@dataclass(frozen=True)
class Reading:
    """How layer maps become an anomaly map; None is what the training's own settings say."""

    rule: str = "product"  # product: of the scales, each to its exponent (equation 8); sum: the exponents weigh (RD4AD)
    exponents: tuple[float, float, float] | None = None  # of the scales 64, 32, 16
    forward_weights: tuple[float, float, float] | None = None
    sigma: float = BLUR_SIGMA  # of the Gaussian, pixels of the anomaly map; 0: none
    weights: str = "deployed"  # one of WEIGHTS
    branches: str = "both"  # both | reverse | forward: whose layer maps are read

    def __post_init__(self) -> None:
        require_choice("branches", self.branches, ("both", "reverse", "forward"))
        require_choice("fusion rule", self.rule, RULES)
        require_choice("weights", self.weights, WEIGHTS)
        if not self.sigma >= 0:
            raise ConfigError(f"the Gaussian's sigma is {self.sigma}: it must be 0 or more pixels")

    def maps(self, layer_maps: Mapping[str, np.ndarray], trained: Fusion) -> np.ndarray:
        """The anomaly maps float32 (N, 256, 256) of layer maps (N, 1, h, w)."""
        weights = trained.forward_weights if self.forward_weights is None else self.forward_weights
        exponents = trained.exponents if self.exponents is None else self.exponents
        fusion = Fusion(trained.align_corners, exponents, weights)
        wide = {name: np.asarray(maps, np.float64) for name, maps in layer_maps.items()
                if self.branches in ("both", name.split("_")[0])}  # fmt: skip
        fused = fuse_maps(wide, fusion) if self.rule == "product" else sum_of_scales(wide, fusion)
        large = enlarge(fused, IMAGE_SIDE, fusion.align_corners)[:, 0]
        if self.sigma:
            large = blur(large, self.sigma, int(4 * self.sigma + 0.5))  # scipy's radius
        return large.astype(np.float32)


def sum_of_scales(layer_maps: Mapping[str, np.ndarray], fusion: Fusion) -> np.ndarray:
    """Sum over the scales of exponent * (reverse + weight * forward), (N, 1, 64, 64); with ones RD4AD's fusion."""
    terms = [
        exponent * fusion.weight(name) * enlarge(layer_maps[name], FUSED_SIDE, fusion.align_corners)
        for scale, exponent in zip(SCALES, fusion.exponents, strict=True)
        for name in (f"forward_{scale}", f"reverse_{scale}")
        if name in layer_maps and exponent * fusion.weight(name) > 0
    ]
    if not terms:
        raise ConfigError(f"{fusion} leaves none of {', '.join(layer_maps)}")
    return np.asarray(np.sum(terms, axis=0))


@dataclass(frozen=True)
class Variant:
    """One way to pull a lever: other settings, or another reading of the base's maps."""

    name: str
    changes: tuple[str, ...] = ()  # as after --set
    reading: Reading = Reading()
    is_recounted: bool = False  # shown as many images in all as the base, though an epoch has more or fewer

    @property
    def is_trained(self) -> bool:
        """Whether it needs a training of its own."""
        return bool(self.changes)

    def settings(self, settled: TrainSettings, image_steps: int) -> TrainSettings:
        """The variant's settings, from those that the base training settled on after it was told `image_steps`."""
        if self.is_recounted:
            settled = replace(settled, image_steps=image_steps)
        for change in self.changes:
            settled = overridden(settled, change)
        return settled


BASE = Variant("base")
SMALL = tuple(f"augmentation.{part}" for part in (
    "copies=4", "rotation_degrees=3", "zoom=0.03", "shift=0.03", "brightness=0.08", "contrast=0.08",
    "flip_horizontal=false"))  # fmt: skip
TURNED = tuple(f"augmentation.{part}" for part in (
    "copies=4", "rotation_degrees=180", "zoom=0.1", "shift=0.05", "brightness=0.08", "contrast=0.08",
    "flip_horizontal=true"))  # fmt: skip
LEVERS: dict[str, tuple[Variant, ...]] = {  # in the order of expected gain
    "fusion": (
        Variant("product, exponents 1 1 1 (paper)", reading=Reading(exponents=(1, 1, 1), forward_weights=(1, 1, 1))),
        Variant("exponents 0.1 0.1 1", reading=Reading(exponents=(0.1, 0.1, 1))),
        Variant("exponents 0.2 0.2 1", reading=Reading(exponents=(0.2, 0.2, 1))),
        Variant("exponents 0.3 0.3 1", reading=Reading(exponents=(0.3, 0.3, 1))),
        Variant("exponents 0.5 0.5 1", reading=Reading(exponents=(0.5, 0.5, 1))),
        Variant("exponents 0 0.2 1", reading=Reading(exponents=(0, 0.2, 1))),
        Variant("exponents 0 0 1", reading=Reading(exponents=(0, 0, 1))),
        Variant("sum", reading=Reading("sum", exponents=(1, 1, 1))),
        Variant("sum, weighed by the exponents", reading=Reading("sum")),
    ),
    "branches": (
        Variant("reverse maps alone", reading=Reading(branches="reverse")),
        Variant("forward maps alone", reading=Reading(branches="forward", forward_weights=(1, 1, 1))),
        Variant("forward weights 1 1 1 (paper)", reading=Reading(forward_weights=(1, 1, 1))),
        Variant("forward weights 1 1 0.3", reading=Reading(forward_weights=(1, 1, 0.3))),
        Variant("forward weights 1 1 0", reading=Reading(forward_weights=(1, 1, 0))),
        Variant("forward weights 0.3 0.3 0.1", reading=Reading(forward_weights=(0.3, 0.3, 0.1))),
    ),
    "blur": tuple(Variant(f"sigma {sigma}", reading=Reading(sigma=sigma)) for sigma in (2, 3, 5, 6, 8)),
    "ema": (
        Variant("last weights, no running mean", reading=Reading(weights="last")),
        Variant("ema_decay=0.95", ("ema_decay=0.95",)),
        Variant("ema_decay=0.99", ("ema_decay=0.99",)),
    ),
    "stopping": (Variant("running mean at the end, no rule", reading=Reading(weights="averaged")),),
    "length": tuple(Variant(f"image_steps={steps}", (f"image_steps={steps}",)) for steps in (640, 2000)),
    "memory": (
        Variant("memory_slots=256", ("model.memory_slots=256",)),
        Variant("memory_slots=4096", ("model.memory_slots=4096",)),
        Variant("memory_temperature=0.01", ("model.memory_temperature=0.01",)),
        Variant("memory_temperature=0.05", ("model.memory_temperature=0.05",)),
        Variant("memory_init=uniform (paper)", ("model.memory_init=uniform",)),
        Variant("memory_init=features", ("model.memory_init=features",)),
        Variant("recall_residual=false (paper)", ("model.recall_residual=false",)),
    ),
    "rate": tuple(Variant(f"learning_rate={rate}", (f"learning_rate={rate}",)) for rate in (0.0025, 0.01)),
    "schedule": (Variant("schedule=constant", ("schedule=constant",)),),
    "groups": (
        Variant("memory_rate=0", ("memory_rate=0",)),
        Variant("memory_rate=0.2", ("memory_rate=0.2",)),
        Variant("projection_rate=0.2", ("projection_rate=0.2",)),
    ),
    "augmentation": (
        Variant("none", ("augmentation.copies=1",), is_recounted=True),
        Variant("small changes, 4 copies", SMALL, is_recounted=True),
        Variant("turned any way, 4 copies", TURNED, is_recounted=True),
    ),
    "distance": (Variant("global", ("distance=global",)),),
    "features": (
        Variant("standardised", ("model.standardise=true",)),
        Variant("standardised, anchor 0.5", ("model.standardise=true", "model.anchor=0.5")),
    ),
    "stages": (Variant("stride 16 after block 3", ("model.backbone=efficientnet_lite0_early",)),),
}  # fmt: skip


def find_variants(levers: tuple[str, ...], variants: tuple[str, ...] = ()) -> tuple[tuple[str, Variant], ...]:
    """(lever, variant) of the levers named, all of them for none, and of their variants only those named, if any.

    Raises ConfigError for a lever that is unknown and for a variant that none of the levers has.
    """
    for name in levers:
        require_choice("lever", name, tuple(LEVERS))
    known = [(name, variant) for name in levers or LEVERS for variant in LEVERS[name]]
    for name in variants:
        require_choice("variant", name, tuple(variant.name for _, variant in known))
    return tuple((name, variant) for name, variant in known if not variants or variant.name in variants)
