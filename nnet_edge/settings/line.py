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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.settings.reader import build, schema_of, schema_of_field, unknown_key
from nnet_edge.settings.registry import SINKS
from nnet_edge.settings.runner import RunnerSettings, require_between, require_choice
from nnet_edge.settings.sink import SinkSettings
from nnet_edge.settings.stream import LineStream
from nnet_edge.settings.web import DriftSettings, WebSettings


def read_sink(table: Mapping[str, Any], where: str, folder: Path) -> SinkSettings:
    """The sink of one table. Raises ConfigError that begins with `where`."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where} is {table!r}: it must be a table")
    if "kind" not in table:
        raise ConfigError(f"{where} lacks its kind: choose {', '.join(SINKS.names())}")
    rest = {key: value for key, value in table.items() if key != "kind"}
    settings: SinkSettings = build(SINKS.find(table["kind"], where).settings, rest, where, folder)
    return settings


def sink_schemas() -> list[dict[str, Any]]:
    """The JSON schema of each kind of sink."""
    found = []
    for kind in SINKS:
        schema = schema_of(kind.settings)
        schema["properties"] = {"kind": {"const": kind.name}} | schema["properties"]
        found.append(schema | {"required": ["kind", *schema["required"]]})
    return found


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
    sinks: tuple[SinkSettings, ...] = ()
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
            shown = sink.shown_stream
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
    named = address.isdecimal() or address.partition(":")[0] in ("synthetic", "gstreamer")
    return not named or (folder / address).exists()


def build_line(
    rest: Mapping[str, Any], streams: tuple[LineStream, ...], sinks: tuple[SinkSettings, ...], where: str, folder: Path
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


__all__ = ["LineSettings", "SinkSettings", "describe_line", "line_settings", "read_line_config", "schema"]
