"""`nnet-edge stream --teach`: a line without a bundle, which keeps everything in one folder."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from nnet_edge.cli.main import run
from nnet_edge.runtime.history.queries import History, Window

LIMIT_S = 60.0


def test_a_line_that_is_not_taught_is_a_settings_file_like_any(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "line.toml"
    file.write_text(
        'bundle = "part/untaught"\n[web]\nteach_folder = "part"\n[[stream]]\nname = "left"\ncamera.address = "synthetic"\n'
    )
    assert run(["config", "check", str(file)]) == 0
    said = capsys.readouterr()
    assert "no bundle yet: the line rejects every part" in said.out + said.err


def test_teaching_needs_no_bundle_and_a_settings_file_says_it_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["stream", "synthetic"]) == 2
    assert "or --teach FOLDER" in capsys.readouterr().err
    (tmp_path / "line.toml").write_text('bundle = "b"\n')
    assert run(["stream", "--config", str(tmp_path / "line.toml"), "--teach", str(tmp_path)]) == 2
    assert "--teach belongs to a single source" in capsys.readouterr().err


@pytest.mark.slow
def test_a_bare_camera_has_a_page_to_teach_on(tmp_path: Path, free_port: Callable[[], int]) -> None:
    folder, port = tmp_path / "part", free_port()
    program = str(Path(sys.executable).with_name("nnet-edge"))
    command = [program, "stream", "synthetic", "--teach", str(folder), "--page", str(port)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            end_s, state = time.monotonic() + LIMIT_S, None
            while state is None or not state["streams"][0]["verdicts"]:
                assert time.monotonic() < end_s
                time.sleep(0.2)
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/state", timeout=10) as answer:
                        state = json.load(answer)
                except OSError:
                    continue
            assert state["bundle"]["runner"] == "untaught"
            assert state["streams"][0]["rejected"] == state["streams"][0]["verdicts"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/teach", timeout=10) as answer:
                assert json.load(answer)["is_possible"]
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
    assert process.returncode == 0
    with History(folder / "history.db") as history:
        shift = history.shift(Window(0))
        assert shift["rejects"] == shift["verdicts"] > 0
        assert not any(history.picture_kinds(one.id) for one in history.verdicts(Window(0)))
