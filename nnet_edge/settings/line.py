"""Settings of a line (bundle, runner, streams, sinks, page, drift) from a TOML file, from flags or from both.

    bundle = "runs/part/bundle"
    [[stream]]
    name = "left"
    camera.address = "rtsp://camera-1/stream"
    [[sink]]
    kind = "json-lines"
    path = "verdicts.jsonl"
    [web]
    port = 8080

Relative paths start at the file's folder. Passwords and tokens are read from the environment or from files that the settings
name. `schema()` gives the JSON schema for editors; examples/line.toml shows every part.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.settings.camera import kind_by_name
from nnet_edge.settings.reader import build, require_plain, schema_of
from nnet_edge.settings.recipe import Recipe
from nnet_edge.settings.runner import RunnerSettings, require_between, require_choice
from nnet_edge.settings.sink import SinkSettings
from nnet_edge.settings.stream import ANYBODY, CAMERA, LineStream
from nnet_edge.settings.web import DriftSettings, WebSettings

PRECISIONS = ("fp32", "bf16", "fp16", "int8")
LARGEST_BYTES = 1 << 20  # of a settings file: a larger one is a mistake
NO_BUNDLE = 'the line has no bundle: write bundle = "FOLDER", the one that train or export wrote'
SECRET_KEYS = ("credentials", "token_from", "operator_token_from", "password_from", "url")


@dataclass(frozen=True)
class LineSettings:
    """The settings of an inspection line: nnet-edge stream --config line.toml"""

    streams: tuple[LineStream, ...] = field(
        default=(), metadata={"key": "stream", "entries": True}
    )  # each of one camera
    bundle: Path | None = field(default=None, metadata={"needed": True})  # the folder that train or export wrote
    precision: str | None = field(default=None, metadata={"choices": PRECISIONS})  # None: fp32, or the best engine
    runner: RunnerSettings = field(default_factory=RunnerSettings)
    deadline_s: float | None = None  # that a frame waits for others to fill the batch; None: from the runner's latency
    sinks: tuple[SinkSettings, ...] = field(default=(), metadata={"key": "sink", "entries": True})  # where verdicts go
    web: WebSettings | None = None  # None: no page
    drift: DriftSettings = field(default_factory=DriftSettings)
    recipes: tuple[Recipe, ...] = field(default=(), metadata={"key": "recipe", "entries": True})  # kinds of part
    first_recipe: str | None = None  # that the line begins with; None: the first in the file

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that contradict each other."""
        if self.precision is not None:
            require_choice("precision", self.precision, PRECISIONS)
        names = [stream.name for stream in self.streams]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ConfigError(f"two streams are called {twice[0]!r}: their verdicts could not be told apart")
        if not self.streams and self.web is None:
            raise ConfigError("the line has no stream, and no page to add one: write a [[stream]] or [web]")
        if self.bundle is None:
            raise ConfigError(NO_BUNDLE)
        if self.deadline_s is not None and not 0 <= self.deadline_s <= 10:
            raise ConfigError(f"deadline_s is {self.deadline_s}: it must be from 0 to 10 seconds")
        recipes = [recipe.name for recipe in self.recipes]
        if twice := [name for name in recipes if recipes.count(name) > 1]:
            raise ConfigError(f"two recipes are called {twice[0]!r}: give them different names")
        if self.first_recipe is not None:
            require_choice("recipe", self.first_recipe, tuple(recipes) or ("none, for there is no [[recipe]]",))
        labels = [sink.label for sink in self.sinks]
        if same := [label for label in labels if labels.count(label) > 1]:
            raise ConfigError(f"two sinks are called {same[0]!r}: give them different names")
        triggered = {stream.name: stream.trigger.by for stream in self.streams if stream.trigger is not None}
        for name, by in triggered.items():
            if by not in (known := (ANYBODY, CAMERA, "page", "program", *labels)):
                raise ConfigError(f"stream {name!r} is triggered by {by!r}, which nobody is: choose {', '.join(known)}")
        vague = [sink.label for sink in self.sinks if sink.asks_for_parts and sink.shown_stream is None]
        if vague and len(triggered) > 1:
            raise ConfigError(
                f"the sink {vague[0]!r} must say whose parts it shows: give it one stream of {', '.join(triggered)}"
            )
        require_between("streams", len(self.streams), 0, 256)
        for sink in self.sinks:
            shown = sink.shown_stream
            if shown is not None and shown not in names and self.web is None:  # a page may add it later
                raise ConfigError(f"the sink {sink.label!r} shows the stream {shown!r}: there are {', '.join(names)}")

    @property
    def bundles(self) -> tuple[Path, ...]:
        """The line's bundle and those that streams and recipes have for themselves, each once."""
        found = [self.bundle, *(stream.bundle for stream in self.streams)]
        for recipe in self.recipes:
            found += [recipe.bundle, *(stream.bundle for stream in recipe.streams)]
        return tuple(dict.fromkeys(bundle for bundle in found if bundle is not None))

    @property
    def own_bundles(self) -> tuple[Path, ...]:
        """Those that streams have for themselves."""
        return tuple(stream.bundle for stream in self.streams if stream.bundle is not None)

    @property
    def recipe(self) -> str | None:
        """The name of the recipe that the line begins with; None: it has none."""
        return self.first_recipe or (self.recipes[0].name if self.recipes else None)

    def under(self, name: str | None) -> LineSettings:
        """The settings with what that recipe says in place of what the streams say. Raises ConfigError."""
        if name is None:
            return self
        known = {recipe.name: recipe for recipe in self.recipes}
        require_choice("recipe", name, tuple(known) or ("none, for there is no [[recipe]]",))
        recipe, streams = known[name], []
        for stream in self.streams:
            said = recipe.stream(stream.name)
            over = {key: value for key in ("bundle", "verdict", "camera") if (value := getattr(said, key)) is not None}
            streams.append(replace(stream, **over))
        return replace(self, streams=tuple(streams), bundle=recipe.bundle or self.bundle)

    def require_recipe_streams(self) -> None:
        """Raise ConfigError for a recipe of a stream that is not there, or that its stream does not bear."""
        names = [stream.name for stream in self.streams]
        for recipe in self.recipes:
            for name in (*(stream.name for stream in recipe.streams), *recipe.paused):
                if name not in names:
                    raise ConfigError(
                        f"the recipe {recipe.name} names the stream {name!r}: there are {', '.join(names)}"
                    )
            self.under(recipe.name)

    def lines(self) -> list[str]:
        """The settings in words, one line a part; without secrets."""
        precision = self.precision or ("best engine" if self.runner.kind == "tensorrt" else "fp32")
        found = [f"bundle {self.bundle}, {precision}, runner {self.runner.kind}"]
        found += [f"stream {item.name}{', triggered' * (item.trigger is not None)}" for item in self.streams]
        found += [f"recipe {recipe.name}{' at the start' * (recipe.name == self.recipe)}" for recipe in self.recipes]
        found += [f"sink {sink.label} ({sink.kind}){', must deliver' * bool(sink.must_deliver)}" for sink in self.sinks]
        if self.web is not None:
            guard = "without a token, this machine only" if self.web.token_from is None else "with a token"
            found.append(f"page on {self.web.host}:{self.web.port}, {guard}")
        return found


