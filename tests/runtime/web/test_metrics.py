"""/metrics as Prometheus reads it, checked by promtool; the dashboard asks for what is there."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.web.metrics import Histograms

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


def test_sinks_and_their_times_are_told(serve: Any) -> None:
    with serve() as site:
        for took_ms in (0.5, 3.0, 40.0):
            site.line.meters.took("left", "sink", took_ms, "log")
        site.line.meters.took("gone", "sink", 1.0, "log")  # of a stream that was removed
        found = families(site)
    labels = {"stage": "sink", "sink": "log", "stream": "left"}
    family = found["nnet_edge_latency_seconds"]
    assert value(family, "nnet_edge_latency_seconds_count", **labels) == 3
    assert value(family, "nnet_edge_latency_seconds_sum", **labels) == pytest.approx(0.0435)
    assert not [sample for sample in family.samples if sample.labels.get("stream") == "gone"]


def series(histograms: Histograms) -> set[tuple[str, str, str]]:
    """Stream, stage and sink of every latency that Prometheus would read."""
    samples = [sample for family in histograms.collect() for sample in family.samples]
    return {
        (sample.labels["stream"], sample.labels["stage"], sample.labels["sink"])
        for sample in samples
        if sample.name == "nnet_edge_latency_seconds_count"
    }


def test_streams_that_come_and_go_for_weeks_leave_nothing(make_prediction: Any, make_runner: Any) -> None:
    line = Line(Model("parts", None, make_runner(), 0.5))
    histograms = Histograms(line)
    meters = line.meters
    line.events.tell("stream.added", "kept")
    meters.took("kept", "sink", 1.0, "log")
    for number in range(50):
        name = f"camera-{number}"
        line.events.tell("stream.added", name)
        meters.took(name, "capture", 1.0)
        histograms.judged(replace(make_prediction(stream=name), latencies_ms={"total": 1.0}))
        meters.took(name, "sink", 1.0, "log")
        assert {(name, "capture", ""), (name, "total", ""), (name, "sink", "log")} <= series(histograms)
        line.events.tell("stream.removed", name)
        meters.took(name, "sink", 1.0, "log")  # what a sink delivers of a stream that is gone already
        assert series(histograms) == {("kept", "sink", "log")}
    meters.took("line", "sink", 1.0, "log")  # an event of the line
    assert series(histograms) == {("kept", "sink", "log"), ("line", "sink", "log")}


def test_what_prometheus_reads_has_no_moments_of_creation(make_runner: Any) -> None:
    line = Line(Model("parts", None, make_runner(), 0.5))
    histograms = Histograms(line)
    line.events.tell("stream.added", "a")
    line.meters.took("a", "capture", 30.0)
    names = {sample.name for family in histograms.collect() for sample in family.samples}
    assert names == {
        f"nnet_edge_{name}_{end}"
        for name in ("latency_seconds", "relative_score", "batch_images")
        for end in ("bucket", "count", "sum")
    }


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
