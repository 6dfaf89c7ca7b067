"""`nnet-edge stream SOURCE`: a live source comes back for ever, and a dead sink costs its own verdicts only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.bundle import Bundle
from nnet_edge.cli.main import run
from nnet_edge.cli.stream import command, settings_of_flags
from nnet_edge.errors import ConfigError
from nnet_edge.files import sha256
from nnet_edge.runtime.sinks.base import Message, MessageSink, RefusedError
from nnet_edge.runtime.sinks.json_lines import JsonLinesSink
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.stream.running import open_line
from nnet_edge.settings.line import LineSettings, line_settings, schema
from nnet_edge.settings.registry import SINKS, SOURCES, Flag, SinkKind, SourceKind
from nnet_edge.settings.sink import SinkSettings

LIMIT_S = 60.0


def settings_of(*words: str, bundle: str = "part") -> LineSettings:
    """The line that the words of a command line ask for."""
    options = dict(command.make_context("stream", [*words, "--bundle", bundle]).params)
    sources = options.pop("sources")
    options.pop("config")
    return settings_of_flags(sources, options)[0]


@pytest.mark.parametrize(
    ("words", "waits", "queue"),
    [
        (["synthetic:3"], True, 0),  # one source of files: the line writes, and a fault ends it
        (["synthetic:3", "synthetic:4"], True, 256),
        (["synthetic:3", "synthetic"], False, 256),
        (["synthetic", "--when-full", "wait"], True, 256),
    ],
)
def test_only_files_wait_for_a_sink(tmp_path: Path, words: list[str], waits: bool, queue: int) -> None:
    (sink,) = settings_of(*words, "--rejects", str(tmp_path)).sinks
    assert sink.every_frame is waits
    assert sink.queue == queue


def test_where_standard_output_goes_to_ends_the_program_when_it_closes() -> None:
    for path, is_strict in (("-", True), ("x", False)):
        (sink,) = settings_of("synthetic", "--json", path).sinks
        assert sink.is_strict is is_strict


@pytest.mark.parametrize(("sources", "is_warm"), [(["synthetic:3"], False), (["synthetic:3", "synthetic:4"], True)])
def test_one_stream_alone_starts_before_its_runner_is_warm(bundle: Bundle, sources: list[str], is_warm: bool) -> None:
    line = open_line(settings_of(*sources, bundle=str(bundle.path)))
    model = line.model()
    with model.runner:
        assert (model.batch_s is not None) is is_warm


def test_spools_lie_where_version_0_1_left_them(tmp_path: Path) -> None:
    words = ["synthetic", "--json", "a.jsonl", "--rejects", "r", "--must-deliver", str(tmp_path)]
    found = {sink.kind: sink.must_deliver for sink in settings_of(*words).sinks}
    assert found == {"json-lines": tmp_path / "json-lines", "rejects": tmp_path / "pictures"}
    with pytest.raises(ConfigError, match="a video cannot be made to deliver later"):
        settings_of(*words, "--video", "a.mp4")


@pytest.mark.parametrize("sources", [("synthetic:3",), ("left=synthetic:3", "right=synthetic:3")])
def test_a_second_start_destroys_nothing_of_the_first(
    bundle: Bundle, tmp_path: Path, sources: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """The README's own command, twice."""
    words = ["--json", tmp_path / "verdicts.jsonl", "--rejects", tmp_path / "rejects", "--video", tmp_path / "line.avi"]
    for _ in range(2):
        assert run(["stream", *sources, "--bundle", str(bundle.path), "--threshold", "1e-9", *map(str, words)]) == 0
    frames = 2 * 3 * len(sources)
    ids = [json.loads(line)["id"] for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert len(set(ids)) == frames
    assert len(list((tmp_path / "rejects").rglob("*.jpg"))) == frames
    videos = list(tmp_path.glob("*.avi"))
    assert len(videos) == 2 * len(sources)
    said = capsys.readouterr().err
    assert all(f"wrote {video}" in said for video in videos)


def test_events_have_a_file_of_their_own(tmp_path: Path, bundle: Bundle) -> None:
    log, events = tmp_path / "verdicts.jsonl", tmp_path / "what.jsonl"
    words = ["stream", "synthetic:3", "--bundle", str(bundle.path), "--json", str(log)]
    assert run(words) == 0
    assert os.listdir(tmp_path) == [log.name]  # a folder of pictures has no events worth a file
    assert run([*words, "--events", str(events)]) == 0
    assert len(log.read_text().splitlines()) == 6
    assert "source.ended" in [json.loads(line)["event"] for line in events.read_text().splitlines()]
    with pytest.raises(ConfigError, match="--events belongs to --json: give that too"):
        settings_of("synthetic:3", "--events", str(events))


def test_verdicts_name_bundle_precision_and_runner(tmp_path: Path, bundle: Bundle) -> None:
    log = tmp_path / "verdicts.jsonl"
    assert (
        run(["stream", "synthetic:3", "--bundle", str(bundle.path), "--json", str(log), "--runner", "onnxruntime"]) == 0
    )
    for line in map(json.loads, log.read_text().splitlines()):
        shared = {name: line[name] for name in ("bundle", "bundle_id", "precision", "runner", "schema")}
        named = {"bundle": bundle.name, "bundle_id": sha256(bundle.graph)[:12], "precision": "fp32"}
        assert shared == {**named, "runner": "onnxruntime", "schema": 1}


def test_a_picture_is_kept_before_the_line_that_refers_to_it(tmp_path: Path, bundle: Bundle) -> None:
    kinds = {"json-lines": "path", "rejects": "folder", "webhook": "url"}
    places = {"json-lines": str(tmp_path / "a.jsonl"), "rejects": str(tmp_path / "r"), "webhook": "http://127.0.0.1:9/"}
    sinks = [{"kind": kind, key: places[kind], "must_deliver": str(tmp_path / kind)} for kind, key in kinds.items()]
    table = {"bundle": str(bundle.path), "stream": [{"name": "a", "camera": {"address": "synthetic:3"}}], "sink": sinks}
    line = open_line(line_settings(table, "line.toml", Path()))
    assert [sink.name for sink in line.sinks] == ["rejects", "json-lines", "webhook"]
    with line.model().runner:
        pass


@pytest.fixture
def line_of(tmp_path: Path, bundle: Bundle) -> Callable[..., Path]:
    """A function that writes a settings file of streams (name -> TOML value of the camera's address) and more lines."""

    def write(streams: dict[str, str], more: str = "") -> Path:
        head = f"bundle = {json.dumps(str(bundle.path))}\n"
        tables = [f"[[stream]]\nname = '{name}'\ncamera.address = '{address}'\n" for name, address in streams.items()]
        path = tmp_path / "line.toml"
        path.write_text(head + "".join(tables) + more)
        return path

    return write


def test_the_exit_code_tells_of_a_stream_that_failed(
    line_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no.mp4").write_bytes(b"no video")
    assert run(["stream", "--config", str(line_of({"left": "synthetic:2"}))]) == 0
    for streams in ({"left": "no.mp4"}, {"left": "no.mp4", "right": "synthetic:2"}):
        assert run(["stream", "--config", str(line_of(streams))]) == 1
        assert "no.mp4" in capsys.readouterr().err.splitlines()[-1]


def test_the_exit_code_tells_of_a_verdict_that_must_be_delivered_and_was_not(
    line_of: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Two live cameras would go on; two of files end, with the line's own sentence."""
    sink = "[[sink]]\nkind = 'json-lines'\npath = 'a.jsonl'\nmust_deliver = 'spool'\nspool_bytes = 65536\n"
    path = line_of({"left": "synthetic:2", "right": "synthetic:2"}, sink)
    with SinkLoss() as loss:
        assert run(["stream", "--config", str(path)]) == 1
    assert loss.count == 1
    assert "the sink json-lines lost 1 verdicts and events: 1 refused" in capsys.readouterr().err.splitlines()[-1]


class SinkLoss:
    """One message of the JSON lines sink is refused while the block runs."""

    def __init__(self) -> None:
        self.count = 0
        self._send = JsonLinesSink.send

    def __enter__(self) -> SinkLoss:
        def send(sink: JsonLinesSink, messages: Sequence[Message]) -> int:
            if not self.count:
                self.count = 1
                raise RefusedError("not this one")
            return self._send(sink, messages)

        JsonLinesSink.send = send  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        JsonLinesSink.send = self._send  # type: ignore[method-assign]


@pytest.mark.parametrize("how", ["full", "closed"])
def test_standard_error_that_takes_nothing_ends_no_line(tmp_path: Path, bundle: Bundle, how: str) -> None:
    log = tmp_path / "a.jsonl"
    command = [
        sys.executable,
        "-m",
        "nnet_edge.cli.main",
        "stream",
        "synthetic:3",
        "--bundle",
        str(bundle.path),
        "--json",
        str(log),
    ]
    script = f"import sys; sys.argv = {command[2:]!r}; from nnet_edge.cli.main import main; main()"
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full" if how == "full" else writer, "wb") as errors:
        subprocess.run([sys.executable, "-c", script], stderr=errors, timeout=LIMIT_S, check=False)
    assert len(log.read_text().splitlines()) == 3


def test_a_line_starts_with_what_its_page_changed_or_not_at_all(
    line_of: Callable[..., Path], tmp_path: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same of a settings file and of typed sources with --state."""
    log, state = tmp_path / "a.jsonl", tmp_path / "line.state.json"
    config = line_of({"left": "synthetic:2"}, f"[[sink]]\nkind = 'json-lines'\npath = '{log}'\nevery_frame = true\n")
    typed = ["left=synthetic:2", "--bundle", str(bundle.path), "--json", str(log), "--state", str(state)]
    common = {"was": None, "at": "2026-11-29T01:30:00Z", "by": "page at 10.0.0.7"}
    drawn = {"name": "new", "camera": {"address": "synthetic:3"}}
    changes = [
        {"stream": "left", "key": "threshold", "value": 0.125},
        {"stream": "new", "key": "stream", "value": drawn},
    ]
    state.write_text(json.dumps({"schema": 1, "changes": [change | common for change in changes]}))
    for number, words in enumerate((["--config", str(config)], typed), 1):
        assert run(["stream", *words]) == 0
        said = capsys.readouterr().err
        assert (
            "line.state.json: left: threshold 0.125 instead of the default (2026-11-29T01:30:00Z, page at 10.0.0.7)"
            in said
        )
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert sorted(line["stream"] for line in lines) == ["left"] * 2 * number + ["new"] * 3 * number
        assert {line["threshold"] for line in lines if line["stream"] == "left"} == {0.125}
    assert run(["config", "check", "--without-bundle", str(config)]) == 0
    assert "left: threshold 0.125 instead of the default" in capsys.readouterr().out
    state.write_text("{")
    for words in (["stream", "--config", str(config)], ["stream", *typed], ["config", "check", str(config)]):
        assert run(words) == 2
        assert f"rm '{state}'" in capsys.readouterr().err


def test_config_check_reads_the_mask_pictures(
    line_of: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, size in (("a.png", (20, 30)), ("b.png", (20, 40)), ("none.png", (20, 30))):
        cv2.imwrite(str(tmp_path / name), np.full(size, 0 if name == "none.png" else 255, np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    check = ["config", "check", "--without-bundle"]
    sizes = "camera.width = 30\ncamera.height = 20\n"
    for lines, said in (
        ("verdict.interest_picture = 'absent.png'", "absent.png: no such file"),
        ("verdict.ignored_picture = 'text.png'", "text.png: it is not a PNG"),
        ("verdict.interest_picture = 'a.png'\nverdict.ignored_picture = 'b.png'", "differ in size"),
        (f"{sizes}verdict.interest_picture = 'b.png'", "b.png has 40x20 pixels and the camera gives 30x20"),
        ("verdict.interest_picture = 'none.png'", "the regions leave nothing of the picture (30x20 pixels) to inspect"),
    ):
        assert run([*check, str(line_of({"left": "synthetic"}, lines))]) == 2
        assert "line.toml: [[stream]] 'left': verdict: " in (found := capsys.readouterr().err)
        assert said in found
    assert run([*check, str(line_of({"left": "synthetic"}, f"{sizes}verdict.interest_picture = 'a.png'"))]) == 0


def test_credentials_are_for_network_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGIN", "me:secret")
    settings = settings_of("left=rtsp://camera/1", "right=0", "--credentials", "env:LOGIN")
    assert [stream.camera.credentials for stream in settings.streams] == ["env:LOGIN", None]


def test_a_single_source_gives_its_own_name_and_several_are_numbered_or_named() -> None:
    assert [stream.name for stream in settings_of("synthetic:3").streams] == ["synthetic"]
    assert [stream.name for stream in settings_of("left=synthetic:3").streams] == ["left"]
    named = settings_of("synthetic:3", "left=synthetic:3").streams
    assert [stream.name for stream in named] == ["camera-0", "left"]
    assert [stream.camera.options.get("seed", 0) for stream in named] == [0, 1]  # drawn cameras differ


def test_flags_and_a_settings_file_make_the_same_settings(tmp_path: Path) -> None:
    words = ["left=synthetic", "right=synthetic:9", "--threshold", "0.7", "--min-area", "5", "--buffer", "3",
             "--when-full", "drop-oldest", "--precision", "int8", "--runner", "openvino", "--page", "8081"]  # fmt: skip
    verdict = {"min_area": 5, "threshold": 0.7}
    lane = {"policy": "freshest", "capacity": 3}
    table = {
        "bundle": str(Path("part").absolute()),
        "precision": "int8",
        "runner": {"kind": "openvino", "max_batch": 8},
        "stream": [
            {"name": "left", "camera": {"address": "synthetic", "seed": 0}, "verdict": verdict, "lane": lane},
            {"name": "right", "camera": {"address": "synthetic:9", "seed": 1}, "verdict": verdict, "lane": lane},
        ],
        "web": {"port": 8081},
    }
    assert settings_of(*words) == line_settings(table, "line.toml", Path())


@dataclass(frozen=True)
class PostcardSettings(SinkSettings):
    """Verdicts by post."""

    kind = "postcard"
    town: str = field(default="", metadata={"needed": True})


class PostcardSink(MessageSink):
    """Writes no card."""

    name = "postcard"

    def __init__(self, settings: PostcardSettings) -> None:
        self.town = settings.town

    def to_message(self, prediction):  # type: ignore[no-untyped-def]
        raise AssertionError

    def send(self, messages):  # type: ignore[no-untyped-def]
        raise AssertionError


class MoonSource(Source):
    """A camera on the moon."""

    is_live = True

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(())

    def describe(self) -> str:
        return "the moon"


@dataclass(frozen=True)
class MoonOptions:
    """What only a camera on the moon is asked."""

    crater: str = "Tycho"


@pytest.fixture
def _more_kinds() -> Iterator[None]:
    """A sink and a source that are registered by this test alone."""
    to_town = Flag("--postcard", "Send cards to this town.", lambda town, asked: {"town": town}, "text", "TOWN")
    SINKS.register(SinkKind("postcard", PostcardSettings, PostcardSink, to_town))
    crater = Flag("--crater", "The camera's crater.", lambda name, asked: {"crater": name}, "text")
    SOURCES.register(
        SourceKind(
            "moon",
            "a moon: address",
            lambda text: text.startswith("moon:"),
            lambda camera, options: MoonSource(options.crater),
            MoonOptions,
            flags=(crater,),
        )
    )
    yield
    SINKS.unregister("postcard")
    SOURCES.unregister("moon")


@pytest.mark.usefixtures("_more_kinds")
def test_a_new_kind_of_sink_and_source_is_one_file(capsys: pytest.CaptureFixture[str]) -> None:
    settings = settings_of("moon:1", "--postcard", "Ulm", "--crater", "Plato")
    assert isinstance(settings.sinks[0], PostcardSettings)
    assert settings.sinks[0].town == "Ulm"
    assert settings.streams[0].name == "Plato"
    table = {"bundle": "part", "stream": [{"name": "a", "camera": {"address": "moon:1", "crater": "Plato"}}],
             "sink": [{"kind": "postcard", "town": "Ulm"}]}  # fmt: skip
    read = line_settings(table, "line.toml", Path())
    assert read.sinks == (PostcardSettings(town="Ulm"),)
    assert dict(read.streams[0].camera.options) == {"crater": "Plato"}
    written = json.dumps(schema())
    assert '"postcard"' in written
    assert '"crater"' in written
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "--postcard TOWN" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"\[\[sink\]\] number 1 lacks town: give it"):
        line_settings(table | {"sink": [{"kind": "postcard"}]}, "line.toml", Path())
    with pytest.raises(ConfigError, match="did you mean postcard"):
        line_settings(table | {"sink": [{"kind": "postcart"}]}, "line.toml", Path())
    with pytest.raises(ConfigError, match="crater belongs to a moon: address"):
        line_settings(table | {"stream": [{"name": "a", "camera": {"address": "0", "crater": "x"}}]}, "f", Path())


def write_pictures(pipe: Path, values: range) -> None:
    """Write a grey JPEG of each value into the pipe, as a camera's program would, and end."""
    with pipe.open("wb") as file:
        for value in values:
            picture = np.full((48, 64, 3), value, np.uint8)
            file.write(cv2.imencode(".jpg", picture)[1].tobytes())
            file.flush()
            time.sleep(0.05)


def until(is_so: Callable[[], object], process: subprocess.Popen[str]) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not is_so():
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.05)


@contextmanager
def judging(command: list[str], said: Path) -> Iterator[subprocess.Popen[str]]:
    """The command as long as the block takes, then SIGTERM, which it obeys with code 0; what it says goes into `said`."""
    with said.open("w") as errors, subprocess.Popen(command, stderr=errors, text=True) as process:
        try:
            yield process
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()


@pytest.mark.slow
def test_a_single_camera_comes_back_and_a_full_disk_does_not_end_it(trained_run: Path, tmp_path: Path) -> None:
    """The two-command start of the README; the camera's program ends and starts again, with a log, and with a full disk."""
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    pipe, lines = tmp_path / "camera.mjpeg", tmp_path / "verdicts.jsonl"
    os.mkfifo(pipe)
    command = [str(Path(sys.executable).with_name("nnet-edge")), "stream", str(pipe), "--json"]
    rest = ["--bundle", str(trained_run / "bundle"), "--threads", "1"]

    def said() -> str:
        return (tmp_path / "said").read_text()

    def indices() -> list[int]:
        whole = lines.read_text().split("\n")[:-1] if lines.exists() else []
        return [json.loads(line)["index"] for line in whole]

    with judging([*command, str(lines), *rest], tmp_path / "said") as process:
        write_pictures(pipe, range(60, 66))
        until(lambda: indices() and "is lost, and tried until it is back" in said(), process)
        write_pictures(pipe, range(100, 106))
        until(lambda: max(indices()) >= 6, process)  # of the second six
    assert "gives frames again" in said()
    assert indices() == sorted(set(indices()))
    with judging([*command, "/dev/full", *rest], tmp_path / "said") as process:
        write_pictures(pipe, range(60, 66))
        until(lambda: "is lost" in said(), process)
        write_pictures(pipe, range(60, 66))  # the line goes on, though its log takes nothing
        until(lambda: "gives frames again" in said(), process)
    assert "No space left on device" in said()
    assert "the sink json-lines lost" in said()
