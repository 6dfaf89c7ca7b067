"""`nnet-edge stream`: run a line of one camera, of several or of a settings file."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from nnet_edge.cli.flags import SINK_FLAGS, SOURCE_FLAGS, registered
from nnet_edge.cli.options import (
    FILE,
    FOLDER,
    RUNNER_OPTIONS,
    Command,
    bits_option,
    grouped,
    precision_option,
    runner_options,
    shown_option,
)
from nnet_edge.cli.view import Verbosity, say, verbosity, warn
from nnet_edge.errors import ConfigError, SinkError, StreamError
from nnet_edge.lazy import importing
from nnet_edge.settings.registry import SINKS, SOURCES, Asked, SinkKind
from nnet_edge.text import printable
from nnet_edge.threads import spare_blas

if TYPE_CHECKING:
    from nnet_edge.runtime.sources.base import Source
    from nnet_edge.runtime.stream.kept import LineChanges
    from nnet_edge.settings.camera import CameraSettings
    from nnet_edge.settings.line import LineSettings

COMMAND_LINE = "the command line"  # where settings come from, in errors
FLAG_TYPES: dict[str, Any] = {"file": FILE, "folder": FOLDER, "text": str}
OVER_FILE = (
    "state",
    "bundle",
    "precision",
    "threshold",
    "adapt",
    "must_deliver",
    "deadline_s",
    "page",
    *RUNNER_OPTIONS,
)
POLICIES: dict[str | None, str] = {"wait": "every-frame", "drop-oldest": "freshest"}
SPOOL_FOLDERS = {"rejects": "pictures"}  # below --must-deliver, where version 0.1 left its spools; else the kind
TEACH_PAGE = "8080"  # where the page is that teaches, unless --page says otherwise
CONFIG_LINE_EVERY_S = 60.0  # of a line from a settings file, where no terminal shows a table


class StreamCommand(Command):
    """A command whose options are its own and those of the registered sinks and sources."""

    headings: tuple[str, ...] = (SINK_FLAGS, SOURCE_FLAGS)
    verbose_help = "Say more: latencies, and a line for each good frame of a camera or video, too."

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The help, with the addresses of every registered source."""
        self.help = (self.help or "").replace("SOURCE.\n", f"SOURCE: {registered(ctx).addresses}.\n", 1)
        super().format_help_text(ctx, formatter)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options, with one for each registered flag."""
        found = super().get_params(ctx)
        return [*found, *(option_of(*row) for row in registered(ctx).flags if row[3] in self.headings)]


def option_of(name: str, kind: str, metavar: str, heading: str, text: str) -> click.Option:
    """The flag as an option of the command, its value under `key_of(name)`."""
    is_switch = kind == "switch"
    more: dict[str, Any] = {} if is_switch else {"type": FLAG_TYPES[kind], "metavar": metavar or None}
    option = click.Option([name, key_of(name)], is_flag=is_switch, help=text, **more)
    vars(option)["heading"] = heading
    return option


def key_of(name: str) -> str:
    """The name under which click keeps what was typed."""
    return f"flag_{name.lstrip('-').replace('-', '_')}"


_line_options = grouped(
    "Line",
    click.option("--bundle", type=FOLDER, help="The folder that train or export wrote; needed unless --config or --teach."),
    click.option("--config", type=FILE,
                 help="A line's settings file (TOML) instead of SOURCE; other options stand over it."),
    click.option("--page", metavar="[HOST:]PORT", help="Serve the page there, on this machine unless HOST says otherwise "
                 "(default: no page)."),
    click.option("--state", type=FILE,
                 help="Keep what the page changes here, over restarts (default: beside --config, line.state.json)."),
    click.option("--teach", type=FOLDER, metavar="FOLDER",
                 help="Teach on the page, into this folder; without --bundle every part is rejected until then."),
    click.option("--must-deliver", type=FOLDER,
                 help="Spool verdicts here first: a dead receiver or a kill loses none; this disk must have room."),
    click.option("--credentials", metavar="FILE|env:NAME",
                 help="What holds user:password of the cameras: a file, or env: and a variable's name."),
)  # fmt: skip
_verdict_options = grouped(
    "Verdict",
    click.option("--threshold", type=float, metavar="SCORE", help="Above it a part is rejected (default: the bundle's)."),
    click.option("--adapt", type=click.IntRange(1), metavar="PICTURES",
                 help="The first PICTURES of each camera are good parts: choose the threshold again on them (default: off)."),
    shown_option("--min-area", type=float, metavar="PIXELS", default=0.0, help="Smallest region reported."),
)  # fmt: skip
_frame_options = grouped(
    "Frames",
    bits_option,
    click.option("--buffer", "buffer_frames", type=int, metavar="FRAMES",
                 help="Frames that wait at most (default: 2 of a camera, two batches of files)."),
    click.option("--when-full", type=click.Choice(["wait", "drop-oldest"]), help="Default: files wait, live sources drop."),
    click.option("--deadline", "deadline_s", type=click.FloatRange(0, 10), metavar="SECONDS",
                 help="That a frame waits for other sources (default: a quarter of what a batch takes)."),
)  # fmt: skip


@click.command(
    "stream",
    cls=StreamCommand,
    example="""\