def read_line_config(path: Path, flags: Mapping[str, Any] | None = None) -> LineSettings:
    """The settings in the TOML file at `path`; `flags` stand over what it says, see `line_settings`.

    Raises ConfigError that names the file, the table and the key.
    """
    return line_settings(read_toml(path), path.name, path.resolve().parent, flags)


def line_settings(
    table: Mapping[str, Any], where: str, folder: Path, flags: Mapping[str, Any] | None = None
) -> LineSettings:
    """The settings in a table as TOML gives it, paths starting at `folder`. Raises ConfigError that begins with `where`.

    `flags` (None: not given) override it: keys of the table, `threshold` and `adapt` of every stream, and `must_deliver`, a
    folder in which every sink that can has its own spool.
    """
    flags = {key: value for key, value in (flags or {}).items() if value is not None}
    verdict: dict[str, Any] = {key: flags.pop(key) for key in ("threshold", "adapt") if key in flags}
    spools = flags.pop("must_deliver", None)
    table = {key: value for key, value in table.items() if key != "$schema"}
    if verdict:
        table["stream"] = [with_verdict(stream, verdict) for stream in entries(table, "stream")]
    if spools is not None:
        table["sink"] = [with_spool(sink, spools) for sink in entries(table, "sink")]
    table = from_folder(table, folder)
    for name, value in flags.items():
        over: Any = value
        if isinstance(value, Mapping):
            present = table.get(name)
            over = {key: part for key, part in value.items() if part is not None}
            over = {**present, **over} if isinstance(present, Mapping) else over
        table = {**table, name: over}
    if "bundle" not in table:
        raise ConfigError(f"{where}: {NO_BUNDLE}")
    require_plain(table, where)
    settings = build(LineSettings, table, where, folder)
    try:
        settings.require_recipe_streams()
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return settings


