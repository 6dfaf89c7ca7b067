"""Settings of a camera's picture that every kind of camera is asked for by the same keys."""

from __future__ import annotations

from dataclasses import dataclass

from nnet_edge.errors import ConfigError
from nnet_edge.settings.runner import require_positive

AUTOMATIC = {  # what a camera may change by itself, and the key that stops it
    "exposure": "auto_exposure",
    "gain": "auto_gain",
    "white balance": "auto_white_balance",
    "focus": "auto_focus",
}


@dataclass(frozen=True)
class ControlOptions:
    """Exposure, gain and white balance; None: as the camera is set."""

    exposure_us: float | None = None  # switches automatic exposure off
    gain: float | None = None  # in the camera's own unit, mostly dB; switches automatic gain off
    auto_exposure: bool | None = None  # by itself: it changes the picture, and with it scores
    auto_gain: bool | None = None  # likewise
    auto_white_balance: bool | None = None  # likewise

    def __post_init__(self) -> None:
        if self.exposure_us is not None:
            require_positive("exposure_us", self.exposure_us)
        for value, automatic in (("exposure_us", "auto_exposure"), ("gain", "auto_gain")):
            if getattr(self, value) is not None and getattr(self, automatic):
                raise ConfigError(f"{value} and {automatic} = true contradict each other: give one")


def automatic_words(automatic: tuple[str, ...]) -> str:
    """What to say of a camera that changes its picture by itself."""
    keys = ", ".join(f"{AUTOMATIC[what]} = false" for what in automatic)
    return (
        f"the camera sets {' and '.join(automatic)} by itself, so that good parts look otherwise with the light or the next "
        f"part, the most common cause of false rejects: {keys} in its settings stops that"
    )
