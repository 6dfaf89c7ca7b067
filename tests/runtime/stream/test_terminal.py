"""The terminal view shows rates, latencies, rejects and drops; elsewhere it writes plain lines."""

from __future__ import annotations

import io
import re

from rich.console import Console

from nnet_edge.runtime.stream.meters import Percentiles
from nnet_edge.runtime.stream.report import LineReport, StreamReport
from nnet_edge.runtime.stream.stream_queue import FrameCounts
from nnet_edge.runtime.stream.terminal import TerminalView


def report(ended: str = "running") -> LineReport:
    latencies = {"inference": Percentiles(120, 41.25, 50.0, 61.0), "total": Percentiles(0, None, None, None)}
    counts = FrameCounts(137, 120, {"full": 17})
    stream = StreamReport(120, 3, 0, 6.0, counts, latencies, ended)
    return LineReport({"camera-0": stream}, counts, 6.0, ended)


def shown(is_terminal: bool, *reports: LineReport) -> str:
    file = io.StringIO()
    with TerminalView("camera 0", Console(file=file, force_terminal=is_terminal, width=120)) as view:
        for each in reports:
            view.show(each)
    return file.getvalue()


def test_a_terminal_gets_a_live_table() -> None:
    text = shown(True, report())
    words = " ".join(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", " ", text).split())  # the line below the table is wrapped
    for part in ("camera 0", "inference", "41.2", "50.0", "61.0", "20.0 frames/s", "3 rejected", "17 dropped"):
        assert part in words
    assert "\x1b[" in text


def test_elsewhere_there_are_plain_lines_now_and_then() -> None:
    text = shown(False, report(), report(), report())
    assert text == "camera 0: running: 120 frames in 6.0 s, 20.0 frames/s; 3 rejected, 17 dropped (17 full)\n"


def test_the_last_report_stays_in_full() -> None:
    for is_terminal in (True, False):
        text = shown(is_terminal, report(), report("stopped"))
        assert "stopped: 120 frames in 6.0 s, 20.0 frames/s; 3 rejected, 17 dropped (17 full)\n" in text
        assert text.endswith(
            "inference latency p50 / p95 / p99: 41.2 / 50 / 61 ms (120 frames)\n"
            "total latency p50 / p95 / p99: no frame yet\n"
        )


def test_names_with_brackets_are_shown_as_they_are() -> None:
    assert "failed: [rtsp] is gone" in shown(False, report("failed: [rtsp] is gone"))
