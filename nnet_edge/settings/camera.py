"""Settings of one camera: common ones, and the options of single kinds of source."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError
from nnet_edge.settings.reader import build, schema_of, to_plain, to_table, to_value, unknown_key
from nnet_edge.settings.registry import SOURCES, SourceKind
from nnet_edge.settings.runner import require_between, require_positive, require_seconds

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class CommonSettings:
    """Settings of every kind of source. Raises ConfigError for an invalid setting."""

    address: str  # as `nnet-edge stream` takes it: a number, an address, a file or a folder
    credentials: str | None = None  # "file:PATH" or "env:NAME", which hold user:password; never the words themselves
    width: int | None = None  # None: what the camera gives by itself
    height: int | None = None  # given with width
    rate_hz: float | None = None  # frames a second that are asked for; None: as the camera is set
    pixel_format: str | None = None  # four letters, as MJPG or YUYV; of a GenICam camera a name, as Mono8
    bits: int | None = (
        None  # of pictures deeper than 8, which come in 16; None: as in training, or as its first one shows
    )
    open_timeout_s: float = 10.0  # to open it
    read_timeout_s: float = 5.0  # for one frame of a network camera
    stall_s: float = 5.0  # without a frame for so long, the source is opened again
    frozen_s: float = 10.0  # a camera whose picture does not change by one pixel for so long is told; 0: never
    first_retry_s: float = 0.5  # until a lost source is opened again; each further wait is twice as long
    longest_retry_s: float = 30.0  # of these waits
    jitter: float = 0.2  # share by which a wait varies, so that cameras do not come back all at once

    def __post_init__(self) -> None:
        if not self.address:
            raise ConfigError(f"a stream needs a source: give {known_addresses()}")
        for what in ("open_timeout_s", "read_timeout_s", "stall_s", "first_retry_s", "longest_retry_s"):
            require_positive(what, getattr(self, what))
        require_seconds("frozen_s", self.frozen_s)
        for what in ("width", "height"):
            if getattr(self, what) is not None:
                require_between(what, getattr(self, what), 1, 32_768)
        if (self.width is None) != (self.height is None):
            raise ConfigError("a width needs a height and a height a width: give both, or neither")
        if self.rate_hz is not None:
            require_positive("rate", self.rate_hz)
        if self.bits is not None:
            require_between("bits", self.bits, 8, 16)  # those of bits.py, which needs NumPy
        if not 0 <= self.jitter < 1:
            raise ConfigError(f"jitter is {self.jitter}: it must be a share from 0 to below 1")
        if self.credentials is not None and self.credentials.partition(":")[0] not in ("file", "env"):
            raise ConfigError("credentials are never written out: give file:PATH or env:NAME, which hold user:password")


@dataclass(frozen=True)
class CameraSettings(CommonSettings):
    """Where frames come from, what is asked of the camera, and when it is opened again."""

    options: Mapping[str, Any] = field(default_factory=dict)  # of some kinds of source only, as transport of rtsp

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pixel_format is not None and len(self.pixel_format) != 4:
            kind = kind_by_name(self.address)
            if kind is None or not kind.names_formats:
                raise ConfigError(
                    f"pixel format {self.pixel_format!r} is invalid: it has four letters, as MJPG or YUYV"
                )
        if not self.options:
            return
        require_known(self.options, "the camera")
        for kind in SOURCES:
            own_options(kind, self.options)  # checks their values
        if (named := kind_by_name(self.address)) is not None:
            self.options_for(named)

    @classmethod
    def of(cls, address: str, **settings: Any) -> Self:
        """The settings of a camera, common ones and options alike. Raises ConfigError."""
        common = {name: settings.pop(name) for name in common_keys() if name in settings}
        return cls(address, **common, options=settings)

    @classmethod
    def from_table(cls, table: Any, where: str, folder: Path) -> Self:
        """The settings in a table of a settings file, options beside the common keys. Raises ConfigError."""
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where} is {table!r}: it must be a table")
        require_known(table, where)
        hints = option_hints()
        options = {key: to_value(hints[key], table[key], f"{where}: {key}", folder) for key in table if key in hints}
        common = build(CommonSettings, {key: table[key] for key in table if key not in hints}, where, folder)
        try:
            return cls(**vars(common), options=options)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error

    def to_table(self) -> dict[str, Any]:
        """The table that `from_table` makes the same settings of."""
        common = CommonSettings(**{name: getattr(self, name) for name in common_keys()})
        return to_table(common) | {key: to_plain(value) for key, value in self.options.items() if value is not None}

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON schema of the table: the common keys and the options of all kinds."""
        schema = schema_of(CommonSettings, cls.__doc__ or "")
        for kind in SOURCES:
            if kind.options is not None:
                schema["properties"] |= schema_of(kind.options)["properties"]
        return schema

    def options_for(self, kind: SourceKind) -> Any:
        """The options of this kind of source, None when it has none. Raises ConfigError for those of other kinds.

        An option of another kind that has its default asks for nothing, and is accepted.
        """
        for name, value in self.options.items():
            owners = [other for other in SOURCES if name in defaults_of(other)]
            if kind not in owners and any(value != defaults_of(other)[name] for other in owners):
                theirs = " or ".join(other.addresses for other in owners)
                raise ConfigError(f"{name} belongs to {theirs}, and this is {kind.addresses}: leave it out")
        return own_options(kind, self.options)


