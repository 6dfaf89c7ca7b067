"""Changes of a running line, kept in a state file: what differs from the settings that it was written with.

The state file lies beside the settings file, `line.state.json` of `line.toml`. `LineChanges` reads it at the start.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import ConfigError, MissingExtraError, StreamError
from nnet_edge.files import write_atomically
from nnet_edge.settings.changes import Change, apply_changes, differences, read_changes, signed, unusable, write_changes
from nnet_edge.settings.line import LineSettings, line_settings, toml_of
from nnet_edge.settings.recipe import Recipe

if TYPE_CHECKING:
    from nnet_edge.events import Event
    from nnet_edge.runtime.stream.line import Line


log = logging.getLogger(__name__)

ADAPTED = ("adapt.done", "adapt.dropped", "recipe.changed")  # events of what is kept without anybody at the page


class LineChanges:
    """What differs from the settings that a line was written with; any thread may call any method once `follow` was called.

    `table` are these settings as TOML gives them, from `where`, with paths that start at `folder`; `flags` stand over them,
    see `line_settings`. `file` is the settings file, None for a line without one. Raises ConfigError for settings that are
    invalid and for a state file that cannot be used.
    """

    def __init__(self, path: Path, table: Mapping[str, Any], where: str, folder: Path,
                 flags: Mapping[str, Any] | None = None, file: Path | None = None) -> None:  # fmt: skip
        self.path, self.file = path, file
        self._where, self._folder, self._flags = where, folder, flags
        self._lock = threading.RLock()
        self._line: Line | None = None
        self._fault: str | None = None  # why the newest changes are not kept
        self._base = self._settings(table)
        self._file_hash = None if file is None else hash_of(file)
        self._changes = self._read = read_changes(path)
        self.settings = self._base  # that the line starts with
        if self._read:
            changed: dict[str, Any] = copy.deepcopy(dict(table))
            try:
                apply_changes(changed, self._read)
                self.settings = self._settings(changed)
            except ConfigError as error:
                raise unusable(path, str(error)) from error
            self._changes = signed(list(differences(self._base, self.settings)), self._read, utc_now(), "an option")

    def _settings(self, table: Mapping[str, Any]) -> LineSettings:
        return line_settings(table, self._where, self._folder, self._flags)

    def lines(self) -> list[str]:
        """What the state file changes, a line for each change."""
        used = {change.place: change for change in self._changes}
        found = []
        for change in self._read:
            if (now := used.get(change.place)) is None:
                found.append(
                    f"{self.path.name}: {change} is not used: {self._where} or an option says otherwise, or the same"
                )
            else:
                since = "" if now.was == change.was else f"; {self._where} was changed since"
                found.append(f"{self.path.name}: {replace(change, was=now.was)}{since}")
        return found

    def follow(self, line: Line) -> None:
        """Keep the changes of this line."""
        self._line = line
        line.events.subscribe(self._hear)
        if any(event.kind in ADAPTED for event in line.events.newest()):  # dropped when the streams were made
            self._keep_adapted()

    def _hear(self, event: Event) -> None:
        if event.kind in ADAPTED:
            self._keep_adapted(str(event.facts.get("by", "--adapt")))

    def _keep_adapted(self, by: str = "--adapt") -> None:
        try:
            self.keep(by)
        except StreamError as error:
            log.warning("%s", error)

    def as_dict(self) -> dict[str, object]:
        """What the page shows."""
        rows = [asdict(change) | {"text": str(change)} for change in self._changes]
        file = None if self.file is None else self.file.name
        return {"file": file, "state": self.path.name, "fault": self._fault, "rows": rows}

    def keep(self, by: str) -> None:
        """Keep what differs now; `by` changed it. Raises StreamError when it cannot be written."""
        with self._lock:
            known = self._changes
            self._changes = signed(list(differences(self._base, self._now())), known, utc_now(), by)
            if self._changes == known and self._fault is None:
                return
            try:
                write_changes(self.path, self._changes)
            except OSError as error:
                self._fault = f"it is done, and gone after a restart: {self.path} cannot be written ({error.strerror})"
                raise StreamError(self._fault) from error
            self._fault = None

    def forget(self, by: str) -> None:
        """Let the line judge as it was written, from the next frame on. Raises what `Line` raises."""
        with self._lock:
            line, base = self._followed(), self._base
            assert base.bundle is not None
            if base.recipe is not None:
                self._forget_recipes(line, base, by)
                return
            if self._now().bundle != base.bundle:
                line.swap(base.bundle)
            for change in [change for change in differences(base, self._now()) if change.key == "stream"]:
                line.remove(str(change.stream))
            there = {stream.name: stream for stream in self._now().streams}
            for stream in base.streams:
                if stream.name not in there:
                    line.add(stream)
                    continue
                if there[stream.name].bundle != stream.bundle:
                    line.swap(stream.bundle or base.bundle, stream.name)
                if there[stream.name].verdict != stream.verdict:
                    line.set_verdict(stream.name, stream.verdict)
            self.keep(by)

    def _forget_recipes(self, line: Line, base: LineSettings, by: str) -> None:
        """The same for a line with recipes."""
        assert base.recipe is not None
        for change in [change for change in differences(base, self._now()) if change.key == "stream"]:
            line.remove(str(change.stream))
        there = {status.name for status in line.streams()}
        for stream, plain in zip(base.under(base.recipe).streams, base.streams, strict=True):
            if stream.name not in there:
                line.add(stream, plain=plain)
        line.use_recipe(base.recipe, by, written=base.recipes)
        self.keep(by)

    def write(self, by: str) -> None:
        """Write what differs into the settings file, which keeps its comments. Raises ConfigError, StreamError."""
        with self._lock:
            if self.file is None:
                raise ConfigError("this line has no settings file: what was changed stays in its state file")
            if hash_of(self.file) != self._file_hash:
                raise ConfigError(
                    f"{self.file.name} was changed since the line was started: start the line again first"
                )
            self.keep(by)
            path = self.file.resolve()
            text = with_changes(path.read_bytes().decode("utf-8-sig"), self._changes, self.file.name)
            now = self._now()
            written = self._settings(toml_of(text.encode(), self.file))
            if left := list(differences(written, now)):
                what = f"{left[0].key} of {left[0].stream or 'the line'}"
                raise ConfigError(f"{self.file.name} would not say what the line does ({what}): write it by hand")
            try:
                write_atomically(path, text.encode(), path.stat().st_mode & 0o777)
            except OSError as error:
                raise StreamError(f"{self.file} cannot be written ({error.strerror}): it stays as it was") from error
            self._base, self._file_hash = written, hash_of(self.file)
            self.keep(by)

    def _now(self) -> LineSettings:
        """The settings that the line follows at this moment."""
        line, bundle = self._followed(), self._base.bundle
        if line.recipe is not None:
            plain = tuple(line.stream(status.name).plain for status in line.streams())
            recipes = tuple(self._as_written(recipe) for recipe in line.recipes_now())
            return replace(self._base, streams=plain, recipes=recipes, first_recipe=line.recipe)
        own = line.model().path
        if own is not None and not is_same(own, bundle):
            bundle = own
        streams = []
        for status in line.streams():
            path, wanted = line.model(status.name).path, status.settings.bundle
            if wanted is None or not is_same(path, wanted):
                wanted = None if is_same(path, own) else path
            streams.append(replace(status.settings, bundle=wanted))
        return replace(self._base, streams=tuple(streams), bundle=bundle)

    def _as_written(self, recipe: Recipe) -> Recipe:
        """The recipe with a bundle left out where the settings leave it out, and it is the same."""
        base = self._base.under(recipe.name)
        there = {stream.name: stream.bundle for stream in base.streams}

        def bundle_of(path: Path | None, wanted: Path | None) -> Path | None:
            return wanted if path is None or is_same(path, wanted) else path

        streams = tuple(
            replace(stream, bundle=bundle_of(stream.bundle, there.get(stream.name))) for stream in recipe.streams
        )
        return replace(recipe, bundle=bundle_of(recipe.bundle, base.bundle), streams=streams)

    def _followed(self) -> Line:
        if self._line is None:
            raise StreamError("the line is not made yet")
        return self._line


def with_changes(text: str, changes: Sequence[Change], where: str) -> str:
    """The TOML text with the changes made, everything else as it was. Raises ConfigError, MissingExtraError."""
    try:
        import tomlkit
    except ImportError as error:
        raise MissingExtraError("tomlkit is not installed: pip install 'nnet-edge[web]'") from error
    try:
        document = tomlkit.parse(text)
        apply_changes(document, changes)
        return tomlkit.dumps(document)
    except (tomlkit.exceptions.TOMLKitError, TypeError, ValueError) as error:
        raise ConfigError(f"{where} cannot be written to ({error}): write it by hand") from error


def state_path_of(file: Path) -> Path:
    """Where the state of a line lies: beside its settings file."""
    return file.parent / f"{file.stem}.state.json"


def is_same(path: Path | None, other: Path | None) -> bool:
    """Whether both are the same folder."""
    return path == other or (path is not None and other is not None and path.resolve() == other.resolve())


def hash_of(path: Path) -> str | None:
    """What tells the content of the file from any other; None when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None


def utc_now() -> str:
    """This moment, UTC, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
