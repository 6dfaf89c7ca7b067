"""Lazy modules: libraries that a file needs only for what it seldom does, imported when the first of their names is used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from threading import Thread
from typing import Any


class LazyModule:
    """Stands for a module; `import` statements for type checkers stand beside it."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        found = getattr(import_module(self._name), name)
        vars(self)[name] = found
        return found


@contextmanager
def importing(*names: str) -> Iterator[None]:
    """While the block waits for something else these modules are imported; one that fails fails again where it is needed."""

    def work() -> None:
        with suppress(Exception):
            for name in names:
                import_module(name)

    thread = Thread(target=work, name="imports", daemon=True)
    thread.start()
    try:
        yield
    finally:
        thread.join()
