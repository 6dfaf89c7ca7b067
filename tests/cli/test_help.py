"""What every command says of itself: an example that can be typed, units, defaults, headings; versions; completion."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from nnet_edge import __version__
from nnet_edge.cli.main import commands, run
from nnet_edge.cli.options import GENERAL_OPTIONS, OTHER_OPTIONS, Command, WithExample, json_option, print_result

MOST_UNGROUPED = 12  # options below one heading
PROGRAM = Path(sys.executable).with_name("nnet-edge")


def every_command(
    command: click.Command = commands, context: click.Context | None = None
) -> Iterator[tuple[click.Context, click.Command]]:
    """The groups and commands, all the way down, each with its context."""
    context = context or click.Context(command, info_name="nnet-edge")
    yield context, command
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from every_command(below, click.Context(below, info_name=name, parent=context))


COMMANDS = {context.command_path: (context, command) for context, command in every_command()}
below_the_top = pytest.mark.parametrize("path", [path for path in COMMANDS if path != "nnet-edge"])


def options_of(path: str) -> list[click.Option]:
    context, command = COMMANDS[path]
    return [option for option in command.get_params(context) if isinstance(option, click.Option)]


@below_the_top
def test_every_command_has_an_example_that_can_be_typed(path: str) -> None:
    context, command = COMMANDS[path]
    assert isinstance(command, WithExample), "give it cls=Command or cls=CommandGroup of nnet_edge/cli/options.py"
    assert command.example, f'{path}: write @click.command(..., example="{path} ...")'
    assert command.example in "\n".join(map(str.strip, command.get_help(context).splitlines()))
    for line in command.example.splitlines():
        words = shlex.split(line.partition(" > ")[0])
        assert " ".join(words).startswith(path)
        asked: click.Command = commands
        while isinstance(asked, click.Group):
            name, found, words = asked.resolve_command(context, words if asked is not commands else words[1:])
            assert found is not None
            asked = found
        asked.make_context(name, words)  # raises for what cannot be parsed


@below_the_top
def test_every_number_has_a_unit_and_every_choice_a_default(path: str) -> None:
    context, _ = COMMANDS[path]
    for option in options_of(path):
        assert option.help, f"{option.opts[0]} says nothing"
        if option.is_flag or isinstance(option.type, click.Path):
            continue
        is_text, is_choice = option.type.name == "text", isinstance(option.type, click.Choice)
        assert option.metavar or is_choice, f'{option.opts[0]}: say what to give or its unit, metavar="SECONDS"'
        record = option.get_help_record(context)
        assert record is not None
        assert is_text or "default" in record[1].lower(), f"{option.opts[0]}: say its default"


@below_the_top
def test_many_options_lie_below_headings(path: str) -> None:
    context, command = COMMANDS[path]
    sections: dict[str, int] = {}
    for option in options_of(path):
        heading = vars(option).get("heading", OTHER_OPTIONS)
        sections[heading] = sections.get(heading, 0) + 1
    assert max(sections.values()) <= MOST_UNGROUPED, f"{path}: use grouped() of nnet_edge/cli/options.py"
    if not isinstance(command, click.Group):
        said = command.get_help(context)
        assert sorted(sections, key=lambda heading: said.index(f"\n{heading}:\n"))[-1] == GENERAL_OPTIONS


WITH_A_TABLE = (  # commands whose result people read as a table
    "bench accuracy", "bench guard", "bench levers", "bench peers", "bench speed", "calibrate", "cameras", "config check",
    "data", "doctor", "evaluate", "fleet status", "fleet train", "history", "review",
)  # fmt: skip


def test_whatever_prints_a_table_prints_json_too() -> None:
    said = {name: [text for one in options_of(f"nnet-edge {name}") for text in one.opts] for name in WITH_A_TABLE}
    assert [name for name, options in said.items() if "--json" not in options] == []


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_json_comes_in_place_of_the_table(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    @click.command(cls=Command)
    @json_option
    def measured() -> None:
        print_result("a  table", {"a": [1, None]})

    measured.main(words, standalone_mode=False)
    said = capsys.readouterr().out
    assert json.loads(said) == {"a": [1, None]} if words else said == "a  table\n"


def test_config_check_says_as_json_what_it_says_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "line.toml"
    assert run(["config", "init", str(file)]) == 0
    for words in ([], ["--json"]):
        assert run(["config", "check", "--without-bundle", str(file), *words]) == 0
    said = capsys.readouterr().out
    table, found = said[: said.index("{")], json.loads(said[said.index("{") :])
    assert found["lines"] == table.splitlines()
    assert found["is_valid"] is True


def test_the_version_says_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"nnet-edge, version {__version__}\nPython {sys.version.split()[0]}, ")
    assert all(name in said for name in ("numpy ", "cv2 ", "torch ", " cores"))


def test_quiet_leaves_warnings_and_verbose_says_more(capsys: pytest.CaptureFixture[str]) -> None:
    from nnet_edge.cli.view import Verbosity, say, say_in_detail, set_verbosity, verbosity

    heard = {}
    for chosen in Verbosity:
        set_verbosity(Verbosity.NORMAL)
        set_verbosity(chosen)
        for line in ("a fact", "warning: a danger"):
            say(line)
        say_in_detail("a detail")
        heard[chosen] = capsys.readouterr().err.splitlines()
    assert heard == {
        Verbosity.QUIET: ["warning: a danger"],
        Verbosity.NORMAL: ["a fact", "warning: a danger"],
        Verbosity.VERBOSE: ["a fact", "warning: a danger", "a detail"],
    }
    set_verbosity(Verbosity.NORMAL)
    assert run(["doctor", "--quiet", "--verbose"]) == 2
    assert "--quiet and --verbose contradict each other" in capsys.readouterr().err
    assert verbosity() is Verbosity.NORMAL  # the next command begins anew


# --- completion, by click's own scripts

ASKED = {  # shell -> what its script asks with: the words so far, and which one is completed
    "bash": {"COMP_WORDS": "nnet-edge tr", "COMP_CWORD": "1"},
    "zsh": {"COMP_WORDS": "nnet-edge tr", "COMP_CWORD": "1"},
    "fish": {"COMP_WORDS": "nnet-edge tr", "COMP_CWORD": "tr"},
}


def completing(**variables: str) -> str:
    done = subprocess.run([PROGRAM], env={**os.environ, **variables}, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("shell", list(ASKED))
def test_each_shell_completes_a_command(shell: str) -> None:
    assert "nnet-edge" in completing(_NNET_EDGE_COMPLETE=f"{shell}_source")
    found = completing(_NNET_EDGE_COMPLETE=f"{shell}_complete", **ASKED[shell])
    assert [line for line in found.replace("\n", ",").split(",") if line == "train" or line.startswith("train\t")]


def test_bash_completes_as_it_is_documented(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    script = """
eval "$(_NNET_EDGE_COMPLETE=bash_source nnet-edge)"
COMP_WORDS=(nnet-edge stream --when-full dr); COMP_CWORD=3
_nnet_edge_completion nnet-edge
echo "${COMPREPLY[@]}"
"""
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [bash, "-c", script], env={**os.environ, "PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["drop-oldest"]
