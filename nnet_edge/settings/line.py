"""The settings of a whole line in one TOML file: bundle, runner, streams, sinks, page, drift.

    bundle = "runs/part/bundle"
    [[stream]]
    name = "left"
    camera.address = "rtsp://camera-1/stream"
    [[sink]]
    kind = "json-lines"
    path = "verdicts.jsonl"
    [web]
    port = 8080

Relative paths start at the file's folder. Passwords and tokens stand in the environment or in files of their own, which
the settings name. `schema()` gives the JSON schema that editors check the file with; examples/line.toml shows every part.

The [[sink]] tables of a line's settings file: a kind, what that kind needs, and how it is delivered.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.settings.camera import kind_by_name
from nnet_edge.settings.reader import build, schema_of, schema_of_field, unknown_key
from nnet_edge.settings.runner import RunnerSettings, require_between, require_choice
from nnet_edge.settings.stream import NAME, LineStream, require_positive
from nnet_edge.settings.web import DriftSettings, WebSettings, require_secret_place


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


PRECISIONS = ("fp32", "bf16", "fp16", "int8")
LARGEST_BYTES = 1 << 20  # of a settings file: what is larger is another file
SCHEMA_NAME = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class LineSettings:
    """Everything that a line is made of. Raises ConfigError for settings that cannot be meant together."""

    streams: tuple[LineStream, ...]
    bundle: Path | None = None  # None: each stream has its own
    precision: str | None = None  # None: fp32; of TensorRT the engine that build-engine found best
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    deadline_s: float | None = None  # that a frame waits for others to fill the batch; None: from the runner's latency
    sinks: tuple[SinkConfig, ...] = ()
    web: WebSettings | None = None  # None: no page
    drift: DriftSettings = field(default_factory=DriftSettings)

    def __post_init__(self) -> None:
        if self.precision is not None:
            require_choice("precision", self.precision, PRECISIONS)
        names = [stream.name for stream in self.streams]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ConfigError(f"two streams are called {twice[0]!r}: their verdicts could not be told apart")
        if not self.streams and self.web is None:
            raise ConfigError("the line has no stream, and no page to add one: write a [[stream]] or [web]")
        if self.bundle is None:
            raise ConfigError('the line has no bundle: write bundle = "FOLDER", the one that train or export wrote')
        if self.deadline_s is not None and not 0 <= self.deadline_s <= 10:
            raise ConfigError(f"deadline_s is {self.deadline_s}: it must be from 0 to 10 seconds")
        labels = [sink.label for sink in self.sinks]
        same = [label for label in labels if labels.count(label) > 1]
        if same:
            raise ConfigError(f"two sinks are called {same[0]!r}: give them different names")
        require_between("streams", len(self.streams), 0, 256)
        for sink in self.sinks:
            shown = sink.stream if isinstance(sink, VideoConfig) else None
            if shown is not None and shown not in names and self.web is None:  # a page may add it later
                raise ConfigError(f"the sink {sink.label!r} shows the stream {shown!r}: there are {', '.join(names)}")


SECRET_KEYS = ("credentials", "token_from", "password_from", "url")
TABLES = {"streams": "stream", "sinks": "sink"}  # field -> its key in the file, where one entry stands for itself


def read_line_config(path: Path, overrides: Mapping[str, Any] | None = None) -> LineSettings:
    """The settings in the TOML file at `path`; `overrides` (flags; None: not given) stand over what it says.

    Raises ConfigError that names the file, the table and the key.
    """
    return line_settings(read_toml(path), path.name, path.resolve().parent, overrides)


def line_settings(
    table: Mapping[str, Any], where: str, folder: Path, overrides: Mapping[str, Any] | None = None
) -> LineSettings:
    """The settings in a table as TOML gives it. Raises ConfigError."""
    known = {TABLES.get(item.name, item.name): item for item in dataclasses.fields(LineSettings)}
    for key in table:
        if key not in known and key != "$schema":
            raise ConfigError(unknown_key(key, list(known), where))
    rest = {key: value for key, value in table.items() if key not in ("stream", "sink", "$schema")}
    given = {key: value for key, value in (overrides or {}).items() if value is not None}
    threshold, spools = given.pop("threshold", None), given.pop("must_deliver", None)
    streams = [
        build(LineStream, from_folder(stream, folder), f"{where}: {title('stream', stream, number)}", folder)
        for number, stream in enumerate(tables(table, "stream", where))
    ]
    sinks = [
        read_sink(from_folder(sink, folder), f"{where}: {title('sink', sink, number)}", folder)
        for number, sink in enumerate(tables(table, "sink", where))
    ]
    rest = from_folder(rest, folder)
    for name in ("runner", "web", "drift"):
        if name in given:
            part = rest.get(name, {})
            rest[name] = (dict(part) if isinstance(part, Mapping) else {}) | {
                key: value for key, value in given.pop(name).items() if value is not None
            }
    if spools is not None:
        sinks = [sink if sink.must_deliver or sink.kind == "video" else replace(sink, must_deliver=spools / sink.label)
                 for sink in sinks]  # fmt: skip
    if threshold is not None:
        streams = [replace(item, verdict=replace(item.verdict, threshold=threshold)) for item in streams]
    values = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
    return build_line(rest | values, tuple(streams), tuple(sinks), where, folder)


def from_folder(table: Any, folder: Path) -> Any:
    """The table with addresses of files, and "file:PATH", that start at `folder`; other addresses stay as they are."""
    if not isinstance(table, Mapping):
        return table
    found = {key: from_folder(value, folder) for key, value in table.items()}
    for key in SECRET_KEYS:
        value = found.get(key)
        if isinstance(value, str) and value.startswith("file:") and value != "file:":
            found[key] = f"file:{folder / Path(value.removeprefix('file:')).expanduser()}"
    address = found.get("address")
    if isinstance(address, str) and is_path(address, folder):
        found["address"] = str(folder / address)
    return found


def is_path(address: str, folder: Path) -> bool:
    """Whether the address of a camera is a path, there or not yet: a mount or a pipe may come later."""
    if not address or "://" in address:
        return False
    return kind_by_name(address) is None or (folder / address).exists()


def build_line(
    rest: Mapping[str, Any], streams: tuple[LineStream, ...], sinks: tuple[SinkConfig, ...], where: str, folder: Path
) -> LineSettings:
    """LineSettings of what is read already and the other keys. Raises ConfigError."""
    parts = build(LineParts, rest, where, folder)
    values = {item.name: getattr(parts, item.name) for item in dataclasses.fields(LineParts)}
    try:
        return LineSettings(streams=streams, sinks=sinks, **values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


@dataclass(frozen=True)
class LineParts:
    """The keys of a line that are no list of streams or sinks; the defaults are LineSettings'."""

    bundle: Path | None = None
    precision: str | None = None  # None: fp32; of TensorRT the engine that build-engine found best
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    deadline_s: float | None = None
    web: WebSettings | None = None
    drift: DriftSettings = field(default_factory=DriftSettings)


