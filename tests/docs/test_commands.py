"""What the documentation tells to type: every command, settings file and piece of Python in it is right.

Every fenced block labelled `sh`, or that begins with a command, is commands. Each is parsed by click's own parser, and run in
a folder with a tiny bundle unless `ONLY_PARSED` says why not. Commands within a sentence are parsed, too; they may leave
arguments out. TOML passes the reader of `config check`, Python compiles.
"""

from __future__ import annotations

import ast
import functools
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import pytest

from nnet_edge.cli.fleet.parts import read_fleet
from nnet_edge.cli.main import commands, run
from nnet_edge.runtime.stream.stream_queue import CAUSES
from nnet_edge.settings.line import line_settings, toml_of

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md"), *(ROOT / n for n in ("README.md", "CONTRIBUTING.md"))]
)
SHELLS = ("sh", "bash", "shell", "console")
OUTSIDE = {  # programs that are not ours: a shell reads their lines, and no test goes further
    "apt", "apt-get", "cat", "cd", "cmake", "cp", "curl", "eval", "export", "fuser", "grep", "ip", "jetson_clocks",
    "judge", "nvcc", "nvpmodel", "ray", "scp", "sh", "source", "sqlite3", "sysctl", "systemctl", "tar", "usermod",
}  # fmt: skip
CAMERA = re.compile(r"^(\w+=)?(0|1|/dev/video\d|rtsp://.*|gige://.*)$")
ONLY_PARSED = {  # the start of a command, or what stands in it -> why it is parsed and not run
    "train": "minutes; tests/cli run trainings",
    "demo": "minutes; tests/cli/demo runs one",
    "bench": "minutes; tests/benchmarks run miniatures",
    "calibrate": "half a minute; tests/calibration",
    "build-engine": "TensorRT; tests/export",
    "export": "exports and compares for half a minute; tests/cli",
    "--mqtt": "needs a broker; tests/runtime/sinks",
    "fleet": "minutes; tests/cli/fleet",
    "pack": "downloads wheels; tests/cli/test_pack.py",
    "swap": "needs a line that runs; tests/cli/test_swap.py",
    "collect": "writes photographs; tests/cli/test_collect.py",
    "cameras": "asks the network; tests/cli/test_cameras.py",
    "doctor": "asks the network for cameras; tests/cli/test_doctor.py",
    "--runner tensorrt": "needs a GPU",
    "--runner cuda": "needs a GPU",
    "--precision int8": "needs what calibrate makes",
    "--teach": "runs until it is stopped; tests/cli/test_teach.py",
    "--page": "runs until it is stopped; tests/cli/test_line.py",
    "serve": "runs until it is stopped; tests/runtime/serve",
    "--config": "runs until it is stopped; tests/cli/test_line.py",
    "review": "needs labels; tests/cli/test_review.py",
    "--false-rejects": "needs 199 held-out images",
}
PAST = {"nnet-edge bench growth BUNDLE"}  # what measurements of before were made with, and is told as such


@dataclass(frozen=True)
class Typed:
    """A piece of a page that somebody may type or copy."""

    page: str  # below the repository
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Typed]:
    """Every fenced block in one of the languages; "" is one without a label."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for block in re.finditer(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
            if block[2] in languages:
                line = text[: block.start()].count("\n") + 1
                found.append(Typed(str(path.relative_to(ROOT)), line, block[2], block[3]))
    return found


def simple_commands(line: str) -> Iterator[list[str]]:
    """The words of each command of a shell's line: without comments, `sudo`, redirections and what comes behind a pipe."""
    words = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set(";&|"):
            if command and not all(re.fullmatch(r"\w+=.*", part) for part in command):
                yield command
            command = []
        elif command[-1:] in (["<"], [">"], [">>"]):
            del command[-1]
        elif word != "sudo" and not (not command and re.fullmatch(r"\w+=\S*", word)):
            command.append(word)


def typed_commands() -> list[tuple[Typed, list[str]]]:
    """Every command of every block for a shell, with its words; a block without a label that begins with one is such, too."""
    found = []
    begins = re.compile(r"(\$ )?(sudo |nnet-edge |pip |python3? |make |curl |apt(-get)? )")
    for block in [*blocks(*SHELLS), *(block for block in blocks("") if begins.match(block.text))]:
        text = block.text.replace("\\\n", " ")
        if re.match(r"\s*for ", text):
            continue  # a loop: read by a shell below
        for number, line in enumerate(text.splitlines(), block.line + 1):
            for words in simple_commands(line.removeprefix("$ ")):
                found.append((Typed(block.page, number, "sh", line), words))
    return found


def ours(words: list[str]) -> list[str] | None:
    """The arguments of nnet-edge, None for another program."""
    return words[1:] if Path(words[0]).name == "nnet-edge" else None


