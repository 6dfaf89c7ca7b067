"""Pages of the site that no file of docs/ holds: commands by click, the settings file by its schema, texts of other folders.

mkdocs calls `on_config`, `on_files` and `on_page_markdown`. A page keeps the path that it has in the repository, less `docs/`,
and links are written for the repository: those that leave docs/ are turned to the page of the site here.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from nnet_edge.cli.main import commands
from nnet_edge.settings.line import schema

ROOT = Path(__file__).resolve().parents[2]
PAGES = {  # page of the site -> file of the repository
    "index.md": "README.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "findings/surprises.md": "findings/README.md",
    **{f"benchmarks/{name}.md": f"benchmarks/{name}.md" for name in ("race", "accuracy", "ablations", "notes")},
}
PARTS = ("export", "runtime", "calibration", "benchmarks")  # folders that are installed below nnet_edge
TREE = tempfile.TemporaryDirectory()  # of links, in which mkdocstrings finds the package as it is installed
FOLDERS = {"LICENSE": "LICENSE.txt", "examples": "examples/files.md", "benchmarks": "benchmarks/race.md"}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^``` *$)", re.MULTILINE | re.DOTALL)


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add one page a command to the navigation, and lay out the package as it is installed, for mkdocstrings."""
    for part in ("nnet_edge", *PARTS):
        inside = Path(TREE.name, "nnet_edge", "" if part == "nnet_edge" else part)
        shutil.copytree(ROOT / part, inside, copy_function=os.symlink, ignore=shutil.ignore_patterns("__pycache__"))
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [TREE.name]
    reference = next(section["Reference"] for section in config.nav or [] if "Reference" in section)
    pages = next(part["Commands"] for part in reference if "Commands" in part)
    pages += [f"reference/commands/{name}.md" for name, _ in walk_commands() if " " not in name]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made here, and the files that pages of the repository link to."""
    made = {page: (ROOT / path).read_text(encoding="utf-8") for page, path in PAGES.items()}
    made["index.md"] = f"---\nhide: [navigation]\n---\n{made['index.md']}"
    made |= command_pages() | {"reference/settings.md": settings_page(), "examples/files.md": examples_page()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    for path in sorted((ROOT / "examples").iterdir()):
        files.append(File.generated(config, f"examples/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, "LICENSE.txt", abs_src_path=str(ROOT / "LICENSE")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are written for the repository to pages of the site; one to a file that the site lacks is its text."""
    source = page.file.src_uri
    where = (ROOT / PAGES.get(source, f"docs/{source}")).parent

    def turn(link: re.Match[str]) -> str:
        mark, text, target, anchor = link.groups(default="")
        path = os.path.relpath(os.path.normpath(where / target), ROOT)
        if "://" in target or (page.file.generated_by and source not in PAGES):
            return link.group()
        if (found := site_path(path, files)) is not None:
            return f"{mark}[{text}]({os.path.relpath(found, Path(source).parent)}{anchor})"
        return text if (ROOT / path).exists() else link.group()

    parts = FENCE.split(markdown)  # texts and fenced blocks in turn
    return "".join(part if index % 2 else LINK.sub(turn, part) for index, part in enumerate(parts))


def site_path(path: str, files: Files) -> str | None:
    """The file of the site that holds the file `path` of the repository, None where the site has none."""
    made = {repository: page for page, repository in PAGES.items()} | FOLDERS
    found = made.get(path, path.removeprefix("docs/"))
    return found if files.get_file_from_path(found) else None


