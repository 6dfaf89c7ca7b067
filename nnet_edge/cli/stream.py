"""The verbs of a line: stream judges, config checks its settings file, swap gives it another bundle while it runs.

What `nnet-edge stream` does: bundle, source and sinks, put together and run.

What `nnet-edge stream --config line.toml` does: bundle, streams, sinks and page of one file, put together and run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from nnet_edge.bundle import read_bundle
from nnet_edge.cli.options import FILE, FOLDER, Verb, precision_option, runner_options, runner_settings
from nnet_edge.cli.view import say
from nnet_edge.errors import ConfigError, NnetEdgeError, StreamError
from nnet_edge.runtime.sinks import (
    JsonLinesSettings,
    JsonLinesSink,
    MqttSettings,
    MqttSink,
    PictureSettings,
    RejectPicturesSink,
    Sink,
    VideoSettings,
    VideoSink,
    WebhookSettings,
    WebhookSink,
)
from nnet_edge.runtime.sinks.queue import DeliverySettings
from nnet_edge.runtime.sinks.queued import Delivery
from nnet_edge.runtime.sinks.spool import SpoolSettings
from nnet_edge.runtime.sources.addresses import address_scheme, redact
from nnet_edge.runtime.sources.open import Source, absence, may_be_camera, open_source_of
from nnet_edge.runtime.stream.line import Line, run, run_line, stopping_on_signals
from nnet_edge.runtime.stream.meters import SinkTimes
from nnet_edge.runtime.stream.model import Model, choose_runnable, load_model, open_graph
from nnet_edge.runtime.stream.report import LineReport
from nnet_edge.runtime.stream.terminal import TerminalView
from nnet_edge.runtime.stream.watchdog import Watchdog
from nnet_edge.settings.camera import CameraSettings, fitting
from nnet_edge.settings.line import (
    JsonLinesConfig,
    LineSettings,
    MqttConfig,
    RejectsConfig,
    SinkConfig,
    VideoConfig,
    WebhookConfig,
    read_line_config,
)
from nnet_edge.settings.runner import RunnerSettings, StreamSettings, WhenFull
from nnet_edge.settings.stream import (
    EVERY_FRAME,
    FRESHEST,
    NAME,
    LaneSettings,
    LineStream,
    VerdictSettings,
)
from nnet_edge.settings.web import read_secret

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
    asked = {"credentials": credentials, "skip_bad_images": options["skip_bad_images"], "seed": seed}
    try:
        return CameraSettings.of(address, **fitting(address, asked))
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


SAY_EVERY_S = 60.0
NO_OVERRIDE = (
    *("json_path", "rejects", "video", "credentials"),
    *("buffer_frames", "when_full", "min_area", "skip_bad_images"),
)


def stream_config(path: Path, given: Mapping[str, Any], say: Callable[[str], None]) -> list[str]:
    """Run the line of the settings file until its sources end or a signal comes; gives the lines to say at the end.

    `given` holds the options that were typed: bundle, threshold, precision and the runner's stand over the file's.
    """
    wrong = [name for name in NO_OVERRIDE if name in given]
    if wrong:
        option = "--" + wrong[0].removesuffix("_path").removesuffix("_frames").replace("_", "-")
        raise ConfigError(f"{option} belongs to a single source: with --config, write what you mean into {path.name}")
    return run_settings(read_line_config(path, given), say)


def run_settings(settings: LineSettings, say: Callable[[str], None]) -> list[str]:
    """Run the line; gives the lines to say at the end. Raises what cannot be loaded, opened or served."""
    runner, precision, bundle = settings.runner, settings.precision, settings.bundle
    assert bundle is not None  # LineSettings saw to it
    times = SinkTimes()
    sinks = [deliver(sink, times) for sink in settings.sinks]
    sinks.sort(key=lambda sink: sink.settings.must_deliver is None)  # on disk there before anybody else hears of it
    model = load_model(bundle, runner, precision)
    for warning in model.warnings:
        say(warning)
    line = Line(model, sinks, loader(runner, precision), settings.web is not None, settings.deadline_s)
    line.events.subscribe(times.hear)
    for stream in settings.streams:
        line.add(stream, open_source_of(stream.camera, stream.name, may_be_absent=True))
    waits = [sink.label for sink in settings.sinks if sink.every_frame]
    if waits and any(stream.source.is_live for stream in line.work.streams.values()):
        say(f"note: live cameras wait for the sink {waits[0]} too while it is slow or dead, for it has every_frame")
    with stopping_on_signals() as stop, ExitStack() as page:
        say(f"{len(settings.streams)} streams on {model.runner.name} ({model.runner.precision}), bundle {model.name}")
        server = None
        if settings.web is not None:
            from nnet_edge.runtime.web.server import WebServer

            server = page.enter_context(WebServer(line, settings.web, settings.drift, times))
            say(f"the page is at {server.address}")
        page.enter_context(Watchdog(line.stalled_s, os.environ))
        try:
            report = run_line(line, stop, now_and_then(say), SAY_EVERY_S)
        finally:
            if server is not None:
                server.line_ended()
    return [*report.lines(), *losses(sinks)]


def loader(runner: RunnerSettings, precision: str | None) -> Callable[[Path], Model]:
    """How the line loads other bundles: as its first one."""
    return lambda path: load_model(path, runner, precision)


def now_and_then(say: Callable[[str], None]) -> Callable[[LineReport], None]:
    """Says the first line of a report each minute."""
    next_s = time.monotonic() + SAY_EVERY_S

    def show(report: LineReport) -> None:
        nonlocal next_s
        if time.monotonic() >= next_s:
            next_s = time.monotonic() + SAY_EVERY_S
            say(report.lines()[0])

    return show


def deliver(config: SinkConfig, times: SinkTimes) -> Delivery:
    """The sink of the settings with a queue and a thread of its own. Raises ConfigError."""
    settings = DeliverySettings(
        queue_items=config.queue,
        when_full=WhenFull.WAIT if config.every_frame else WhenFull.DROP_OLDEST,
        retry_s=config.retry_s,
        must_deliver=None if config.must_deliver is None else SpoolSettings(config.must_deliver, config.spool_bytes),
    )
    return Delivery(make_sink(config), settings, config.label, times.observer(config.label))


def make_sink(config: SinkConfig) -> Sink:
    """The sink itself. Raises ConfigError for settings that cannot be meant, a secret that is absent for one."""
    if isinstance(config, JsonLinesConfig):
        return JsonLinesSink(
            config.path,
            JsonLinesSettings(
                is_appended=config.append,
                turn_bytes=config.turn_bytes,
                turn_every_s=config.turn_every_s,
                keep_files=config.keep_files,
                fsync_every_s=config.fsync_every_s,
                has_events=config.events,
            ),
        )
    if isinstance(config, RejectsConfig):
        return RejectPicturesSink(config.folder, PictureSettings(config.pictures, config.budget_bytes, by_stream=True))
    if isinstance(config, VideoConfig):
        pieces = VideoSettings(config.piece_s, config.piece_bytes, config.budget_bytes, True, config.stream)
        return VideoSink(config.path, config.rate_hz, pieces)
    if isinstance(config, MqttConfig):
        return MqttSink(mqtt_settings(config))
    assert isinstance(config, WebhookConfig)
    token = None if config.token_from is None else read_secret("token_from", config.token_from)
    url = read_secret("url", config.url) if config.url.startswith(("env:", "file:")) else config.url
    return WebhookSink(
        WebhookSettings(url, token, config.ca_file, config.timeout_s, config.only_rejects, config.events)
    )


def mqtt_settings(config: MqttConfig) -> MqttSettings:
    """What the MQTT sink takes, the password read. Raises ConfigError."""
    password = None if config.password_from is None else read_secret("password_from", config.password_from)
    return MqttSettings(
        host=config.host,
        port=config.port,
        prefix=config.prefix,
        qos=config.qos,
        user=config.user,
        password=password,
        client_id=config.client_id,
        has_tls=config.tls,
        ca_file=config.ca_file,
        certificate_file=config.certificate_file,
        key_file=config.key_file,
        keepalive_s=config.keepalive_s,
        timeout_s=config.timeout_s,
        only_rejects=config.only_rejects,
        has_events=config.events,
    )


def check_config(path: Path, has_bundle: bool = True) -> list[str]:
    """What the settings file says, one line a part, with every sink's own settings and every secret's place checked.

    With `has_bundle` each bundle is read whole, and must hold the precision and runner that are asked for, with a threshold
    that was chosen there. Nothing is opened and nothing connected. Raises ConfigError, BundleError.
    """
    from nnet_edge.settings.line import describe_line

    settings = read_line_config(path)
    for sink in settings.sinks:
        make_sink(sink)
    absent = [(stream, absence(stream.camera)) for stream in settings.streams]
    if settings.web is not None:
        settings.web.token()
    lines = describe_line(settings)
    for stream, reason in absent:
        if reason is not None:
            then = "it is tried until it is there" if may_be_camera(stream.camera) else "the line would be refused"
            lines.append(f"note: stream {stream.name}: {reason}; {then}")
    if has_bundle:
        lines += [check_bundle(bundle, settings, path.name) for bundle in bundles_of(settings)]
    return [*lines, f"{path} can be used"]


def bundles_of(settings: LineSettings) -> list[Path]:
    """The line's bundle and those that streams have for themselves, each once."""
    found = [settings.bundle, *(stream.bundle for stream in settings.streams)]
    return list(dict.fromkeys(bundle for bundle in found if bundle is not None))