def tables(table: Mapping[str, Any], key: str, where: str) -> list[Mapping[str, Any]]:
    """The entries of a list of tables; a single table is no list. Raises ConfigError."""
    entries = table.get(key, [])
    if not isinstance(entries, list):
        raise ConfigError(f"{where}: [{key}] is one table: write [[{key}]], with two brackets, for each {key}")
    return entries


def title(key: str, entry: Any, number: int) -> str:
    """What an entry of a list is called in errors: by its name where it has one."""
    name = entry.get("name") if isinstance(entry, Mapping) else None
    return f"[[{key}]] {name!r}" if isinstance(name, str) else f"[[{key}]] number {number + 1}"


def read_toml(path: Path) -> dict[str, Any]:
    """The file at `path` as tables. Raises ConfigError for one that is absent or no TOML."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise MissingExtraError("tomli is not installed, and Python 3.10 has no TOML: pip install tomli") from error
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise ConfigError(f"the settings file {path} has more than {LARGEST_BYTES} bytes: is it the right one?")
        return tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the settings file {path} is no UTF-8 text: save it as such") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path.name} is no TOML: {error}") from error


def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of the settings file, made of the dataclasses that read it."""
    whole = schema_of(LineParts, "The settings of an inspection line: nnet-edge stream --config line.toml")
    defaults = {item.name: item for item in dataclasses.fields(LineParts)}
    whole["properties"]["precision"] = schema_of_field(str, defaults["precision"]) | {"enum": list(PRECISIONS)}
    whole["properties"] |= {
        "$schema": {"type": "string"},
        "stream": {"type": "array", "items": schema_of(LineStream)},
        "sink": {"type": "array", "items": {"oneOf": sink_schemas()}},
    }
    return {"$schema": SCHEMA_NAME, "title": "nnet-edge line"} | whole | {"required": ["bundle"]}


def describe_line(settings: LineSettings) -> list[str]:
    """What the settings say, one line a part, for people; without secrets."""
    precision = settings.precision or ("best engine" if settings.runner.kind == "tensorrt" else "fp32")
    lines = [f"bundle {settings.bundle}, {precision}, runner {settings.runner.kind}"]
    lines += [f"stream {item.name}" for item in settings.streams]
    lines += [
        f"sink {sink.label} ({sink.kind}){', must deliver' if sink.must_deliver else ''}" for sink in settings.sinks
    ]
    if settings.web is not None:
        guard = "without a token, this machine only" if settings.web.token_from is None else "with a token"
        lines.append(f"page on {settings.web.host}:{settings.web.port}, {guard}")
    return lines


__all__ = ["SINK_KINDS", "LineSettings", "SinkConfig", "describe_line", "line_settings", "read_line_config", "schema"]
