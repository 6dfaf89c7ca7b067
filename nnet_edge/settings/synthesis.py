"""Settings of the anomaly synthesis, for methods that learn from pairs of a good and a damaged image."""

from __future__ import annotations

from dataclasses import dataclass

from nnet_edge.errors import ConfigError
from nnet_edge.settings.runner import require_choice

KINDS = ("perlin", "simplex", "cutpaste")
TEXTURE_AUGMENTATIONS = ("plain", "draem")
FOREGROUNDS = ("none", "grabcut", "otsu")
MOST_NOISE = 64.0  # grey levels; more would drown the part


@dataclass(frozen=True)
class Synthesis:
    """How a good image is damaged; the defaults are those of DeSTSeg and URD. data/synthetic.py says what each does."""

    kind: str = "perlin"  # perlin: a texture below a Perlin mask (DRAEM) | simplex: RD++'s noise | cutpaste
    textures: str = ""  # a folder tree of images, as DTD; empty: procedural ones
    texture_augmentation: str = "plain"  # plain | draem: 3 of 10 changes of colour and geometry, drawn for each pair
    foreground: str = "none"  # where an anomaly may lie: none (anywhere) | grabcut | otsu (the dark part)
    probability: float = 1.0  # of an anomaly; DRAEM 0.5
    beta_least: float = 0.0  # share of the part that shines through a texture, drawn between the two
    beta_most: float = 0.8
    noise: float = 0.0  # deviation in grey levels of noise on the pixels outside the mask (BiKD)

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        require_choice("kind of synthetic anomaly", self.kind, KINDS)
        require_choice("texture_augmentation", self.texture_augmentation, TEXTURE_AUGMENTATIONS)
        require_choice("foreground", self.foreground, FOREGROUNDS)
        if self.kind != "perlin" and (self.textures or self.texture_augmentation != "plain"):
            raise ConfigError(
                f"textures belong to the kind perlin, not to {self.kind}: leave them out, or choose perlin"
            )
        if not 0 < self.probability <= 1:
            raise ConfigError(f"probability of an anomaly is {self.probability}; it must be above 0 and at most 1")
        if not 0 <= self.beta_least <= self.beta_most < 1:
            raise ConfigError(
                f"beta_least {self.beta_least} and beta_most {self.beta_most} are invalid: 0 <= beta_least <= beta_most < 1"
            )
        if not 0 <= self.noise <= MOST_NOISE:
            raise ConfigError(f"noise is {self.noise}; it must be from 0 to {MOST_NOISE:g} grey levels")
