"""Campaign of bad input: thousands of odd values, files and command lines; counts, by section, what was answered in words.

    python -m tests.campaign.run BUNDLE [--tries 300] [--seed 0]

BUNDLE is one of a demo. An answer is clean when it is a result or one of nnet-edge's own errors; anything else is printed
with what caused it, and the exit code is 1. Outside CI, about a minute; more with --tries. Only our own readers are asked;
graphs and engines, which reach other libraries' parsers, are left to their tests.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np

from nnet_edge.bundle import MANIFEST, read_bundle
from nnet_edge.cli.main import COMMANDS, Commands, commands, run
from nnet_edge.errors import NnetEdgeError
from nnet_edge.image_files import read_image, read_mask
from nnet_edge.runtime.sources.jpegs import JpegCutter
from nnet_edge.settings.line import line_settings, read_line_config
from tests.settings.test_odd_values import ODD, PLACES, with_value

ROOT = Path(__file__).parents[2]
WORDS = [
    "",
    "-1",
    "0",
    "x",
    "9" * 400,
    "1e999",
    "nan",
    "inf",
    "~nosuchuser/x",
    "a" * 5000,
    "\udce4",
    "\x1b[31m",
    "env:NOBODY",
    "/dev/null",
]
EXIT_CODES = (0, 1, 2)
KINDS = ("settings", "pictures", "bundles", "command_lines")  # folders that the campaign itself makes


@dataclass
class Section:
    """What was tried of one kind, and what was not answered in words."""

    name: str
    tried: int = 0
    faults: list[str] = field(default_factory=list)

    def ask(self, what: str, work: Callable[[], object]) -> None:
        """Do `work`, which may give a result or raise one of our own errors."""
        self.tried += 1
        try:
            work()
        except NnetEdgeError:
            pass
        except Exception as error:
            self.faults.append(f"{what[:120]!r}: {type(error).__name__}: {str(error)[:160]}")


def shown(value: object) -> str:
    """The value in a few letters."""
    return f"a number of {value.bit_length()} bits" if isinstance(value, int) else ascii(value)[:60]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes with a few changed, a piece cut out, doubled or the end missing."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        place, length = chance.randrange(len(found)), chance.randrange(1, 64)
        match chance.randrange(4):
            case 0:
                found[place] = chance.randrange(256)
            case 1:
                del found[place : place + length]
            case 2:
                found[place:place] = found[place : place + length]
            case 3:
                found = found[: max(1, place)]
        if not found:
            return data[:1]
    return bytes(found)


def settings(tries: int, chance: random.Random, folder: Path, bundle: Path) -> Iterator[Section]:
    """Every key of a line's settings with every odd value, and the example file with changed bytes."""
    section = Section("settings: odd values")
    for path in PLACES:
        for value in ODD:
            section.ask(
                f"{path} = {shown(value)}",
                lambda p=path, v=value: line_settings(with_value(p, v), "line.toml", folder, {}),
            )
    yield section
    section = Section("settings: damaged files")
    example, file = (ROOT / "examples" / "line.toml").read_bytes(), folder / "line.toml"
    for number in range(2 * tries):
        file.write_bytes(mutated(example, chance))
        section.ask(f"file {number}", lambda: read_line_config(file))
    yield section


