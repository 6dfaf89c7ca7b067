"""What `nnet-edge stream --config line.toml` does: bundle, streams, sinks and page of one file, put together and run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from nnet_edge.bundle import read_bundle
from nnet_edge.config import RunnerSettings, WhenFull
from nnet_edge.errors import ConfigError, NnetEdgeError
from nnet_edge.line_config import LineSettings, read_line_config
from nnet_edge.runtime.delivery import Delivery
from nnet_edge.runtime.delivery_settings import DeliverySettings
from nnet_edge.runtime.line import Line
from nnet_edge.runtime.line_report import LineReport
from nnet_edge.runtime.models import Model, load_model
from nnet_edge.runtime.opening import choose_runnable
from nnet_edge.runtime.sink_times import SinkTimes
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
from nnet_edge.runtime.sources import absence, may_be_camera, open_source_of
from nnet_edge.runtime.spool import SpoolSettings
from nnet_edge.runtime.stream import run_line, stopping_on_signals
from nnet_edge.runtime.watchdog import Watchdog
from nnet_edge.sink_config import JsonLinesConfig, MqttConfig, RejectsConfig, SinkConfig, VideoConfig, WebhookConfig
from nnet_edge.stream_verb import losses
from nnet_edge.web_settings import read_secret

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
    from nnet_edge.line_config import describe_line

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