def find_command(words: list[str]) -> tuple[str, click.Command, list[str]]:
    """Name and command that the words lead to, with the arguments that are left. Raises UsageError."""
    name, command, words = "nnet-edge", commands, [word for word in words if word != "--debug"]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        with click.Context(command) as context:
            inner = command.get_command(context, words[0])
        if inner is None:
            raise click.UsageError(f"no command {words[0]}")
        name, command = f"{name} {words.pop(0)}", inner
    return name, command, words


def parse(words: list[str]) -> None:
    """Let click read the whole command, values and callbacks too. Raises UsageError."""
    name, command, left = find_command(words)
    with suppress(click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):  # --help, --version
        command.make_context(name, left)


def parse_part(words: list[str]) -> None:
    """Let click read the options alone: a sentence leaves out arguments, and says N for a number. Raises UsageError."""
    name, command, left = find_command(words)
    command.make_parser(click.Context(command, info_name=name)).parse_args(left)


def ids(found: object) -> str | None:
    return str(found) if isinstance(found, Typed) else None


def test_there_are_commands_to_be_tested() -> None:
    assert len([words for _, words in typed_commands() if ours(words)]) > 30


def test_a_shell_reads_every_block() -> None:
    text = "\n".join(block.text for block in blocks(*SHELLS))
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("typed", "words"), typed_commands(), ids=ids)
def test_every_command_is_one(typed: Typed, words: list[str]) -> None:
    program, arguments = "source" if words[0] == "." else Path(words[0]).name, words[1:]
    if program == "nnet-edge":
        parse(arguments)
    elif program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {part for part in arguments if "=" not in part} <= set(targets)
    elif program in ("python", "python3") and arguments[:1] == ["-m"]:
        require_module(arguments[1:])
    elif program in ("python", "python3") and arguments[:1] == ["-c"]:
        ast.parse(arguments[1])
    elif program == "pip":
        for extra in re.findall(r"nnet[-_]edge\S*\[([\w,]+)\]", " ".join(arguments)):
            assert set(extra.split(",")) <= extras(), typed
    else:
        assert program in OUTSIDE, f"{program} is neither ours nor known to this test: is it a command?"


def require_module(arguments: list[str]) -> None:
    """That `python -m NAME --flag` names a module of ours, and flags of which its source or a neighbour knows."""
    name, *flags = arguments
    if not name.startswith(("nnet_edge.", "tests.")):
        assert name in ("venv", "pip", "build", "pytest"), name
        return
    parts = name.removeprefix("nnet_edge.").split(".") if (ROOT / name.split(".")[1]).is_dir() else name.split(".")
    path = ROOT.joinpath(*parts)
    files = [path.with_suffix(".py")] if path.with_suffix(".py").exists() else [*path.glob("*.py")]
    assert files, f"no module {name}"
    known = "".join(file.read_text(encoding="utf-8") for file in [*files, *(ROOT / "benchmarks/harness").glob("*.py")])
    assert not [flag for flag in flags if flag.startswith("--") and f'"{flag}"' not in known], name


