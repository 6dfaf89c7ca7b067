"""Settings of the inference server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from nnet_edge.bundle import name_of
from nnet_edge.errors import ConfigError
from nnet_edge.settings.runner import RunnerSettings, require_between
from nnet_edge.settings.stream import NAME, VerdictSettings
from nnet_edge.settings.web import WebSettings

RESERVED = ("stats",)  # of /v2/models/NAME
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE)


@dataclass(frozen=True)
class ServeSettings:
    """The inference server. Raises ConfigError for an invalid setting."""

    bundles: dict[str, Path]  # name -> bundle
    web: WebSettings  # where it listens, and who may ask
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    precision: str | None = None
    verdict: VerdictSettings = field(default_factory=VerdictSettings)
    bits: int | None = None  # of pictures of 16 bits; None: as in training, else as each picture shows
    memory_bytes: int | None = None  # of this process, at most; None: every bundle that was asked for stays loaded
    queue: int = 64  # images that wait or are under way, of all requests
    body_bytes: int = 32 << 20  # of a request

    def __post_init__(self) -> None:
        if not self.bundles:
            raise ConfigError("serve needs a bundle: give the folder that train or export wrote")
        require_between("queue, images that wait,", self.queue, 1, 10_000)
        require_between("largest body, bytes,", self.body_bytes, 1 << 10, 1 << 30)
        if self.memory_bytes is not None:
            require_between("memory, bytes,", self.memory_bytes, 64 << 20, 1 << 50)


def named_bundles(typed: tuple[str, ...]) -> dict[str, Path]:
    """Name -> bundle of what was typed: BUNDLE or NAME=BUNDLE. Raises ConfigError for a name that is taken or invalid."""
    found: dict[str, Path] = {}
    for text in typed:
        name, equals, path = text.partition("=")
        if not (equals and NAME.fullmatch(name)):
            path, name = text, name_of(Path(text))
        if name in found:
            raise ConfigError(f"{found[name]} and {path} would both be called {name}: give one a name, as other={path}")
        if name in RESERVED:
            raise ConfigError(f"a model cannot be called {name}: give another name, as part={path}")
        found[name] = Path(path)
    return found


def parse_bytes(text: str) -> int:
    """The bytes of "2G", "512M" or "1.5GiB"; a number alone is MiB. Raises ConfigError."""
    found = SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{text!r} is no amount of memory: give 512M or 2G")
    return int(float(found[1]) * 1024 ** {"k": 1, "m": 2, "": 2, "g": 3, "t": 4}[found[2].lower()])
