"""The [[sink]] tables of a line's settings file: a kind, what that kind needs, and how it is delivered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nnet_edge.config import require_between
from nnet_edge.errors import ConfigError
from nnet_edge.settings_file import build, schema_of
from nnet_edge.stream_settings import NAME, require_positive
from nnet_edge.web_settings import require_secret_place


@dataclass(frozen=True)
class SinkConfig:
    """What every sink has. Raises ConfigError for a setting that cannot be meant."""

    kind = ""  # of SINK_KINDS, a property of the class

    name: str | None = None  # None: the kind
    queue: int = 256  # verdicts and events that wait for the sink at most
    must_deliver: Path | None = None  # a folder to spool in: nothing is lost while the receiver is down
    spool_bytes: int = 1 << 30
    every_frame: bool = False  # the line waits for the sink, for a while, instead of losing what it cannot take
    retry_s: float = 60.0  # a sink that fails for longer costs what it was given

    def __post_init__(self) -> None:
        if self.name is not None and NAME.fullmatch(self.name) is None:
            raise ConfigError(
                f"a sink cannot be called {self.name!r}: use 1 to 64 letters, digits, dots, dashes, underscores"
            )
        require_between("queue", self.queue, 1, 1_000_000)
        require_between("spool_bytes", self.spool_bytes, 1 << 16, 1 << 50)
        require_positive("retry_s", self.retry_s)

    @property
    def label(self) -> str:
        """The name for counts and events."""
        return self.name or self.kind


@dataclass(frozen=True)
class JsonLinesConfig(SinkConfig):
    """One JSON object a verdict, in a file that turns over."""

    kind = "json-lines"

    path: Path = Path()  # needed
    append: bool = True  # False: a file that exists is replaced at the start
    turn_bytes: int | None = None  # a larger file is renamed and a new one begun
    turn_every_s: float | None = None
    keep_files: int | None = None  # renamed files that stay; None: all
    fsync_every_s: float | None = 1.0  # 0: after every line
    events: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_given(self, "path")


@dataclass(frozen=True)
class RejectsConfig(SinkConfig):
    """Pictures of rejects in a folder, the oldest deleted first."""

    kind = "rejects"

    folder: Path = Path()  # needed
    pictures: tuple[str, ...] = ("original", "overlay", "map")
    budget_bytes: int | None = 10 * 2**30

    def __post_init__(self) -> None:
        super().__post_init__()
        require_given(self, "folder")


@dataclass(frozen=True)
class VideoConfig(SinkConfig):
    """Annotated videos, one of each stream, cut into numbered pieces; the oldest are deleted first."""

    kind = "video"

    path: Path = Path()  # needed; with line.mp4 the pieces are line.STREAM.000001.mp4 and so on
    rate_hz: float | None = None
    stream: str | None = None  # only this one; None: all
    piece_s: float = 600.0
    piece_bytes: int = 1 << 30
    budget_bytes: int | None = 10 * 2**30  # of all pieces

    def __post_init__(self) -> None:
        super().__post_init__()
        require_given(self, "path")
        if self.must_deliver is not None:
            raise ConfigError("a video cannot be made to deliver later: leave must_deliver out")


@dataclass(frozen=True)
class MqttConfig(SinkConfig):
    """Verdicts and events published to a broker."""

    kind = "mqtt"

    host: str = ""  # needed
    port: int = 0  # 0: 1883, with TLS 8883
    prefix: str = "nnet-edge"
    qos: int = 1
    user: str | None = None
    password_from: str | None = None  # "env:NAME" or "file:PATH"
    client_id: str = ""
    tls: bool = False
    ca_file: Path | None = None
    certificate_file: Path | None = None
    key_file: Path | None = None
    keepalive_s: int = 30
    timeout_s: float = 5.0
    only_rejects: bool = False
    events: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require_given(self, "host")
        if self.password_from is not None:
            require_secret_place("password_from", self.password_from)


@dataclass(frozen=True)
class WebhookConfig(SinkConfig):
    """Verdicts posted as JSON."""

    kind = "webhook"

    url: str = ""  # needed; or "env:NAME" or "file:PATH", which hold it where its path is a secret
    token_from: str | None = None  # "env:NAME" or "file:PATH", sent as a bearer token
    ca_file: Path | None = None
    timeout_s: float = 5.0
    only_rejects: bool = True
    events: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_given(self, "url")
        if self.url.startswith(("env:", "file:")):
            require_secret_place("url", self.url)
        elif "?" in self.url or "@" in self.url:
            raise ConfigError(
                "the url of a webhook holds no user and no query, which may be a secret: use token_from, "
                'or url = "env:NAME" or "file:PATH", which hold it'
            )
        if self.token_from is not None:
            require_secret_place("token_from", self.token_from)


SINK_KINDS: dict[str, type[SinkConfig]] = {
    kind.kind: kind for kind in (JsonLinesConfig, RejectsConfig, VideoConfig, MqttConfig, WebhookConfig)
}
NEEDED = {"json-lines": "path", "rejects": "folder", "video": "path", "mqtt": "host", "webhook": "url"}


def read_sink(table: Mapping[str, Any], where: str, folder: Path) -> SinkConfig:
    """The sink of one table. Raises ConfigError that begins with `where`."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {table!r}: it must be a table")
    kind = table.get("kind")
    if kind not in SINK_KINDS:
        found = "lacks its kind" if kind is None else f"has the kind {kind!r}, which is unknown"
        raise ConfigError(f"{where} {found}: choose {', '.join(SINK_KINDS)}")
    rest = {key: value for key, value in table.items() if key != "kind"}
    return build(SINK_KINDS[kind], rest, where, folder)


def sink_schemas() -> list[dict[str, Any]]:
    """The JSON schema of each kind of sink."""
    found = []
    for name, kind in SINK_KINDS.items():
        schema = schema_of(kind)
        schema["properties"] = {"kind": {"const": name}} | schema["properties"]
        found.append(schema | {"required": ["kind", NEEDED[name]]})
    return found


def require_given(config: SinkConfig, key: str) -> None:
    """Nothing, when that key of the sink was given. Raises ConfigError."""
    default = {item.name: item.default for item in fields(config)}[key]
    if getattr(config, key) == default:
        raise ConfigError(f"a {config.kind} sink lacks {key}: give it")
