"""`nnet-edge stream SOURCE`: a live source comes back for ever, and a dead sink costs its own verdicts only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.cli.stream import sinks_asked, to_camera
from nnet_edge.runtime.sources.open import open_source

LIMIT_S = 60.0
OPTIONS: dict[str, Any] = {"must_deliver": None, "when_full": None, "json_path": Path("x"), "skip_bad_images": False,
                           "credentials": None}  # fmt: skip


@pytest.mark.parametrize(
    ("sources", "when_full", "waits"),
    [
        (["synthetic:3", "synthetic:4"], None, True),
        (["synthetic:3", "synthetic"], None, False),
        (["synthetic"], "wait", True),
    ],
)
def test_only_files_wait_for_a_sink(tmp_path: Path, sources: list[str], when_full: str | None, waits: bool) -> None:
    opened = [open_source(text) for text in sources]
    (sink,) = sinks_asked(opened, OPTIONS | {"when_full": when_full, "json_path": None, "rejects": tmp_path})
    assert sink.every_frame is waits
    assert sink.queue > 0


def test_where_standard_output_goes_to_ends_the_program_when_it_closes() -> None:
    for path, is_strict in (("-", True), ("x", False)):
        (sink,) = sinks_asked([open_source("synthetic")], OPTIONS | {"json_path": Path(path)})
        assert sink.is_strict is is_strict


def test_credentials_are_for_network_addresses() -> None:
    options = OPTIONS | {"credentials": "env:LOGIN"}
    assert to_camera("rtsp://camera/1", "left", options).credentials == "env:LOGIN"
    assert to_camera("0", "left", options).credentials is None


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
