"""The hyper-parameters: what a training or a reading of its layer maps can be changed in, each against everything as tuned.

Those of a method are in `hyperparameters.json` of its folder, those of every method in the file of that name here, each in
the order of expected gain. A variant with `changes` is a training of its own. It starts from the settings that the base
training settled on (the augmentation chosen, the length known), so that one thing alone differs. The others need none: a
variant with `settles` chooses what follows the base's training otherwise (training/settling.py), one with a `reading` reads
the saved layer maps of the base otherwise, or those of other weights that the base training left.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.anomaly_map import BLUR_SIGMA, FUSED_STRIDE, Fusion, blur, enlarge, fuse_maps
from nnet_edge.errors import ConfigError
from nnet_edge.methods.base import METHODS, MethodSettings
from nnet_edge.settings.runner import require_choice

WEIGHTS = ("deployed", "averaged", "last")  # what early stopping kept; the EMA at the end; the weights at the end
RULES = ("product", "sum")
OWN = "own"  # stands for every hyper-parameter that only the method has
Triple = tuple[float, float, float]  # of the scales 64, 32, 16


@dataclass(frozen=True)
class Reading:
    """How layer maps become an anomaly map; None is what the training's own settings say."""

    rule: str | None = None  # product: of the scales, each to its exponent (equation 8) | sum: exponents weigh (RD4AD)
    exponents: Triple | None = None
    forward_weights: Triple | None = None
    sigma: float = BLUR_SIGMA  # of the Gaussian, pixels of the anomaly map; 0: none
    weights: str = "deployed"  # one of WEIGHTS
    branches: str = "both"  # or the name of one: whose layer maps are read
    centred: bool = False  # each map less its own mean
    score: str = "max"  # max | top: the mean of the largest values | mean: what the image score is
    top: float = 0.001  # share of the pixels that are the largest
    border: int = 0  # pixels along the border that the image score leaves out

    def __post_init__(self) -> None:
        require_choice("fusion rule", self.rule or RULES[0], RULES)
        require_choice("weights", self.weights, WEIGHTS)
        require_choice("score", self.score, ("max", "top", "mean"))
        if not self.sigma >= 0:
            raise ConfigError(f"the Gaussian's sigma is {self.sigma}: it must be 0 or more pixels")

    def maps(self, layer_maps: Mapping[str, np.ndarray], trained: Fusion) -> np.ndarray:
        """The anomaly maps float32 (N, H, W) of layer maps (N, 1, h, w)."""
        fusion = replace(trained, rule=self.rule or trained.rule, exponents=self.exponents or trained.exponents,
                         weights=self.forward_weights or trained.weights)  # fmt: skip
        wide = {name: np.asarray(maps, np.float64) for name, maps in layer_maps.items()
                if self.branches in ("both", name.split("_")[0])}  # fmt: skip
        fused = fuse_maps(wide, fusion)
        height, width = (FUSED_STRIDE * side for side in fused.shape[-2:])
        large = enlarge(fused, (height, width), fusion.align_corners)[:, 0]
        if self.sigma:
            large = blur(large, self.sigma, int(4 * self.sigma + 0.5))  # scipy's radius
        if self.centred:
            large = large - large.mean(axis=(1, 2), keepdims=True)
        return large.astype(np.float32)

    def scores(self, maps: np.ndarray) -> np.ndarray:
        """The image scores (N,) of anomaly maps (N, H, W)."""
        inside = slice(self.border, -self.border or None)
        values = maps[:, inside, inside].reshape(len(maps), -1)
        if self.score == "mean":
            return values.mean(axis=1)
        kept = max(1, round(self.top * values.shape[1])) if self.score == "top" else 1
        return np.partition(values, -kept, axis=1)[:, -kept:].mean(axis=1)


@dataclass(frozen=True)
class Variant:
    """One value of a hyper-parameter: other settings, or another reading of the base's maps."""

    name: str
    changes: tuple[str, ...] = ()  # as after --set
    settles: tuple[str, ...] = ()  # as after --set, of settings that count after the last step only
    reading: Reading = field(default_factory=Reading)
    is_recounted: bool = False  # shown as many images in all as the base, though an epoch has more or fewer

    @property
    def is_trained(self) -> bool:
        """Whether it needs a training of its own."""
        return bool(self.changes)

    def settings(self, settled: MethodSettings, image_steps: int) -> MethodSettings:
        """The variant's settings, from those that the base training settled on after it was told `image_steps`."""
        if self.is_recounted:
            settled = replace(settled, image_steps=image_steps)
        for change in (*self.changes, *self.settles):
            settled = settled.overridden(change)
        return settled


def variant_of(known: Mapping[str, Any]) -> Variant:
    """An entry of hyperparameters.json."""
    read: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in known.get("reading", {}).items()
    }
    changes, settles = (tuple(known.get(name, ())) for name in ("changes", "settles"))
    return Variant(known["name"], changes, settles, Reading(**read), known.get("is_recounted", False))


BASE = Variant("base")
COMMON = Path(__file__).with_suffix(".json")


def hyperparameters_of(settings: MethodSettings) -> dict[str, tuple[Variant, ...]]:
    """The hyper-parameters of a training with these settings, first those that only its method has, and their variants."""
    method = METHODS.find(settings.method)
    common = json.loads(COMMON.read_text(encoding="utf-8"))
    groups = [method.hyperparameters, common["of every method"]]
    if method.needs_pairs(settings):
        groups.append(common["of methods that learn from pairs"])
    if len(settings.model.map_strides) > 1:
        groups.append(common["of methods that fuse several maps"])
    names = dict.fromkeys(name for group in groups for name in group)
    return {name: tuple(variant_of(known) for group in groups for known in group.get(name, ())) for name in names}


def find_variants(
    settings: MethodSettings, names: tuple[str, ...] = (), variants: tuple[str, ...] = ()
) -> tuple[tuple[str, Variant], ...]:
    """(hyper-parameter, variant) of those named, all of them for none, and of their variants only those named, if any.

    OWN among the names stands for all that only the method of `settings` has. Raises ConfigError for a hyper-parameter that
    is unknown and for a variant that none of them has.
    """
    known, own = hyperparameters_of(settings), tuple(METHODS.find(settings.method).hyperparameters)
    for name in names:
        require_choice("lever", name, (OWN, *known))
    asked = dict.fromkeys(one for name in names or known for one in (own if name == OWN else (name,)))
    found = [(name, variant) for name in asked for variant in known[name]]
    for name in variants:
        require_choice("variant", name, tuple(variant.name for _, variant in found))
    return tuple((name, variant) for name, variant in found if not variants or variant.name in variants)