@functools.cache
def extras() -> frozenset[str]:
    """The extras of setup.py."""
    for node in ast.walk(ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "extras_require" and isinstance(node.value, ast.Dict):
            return frozenset(ast.literal_eval(key) for key in node.value.keys if key is not None)
    raise AssertionError("setup.py has no extras")


def sentences() -> list[tuple[Typed, list[str]]]:
    """Every command within a sentence; of `a|b` the first, what is in brackets as if it were not."""
    found = []
    for path in PAGES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for text in set(re.findall(r"`(nnet-edge [^`]+)`", line)) - PAST:
                plain = re.sub(r"\[(?=-)|(?<=\w)\]|(?<=[\w\]])\s*\|\s*\S+", "", text.split(" > ")[0])
                words = [word for word in shlex.split(plain) if word != "..." and word not in "<>[]"]
                found.append((Typed(str(path.relative_to(ROOT)), number, "", text), words[1:]))
    return found


@pytest.mark.parametrize(("typed", "words"), sentences(), ids=ids)
def test_every_command_within_a_sentence_is_one(typed: Typed, words: list[str]) -> None:
    parse_part([] if words == ["--debug", "COMMAND"] else words)


def test_a_wrong_command_would_be_found() -> None:
    for wrong in ("steam 0", "stream 0 --bundel B", "train", "train photos --size", "export T --false-rejects many"):
        with pytest.raises(click.UsageError):
            parse(wrong.split())
    with pytest.raises(click.UsageError):
        parse_part(["stream", "--nowhere"])
    with pytest.raises(AssertionError):
        require_module(["nnet_edge.benchmarks.nothing"])
    assert [*simple_commands("A=1 nnet-edge x > y | z # c")] == [["nnet-edge", "x"], ["z"]]


@pytest.fixture(scope="module")
def workshop(trained_run: Path, parts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages imagine it: photos/, runs/part/, the demo's line and a settings file."""
    folder = tmp_path_factory.mktemp("workshop")
    shutil.copytree(parts_folder, folder / "photos")
    shutil.copytree(trained_run, folder / "runs/part")
    for there, here in (("good", "train/good"), ("test_good", "test/good"), ("bad/stain", "test/scratch")):
        shutil.copytree(parts_folder / there, folder / "demo/line" / here)
    masks = folder / "demo/line/ground_truth/scratch"
    masks.mkdir(parents=True)
    for mask in (parts_folder / "masks/stain").iterdir():
        shutil.copy(mask, masks / f"{mask.stem}_mask.png")
    video = cv2.VideoWriter(str(folder / "part.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 96))
    for picture in sorted((parts_folder / "test_good").iterdir()):
        video.write(cv2.imread(str(picture)))
    video.release()
    (folder / "line.toml").write_text(
        'bundle = "runs/part/bundle"\n[[stream]]\nname = "left"\ncamera.address = "photos/test_good"\n',
        encoding="utf-8",
    )
    return folder


def reason_of(words: list[str]) -> str | None:
    """Why the command is not run, None for one that is."""
    line = " ".join(words)
    return next(
        (why for what, why in ONLY_PARSED.items() if words[0] == what or (what.startswith("--") and what in line)), None
    )


def to_run() -> list[tuple[Typed, list[str]]]:
    """The commands that are run: as few as show each command and each of its options that the pages use."""
    found = [(typed, ours(words) or []) for typed, words in typed_commands()]
    found = [(typed, words) for typed, words in found if words and reason_of(words) is None]
    chosen, shown = [], set[tuple[str, str]]()
    for typed, words in sorted(found, key=lambda pair: -len(pair[1])):
        name, _, _ = find_command(words)
        shows = {(name, word) for word in words if word.startswith("--") and word != "--debug"} | {(name, "")}
        if not shows <= shown:
            shown |= shows
            chosen.append((typed, words))
    return sorted(chosen, key=lambda pair: (pair[0].page, pair[0].line))


def test_commands_do_what_the_pages_say(
    workshop: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One after another in one folder, as somebody types them; a folder of four parts stands for each camera."""
    monkeypatch.chdir(workshop)
    assert len(to_run()) > 5
    failed = {}
    for typed, words in to_run():
        if run(with_parts_for_cameras(words)) != 0:
            failed[f"{typed}: nnet-edge {' '.join(words)}"] = capfd.readouterr().err.splitlines()[-1]
    assert not failed


def with_parts_for_cameras(words: list[str]) -> list[str]:
    """The words of a command, with a folder of parts in place of each camera."""
    sources = [not before.startswith("--") for before in words[:-1]] if words[0] == "stream" else []
    return words[:1] + [
        CAMERA.sub(r"\1photos/test_good", word) if is_source else word
        for word, is_source in zip(words[1:], sources or [False] * len(words), strict=False)
    ]


@pytest.mark.parametrize("block", blocks("toml"), ids=ids)
def test_every_settings_file_is_read(block: Typed, tmp_path: Path) -> None:
    """A part of one is completed by a bundle, a camera and the streams that it names."""
    table = toml_of(block.text.encode(), Path(str(block)))
    if "part" in table:  # of nnet-edge fleet
        for part in table["part"]:
            (tmp_path / part["data"]).mkdir(parents=True)
        (tmp_path / "parts.toml").write_text(block.text, encoding="utf-8")
        assert read_fleet(tmp_path / "parts.toml").parts
        return
    named = {"bundle": "runs/part/bundle"} | table
    streams = named.setdefault("stream", [])
    wanted = {stream.get("name") for recipe in table.get("recipe", []) for stream in recipe.get("stream", [])}
    wanted |= {name for recipe in table.get("recipe", []) for name in recipe.get("paused", [])}
    streams += [{"name": name} for name in wanted or ({"left"} if not streams else set())]
    for stream in streams:
        stream.setdefault("camera", {}).setdefault("address", "synthetic")
    by = {stream.get("trigger", {}).get("by") for stream in streams} - {None, "page", "camera", "any"}
    if by - {sink.get("name") for sink in named.get("sink", [])}:
        named.setdefault("sink", []).append({"kind": "modbus", "name": by.pop()})
    line_settings(named, str(block), tmp_path)


@pytest.mark.parametrize("block", blocks("python", "py"), ids=ids)
def test_every_piece_of_python_compiles(block: Typed) -> None:
    compile(block.text, str(block), "exec")


def test_every_symptom_has_something_to_type_and_every_drop_a_row() -> None:
    """Of the troubleshooting page."""
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    symptoms = re.split(r"^### ", text.split("## Still stuck")[0], flags=re.MULTILINE)[1:]
    assert len(symptoms) >= 20
    for symptom in symptoms:
        assert re.search(r"^```(sh|toml)$|^\| |`[\w.]+ = |make soak", symptom, re.MULTILINE), symptom.splitlines()[0]
    assert sum("Seen by others" in symptom for symptom in symptoms) >= 20
    rows = "".join(re.findall(r"^\| `.*", symptoms[-1], re.MULTILINE))
    assert not [cause for cause in CAUSES if f"`{cause}`" not in rows]
