"""Old module names, kept for one release: importing one warns and gives the new module of `moved.txt`.

`python -m OLD.NAME` works too. Names that are packages today (`nnet_edge.runtime.sources`) forward their old contents by
`forward`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

ROWS = [line.split() for line in Path(__file__).with_suffix(".txt").read_text(encoding="ascii").splitlines()]
MOVED = {f"nnet_edge.{old}": f"nnet_edge.{new}" for old, new in ROWS}  # module, or package:name -> module of today


class MovedLoader:
    """Loads the new module under its old name; obeys importlib.abc.InspectLoader, whose import costs 13 ms."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        warn(spec.name, self.name)
        module = importlib.import_module(self.name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put the old name's here

    def get_code(self, fullname: str) -> CodeType | None:
        """What `python -m` runs."""
        code: CodeType | None = self._new_loader().get_code(self.name)
        return code

    def get_source(self, fullname: str) -> str | None:
        source: str | None = self._new_loader().get_source(self.name)
        return source

    def _new_loader(self) -> Any:
        spec = importlib.util.find_spec(self.name)
        assert spec is not None
        return spec.loader

    def is_package(self, fullname: str) -> bool:
        return importlib.import_module(self.name).__spec__.submodule_search_locations is not None  # type: ignore[union-attr]


class MovedFinder:
    """Knows the old names. Asked first: a file of a package that has moved would else be loaded again, under its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        new = new_name(fullname)
        found = None if new is None else importlib.util.find_spec(new)
        if new is None or found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, MovedLoader(new), origin=found.origin, is_package=is_package)  # type: ignore[arg-type]


def new_name(old: str) -> str | None:
    """Where the module is today, also one of a package that has moved; None for a name that never was."""
    package, _, name = old.rpartition(".")
    return MOVED.get(old) or (f"{MOVED[package]}.{name}" if package in MOVED else None)


def warn(old: str, new: str) -> None:
    """Say that a name has moved, at the line that uses it: that of the caller's caller."""
    warnings.warn(f"{old} has moved to {new}; the old name goes with the next release", DeprecationWarning, 3)


def forward(package: str) -> Callable[[str], object]:
    """The `__getattr__` of a package that was a module, for its old names."""

    def attribute(name: str) -> object:
        if (home := MOVED.get(f"{package}:{name}")) is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warn(f"{package}.{name}", f"{home}.{name}")
        return getattr(importlib.import_module(home), name)

    return attribute


def install() -> None:
    """Let old names be found; once."""
    if not any(isinstance(finder, MovedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MovedFinder())
