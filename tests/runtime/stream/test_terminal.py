"""The terminal view shows rates, latencies, rejects and drops; elsewhere it writes plain lines."""

from __future__ import annotations

import io

from rich.console import Console

from nnet_edge.runtime.stream.meters import Percentiles, StreamReport
from nnet_edge.runtime.stream.terminal import TerminalView


def report(ended: str = "running") -> StreamReport:
    latencies = {"infer": Percentiles(120, 41.25, 50.0, 61.0), "total": Percentiles(0, None, None, None)}
    return StreamReport(120, 3, 17, 0, 6.0, latencies, ended)


def shown(is_terminal: bool, *reports: StreamReport) -> str:
    file = io.StringIO()
    with TerminalView("camera 0", Console(file=file, force_terminal=is_terminal, width=120)) as view:
        for each in reports:
            view.show(each)
    return file.getvalue()


def test_a_terminal_gets_a_live_table() -> None:
    text = shown(True, report())
    for part in ("camera 0", "infer", "41.2", "50.0", "61.0", "20.0 frames/s", "3 rejected", "17 dropped"):
        assert part in text
    assert "\x1b[" in text


def test_elsewhere_there_are_plain_lines_now_and_then() -> None:
    text = shown(False, report(), report(), report())
    assert text == "camera 0: running: 120 frames in 6.0 s, 20.0 frames/s; 3 rejected, 17 dropped\n"


def test_the_last_report_stays_in_full() -> None:
    for is_terminal in (True, False):
        text = shown(is_terminal, report(), report("stopped"))
        assert "stopped: 120 frames in 6.0 s, 20.0 frames/s; 3 rejected, 17 dropped\n" in text
        assert text.endswith(
            "infer latency p50 / p95 / p99: 41.2 / 50 / 61 ms (120 frames)\n"
            "total latency p50 / p95 / p99: no frame yet\n"
        )


def test_names_with_brackets_are_shown_as_they_are() -> None:
    assert "failed: [rtsp] is gone" in shown(False, report("failed: [rtsp] is gone"))