nnet-edge stream 0 --bundle runs/part/bundle --page 8080
nnet-edge stream photos/ --bundle runs/part/bundle --json verdicts.jsonl --rejects rejects/""",
)
@click.argument("sources", metavar="SOURCE...", nargs=-1)
@_line_options
@_verdict_options
@_frame_options
@precision_option
@runner_options
@click.pass_context
def command(context: click.Context, sources: tuple[str, ...], config: Path | None, **options: Any) -> None:
    """Judge every frame of SOURCE.

    Each part is a line: name, GOOD or REJECT, score over the threshold; of a camera or video each reject.

    Several sources are one line: they share the model, and each may have a name: left=0 right=rtsp://camera/1.
    """
    spare_blas()  # before NumPy is imported
    if options["threshold"] is not None and options["adapt"] is not None:
        raise ConfigError("--threshold and --adapt contradict each other: give one")
    typed = {name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    if config is not None:
        changes = changes_of_file(config, sources, {name: options[name] for name in typed})
        run_settings(changes.settings, None, None, changes)
        return
    if options["teach"] is not None:
        options = with_teaching(options)
    elif not sources or options["bundle"] is None:
        raise ConfigError("stream needs a SOURCE and --bundle, or --config line.toml, or --teach FOLDER")
    settings, opened, kept = settings_of_flags(sources, options)
    run_settings(settings, opened, Path(options["bundle"] or options["teach"]).name, kept)


def with_teaching(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a line that is taught on its page, all that it keeps in one folder."""
    folder = Path(options["teach"])
    defaults = {"page": TEACH_PAGE, "state": folder / "line.state.json", key_of("--history"): folder / "history.db"}
    return {**options, **{name: value for name, value in defaults.items() if options.get(name) is None}}


def changes_of_file(path: Path, sources: Sequence[str], typed: Mapping[str, Any]) -> LineChanges:
    """The line of the settings file with what its state file changes, and the options that were typed over both.

    Raises ConfigError.
    """
    from nnet_edge.runtime.stream.kept import LineChanges, state_path_of
    from nnet_edge.settings.line import read_toml

    if sources:
        raise ConfigError(f"{sources[0]} and --config: give a source, or a settings file that names sources")
    if wrong := [name for name in typed if name not in OVER_FILE]:
        option = "--" + wrong[0].removeprefix("flag_").removesuffix("_frames").replace("_", "-")
        raise ConfigError(f"{option} belongs to a single source: with --config, write what you mean into {path.name}")
    state = typed.get("state") or state_path_of(path)
    return LineChanges(state, read_toml(path), path.name, path.resolve().parent, over_file(typed), path)


