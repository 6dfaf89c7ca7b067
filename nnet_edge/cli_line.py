"""The verbs of a line: stream judges, config checks its settings file, swap gives it another bundle while it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from nnet_edge.cli_options import FILE, FOLDER, Verb, Verbs, precision_option, runner_options, runner_settings
from nnet_edge.cli_view import say
from nnet_edge.errors import ConfigError


@click.command(cls=Verb)
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
def stream(
    context: click.Context, sources: tuple[str, ...], bundle: Path | None, config: Path | None, **options: Any
) -> None:
    """Judge every frame of SOURCE: an image folder, a video, a camera's number, an rtsp:// or http:// address, synthetic.

    Several sources are one line: they share the model, and each may have a name: left=0 right=rtsp://camera/1.
    """
    if config is not None:
        if sources:
            raise ConfigError(f"{sources[0]} and --config: give a source, or a settings file that names sources")
        stream_config(config, typed_options(context))
        return
    if not sources or bundle is None:
        raise ConfigError("stream needs a SOURCE and --bundle, or --config line.toml")
    if options.pop("page") is not None:
        raise ConfigError("--page belongs to a line: write a settings file and give it as --config")
    from nnet_edge.stream_verb import stream_bundle, stream_line

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


def stream_config(config: Path, typed: dict[str, Any]) -> None:
    """Run the line of the settings file, what was typed over it."""
    from nnet_edge.line_verb import stream_config as run_config

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
    for line in run_config(config, typed | ({"runner": runner} if runner else {}), say):
        say(line)


def page_place(text: str) -> dict[str, Any]:
    """Port, and host where one is given, of "8080", "127.0.0.1:8080" or "[::1]:8080". Raises ConfigError."""
    host, colon, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal()) or (colon and not host):
        raise ConfigError(f"--page {text} is neither a port nor HOST:PORT: give 8080 or 127.0.0.1:8080")
    return {"port": int(port)} | ({"host": host.removeprefix("[").removesuffix("]")} if colon else {})


@click.group("config", cls=Verbs)
def config_group() -> None:
    """A line's settings file."""


@config_group.command("check")
@click.argument("file", type=FILE)
@click.option("--without-bundle", is_flag=True, help="For a file that is checked on another machine than the line's.")
def check(file: Path, without_bundle: bool) -> None:
    """Check every key of FILE, and that its bundles hold what it asks for, without running anything; say what it means."""
    from nnet_edge.line_verb import check_config

    for line in check_config(file, not without_bundle):
        click.echo(line)


@config_group.command("schema")
def print_schema() -> None:
    """Print the JSON schema of the settings file, for editors."""
    import json

    from nnet_edge.line_config import schema

    click.echo(json.dumps(schema(), indent=2))


@click.command(cls=Verb)
@click.argument("bundle")
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The page of the running line.")
@click.option("--stream", "name", help="Only for this stream.")
@click.option("--token-from", help="env:NAME or file:PATH, which hold the page's token.")
def swap(bundle: str, url: str, name: str | None, token_from: str | None) -> None:
    """Let a running line judge by BUNDLE, a folder below its bundle_folder, without losing a frame."""
    from nnet_edge.runtime.web.client import PageClient
    from nnet_edge.web_settings import read_secret

    PageClient(url, None if token_from is None else read_secret("--token-from", token_from)).swap(bundle, name)
    say(f"the line at {url} judges by {bundle}")
