"""Settings that people changed while a line ran: what they are, and the state file that keeps them over a restart.

A change is a key of the line's settings as TOML holds it. `differences` finds the changes between two settings of a line,
`apply_changes` makes them in a table, which may be a document of tomlkit, and `read_changes` and `write_changes` keep them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError
from nnet_edge.files import write_atomically
from nnet_edge.settings.line import LARGEST_BYTES, LineSettings
from nnet_edge.settings.reader import to_table

SCHEMA = 1  # of the state file
STREAM, REMOVED, BUNDLE, RECIPE = (
    "stream",
    "removed",
    "bundle",
    "first_recipe",
)  # keys that are none of [stream.verdict]
VERDICT_KEYS = (
    "threshold", "adapted", "pixel_threshold", "regions_of_interest", "ignored", "interest_picture", "ignored_picture"
)  # fmt: skip


@dataclass(frozen=True)
class Change:
    """One key that differs from what the line was started with."""

    stream: str | None  # None: the whole line
    key: str  # of VERDICT_KEYS; BUNDLE; STREAM, for one that was added or has another camera; REMOVED
    value: Any  # as TOML holds it; None: the key is left out
    was: Any  # what the settings file asked for when it was changed
    at: str = ""  # UTC
    by: str = ""  # who changed it
    recipe: str = ""  # under which it holds; empty: the line has none, or it holds under all

    def __str__(self) -> str:
        words = {STREAM: "was added", REMOVED: "was removed"}.get(self.key)
        what = words or f"{self.key.replace('_', ' ')} {shown(self.value)} instead of {shown(self.was)}"
        under = f", recipe {self.recipe}" if self.recipe else ""
        return f"{self.stream or 'the line'}{under}: {what} ({self.at}, {self.by})"

    @property
    def place(self) -> tuple[str | None, str, str]:
        """What is changed."""
        return self.stream, self.key, self.recipe


def shown(value: Any) -> str:
    """The value in few words."""
    if isinstance(value, list):
        return f"{len(value)} polygon{'' if len(value) == 1 else 's'}"
    if isinstance(value, Mapping) and {"times", "pictures"} <= set(value):
        return f"on {value['pictures']} pictures to {value['times']:.4g} times the bundle's threshold"
    return "the default" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def differences(base: LineSettings, now: LineSettings) -> Iterator[Change]:
    """What must be changed in `base` so that the streams and bundles are those of `now`; without time and name."""
    if not base.recipes:
        yield from judged_otherwise(base, now, None)
    there = {stream.name: stream for stream in base.streams}
    for stream in now.streams:
        old = there.pop(stream.name, None)
        if old is None or (old.camera, old.buffer) != (stream.camera, stream.buffer):
            yield Change(stream.name, STREAM, to_table(stream), None if old is None else to_table(old))
    for name in there:
        yield Change(name, REMOVED, True, None)
    for recipe in base.recipes:  # behind the streams that were added, whose verdicts they may change
        yield from judged_otherwise(base, now, recipe.name)
    if base.recipe != now.recipe:
        yield Change(None, RECIPE, now.recipe, base.recipe)


def judged_otherwise(base: LineSettings, now: LineSettings, recipe: str | None) -> Iterator[Change]:
    """What differs in verdicts and bundles, under that recipe."""
    under = recipe or ""
    there = {stream.name: stream for stream in base.streams}
    as_added = tuple(stream for stream in now.streams if stream.name not in there)  # the page adds without recipes
    before_all, after_all = replace(base, streams=(*base.streams, *as_added)).under(recipe), now.under(recipe)
    old = {stream.name: stream for stream in before_all.streams}
    for stream in after_all.streams:
        if recipe is None and (stream.name not in there or old[stream.name].camera != stream.camera):
            continue  # its whole table is a change
        before, after = to_table(old[stream.name].verdict), to_table(stream.verdict)
        before[BUNDLE], after[BUNDLE] = to_table(old[stream.name]).get(BUNDLE), to_table(stream).get(BUNDLE)
        for key in (*VERDICT_KEYS, BUNDLE):
            if before.get(key) != after.get(key):
                yield Change(stream.name, key, after.get(key), before.get(key), recipe=under)
    if before_all.bundle != after_all.bundle:
        yield Change(None, BUNDLE, str(after_all.bundle), str(before_all.bundle), recipe=under)


def signed(found: Sequence[Change], known: Sequence[Change], at: str, by: str) -> tuple[Change, ...]:
    """The changes found, each with time and name: those of the known change that is the same, or these."""
    old = {change.place: change for change in known}
    whens = []
    for change in found:
        same = old.get(change.place)
        whens.append((same.at, same.by) if same is not None and same.value == change.value else (at, by))
    return tuple(replace(change, at=at, by=by) for change, (at, by) in zip(found, whens, strict=True))


def apply_changes(table: MutableMapping[str, Any], changes: Sequence[Change]) -> None:
    """Make the changes in the line's table. Raises ConfigError for one of a stream that is not there."""
    for change in changes:
        if change.recipe:
            apply_to_recipe(table, change)
            continue
        if change.stream is None:
            put(table, change.key, change.value)
            continue
        streams = table.get("stream")
        if not isinstance(streams, list):
            table["stream"] = streams = []
        names = [entry.get("name") if isinstance(entry, Mapping) else None for entry in streams]
        place = names.index(change.stream) if change.stream in names else None
        if place is None:
            if change.key == STREAM:
                streams.append(change.value)
                table["stream"] = streams  # a document of tomlkit keeps what it is given, not the list that was new
            elif change.key != REMOVED:
                raise ConfigError(f"there is no stream {change.stream!r} any more, whose {change.key} was changed")
        elif change.key == REMOVED:
            del streams[place]
        elif change.key == STREAM:
            streams[place] = change.value
        elif change.key == BUNDLE:
            put(streams[place], BUNDLE, change.value)
        else:
            put_verdict(streams[place], change.key, change.value)