def pictures(tries: int, chance: random.Random, folder: Path, bundle: Path) -> Iterator[Section]:
    """Pictures and masks of each format with changed bytes, and cameras' streams of them."""
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    encoded = {
        suffix: cv2.imencode(suffix, image)[1].tobytes() for suffix in (".png", ".jpg", ".bmp", ".tiff", ".webp")
    }
    for title, read in (("pictures", read_image), ("masks", read_mask)):
        section = Section(f"{title}: damaged files")
        for suffix, data in encoded.items():
            for number in range(tries // 2):
                file = folder / f"picture{suffix}"
                file.write_bytes(mutated(data, chance))
                section.ask(f"{suffix} {number}", lambda f=file, r=read: r(f))
        yield section
    section = Section("cameras: damaged streams")
    stream = b"".join(b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + encoded[".jpg"] + b"\r\n" for _ in range(4))
    for number in range(tries):
        damaged = mutated(stream, chance)
        section.ask(f"stream {number}", lambda data=damaged: list(JpegCutter().feed(data)))
    yield section


def bundles(tries: int, chance: random.Random, folder: Path, bundle: Path) -> Iterator[Section]:
    """The manifest with odd values at every place, and with changed bytes."""
    copied = folder / "bundle"
    shutil.copytree(bundle, copied)
    text = (bundle / MANIFEST).read_text(encoding="utf-8")
    facts = json.loads(text)
    section = Section("bundles: odd values")
    for place in list(places(facts)):
        for value in chance.sample([value for value in ODD if not isinstance(value, bytes)], 2):
            with contextlib.suppress(ValueError):  # what JSON cannot hold
                (copied / MANIFEST).write_text(json.dumps(replaced(facts, place, value)), encoding="utf-8")
                section.ask(f"{place} = {shown(value)}", lambda: read_bundle(copied))
    yield section
    section = Section("bundles: damaged manifests")
    for number in range(tries):
        (copied / MANIFEST).write_bytes(mutated(text.encode(), chance))
        section.ask(f"manifest {number}", lambda: read_bundle(copied))
    yield section


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of a manifest's values, the first two of a list."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def replaced(facts: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with `value` at the place."""
    node = found = copy.deepcopy(facts)
    for key in place[:-1]:
        node = node[key]
    node[place[-1]] = value
    return found


def command_lines(tries: int, chance: random.Random, folder: Path, bundle: Path) -> Iterator[Section]:
    """Every option of every command with odd words, in a folder where nothing is; no server and no training begins."""
    section = Section("command lines: odd options")
    context = click.Context(commands)
    for name in sorted(set(COMMANDS) - {"demo"}):  # which needs nothing, and would begin
        command = Commands.get_command(commands, context, name)  # type: ignore[arg-type]
        for arguments, parameters in all_commands(name, command):
            places = [parameter for parameter in parameters if isinstance(parameter, click.Argument)]
            for parameter in parameters:
                if isinstance(parameter, click.Option) and not parameter.is_flag:
                    for word in chance.sample(WORDS, 5):
                        nowhere = [str(folder / "nothing") for place in places if place.required]
                        line = [*arguments, *nowhere, parameter.opts[0], word]
                        section.tried += 1
                        if (fault := told(line)) is not None:
                            section.faults.append(fault)
    left = sorted(path.name for path in Path.cwd().iterdir() if path.name not in KINDS)
    section.faults += [f"{name!a} was left behind" for name in left]
    yield section


def all_commands(name: str, command: Any) -> Iterator[tuple[list[str], list[click.Parameter]]]:
    """The command's words and parameters; of a group, those of its commands."""
    if isinstance(command, click.Group):
        for inner in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), inner)
            assert found is not None
            yield [name, inner], found.params
    else:
        yield [name], command.params


def told(line: list[str]) -> str | None:
    """Why the answer to a command line is not clean; None when it is."""
    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = run(line)
    except BaseException as error:
        return f"{line!a}: {type(error).__name__}: {str(error)[:160]}"
    text = output.getvalue()
    if code not in EXIT_CODES or "unexpected: " in text or "Traceback" in text or "\x1b[31m" in text:
        return f"{line!a}: exit {code}: {text[-200:]!a}"
    return None


def say(text: str) -> None:
    """One line on standard output."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tries", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    faults: list[str] = []
    say(f"{'section':<32}{'tried':>8}{'clean':>8}")
    bundle = options.bundle.resolve()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        for kind in (settings, pictures, bundles, command_lines):
            folder = Path(name) / kind.__name__
            folder.mkdir()
            for section in kind(options.tries, random.Random(options.seed), folder, bundle):
                say(f"{section.name:<32}{section.tried:>8}{section.tried - len(section.faults):>8}")
                faults += [f"{section.name}: {fault}" for fault in section.faults]
    for fault in faults:
        say(fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
