"""Lazy modules: libraries that a file needs only for what it seldom does, imported when the first of their names is used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class LazyModule:
    """Stands for a module; `import` statements for type checkers stand beside it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        found = getattr(import_module(self._name), name)
        vars(self)[name] = found
        return found