class MarkdownFormatter(click.HelpFormatter):
    """What a command says by --help, as Markdown: each list of options is a table, each block of commands is fenced."""

    def indent(self) -> None:
        """Nothing: Markdown would take indented text for code."""

    def dedent(self) -> None:
        """As `indent`."""

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """A heading and what it stands for; an example is fenced."""
        self.write_heading(name)
        if name == "Example":
            self.write("```sh\n")
        yield
        if name == "Example":
            self.write("```\n\n")

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        """The usage line, fenced."""
        self.write(f"```text\n{prog} {args}\n```\n\n")

    def write_heading(self, heading: str) -> None:
        """A heading below that of the command."""
        self.write(f"**{heading}**\n\n")

    def write_text(self, text: str) -> None:
        """Paragraphs; one of commands is a fenced block."""
        for paragraph in re.split(r"\n\s*\n", text):
            lines = [line.strip() for line in paragraph.strip("\n").splitlines() if line.strip() != "\b"]
            if lines and all(line.startswith("nnet-edge ") for line in lines):
                self.write("```sh\n" + "\n".join(lines) + "\n```\n\n")
            else:
                self.write(escape(" ".join(lines)) + "\n\n")

    def write_dl(self, rows: Sequence[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """A table of two columns."""
        self.write("| | |\n|---|---|\n")
        self.write("".join(f"| {code(name)} | {escape(text)} |\n" for name, text in rows) + "\n")


def code(text: str) -> str:
    """The text as code in a cell of a table."""
    return f"<code>{html.escape(text)}</code>".replace("|", "&#124;")


def escape(text: str) -> str:
    """The text without what Markdown would read as its own."""
    return re.sub(r"([\\`*_<|\[])", r"\\\1", text)


def walk_commands(group: click.Group = commands, name: str = "") -> Iterator[tuple[str, click.Command]]:
    """Every command by its words without `nnet-edge`, each group before its own."""
    with click.Context(group) as context:
        for word in group.list_commands(context):
            command = group.get_command(context, word)
            assert command is not None
            yield f"{name} {word}".strip(), command
            if isinstance(command, click.Group):
                yield from walk_commands(command, f"{name} {word}".strip())


def command_pages() -> dict[str, str]:
    """A page for each command with those below it, and one that lists them."""
    pages = {"index": "# Commands\n\n" + help_of("", commands)}
    for name, command in walk_commands():
        first, *rest = name.split()
        heading = "##" if rest else "#"
        pages[first] = f"{pages.get(first, '')}{heading} nnet-edge {name}\n\n{help_of(name, command)}"
    listed = re.compile(r"^\| <code>([a-z][a-z-]*)</code> \|", re.MULTILINE)
    pages["index"] = listed.sub(r"| [`\1`](\1.md) |", pages["index"])
    return {f"reference/commands/{name}.md": text for name, text in pages.items()}


def help_of(name: str, command: click.Command) -> str:
    """What `nnet-edge NAME --help` says, as Markdown."""
    formatter = MarkdownFormatter(width=10_000)
    command.format_help(click.Context(command, info_name=f"nnet-edge {name}".strip()), formatter)
    return formatter.getvalue()


def settings_page() -> str:
    """The keys of a settings file, a section a table, by the schema that `nnet-edge config schema` prints."""
    whole = schema()
    intro = (ROOT / "docs/site/settings.md").read_text(encoding="utf-8")
    return intro + "".join(tables_of(whole, ""))


def tables_of(table: dict[str, Any], path: str, name: str = "") -> Iterator[str]:
    """The sections of a table and of the tables within it."""
    properties = table.get("properties", {})
    plain, inner = {}, []
    for key, value in properties.items():
        below = list(tables_below(key, value))
        inner += below
        if not below:
            plain[key] = value
    if path:
        yield f"## {name or path}\n\n{escape(table.get('description', ''))}\n\n"
    if plain:
        yield "| key | takes | default | |\n|---|---|---|---|\n"
        needed = table.get("required", [])
        yield "".join(f"| `{key}` | {row_of(value, key in needed)} |\n" for key, value in plain.items()) + "\n"
    for key, is_list, value, kind in inner:
        place = f"{path}.{key}" if path else key
        label = f"[[{place}]]" if is_list else f"[{place}]"
        yield from tables_of(value, place, f"{label} of the kind {kind}" if kind else label)


def tables_below(key: str, value: dict[str, Any]) -> Iterator[tuple[str, bool, dict[str, Any], str]]:
    """The tables that the key may hold: key, whether it is a list, schema, kind where there are several."""
    is_list = value.get("type") == "array"
    content = value["items"] if is_list and "items" in value else value
    choices = content.get("oneOf") or content.get("anyOf") or [content]
    for choice in choices:
        if "properties" in choice:
            kind = choice["properties"].get("kind", {}) if len(choices) > 1 else {}
            yield key, is_list, choice, str(kind.get("const", ""))


def row_of(value: dict[str, Any], is_needed: bool) -> str:
    """Type, default and description of a key, as cells."""
    default = "**needed**" if is_needed else f"`{json.dumps(value['default'])}`" if "default" in value else ""
    return f"{type_of(value)} | {default} | {escape(value.get('description', ''))}"


def type_of(value: dict[str, Any]) -> str:
    """What a key takes, in words."""
    if "enum" in value:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in value["enum"])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if choices := value.get("oneOf") or value.get("anyOf"):
        return " or ".join(dict.fromkeys(type_of(choice) for choice in choices))
    kind = value.get("type", "any")
    if kind == "array":
        return f"list of {type_of(value['items'])}" if "items" in value else "list"
    return " or ".join(kind) if isinstance(kind, list) else str(kind)


def examples_page() -> str:
    """The files of examples/, whole, so that the search finds what is in them."""
    text = "# Example files\n\nEach is in the folder `examples/` of the repository, and tested there.\n\n"
    for path in sorted((ROOT / "examples").iterdir()):
        if path.suffix not in (".json", ".ipynb"):
            text += (
                f"## {path.name}\n\n```{path.suffix.lstrip('.') or 'text'}\n{path.read_text(encoding='utf-8')}```\n\n"
            )
        else:
            text += f"## {path.name}\n\n[{path.name}]({path.name}), too long to be shown.\n\n"
    return text
