"""Registries of the kinds of sources and sinks. Each file of their folder registers its own kind.

Help texts, the TOML schema, `nnet-edge doctor`, the page's "add camera" and error messages are made from them: a new kind is
one file and its test. Such a file imports nothing heavy: OpenCV, NumPy and their like come where something is opened.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from nnet_edge.errors import ConfigError


class Named(Protocol):
    """What a registry holds."""

    @property
    def name(self) -> str:
        """The name that people write."""


Kind = TypeVar("Kind", bound=Named)


class Registry(Generic[Kind]):
    """Kinds by name; the files of `package` that register one are imported on first use."""

    def __init__(self, noun: str, package: str | None = None) -> None:
        self.noun = noun
        self._package = package
        self._kinds: dict[str, Kind] = {}
        self._lock = threading.RLock()
        self._is_importing = self._is_complete = False

    def register(self, kind: Kind) -> Kind:
        """Add a kind and return it. Raises ConfigError for a name that is taken."""
        if kind.name in self._kinds:
            raise ConfigError(f"there are two kinds of {self.noun} called {kind.name!r}: rename one")
        self._kinds[kind.name] = kind
        return kind

    def unregister(self, name: str) -> None:
        """Forget a kind; for tests that register one."""
        del self._kinds[name]

    @property
    def has_kinds(self) -> bool:
        """Whether some kind is known already."""
        return bool(self._kinds)

    def names(self) -> tuple[str, ...]:
        """Every name, sorted."""
        return tuple(kind.name for kind in self)

    def find(self, name: object, where: str = "") -> Kind:
        """The kind called `name`. Raises ConfigError that begins with `where` and offers the nearest name."""
        self._discover()
        if isinstance(name, str) and name in self._kinds:
            return self._kinds[name]
        from difflib import get_close_matches

        near = get_close_matches(str(name), self._kinds, 1)
        advice = f"did you mean {near[0]}?" if near else f"choose {', '.join(self.names())}"
        raise ConfigError(f"{where}{': ' if where else ''}{self.noun} {name!r} is unknown: {advice}")

    def files(self) -> list[str]:
        """The modules of the package that register a kind; the others may be heavy, and wait until they are needed."""
        if self._package is None:
            return []
        folders = importlib.import_module(self._package).__path__
        return [
            f"{self._package}.{found.name}"
            for folder in folders
            for found in pkgutil.iter_modules([folder])
            if self._may_register(Path(folder, f"{found.name}.py"))
        ]

    def _may_register(self, file: Path) -> bool:
        """Whether the text of the file says that it registers; one without a text may: a package, or compiled alone."""
        try:
            text = file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return True
        return f"{self.noun.upper()}S" in text and "register(" in text

    def __iter__(self) -> Iterator[Kind]:
        self._discover()
        return iter([self._kinds[name] for name in sorted(self._kinds)])

    def _discover(self) -> None:
        """Import every file that registers, once; a second thread waits until all of them are there."""
        if self._is_complete or self._package is None:
            return
        with self._lock:
            if self._is_complete or self._is_importing:
                return
            self._is_importing = True  # a file that uses the registry while it is imported sees what is there so far
            for name in self.files():
                importlib.import_module(name)
            self._is_complete = True


@dataclass(frozen=True)
class Asked:
    """What a command line asks for as a whole; some defaults follow from it."""

    streams: int = 1
    is_live: bool = False  # whether some source is
    must_deliver: bool = False
    every_frame: bool = False  # whether live sources wait too (--when-full wait)


@dataclass(frozen=True, eq=False)
class Flag:
    """An option of `nnet-edge stream`, which stands for settings as a TOML table holds them."""

    name: str  # "--json"
    help: str
    table: Callable[[Any, Asked], Mapping[str, Any]]  # what was typed -> settings
    type: str = "file"  # of file, folder, text, switch
    metavar: str | None = None


@dataclass(frozen=True, eq=False)
class SinkKind:
    """A kind of sink: what TOML's `kind` calls it, its settings, and how it is made of them."""

    name: str  # "json-lines"
    settings: type[Any]  # a SinkSettings
    make: Callable[[Any], Any]  # settings -> Sink; reads secrets, opens nothing
    flag: Flag | None = None
    more_flags: tuple[Flag, ...] = ()  # that ask for more of what `flag` asks for
    needs: Mapping[str, str] = field(default_factory=dict)  # module -> extra of nnet-edge that brings it, "": every one

    @property
    def flags(self) -> tuple[Flag, ...]:
        """Every flag, the one that asks for the sink first."""
        return () if self.flag is None else (self.flag, *self.more_flags)


@dataclass(frozen=True)
class FoundCamera:
    """A camera that is there."""

    path: str  # the address to type: /dev/video0, gige://4711
    name: str  # maker and model, as it says itself
    is_readable: bool  # whether it can be opened now
    model: str = ""
    serial: str = ""
    formats: tuple[str, ...] = ()  # pixel formats that it has
    automatic: tuple[str, ...] | None = None  # what it changes by itself now, "exposure" for one; None: not known
    problem: str = ""  # why it cannot be opened now, or what it could not be asked


@dataclass(frozen=True, eq=False)
class SourceKind:
    """A kind of source: the addresses that it takes, what only it is asked for, and how it is made."""

    name: str  # "rtsp"
    addresses: str  # in messages: "an rtsp:// address"
    takes: Callable[[str], bool]  # whether the address is one of its own; of the kinds exactly one takes an address
    make: Callable[[Any, Any], Any]  # CameraSettings and `options` -> Source
    options: type[Any] | None = None  # a frozen dataclass of the settings that only this kind has
    page: str = "file"  # the word of [web] addable that lets the page add one
    flags: tuple[Flag, ...] = field(default=())  # that set options of the camera
    is_path: bool = False  # whether `takes` looks at what lies at a path; False: it looks at the text alone
    order: int = 50  # in lists for people, the usual ones first
    suffixes: tuple[str, ...] = ()  # of its files: an absent path with one of them is no device that may come later
    needs: Mapping[str, str] = field(default_factory=lambda: {"cv2": ""})  # as of a sink
    opencv: str = ""  # "gstreamer": what OpenCV must have been built with
    system: Mapping[str, str] = field(default_factory=dict)  # library of the system -> the package that brings it
    names_formats: bool = False  # pixel formats have GenICam's names; else four letters
    find: Callable[[], Sequence[FoundCamera]] | None = None  # the cameras that are there; slow, and raises nothing


SINKS: Registry[SinkKind] = Registry("sink", "nnet_edge.runtime.sinks")
SOURCES: Registry[SourceKind] = Registry("source", "nnet_edge.runtime.sources")