def check_bundle(path: Path, settings: LineSettings, where: str) -> str:
    """What the line would judge by. Raises BundleError or ConfigError that names the settings file."""
    try:
        bundle = read_bundle(path)
        artefact, runner, threshold = choose_runnable(bundle, settings.runner, settings.precision)
    except NnetEdgeError as error:
        raise type(error)(f"{where}: bundle: {error}") from error
    warning = "".join(f"; {warning}" for warning in bundle.warnings)
    return f"bundle {bundle.name} is whole: {artefact.name} on {runner}, threshold {threshold:.6g}{warning}"


@click.command("stream", cls=Verb)
@click.argument("sources", metavar="SOURCE...", nargs=-1)
@click.option("--bundle", type=FOLDER, help="The folder that train or export wrote.")
@click.option(
    "--config", type=FILE, help="A line's settings file (TOML) instead of SOURCE; other options stand over it."
)
@click.option("--json", "json_path", type=FILE, help="One JSON object a frame into this file; - for standard output.")
@click.option("--rejects", type=FOLDER, help="A picture of every reject into this folder.")
@click.option(
    "--video", type=FILE, help="Annotated video (.mp4 or .avi); of a live source in numbered pieces of 10 minutes."
)
@click.option("--must-deliver", type=FOLDER,
              help="Spool verdicts here first: a dead receiver, a full disk or a kill loses none.")  # fmt: skip
