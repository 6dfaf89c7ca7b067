"""What `nnet-edge stream` does: bundle, source and sinks, put together and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnet_edge.bundle import read_bundle
from nnet_edge.config import RunnerSettings, StreamSettings, WhenFull
from nnet_edge.runtime.opening import open_graph
from nnet_edge.runtime.sinks import JsonLinesSink, RejectPicturesSink, Sink, VideoSink
from nnet_edge.runtime.sources import Source, open_source
from nnet_edge.runtime.stream import run, stopping_on_signals
from nnet_edge.runtime.terminal import TerminalView


def stream_bundle(
    source_text: str,
    path: Path,
    runner: RunnerSettings,
    is_hinted: bool,
    options: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[str]:
    """Judge every frame of the source; gives the lines to say at the end.

    Unless `is_hinted`, the runner works for throughput on files: nobody waits for a single one of them.
    """
    source = open_source(source_text, options["skip_bad_images"])
    bundle = read_bundle(path)
    for warning in bundle.warnings:
        say(warning)
    if not (is_hinted or source.is_live):
        runner = replace(runner, hint="throughput")
    given, when_full = options["threshold"], options["when_full"]
    if given is not None:
        StreamSettings(threshold=given)  # a wrong one ends before the graph is compiled
    loaded, chosen = open_graph(bundle, runner, options["precision"])
    settings = StreamSettings(
        threshold=chosen if given is None else given,
        buffer_frames=options["buffer_frames"],
        when_full=None if when_full is None else WhenFull(when_full),
        min_area=options["min_area"],
    )
    say(f"{source.describe()} on {loaded.name} ({loaded.precision}), threshold {settings.threshold:.6g}")
    with stopping_on_signals() as stop, TerminalView(bundle.name) as view:
        run(source, loaded, open_sinks(source, options), settings, stop, view.show)
    return [f"wrote {path}" for path in written(options)]


def open_sinks(source: Source, options: Mapping[str, Any]) -> list[Sink]:
    """The sinks that the options ask for."""
    sinks: list[Sink] = []
    if options["json_path"] is not None:
        sinks.append(JsonLinesSink(None if str(options["json_path"]) == "-" else options["json_path"]))
    if options["rejects"] is not None:
        sinks.append(RejectPicturesSink(options["rejects"]))
    if options["video"] is not None:
        sinks.append(VideoSink(options["video"], source.rate_hz))
    return sinks


def written(options: Mapping[str, Any]) -> list[Path]:
    """The files and folders that the sinks wrote."""
    paths = [options[name] for name in ("json_path", "rejects", "video") if options[name] is not None]
    return [path for path in paths if str(path) != "-"]
