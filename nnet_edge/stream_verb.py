"""What `nnet-edge stream` does: bundle, source and sinks, put together and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnet_edge.bundle import read_bundle
from nnet_edge.config import RunnerSettings, StreamSettings, WhenFull
from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.runtime.addresses import address_scheme, redact
from nnet_edge.runtime.delivery import Delivery
from nnet_edge.runtime.delivery_settings import DeliverySettings
from nnet_edge.runtime.line import Line
from nnet_edge.runtime.models import load_model
from nnet_edge.runtime.opening import open_graph
from nnet_edge.runtime.sinks import (
    JsonLinesSettings,
    JsonLinesSink,
    PictureSettings,
    RejectPicturesSink,
    Sink,
    VideoSettings,
    VideoSink,
)
from nnet_edge.runtime.sources import Source, open_source_of
from nnet_edge.runtime.spool import SpoolSettings
from nnet_edge.runtime.stream import run, run_line, stopping_on_signals
from nnet_edge.runtime.terminal import TerminalView
from nnet_edge.stream_settings import (
    EVERY_FRAME,
    FRESHEST,
    NAME,
    CameraSettings,
    LaneSettings,
    LineStream,
    VerdictSettings,
)

VIDEO_PIECE_S = 600.0  # of a live source: what a kill or a power cut costs at most
VIDEO_PIECE_BYTES = 1 << 30


def stream_bundle(
    source_text: str,
    path: Path,
    runner: RunnerSettings,
    is_hinted: bool,
    options: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[str]:
    """Judge every frame of the source; gives the lines to say at the end.

    Unless `is_hinted`, the runner works for throughput on files: nobody waits for a single one of them. A live source that
    is lost is opened again for ever, and a sink that is dead costs it nothing but the verdicts that the sink loses.
    """
    camera = to_camera(source_text, "the source", options)
    source = open_source_of(camera)
    reopen = (lambda: open_source_of(camera)) if source.is_live else None
    sinks = open_sinks(source, options)
    if source.is_live:
        sinks = [Delivery(sink, delivery_asked(sink, [source], options)) for sink in sinks]
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
        run(source, loaded, sinks, settings, stop, view.show, reopen)
    return [*losses(sinks), *(f"wrote {path}" for path in written(options))]


def stream_line(
    sources: Sequence[str],
    path: Path,
    runner: RunnerSettings,
    options: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[str]:
    """Judge every frame of several sources, or of one that must be delivered, with one model; gives what to say at the end.

    A camera that is lost, or absent at the start, is tried for ever; a file that breaks costs its own stream. Raises
    StreamError at the end when a stream failed.
    """
    if options["video"] is not None:
        raise ConfigError("--video shows one source: name one, or run `nnet-edge stream` once for each video")
    streams = [to_line_stream(source, number, options) for number, source in enumerate(sources)]
    opened = [open_source_of(stream.camera, stream.name, len(sources) > 1) for stream in streams]
    sinks = [Delivery(sink, delivery_asked(sink, opened, options)) for sink in open_sinks(None, options)]
    model = load_model(path, runner, options["precision"])
    for warning in model.warnings:
        say(warning)
    line = Line(
        model, sinks, lambda other: load_model(other, runner, options["precision"]), deadline_s=options["deadline_s"]
    )
    for stream, source in zip(streams, opened, strict=True):
        line.add(stream, source)
    names = ", ".join(stream.name for stream in streams)
    say(f"{names} on {model.runner.name} ({model.runner.precision}), threshold of the bundle {model.threshold:.6g}")
    with stopping_on_signals() as stop, TerminalView(model.name) as view:
        report = run_line(line, stop, view.show)
    for lost in losses(sinks):
        say(lost)
    for name, error in report.errors.items():
        raise StreamError(f"{name}: {error}")
    return [f"wrote {path}" for path in written(options)]


def to_line_stream(text: str, number: int, options: Mapping[str, Any]) -> LineStream:
    """The stream that "ADDRESS" or "NAME=ADDRESS" asks for. Raises ConfigError."""
    name, equals, address = text.partition("=")
    if not equals or NAME.fullmatch(name) is None:  # an address may hold an equals sign itself
        name, address = f"camera-{number}", text
    camera = to_camera(address, name, options, number)
    verdict = VerdictSettings(options["threshold"], min_area=options["min_area"])
    return LineStream(name, camera, lane_asked(options), verdict)


def to_camera(address: str, name: str, options: Mapping[str, Any], seed: int = 0) -> CameraSettings:
    """The camera of an address that was typed. Raises ConfigError that begins with `name`."""
    credentials = options["credentials"] if address_scheme(address) else None
    try:
        return CameraSettings(address, credentials=credentials, skip_bad_images=options["skip_bad_images"], seed=seed)
    except ConfigError as error:
        shown = redact(address) if address_scheme(address) else address
        raise ConfigError(f"{name} ({shown}): {error}") from error


def lane_asked(options: Mapping[str, Any]) -> LaneSettings | None:
    """The lane that --when-full and --buffer ask for; None where neither was given."""
    if options["when_full"] is None and options["buffer_frames"] is None:
        return None
    policy = EVERY_FRAME if options["when_full"] == WhenFull.WAIT.value else FRESHEST
    if options["when_full"] is None:
        raise ConfigError(
            "--buffer of several sources needs --when-full: say whether frames wait or the oldest is dropped"
        )
    return LaneSettings(policy, options["buffer_frames"] or LaneSettings().capacity)


def delivery_asked(sink: Sink, sources: Sequence[Source], options: Mapping[str, Any]) -> DeliverySettings:
    """How a sink is served: files wait for it, live sources never do; with --must-deliver its spool is all that is waited for.

    Where standard output goes to ends the program when it closes, as it does in any pipe.
    """
    folder = options["must_deliver"]
    spool = None if folder is None else SpoolSettings(folder / sink.name.replace(" ", "-"))
    are_files = not any(source.is_live for source in sources)
    waits = are_files or options["when_full"] == WhenFull.WAIT.value
    is_piped = isinstance(sink, JsonLinesSink) and str(options["json_path"]) == "-"
    return DeliverySettings(
        when_full=WhenFull.WAIT if waits else WhenFull.DROP_OLDEST,
        is_strict=is_piped and spool is None,
        must_deliver=spool,
    )


def losses(sinks: Sequence[Sink]) -> list[str]:
    """What each sink lost, one line a sink that did."""
    found = [sink.counts().losses() for sink in sinks if isinstance(sink, Delivery)]
    return [line for line in found if line is not None]


def open_sinks(source: Source | None, options: Mapping[str, Any]) -> list[Sink]:
    """The sinks that the options ask for; without `source` they take several streams."""
    sinks: list[Sink] = []
    if options["json_path"] is not None:
        path = None if str(options["json_path"]) == "-" else options["json_path"]
        sinks.append(JsonLinesSink(path, JsonLinesSettings(is_appended=options["must_deliver"] is not None)))
    if options["rejects"] is not None:
        sinks.append(RejectPicturesSink(options["rejects"], PictureSettings(by_stream=source is None)))
    if options["video"] is not None:
        is_live = source is not None and source.is_live
        pieces = VideoSettings(VIDEO_PIECE_S, VIDEO_PIECE_BYTES) if is_live else VideoSettings()
        sinks.append(VideoSink(options["video"], source.rate_hz if source else None, pieces))
    return sinks


def written(options: Mapping[str, Any]) -> list[Path]:
    """The files and folders that the sinks wrote."""
    paths = [options[name] for name in ("json_path", "rejects", "video") if options[name] is not None]
    found = [path for path in paths if str(path) != "-"]
    return [path.with_name(f"{path.stem}.*{path.suffix}") if path == options["video"] and not path.exists() else path
            for path in found]  # fmt: skip