@click.option("--credentials", metavar="FILE|env:NAME",
              help="What holds user:password of the cameras: a file, or env: and a variable's name.")  # fmt: skip
@click.option("--page", metavar="[HOST:]PORT", help="Serve the page there; with --config.")
@click.option("--threshold", type=float, help="Instead of the bundle's.")
@click.option("--buffer", "buffer_frames", type=int, help="Frames that wait at most.")
@click.option("--when-full", type=click.Choice(["wait", "drop-oldest"]), help="Default: files wait, live sources drop.")
@click.option("--deadline", "deadline_s", type=click.FloatRange(0, 10),
              help="Seconds that a frame waits for other sources (default: a quarter of what a batch takes).")  # fmt: skip
@click.option("--min-area", type=float, default=0.0, show_default=True, help="Smallest region reported, pixels.")
@click.option("--skip-bad-images", is_flag=True, help="Pass over images that cannot be read, and count them.")
@precision_option
@runner_options
@click.pass_context
def command(
    context: click.Context, sources: tuple[str, ...], bundle: Path | None, config: Path | None, **options: Any
) -> None:
    """Judge every frame of SOURCE: an image folder, a video, a camera's number, an rtsp:// or http:// address, synthetic.

    Several sources are one line: they share the model, and each may have a name: left=0 right=rtsp://camera/1.
    """
    if config is not None:
        if sources:
            raise ConfigError(f"{sources[0]} and --config: give a source, or a settings file that names sources")
        run_config(config, typed_options(context))
        return
    if not sources or bundle is None:
        raise ConfigError("stream needs a SOURCE and --bundle, or --config line.toml")
    if options.pop("page") is not None:
        raise ConfigError("--page belongs to a line: write a settings file and give it as --config")

    options["credentials"] = credentials_place(options["credentials"], sources)
    is_hinted = options["hint"] is not None
    if len(sources) > 1 or options["must_deliver"] is not None:
        for line in stream_line(sources, bundle, runner_settings(options), options, say):
            say(line)
        return
    if options["deadline_s"] is not None:
        raise ConfigError("--deadline belongs to several sources: a single one waits for no other")
    for line in stream_bundle(sources[0], bundle, runner_settings(options), is_hinted, options, say):
        say(line)


def credentials_place(text: str | None, sources: tuple[str, ...]) -> str | None:
    """ "file:PATH" or "env:NAME" of what was typed. Raises ConfigError where no source could use it."""
    if text is None:
        return None
    if not any("://" in source for source in sources):
        raise ConfigError("--credentials belongs to a network address: none of the sources is one")
    return text if text.startswith(("file:", "env:")) else f"file:{text}"


def typed_options(context: click.Context) -> dict[str, Any]:
    """The options that were typed, by name; defaults are left out."""
    from click.core import ParameterSource

    return {name: value for name, value in context.params.items()
            if name != "config" and context.get_parameter_source(name) is ParameterSource.COMMANDLINE}  # fmt: skip


def run_config(config: Path, typed: dict[str, Any]) -> None:
    """Run the line of the settings file, what was typed over it."""

    names = {
        "runner": "kind",
        "runner_batch": "max_batch",
        "threads": "threads",
        "hint": "hint",
        "cache_dir": "cache_dir",
    }
    runner = {names[name]: typed.pop(name) for name in list(typed) if name in names}
    if "cache_dir" in runner:
        runner["cache_dir"] = str(Path(runner["cache_dir"]).absolute())
    for name in ("bundle", "must_deliver"):
        if name in typed:
            typed[name] = Path(typed[name]).absolute()
    if "page" in typed:
        typed["web"] = page_place(typed.pop("page"))
    for line in stream_config(config, typed | ({"runner": runner} if runner else {}), say):
        say(line)


def page_place(text: str) -> dict[str, Any]:
    """Port, and host where one is given, of "8080", "127.0.0.1:8080" or "[::1]:8080". Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal()) or (colon and not host):
        raise ConfigError(f"--page {text} is neither a port nor HOST:PORT: give 8080 or 127.0.0.1:8080")
    return {"port": int(port)} | ({"host": host.removeprefix("[").removesuffix("]")} if colon else {})
