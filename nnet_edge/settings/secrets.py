"""Secrets in the environment or in files; settings name the place and never hold the secret."""

from __future__ import annotations

import os
from pathlib import Path

from nnet_edge.errors import ConfigError


def require_secret_place(what: str, place: str) -> None:
    """Raise ConfigError unless `place` is "env:NAME" or "file:PATH"; the error does not repeat it."""
    kind, _, rest = place.partition(":")
    if kind not in ("env", "file") or not rest:
        raise ConfigError(f"{what} is never the secret itself: give env:NAME or file:PATH, which hold it")


def read_secret(what: str, place: str) -> str:
    """The text in the environment or file that `place` names, without white space around it. Raises ConfigError."""
    require_secret_place(what, place)
    kind, _, name = place.partition(":")
    if kind == "env":
        secret = os.environ.get(name)
        if secret is None:
            raise ConfigError(f"{what}: the environment has no {name}: set it")
        return secret.strip()
    try:
        return Path(name).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what}: the file {name} cannot be read: {getattr(error, 'strerror', error)}") from error