def require_known(keys: Iterable[str], where: str) -> None:
    """Raise ConfigError that begins with `where` unless each key is a common one or an option of some kind."""
    known = [*common_keys(), *option_hints()]
    for key in keys:
        if key not in known:
            raise ConfigError(unknown_key(key, known, where))


def common_keys() -> tuple[str, ...]:
    """The names of the settings that every kind has."""
    return tuple(item.name for item in fields(CommonSettings))


def option_hints() -> dict[str, Any]:
    """The options of all kinds, each with its type."""
    kinds = [kind.options for kind in SOURCES if kind.options is not None]
    return {name: hint for options in kinds for name, hint in typing.get_type_hints(options).items()}


def defaults_of(kind: SourceKind) -> dict[str, Any]:
    """The options of this kind, each with its default."""
    return {} if kind.options is None else {item.name: item.default for item in fields(kind.options)}


def own_options(kind: SourceKind, options: Mapping[str, Any]) -> Any:
    """Those of the options that this kind has, as its dataclass; None when it has none. Raises ConfigError."""
    if kind.options is None:
        return None
    return kind.options(**{name: value for name, value in options.items() if name in defaults_of(kind)})


def kind_by_name(address: str) -> SourceKind | None:
    """The kind that takes the address by its text alone; None for a path or an unknown address."""
    return next((kind for kind in SOURCES if not kind.is_path and kind.takes(address)), None)


def is_path(address: str) -> bool:
    """Whether the address is a path, whatever lies there."""
    return bool(address) and "://" not in address and kind_by_name(address) is None


def kind_of(address: str) -> SourceKind | None:
    """The kind that takes the address, by its text or by what lies at the path; None for an absent or unknown one."""
    if not is_path(address):
        return kind_by_name(address)
    return next((kind for kind in SOURCES if kind.is_path and kind.takes(address)), None)


def fitting(address: str, table: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the table that a source at the address has, for flags that stand for several sources.

    A path where nothing lies yet may become a source of any kind that is a path.
    """
    kind = kind_of(address)
    may_be = [other for other in SOURCES if other.is_path] if kind is None else [kind]
    names = {*common_keys(), *(name for one in may_be for name in defaults_of(one))}
    return {name: value for name, value in table.items() if name in names}


def known_addresses() -> str:
    """The addresses of every kind, for error messages."""
    *most, last = (kind.addresses for kind in sorted(SOURCES, key=lambda kind: kind.order))
    return f"{', '.join(most)} or {last}"
