"""The options of `stream` that sinks and sources register, and the copy of them that `--help` reads: it imports no kind.

`flags.txt` is that copy. It counts while no other file registers a kind, and a test compares it with the registries;
`python -m nnet_edge.cli.flags > nnet_edge/cli/flags.txt` makes it again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from nnet_edge.settings.registry import SINKS, SOURCES

SINK_FLAGS, SOURCE_FLAGS = "Where verdicts go", "Sources"  # headings of --help
KEY = __name__  # of the context's meta
COPY = Path(__file__).with_suffix(".txt")


@dataclass(frozen=True)
class Registered:
    """What the registries tell a person who types a command."""

    files: list[str]  # that register a kind
    addresses: str  # of every source
    flags: list[tuple[str, str, str, str, str]]  # name, type, metavar ("": none), heading of --help, help

    def to_text(self) -> str:
        """As it lies in `flags.txt`."""
        return "".join(f"{line}\n" for line in [" ".join(self.files), self.addresses, *map("\t".join, self.flags)])


def registered(context: click.Context) -> Registered:
    """Everything that is registered, from the copy where that still holds; looked up once a context."""
    if KEY not in context.meta:
        context.meta[KEY] = look_up()
    found: Registered = context.meta[KEY]
    return found


def look_up() -> Registered:
    copy = read_copy()
    holds = not (SINKS.has_kinds or SOURCES.has_kinds) and copy.files == registering_files()
    return copy if holds else ask_registries()


def read_copy() -> Registered:
    files, addresses, *flags = COPY.read_text(encoding="utf-8").splitlines()
    rows = (line.split("\t") for line in flags)
    return Registered(
        files.split(), addresses, [(name, kind, metavar, heading, text) for name, kind, metavar, heading, text in rows]
    )


def registering_files() -> list[str]:
    return [*SINKS.files(), *SOURCES.files()]


def ask_registries() -> Registered:
    """The same from the kinds themselves, which are imported."""
    from nnet_edge.settings.camera import known_addresses

    headings = (SINKS, SINK_FLAGS), (SOURCES, SOURCE_FLAGS)
    flags = [(flag, heading) for kinds, heading in headings for kind in kinds for flag in kind.flags]
    rows = [(flag.name, flag.type, flag.metavar or "", heading, flag.help) for flag, heading in flags]
    return Registered(registering_files(), known_addresses(), rows)


if __name__ == "__main__":
    click.echo(ask_registries().to_text(), nl=False)
