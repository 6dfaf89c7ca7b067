"""The texts of page and shift report in every language, from one table: texts.json, a key and its text in each language."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

TABLE = Path(__file__).with_name("texts.json")
LANGUAGES = ("en", "de", "zh")


@lru_cache(maxsize=1)
def table() -> dict[str, dict[str, str]]:
    """Key -> language -> text."""
    found: dict[str, dict[str, str]] = json.loads(TABLE.read_text(encoding="utf-8"))
    return found


def text(language: str, key: str, **values: object) -> str:
    """The text of that key, its {places} filled."""
    return table()[key][language].format(**values) if values else table()[key][language]