def named(entries: Any, name: str) -> Any:
    """The table of that name in a list of them; None where there is none."""
    found = entries if isinstance(entries, list) else []
    return next((entry for entry in found if isinstance(entry, Mapping) and entry.get("name") == name), None)


def apply_to_recipe(table: MutableMapping[str, Any], change: Change) -> None:
    """Make a change that holds under a recipe. Raises ConfigError for one of a recipe that is not there."""
    recipe = named(table.get("recipe"), change.recipe)
    if recipe is None:
        raise ConfigError(f"there is no recipe {change.recipe!r} any more, whose {change.key} was changed")
    if change.stream is None:
        put(recipe, BUNDLE, change.value)
        return
    if named(recipe.get("stream"), change.stream) is None:
        recipe["stream"] = [*recipe.get("stream", []), {"name": change.stream}]
    stream = named(recipe["stream"], change.stream)
    if change.key == BUNDLE:
        put(stream, BUNDLE, change.value)
        return
    if "verdict" not in stream:  # a recipe's verdict stands in place of the whole of its stream's
        stream["verdict"] = dict((named(table.get("stream"), change.stream) or {}).get("verdict", {}))
    put(stream["verdict"], change.key, change.value)


def put(table: MutableMapping[str, Any], key: str, value: Any) -> None:
    """Set the key, or leave it out for None."""
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value


def put_verdict(stream: MutableMapping[str, Any], key: str, value: Any) -> None:
    """Set the key of the stream's verdict table, which is made where there is none."""
    if "verdict" not in stream and value is not None:
        stream["verdict"] = {}
    if "verdict" in stream:
        put(stream["verdict"], key, value)


def read_changes(path: Path) -> tuple[Change, ...]:
    """The changes in the state file at `path`, none when there is no file. Raises ConfigError for a damaged one."""
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_BYTES + 1)
        if len(data) > LARGEST_BYTES:
            raise unusable(path, f"it has more than {LARGEST_BYTES} bytes")
        content = json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise unusable(path, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise unusable(path, "it is damaged: no JSON") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else None
        raise unusable(path, f"its schema is {schema!r}, and this nnet-edge reads {SCHEMA}")
    entries = content.get("changes")
    if not isinstance(entries, list):
        raise unusable(path, "it has no list of changes")
    return tuple(to_change(entry, path) for entry in entries)


def to_change(entry: object, path: Path) -> Change:
    """The change that an entry of the state file stands for. Raises ConfigError."""
    try:
        change = Change(**entry)  # type: ignore[arg-type]
    except TypeError as error:
        raise unusable(path, "it is damaged: a change has other keys") from error
    is_known = change.key in ((BUNDLE, RECIPE) if change.stream is None else (*VERDICT_KEYS, BUNDLE, STREAM, REMOVED))
    texts = [change.at, change.by, change.recipe, "" if change.stream is None else change.stream]
    if not is_known or not all(isinstance(text, str) for text in texts):
        raise unusable(path, f"it is damaged: it changes {change.key!r} of {change.stream!r}")
    return change


def unusable(path: Path, why: str) -> ConfigError:
    """The error for a state file that no line may be started with: a threshold that silently falls back passes bad parts."""
    return ConfigError(
        f"{path} cannot be used ({why}): it keeps what was changed while the line ran; put it right, or remove it to start "
        f"with the settings as they were written: rm '{path}'"
    )


def write_changes(path: Path, changes: Sequence[Change]) -> None:
    """Keep the changes at `path`, atomically; without any the file goes. Raises OSError."""
    if not changes:
        path.unlink(missing_ok=True)
        return
    content = {"schema": SCHEMA, "changes": [asdict(change) for change in changes]}
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n")
