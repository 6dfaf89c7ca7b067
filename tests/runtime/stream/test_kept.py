"""What people change while a line runs outlives a restart, is shown, written to the file or forgotten; never half."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.errors import ConfigError, NnetEdgeError, StreamError
from nnet_edge.runtime.stream.kept import LineChanges, state_path_of
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.settings.line import LineSettings, line_settings, read_toml
from nnet_edge.settings.reader import build, to_table
from nnet_edge.settings.stream import LineStream

TRIANGLE = ((1.0, 2.0), (30.0, 2.0), (1.0, 40.0))
FILE = """# the line of hall 3
bundle = "first"  # trained in May

[[stream]]
name = "left"  # by the door
camera.address = "synthetic"
verdict.threshold = 0.7  # Anna, 3 May
verdict.ignored = [[[0, 0], [9, 0], [0, 9]]]

[[stream]]
name = "right"
camera.address = "synthetic:9"
camera.seed = 4

[[sink]]
kind = "json-lines"
path = "verdicts.jsonl"

[web]
port = 0
"""


class Site:
    """A settings file in a folder, and the line that it makes, which nobody runs."""

    def __init__(self, folder: Path, make_runner: Callable[..., Any]) -> None:
        self.file, self._make_runner = folder / "line.toml", make_runner
        self.file.write_text(FILE)
        self.state = state_path_of(self.file)

    def start(self, **flags: Any) -> tuple[LineChanges, Line]:
        kept = LineChanges(self.state, read_toml(self.file), "line.toml", self.file.parent, flags, self.file)
        assert kept.settings.bundle is not None
        line = Line(self._load(kept.settings.bundle), load=self._load, keep_open=True)
        for stream in kept.settings.streams:
            line.add(stream)
        kept.follow(line)
        return kept, line

    def _load(self, path: Path) -> Model:
        return Model(path.name, path, self._make_runner(), 0.5 if path.name == "first" else 1.0)

    def written(self) -> LineSettings:
        return line_settings(read_toml(self.file), "line.toml", self.file.parent)


@pytest.fixture
def site(tmp_path: Path, make_runner: Callable[..., Any]) -> Site:
    return Site(tmp_path, make_runner)


def change_everything(line: Line, folder: Path) -> None:
    """All that the page can change."""
    line.set_threshold("left", 0.9)
    line.set_ignored("left", ())
    line.set_regions_of_interest("left", [TRIANGLE])
    line.remove("right")
    table = {"name": "new", "camera": {"address": "synthetic:5", "rate_hz": 3.0}, "lane": {"policy": "paced:5"}}
    line.add(build(LineStream, table, "the stream", Path()))
    line.set_threshold("new", 0.6)
    line.swap(folder / "second")  # with twice the threshold: 0.9 becomes 1.8


def verdicts_of(line: Line) -> dict[str, tuple[Any, ...]]:
    """What each stream of the line judges by."""
    return {
        status.name: (status.threshold, status.settings.camera, status.settings.buffer, status.settings.verdict)
        for status in line.streams()
    }


def test_what_was_changed_holds_after_a_restart(site: Site, tmp_path: Path) -> None:
    kept, line = site.start()
    assert kept.lines() == []
    kept.keep("nobody")
    assert not site.state.exists()  # nothing differs
    change_everything(line, tmp_path)
    kept.keep("page at 10.0.0.7")
    again, started = site.start()
    assert verdicts_of(started) == verdicts_of(line)
    assert started.streams()[0].threshold == pytest.approx(1.8)
    assert started.model().path == line.model().path == tmp_path / "second"
    assert [stream.name for stream in started.streams()] == ["left", "new"]
    said = "\n".join(again.lines())
    assert "left: threshold 1.8 instead of 0.7 (20" in said
    assert "page at 10.0.0.7" in said
    assert "right: was removed" in said
    assert again.as_dict() == kept.as_dict()
    content = json.loads(site.state.read_text())
    assert content["schema"] == 1
    assert {change["key"] for change in content["changes"]} == {
        "threshold", "ignored", "regions_of_interest", "removed", "stream", "bundle"}  # fmt: skip


def test_a_change_keeps_its_time_and_name_and_one_that_is_undone_goes(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, line = site.start()
    for number, (name, value) in enumerate((("left", 0.9), ("right", 0.8), ("left", 0.7))):
        monkeypatch.setattr("nnet_edge.runtime.stream.kept.utc_now", lambda number=number: f"time {number}")
        line.set_threshold(name, value)
        kept.keep(f"person {number}")
    (row,) = json.loads(site.state.read_text())["changes"]
    assert (row["stream"], row["at"], row["by"], row["value"], row["was"]) == ("right", "time 1", "person 1", 0.8, None)
    line.set_threshold("right", None)
    kept.keep("person 3")
    assert not site.state.exists()


def test_changes_are_written_to_the_file_which_keeps_its_comments(site: Site, tmp_path: Path) -> None:
    kept, line = site.start()
    change_everything(line, tmp_path)
    site.file.chmod(0o600)
    kept.write("page")
    text = site.file.read_text()
    for comment in ("# the line of hall 3", "# trained in May", "# by the door", "# Anna, 3 May"):
        assert comment in text
    assert kept.as_dict()["rows"] == []
    assert not site.state.exists()
    assert site.file.stat().st_mode & 0o777 == 0o600
    _, started = site.start()
    assert verdicts_of(started) == verdicts_of(line)
    assert site.written().sinks == kept.settings.sinks
    line.set_threshold("left", 2.5)  # the next change differs from the file as it is now
    kept.keep("page")
    assert [row["key"] for row in json.loads(site.state.read_text())["changes"]] == ["threshold"]


def test_changes_are_forgotten_at_once(site: Site, tmp_path: Path) -> None:
    kept, line = site.start()
    before = verdicts_of(line)
    change_everything(line, tmp_path)
    kept.keep("page")
    kept.forget("page")
    assert {name: verdicts_of(line)[name] for name in before} == before
    assert sorted(verdicts_of(line)) == ["left", "right"]
    assert line.model().path == tmp_path / "first"
    assert not site.state.exists()


def test_a_file_that_was_changed_meanwhile_is_not_written_to(site: Site) -> None:
    kept, line = site.start()
    line.set_threshold("left", 0.9)
    site.file.write_text(FILE.replace("hall 3", "hall 4"))
    with pytest.raises(ConfigError, match="was changed since the line was started: start the line again first"):
        kept.write("page")
    assert "hall 4" in site.file.read_text()


def test_an_option_stands_over_file_and_state(site: Site) -> None:
    kept, line = site.start()
    line.set_threshold("left", 0.9)
    kept.keep("page")
    again, started = site.start(threshold=0.3)
    assert {status.threshold for status in started.streams()} == {0.3}
    assert "is not used: line.toml or an option says otherwise" in again.lines()[0]
    started.set_threshold("right", 0.4)
    with pytest.raises(ConfigError, match="would not say what the line does"):
        again.write("page")  # with --threshold it would be another one at the next start
    assert site.file.read_text() == FILE


def test_a_file_that_was_changed_under_a_change_is_said(site: Site) -> None:
    kept, line = site.start()
    line.set_threshold("left", 0.9)
    kept.keep("page")
    site.file.write_text(FILE.replace("0.7", "0.6"))
    again, started = site.start()
    assert started.streams()[0].threshold == 0.9
    assert "threshold 0.9 instead of 0.6" in again.lines()[0]
    assert "line.toml was changed since" in again.lines()[0]


CHANGE = {"stream": "left", "key": "threshold", "value": 0.9, "was": None, "at": "", "by": ""}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no JSON"),
        (b'{"schema": 1, "changes": [', "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"x" * (1 << 20) + b"x", "more than"),
        (b"[]", "its schema is None"),
        (b'{"schema": 2, "changes": []}', "its schema is 2"),
        (b'{"schema": 1}', "no list of changes"),
        (b'{"schema": 1, "changes": [7]}', "damaged"),
        (json.dumps({"schema": 1, "changes": [{"stream": "left"}]}).encode(), "other keys"),
        (json.dumps({"schema": 1, "changes": [CHANGE | {"key": "min_area"}]}).encode(), "changes 'min_area' of 'left'"),
        (json.dumps({"schema": 1, "changes": [CHANGE | {"by": 7}]}).encode(), "damaged"),
        (json.dumps({"schema": 1, "changes": [CHANGE | {"stream": "gone"}]}).encode(), "no stream 'gone' any more"),
        (json.dumps({"schema": 1, "changes": [CHANGE | {"value": -1}]}).encode(), "threshold"),
        (json.dumps({"schema": 1, "changes": [CHANGE | {"value": "high"}]}).encode(), "must be a number"),
        (json.dumps({"schema": 1, "changes": [CHANGE | {"key": "stream", "value": 7}]}).encode(), "must be a table"),
    ],
)
def test_no_line_is_started_with_a_state_file_that_is_damaged(site: Site, content: bytes, says: str) -> None:
    site.state.write_bytes(content)
    with pytest.raises(ConfigError, match=r"line\.state\.json cannot be used") as caught:
        site.start()
    assert says in str(caught.value)
    assert f"rm '{site.state}'" in str(caught.value)
    assert site.state.read_bytes() == content


def test_a_state_that_cannot_be_written_is_told_and_tried_again(site: Site, tmp_path: Path) -> None:
    kept, line = site.start()
    kept.path = tmp_path / "line.toml" / "state.json"  # below a file: nobody can write there
    line.set_threshold("left", 0.9)
    with pytest.raises(StreamError, match="it is done, and gone after a restart"):
        kept.keep("page")
    assert "gone after a restart" in str(kept.as_dict()["fault"])
    kept.path = site.state
    kept.keep("page")
    assert kept.as_dict()["fault"] is None
    assert site.state.exists()


def test_a_line_without_a_file_has_nothing_to_write_to(tmp_path: Path, make_runner: Callable[..., Any]) -> None:
    table = {"bundle": "part", "stream": [{"name": "a", "camera": {"address": "synthetic"}}]}
    kept = LineChanges(tmp_path / "state.json", table, "the command line", tmp_path)
    with pytest.raises(NnetEdgeError, match="this line has no settings file"):
        kept.write("page")


def test_settings_become_the_table_that_they_were_made_of() -> None:
    table = {
        "name": "new",
        "camera": {"address": "rtsp://a/1", "rate_hz": 3.0, "transport": "udp", "credentials": "env:LOGIN"},
        "lane": {"policy": "paced:5", "capacity": 3},
        "verdict": {"threshold": 0.5, "ignored": [[[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]], "smoothing": {"n": 2, "m": 3},
                    "crops": [{"name": "a", "x": 1, "y": 2, "width": 3, "height": 4}]},
        "bundle": "/b",
    }  # fmt: skip
    stream = build(LineStream, table, "the stream", Path("/"))
    assert to_table(stream) == table
