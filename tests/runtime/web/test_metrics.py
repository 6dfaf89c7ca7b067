"""/metrics as Prometheus reads it, checked by promtool; the dashboard asks for what is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nnet_edge.runtime.stream.meters import SinkTimes
from nnet_edge.runtime.web.server import WebServer
from nnet_edge.settings.web import WebSettings

EXAMPLES = Path(__file__).parents[3] / "examples"
PROMTOOL = shutil.which("promtool")


def families(site: Any) -> dict[str, Any]:
    """The families of one scrape by name."""
    status, text, headers = site.ask("/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def value(family: Any, name: str, **labels: str) -> float:
    """The one sample of that name and labels."""
    (found,) = [one.value for one in family.samples if one.name == name and labels.items() <= one.labels.items()]
    return float(found)


def test_counters_keep_the_identity_and_histograms_their_order(serve: Any, until: Any) -> None:
    with serve(brightness=230) as site:
        until(lambda: site.line.streams()[0].counts.judged >= 10)
        site.ask("/api/streams/left/pause", {}, site.session())
        until(lambda: site.line.streams()[0].counts.dropped.get("paused", 0) >= 3)
        site.line.buffer.close("left")
        until(lambda: site.line.streams()[0].counts.queued == 0)
        found = families(site)
    captured = value(found["nnet_edge_captured_frames"], "nnet_edge_captured_frames_total", stream="left")
    judged = value(found["nnet_edge_judged_frames"], "nnet_edge_judged_frames_total", stream="left")
    dropped = sum(one.value for one in found["nnet_edge_dropped_frames"].samples)
    queued = value(found["nnet_edge_queued_frames"], "nnet_edge_queued_frames", stream="left")
    assert captured == judged + dropped + queued
    assert value(found["nnet_edge_rejects"], "nnet_edge_rejects_total", stream="left") == judged
    total = {"stream": "left", "stage": "total"}
    latency = found["nnet_edge_latency_seconds"]
    assert value(latency, "nnet_edge_latency_seconds_count", **total) == judged
    buckets = [
        one.value for one in latency.samples if one.name.endswith("_bucket") and total.items() <= one.labels.items()
    ]
    assert buckets == sorted(buckets)
    stages = {one.labels["stage"] for one in latency.samples}
    assert stages == {"capture", "queue", "resize", "inference", "verdict", "total"}
    assert value(found["nnet_edge_source_state"], "nnet_edge_source_state", stream="left", state="live") == 1
    assert value(found["nnet_edge_relative_score"], "nnet_edge_relative_score_count", stream="left") == judged
    assert found["nnet_edge_build_info"].samples[0].labels["bundle"] == "parts"


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here: apt-get install prometheus")
def test_promtool_finds_nothing_to_complain_of(serve: Any, until: Any) -> None:
    with serve() as site:
        until(lambda: site.line.streams()[0].counts.judged >= 10)
        _, text, _ = site.ask("/metrics")
        finished = subprocess.run([str(PROMTOOL), "check", "metrics"], input=text, capture_output=True, timeout=30)
    assert (finished.returncode, finished.stdout, finished.stderr) == (0, b"", b"")


def test_sinks_and_their_times_are_told(serve: Any, make_prediction: Any) -> None:
    times = SinkTimes()
    observe = times.observer("log")
    for took_ms in (0.5, 3.0, 40.0):
        observe(make_prediction(), took_ms)
    with serve() as site, WebServer(site.line, WebSettings(port=0), None, times) as other:
        site.server, kept = other, site.server
        found = families(site)
        site.server = kept
    labels = {"stage": "sink", "sink": "log", "stream": "test"}
    assert value(found["nnet_edge_latency_seconds"], "nnet_edge_latency_seconds_count", **labels) == 3
    assert value(found["nnet_edge_latency_seconds"], "nnet_edge_latency_seconds_sum", **labels) == pytest.approx(0.0435)


def test_dashboard_and_alerts_ask_for_metrics_that_exist(serve: Any) -> None:
    dashboard = json.loads((EXAMPLES / "grafana.json").read_text(encoding="utf-8"))
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
        for name in re.findall(r"nnet_edge_\w+", target["expr"])
    }
    assert len(asked) > 10
    rules = (EXAMPLES / "alerts.yml").read_text(encoding="utf-8")
    asked |= set(re.findall(r"nnet_edge_\w+", "".join(re.findall(r"^ +expr: (.*)$", rules, re.MULTILINE))))
    with serve() as site:
        text = site.ask("/metrics")[1].decode()
    declared = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    for name in asked:
        assert re.sub(r"_(bucket|sum|count)$", "", name) in declared or name in declared, name


@pytest.mark.skipif(PROMTOOL is None, reason="no promtool here: apt-get install prometheus")
def test_promtool_reads_the_alerts() -> None:
    command = [str(PROMTOOL), "check", "rules", str(EXAMPLES / "alerts.yml")]
    finished = subprocess.run(command, capture_output=True, timeout=30, text=True)
    assert finished.returncode == 0, finished.stderr
