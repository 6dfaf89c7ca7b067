"""Settings of the augmentation of training images."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nnet_edge.errors import ConfigError

ANY_WAY = 90.0  # degrees of rotation from which parts count as lying any way round


@dataclass(frozen=True)
class Augmentation:
    """What a good part may look like beside its photograph; `copies` 1 is no augmentation, the paper's protocol."""

    copies: int = 1  # of every image, the original among them
    rotation_degrees: float = 0.0
    zoom: float = 0.0  # share, both ways
    shift: float = 0.0  # share of the side, both ways
    brightness: float = 0.0  # share, both ways
    contrast: float = 0.0
    flip_horizontal: bool = False
    flip_vertical: bool = False
    half_turns: bool = False  # every second copy by 180 degrees

    def __post_init__(self) -> None:
        """Raise ConfigError for an invalid setting."""
        if self.copies < 1:
            raise ConfigError(f"copies is {self.copies}; it must be at least 1")
        if not (math.isfinite(self.rotation_degrees) and self.rotation_degrees >= 0):
            raise ConfigError(f"rotation_degrees is {self.rotation_degrees}; it must be 0 or more")
        for name in ("zoom", "shift", "brightness", "contrast"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"augmentation {name} is {getattr(self, name)}; it must be from 0 to below 1")

    @property
    def turns_any_way(self) -> bool:
        """Whether copies are turned as parts that lie any way round are."""
        return self.rotation_degrees >= ANY_WAY
