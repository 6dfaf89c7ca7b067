"""A line of four cameras under more load than it can judge gets SIGTERM, or kill -9: every frame is accounted for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LINE = """
import json, sys
from pathlib import Path
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.sinks import JsonLinesSettings, RejectsSettings, serve
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.running import run_line, stopping_on_signals
from nnet_edge.runtime.stream.model import Model
from nnet_edge.settings.stream import CameraSettings, LineStream

folder = Path(sys.argv[2])
log = JsonLinesSettings(
    path=folder / "verdicts.jsonl", must_deliver=folder / "spool", fsync_every_s=None, events=False
)
rejects = RejectsSettings(folder=folder / "rejects", pictures=("overlay",), budget_bytes=None, queue=8)
sinks = [serve(log), serve(rejects)]
line = Line(Model("distance", None, load_runner(Path(sys.argv[1])), 0.2), sinks)
for number in range(4):
    line.add(LineStream(f"cam{number}", CameraSettings("synthetic", rate_hz=200.0)))
with stopping_on_signals() as stop:
    report = run_line(line, stop)
counts = {d.name: {"offered": d.counts().offered, "recovered": d.counts().recovered, "delivered": d.counts().delivered,
    "dropped": dict(d.counts().dropped), "spooled": d.counts().spooled, "is_balanced": d.counts().is_balanced}
    for d in sinks}
print(json.dumps({**report.as_dict(), "is_balanced": report.total.is_balanced, "sinks": counts}))
"""


def ids(path: Path) -> list[str]:
    """The ids in a log; fails for a line that is not whole."""
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


def line_until(graph: Path, folder: Path, number: signal.Signals, lines: int) -> tuple[dict[str, Any], int, float]:
    """What a line said that was given a signal after so many lines of its log, its status, and how long its end took."""
    path = folder / "verdicts.jsonl"
    wanted = lines + (len(ids(path)) if path.exists() else 0)
    with subprocess.Popen([sys.executable, "-c", LINE, str(graph), str(folder)], stdout=subprocess.PIPE) as process:
        end_s = time.monotonic() + 60
        while not path.exists() or path.read_bytes().count(b"\n") < wanted:
            assert process.poll() is None
            assert time.monotonic() < end_s
            time.sleep(0.01)
        sent_s = time.monotonic()
        process.send_signal(number)
        output, _ = process.communicate(timeout=30)
    return json.loads(output) if output else {}, process.returncode, time.monotonic() - sent_s


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGTERM")
def test_sigterm_under_load_and_kill_9_account_for_every_frame(
    graph: Path, tmp_path: Path, note_fault: Callable[..., None]
) -> None:
    path = tmp_path / "verdicts.jsonl"
    said, status, end_s = line_until(graph, tmp_path, signal.SIGTERM, 100)
    assert (status, said["ended"], said["is_balanced"], said["queued"]) == (0, "stopped", True, 0)
    assert said["captured"] == said["judged"] + sum(said["drops"].values())
    assert end_s < 15
    note_fault("SIGTERM under load", said["captured"], said["judged"], said["drops"], f"ended after {end_s:.1f} s")
    found = ids(path)
    assert len(found) == len(set(found)) == said["judged"]
    log, pictures = said["sinks"]["json-lines"], said["sinks"]["rejects"]
    assert (log["offered"], log["delivered"], log["dropped"], log["spooled"]) == (said["judged"],) * 2 + ({}, 0)
    assert pictures["is_balanced"]
    assert pictures["delivered"] == len(list((tmp_path / "rejects").rglob("*.jpg"))) > 0

    _, status, _ = line_until(graph, tmp_path, signal.SIGKILL, 50)
    assert status == -signal.SIGKILL
    said, status, _ = line_until(graph, tmp_path, signal.SIGTERM, 20)  # finds the spool and the log that the kill left
    assert status == 0
    log = said["sinks"]["json-lines"]
    assert log["is_balanced"]
    assert (log["delivered"], log["spooled"]) == (log["offered"] + log["recovered"], 0)
    after = ids(path)
    assert after[: len(found)] == found
    unique = list(dict.fromkeys(after))
    by_run_and_stream: dict[str, list[int]] = {}
    for each in unique:
        stream, _, index = each.rpartition("/")
        by_run_and_stream.setdefault(stream, []).append(int(index))
    assert len(by_run_and_stream) == 12  # 3 runs of 4 streams: no id of one run is met in another
    assert all(indices == sorted(indices) for indices in by_run_and_stream.values())