def over_file(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that stand over a settings file, as its keys."""
    typed = {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in options.items()}
    runner = {key: typed[name] for name, key in RUNNER_OPTIONS.items() if typed.get(name) is not None}
    found = {
        name: typed.get(name) for name in ("bundle", "precision", "threshold", "adapt", "must_deliver", "deadline_s")
    }
    if options.get("precision") == "bf16":
        runner["precision"] = "bf16"
    page, teach = options.get("page"), options.get("teach")
    web = {} if page is None else page_place(page)
    web |= {} if teach is None else {"teach_folder": str(Path(teach).absolute())}
    return found | ({"runner": runner} if runner else {}) | ({"web": web} if web else {})


def settings_of_flags(
    sources: Sequence[str], options: Mapping[str, Any]
) -> tuple[LineSettings, list[Source], LineChanges | None]:
    """The line that the options ask for; its sources, which say what some defaults are; what --state changes.

    Raises ConfigError, SourceError.
    """
    from nnet_edge.frame import UNTAUGHT
    from nnet_edge.runtime.sources.addresses import address_scheme
    from nnet_edge.runtime.sources.open import open_source_of
    from nnet_edge.runtime.stream.kept import LineChanges
    from nnet_edge.settings.line import line_settings
    from nnet_edge.settings.stream import plain_name

    credentials = credentials_place(options["credentials"], sources)
    is_one = len(sources) == 1
    if is_one and options["deadline_s"] is not None:
        raise ConfigError("--deadline belongs to several sources: a single one waits for no other")
    named = [split_name(text, number) for number, text in enumerate(sources)]
    cameras = [
        camera_table(address, number, credentials if address_scheme(address) else None, options)
        for number, (_, address) in enumerate(named)
    ]
    opened = []
    for (name, address), table in zip(named, cameras, strict=True):
        camera = read_camera(table, address if is_one else f"{name} ({address})")
        opened.append(open_source_of(camera, None if is_one else name, may_be_absent=not is_one))
    spools, policy = options["must_deliver"], POLICIES.get(options["when_full"])
    is_live = any(source.is_live for source in opened) or not opened
    asked = Asked(len(sources), is_live, spools is not None, policy == "every-frame")
    verdict = {"min_area": options["min_area"]}
    buffer = {"policy": policy, "capacity": options["buffer_frames"]}
    if is_one and named[0][1] == sources[0] and spools is None:  # no name was typed: the source gives its own
        named = [(plain_name(opened[0].stream), sources[0])]
    names = [name for name, _ in named]
    streams = [
        {"name": name, "camera": camera, "verdict": verdict, "lane": buffer}
        for name, camera in zip(names, cameras, strict=True)
    ]
    sinks = [{"kind": kind.name, **sink_table(kind, options, asked)} for kind in SINKS if is_asked_for(kind, options)]
    for sink in sinks:
        if spools is not None:
            sink["must_deliver"] = str(Path(spools) / SPOOL_FOLDERS.get(sink["kind"], sink["kind"]))
    over = over_file({**options, "must_deliver": None})
    if options["hint"] is None and not is_live:
        over.setdefault("runner", {})["hint"] = "throughput"  # nobody waits for a single frame of a file
    written: dict[str, Any] = {"stream": streams, "sink": sinks}
    kept = None
    if options["bundle"] is None:  # in the table, not over it: what is taught stands in the state file
        written["bundle"] = str(Path(options["teach"]).absolute() / UNTAUGHT)
    settings = line_settings(written, COMMAND_LINE, Path(), over)
    for source, stream in zip(opened, settings.streams, strict=True):
        source.stream = stream.name
    if options["state"] is not None:
        kept = LineChanges(options["state"], written, COMMAND_LINE, Path(), over)
        there = {stream.name: (stream.camera, source) for stream, source in zip(settings.streams, opened, strict=True)}
        settings, opened = kept.settings, []
        for stream in settings.streams:  # those that were added, or have another camera, are opened anew
            old, known = there.get(stream.name, (None, None))
            if known is None or old != stream.camera:
                known = open_source_of(stream.camera, stream.name, may_be_absent=True)
            opened.append(known)
    return settings, opened, kept


def is_asked_for(kind: SinkKind, options: Mapping[str, Any]) -> bool:
    """Whether the sink's flag was typed. Raises ConfigError for a flag that asks for more of it alone."""
    typed = [flag.name for flag in kind.flags if options[key_of(flag.name)]]
    if typed and kind.flag is not None and kind.flag.name not in typed:
        raise ConfigError(f"{typed[0]} belongs to {kind.flag.name}: give that too")
    return bool(typed)


def sink_table(kind: SinkKind, options: Mapping[str, Any], asked: Asked) -> dict[str, Any]:
    """The settings that those of the sink's flags stand for that were typed."""
    typed = [(flag, options[key_of(flag.name)]) for flag in kind.flags]
    return {key: value for flag, given in typed if given for key, value in flag.table(given, asked).items()}


def split_name(text: str, number: int) -> tuple[str, str]:
    """Name and address of "ADDRESS" or "NAME=ADDRESS"; an address may hold an equals sign itself."""
    from nnet_edge.settings.stream import NAME

    name, equals, address = text.partition("=")
    if equals and NAME.fullmatch(name) is not None:
        return name, address
    return f"camera-{number}", text


def camera_table(address: str, number: int, credentials: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """The TOML table of a typed address, with those flags that its kind of source knows."""
    from nnet_edge.settings.camera import fitting

    table: dict[str, Any] = {"address": address}
    if credentials is not None:
        table["credentials"] = credentials
    asked: dict[str, Any] = {"seed": number} | ({} if options["bits"] is None else {"bits": options["bits"]})
    for flag in (flag for kind in SOURCES for flag in kind.flags):
        if options[key_of(flag.name)]:
            asked |= flag.table(options[key_of(flag.name)], Asked())
    return table | fitting(address, asked)


def read_camera(table: Mapping[str, Any], where: str) -> CameraSettings:
    """The settings of the camera. Raises ConfigError that begins with `where`, without passwords."""
    from nnet_edge.runtime.sources.addresses import address_scheme, redact
    from nnet_edge.settings.camera import CameraSettings

    address = str(table["address"])
    shown = where.replace(address, redact(address)) if address_scheme(address) else where
    return CameraSettings.from_table(table, shown, Path())


def credentials_place(text: str | None, sources: Sequence[str]) -> str | None:
    """ "file:PATH" or "env:NAME" of what was typed. Raises ConfigError where no source could use it."""
    if text is None:
        return None
    if not any("://" in source for source in sources):
        raise ConfigError("--credentials belongs to a network address: none of the sources is one")
    return text if text.startswith(("file:", "env:")) else f"file:{text}"


def page_place(text: str) -> dict[str, Any]:
    """Port, and host where one is given, of "8080", "127.0.0.1:8080" or "[::1]:8080". Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal()) or (colon and not host):
        raise ConfigError(f"--page {text} is neither a port nor HOST:PORT: give 8080 or 127.0.0.1:8080")
    return {"port": int(port)} | ({"host": host.removeprefix("[").removesuffix("]")} if colon else {})


def run_settings(
    settings: LineSettings, sources: list[Source] | None, title: str | None, kept: LineChanges | None
) -> None:
    """Run the line until its sources end or a signal comes. Raises what cannot be loaded, opened or served; at the end
    StreamError when a stream failed, SinkError when a sink lost what it must deliver, or what files gave it.
    """
    from nnet_edge.runtime.stream.model import open_model

    for change in [] if kept is None else kept.lines():
        say(change)
    with importing(
        "nnet_edge.runtime.stream.running", "nnet_edge.runtime.stream.terminal"
    ):  # while the graph is opened
        model = open_model(settings)
    from nnet_edge.runtime.runners.base import words_of
    from nnet_edge.runtime.sinks.queued import QueuedSink
    from nnet_edge.runtime.stream.running import open_line, run_line, stopping_on_signals
    from nnet_edge.runtime.stream.terminal import LINE_EVERY_S, TerminalView, VerdictLines
    from nnet_edge.runtime.stream.watchdog import Watchdog

    if kept is None and any(stream.verdict.adapt for stream in settings.streams):
        say("note: a threshold that is adapted holds for this run only: --state FILE keeps it, with the station")
    view = TerminalView(
        printable(title or ""), every_s=CONFIG_LINE_EVERY_S if sources is None else LINE_EVERY_S,
        in_detail=verbosity() is Verbosity.VERBOSE,
    )  # fmt: skip
    lines = [
        VerdictLines(lambda name: line.stream(name).source.is_live, view.print_above, verbosity() is Verbosity.VERBOSE)
    ]
    shown = shows_verdicts(settings, sources is not None)
    line = open_line(settings, sources, lines if shown else (), model)
    if kept is not None:
        kept.follow(line)
    named = f"bundle {model.name}{' (a PREVIEW)' * model.judged_by.preview}"
    scale = "; a part's number is score / threshold" * shown
    say(f"{what_runs(line.streams())} on {words_of(model.runner)}, {named}{scale}")
    for warning in model.warnings:
        warn(warning)
    waits = [sink.label for sink in settings.sinks if sink.every_frame]
    if waits and any(line.stream(stream.name).source.is_live for stream in settings.streams):
        say(f"note: live cameras wait for the sink {waits[0]} too while it is slow or dead, for it has every_frame")
    view.title = view.title or printable(model.name)
    with stopping_on_signals() as stop, ExitStack() as stack:
        server = None
        if settings.web is not None:
            from nnet_edge.runtime.web.server import WebServer

            server = stack.enter_context(WebServer(line, settings.web, settings.drift, kept))
            say(f"the page is at {server.address}")
        stack.enter_context(Watchdog(line.stalled_s, os.environ))
        is_quiet = verbosity() is Verbosity.QUIET
        show = None if is_quiet else stack.enter_context(view).show
        try:
            report = run_line(line, stop, show)
        finally:
            if server is not None:
                server.line_ended()
    are_files = not any(line.stream(status.name).source.is_live for status in line.streams())
    broken = []
    for sink in [sink for sink in line.sinks if isinstance(sink, QueuedSink)]:
        if (waiting := sink.counts().waiting()) is not None:
            warn(waiting)
        if (lost := sink.counts().losses()) is not None:
            warn(lost)
            if sink.settings.must_deliver is not None or (are_files and not stop.is_set()):
                broken.append(lost)
    if sources is not None:
        for path in [path for sink in line.sinks for path in sink.outputs]:
            say(f"wrote {path}")
    errors = line.errors()
    if len(report.streams) == len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        raise StreamError("; ".join(f"stream {name}: {error}" for name, error in errors.items()))
    if broken:
        raise SinkError("; ".join(broken))


def shows_verdicts(settings: LineSettings, is_typed: bool) -> bool:
    """Whether verdicts are shown as lines: of typed sources and on a terminal, unless JSON goes to standard output."""
    if verbosity() is Verbosity.QUIET or any(str(getattr(sink, "path", "")) == "-" for sink in settings.sinks):
        return False
    return is_typed or sys.stdout.isatty() or verbosity() is Verbosity.VERBOSE


def what_runs(streams: Sequence[Any]) -> str:
    """The line's streams in a few words; up to four with their thresholds."""
    if len(streams) > 4:
        return f"{len(streams)} streams"
    if len(streams) == 1:
        return f"{streams[0].what}, threshold {streams[0].threshold:.6g},"
    return ", ".join(f"{status.name} (threshold {status.threshold:.6g})" for status in streams) or "no stream yet"