def entries(table: Mapping[str, Any], key: str) -> Any:
    """The entries of a list of tables; anything but a list is left to the reader, which refuses it."""
    found = table.get(key, [])
    return found if isinstance(found, list) else [found]


def with_verdict(stream: Any, verdict: Mapping[str, Any]) -> Any:
    """The [[stream]] table with these keys of its verdict."""
    if not isinstance(stream, Mapping) or not isinstance(stream.get("verdict", {}), Mapping):
        return stream
    return {**stream, "verdict": {**stream.get("verdict", {}), **verdict}}


def with_spool(sink: Any, spools: Path) -> Any:
    """The [[sink]] table with its own spool in `spools`; one that has a spool, or can have none, stays as it is."""
    if not isinstance(sink, Mapping) or sink.get("must_deliver") or sink.get("kind") == "video":
        return sink
    return {**sink, "must_deliver": str(Path(spools).absolute() / str(sink.get("name") or sink.get("kind")))}


def from_folder(table: Any, folder: Path) -> Any:
    """The table with addresses of files and "file:PATH" starting at `folder`; other addresses stay as they are."""
    if isinstance(table, list):
        return [from_folder(entry, folder) for entry in table]
    if not isinstance(table, Mapping):
        return table
    found = {key: from_folder(value, folder) for key, value in table.items()}
    for key in SECRET_KEYS:
        value = found.get(key)
        if isinstance(value, str) and value.startswith("file:") and value != "file:":
            found[key] = f"file:{folder / Path(value.removeprefix('file:')).expanduser()}"
    address = found.get("address")
    if isinstance(address, str) and address and "://" not in address:  # a path may be absent yet, as a mount or a pipe
        is_path = kind_by_name(address) is None or (folder / address).exists()
        found["address"] = str(folder / address) if is_path else address
    return found


def read_toml(path: Path) -> dict[str, Any]:
    """The file at `path` as tables. Raises ConfigError for one that is absent or invalid."""
    try:
        with path.open("rb") as file:
            return toml_of(file.read(LARGEST_BYTES + 1), path)
    except OSError as error:
        raise ConfigError(f"the settings file {path} cannot be read: {error.strerror}") from error


def toml_of(data: bytes, path: Path) -> dict[str, Any]:
    """The tables in `data`, the content of the file at `path`. Raises ConfigError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise MissingExtraError("tomli is not installed, and Python 3.10 has no TOML: pip install tomli") from error
    if len(data) > LARGEST_BYTES:
        raise ConfigError(f"the settings file {path} has more than {LARGEST_BYTES} bytes: is it the right one?")
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"the settings file {path} is not UTF-8 text: save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and integers of thousands of digits
        raise ConfigError(f"{path.name} is not valid TOML: {error}") from error


def schema() -> dict[str, Any]:
    """The JSON schema (2020-12) of the settings file, made from the dataclasses that read it."""
    table = schema_of(LineSettings)
    table["properties"]["$schema"] = {"type": "string", "description": "Where an editor finds this schema"}
    return (
        {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "nnet-edge line"}
        | table
        | {"required": ["bundle"]}
    )
