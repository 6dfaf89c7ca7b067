"""`nnet-edge config`: begin and check a line's settings file, print its JSON schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from nnet_edge.cli.options import FILE, FOLDER, Command, CommandGroup, json_option, print_result, shown_option
from nnet_edge.cli.view import say
from nnet_edge.errors import ConfigError, NnetEdgeError
from nnet_edge.text import printable

if TYPE_CHECKING:
    from nnet_edge.settings.line import LineSettings


@click.group("config", cls=CommandGroup, example="nnet-edge config check line.toml")
def command() -> None:
    """Begin, check and describe a line's settings file."""


@command.command("check", cls=Command, example="nnet-edge config check line.toml")
@click.argument("file", type=FILE)
@click.option("--without-bundle", is_flag=True, help="For a file that is checked on another machine than the line's.")
@json_option
def check(file: Path, without_bundle: bool) -> None:
    """Check every key of FILE, and that its bundles hold what it asks for, without running anything; say what it means."""
    lines = [printable(line) for line in check_config(file, not without_bundle)]
    print_result("\n".join(lines), {"file": str(file), "is_valid": True, "lines": lines})


@command.command(
    "init",
    cls=Command,
    example="""\
nnet-edge config init line.toml --bundle runs/part/bundle --source left=0 --page 8080""",
)
@click.argument("file", type=FILE, default=Path("line.toml"))
@shown_option("--bundle", type=FOLDER, default=Path("runs/part/bundle"), help="The folder that train or export wrote.")
@shown_option("--source", "sources", metavar="[NAME=]SOURCE", multiple=True, default=("0",),
              help="A camera, as stream takes it; may be repeated.")  # fmt: skip
@click.option("--page", metavar="[HOST:]PORT", help="Serve the page there (default: no page).")
@click.option("--force", is_flag=True, help="Replace FILE.")
def init(file: Path, bundle: Path, sources: tuple[str, ...], page: str | None, force: bool) -> None:
    """Write a line's settings file to begin with, FILE (default: line.toml).

    Every key stands in it with what it does; those that are not needed are comments.
    """
    from nnet_edge.cli.stream import page_place, split_name
    from nnet_edge.files import write_atomically
    from nnet_edge.settings.line import line_settings, toml_of
    from nnet_edge.settings.template import commented_settings

    if file.exists() and not force:
        raise ConfigError(f"{file} is there already: choose another name, or replace it with --force")
    named = [split_name(text, number) for number, text in enumerate(sources)]
    if twice := [name for name, _ in named if [other for other, _ in named].count(name) > 1]:
        raise ConfigError(f"two sources are called {twice[0]!r}: give them different names")
    folder = file.resolve().parent
    addresses = {name: seen_from(folder, address) if Path(address).exists() else address for name, address in named}
    text = commented_settings(
        file.name, seen_from(folder, bundle), addresses, None if page is None else page_place(page)
    )
    line_settings(toml_of(text.encode(), file), file.name, folder)  # what is wrong with a source is said now
    write_atomically(file, text.encode())
    say(f"wrote {file}; next: nnet-edge config check {file}, then nnet-edge stream --config {file}")
    if not bundle.is_dir():
        say(f"note: {bundle} is not there yet: train it, or write the bundle's folder into {file}")


@command.command("schema", cls=Command, example="nnet-edge config schema > line.schema.json")
def print_schema() -> None:
    """Print the JSON schema of the settings file, for editors."""
    from nnet_edge.settings.line import schema

    click.echo(json.dumps(schema(), indent=2))


def seen_from(folder: Path, path: Path | str) -> str:
    """The path as a settings file in the folder names it: from there where it lies below, else the whole path."""
    whole = Path(path).resolve()
    return str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole)


def check_config(path: Path, has_bundle: bool = True) -> list[str]:
    """The settings file in words, one line a part; checks the settings of each sink, each mask picture and each secret.

    With `has_bundle`, read each bundle and check that it has the precision and runner that are asked for, with a threshold,
    and that its streams may adapt on so many pictures.
    Opens and connects nothing. Raises ConfigError, BundleError.
    """
    from nnet_edge.runtime.sources.open import absence, may_be_camera
    from nnet_edge.runtime.stream.judge import check_masks
    from nnet_edge.runtime.stream.kept import LineChanges, state_path_of
    from nnet_edge.settings.line import read_toml
    from nnet_edge.settings.registry import SINKS

    kept = LineChanges(state_path_of(path), read_toml(path), path.name, path.resolve().parent, file=path)
    settings = kept.settings
    for sink in settings.sinks:
        SINKS.find(sink.kind).make(sink)
    if settings.web is not None:
        settings.web.token()
    lines = settings.lines() + kept.lines()
    for stream in settings.streams:
        height, width = stream.camera.height, stream.camera.width
        try:
            check_masks(stream.verdict, None if height is None or width is None else (height, width))
        except ConfigError as error:
            raise ConfigError(f"{path.name}: [[stream]] {stream.name!r}: verdict: {error}") from error
        reason = absence(stream.camera)
        if reason is not None:
            then = "it is tried until it is there" if may_be_camera(stream.camera) else "the line would be refused"
            lines.append(f"note: stream {stream.name}: {reason}; {then}")
    if has_bundle:
        lines += [check_bundle(bundle, settings, path.name) for bundle in settings.bundles]
    return [*lines, f"{path} can be used"]


def check_bundle(path: Path, settings: LineSettings, where: str) -> str:
    """The artefact, runner and threshold of the bundle at `path`. Raises BundleError or ConfigError that names the file."""
    from nnet_edge.bundle import is_untaught, read_bundle
    from nnet_edge.runtime.runners.base import runner_class
    from nnet_edge.runtime.runners.cuda_parts import require_cuda_parts
    from nnet_edge.runtime.stream.first_frames import rate_of, require_enough
    from nnet_edge.runtime.stream.model import choose_runnable
    from nnet_edge.settings.runner import CUDA_RUNNER

    if is_untaught(path):
        return "no bundle yet: the line rejects every part until it is taught on the page"
    try:
        bundle = read_bundle(path)
        artefact, runner, threshold = choose_runnable(bundle, settings.runner, settings.precision)
        if runner == CUDA_RUNNER:
            require_cuda_parts(settings.runner.gpu)
        elif artefact.kind != "engine":
            runner_class(runner)  # that it is installed does not say that it can be loaded
    except NnetEdgeError as error:
        raise type(error)(f"{where}: bundle: {error}") from error
    for stream in settings.streams:
        if stream.verdict.adapt is not None and (stream.bundle or settings.bundle) == path:
            try:
                require_enough(stream.verdict.adapt, rate_of(bundle.manifest))
            except ConfigError as error:
                raise ConfigError(f"{where}: [[stream]] {stream.name!r}: verdict: {error}") from error
    warning = "".join(f"; {warning}" for warning in bundle.warnings)
    return f"bundle {bundle.name} is whole: {artefact.name} on {runner}, threshold {threshold:.6g}{warning}"
