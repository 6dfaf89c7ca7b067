"""Recipes: what a line judges by under one name, for lines that make several products."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nnet_edge.errors import ConfigError
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.stream import VerdictSettings, require_name


@dataclass(frozen=True)
class RecipeStream:
    """One stream under a recipe; what is left out is as its [[stream]] says."""

    name: str  # as its [[stream]] has it
    bundle: Path | None = None  # None: the stream's
    verdict: VerdictSettings | None = None  # in place of the whole [stream.verdict]
    camera: CameraSettings | None = None  # in place of the whole [stream.camera]

    def __post_init__(self) -> None:
        require_name("a stream", self.name)


@dataclass(frozen=True)
class Recipe:
    """Bundles, cameras, masks and thresholds under a name."""

    name: str  # by which it is asked for
    bundle: Path | None = None  # None: the line's
    streams: tuple[RecipeStream, ...] = field(
        default=(), metadata={"key": "stream", "entries": True}
    )  # those it changes
    paused: tuple[str, ...] = ()  # streams that judge nothing under it

    def __post_init__(self) -> None:
        require_name("a recipe", self.name)
        names = [stream.name for stream in self.streams]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"the recipe {self.name} names the stream {twice[0]!r} twice: write one table")

    def stream(self, name: str) -> RecipeStream:
        """What it says of that stream."""
        return next((stream for stream in self.streams if stream.name == name), RecipeStream(name))
