"""What reports are written with: Markdown tables, the lines at their head, JSON files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnet_edge.errors import MissingExtraError
from nnet_edge.files import write_atomically


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table as lines: two and one for each row; none without rows. Raises MissingExtraError without tabulate."""
    try:
        from tabulate import tabulate
    except ImportError as error:
        raise MissingExtraError("tables are written with tabulate: pip install 'nnet-edge[bench]'") from error
    if not rows:
        return []
    text = tabulate(rows, heads, tablefmt="github", stralign=None, numalign=None, disable_numparse=True, missingval="-")
    return str(text).splitlines()


def table_text(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The same as one text."""
    return "\n".join(markdown_table(heads, rows))


def head_lines(warnings: Sequence[str], facts: Mapping[str, object]) -> list[str]:
    """The warnings in bold, then a list of what a reader must know to judge the figures."""
    bold = [f"**{warning}**" for warning in warnings]
    return [*bold, *([""] if bold else []), *(f"- {name}: {value}" for name, value in facts.items())]


def told(value: float | None, form: str) -> str:
    """The number in the format `form`, "-" for None."""
    return "-" if value is None else format(value, form)


def write_json(path: Path, content: object) -> None:
    """`content` as JSON in the file `path`, in one piece; NaN is an error."""
    write_atomically(path, json.dumps(content, indent=2, allow_nan=False).encode() + b"\n")


def write_report(out: Path, name: str, content: Mapping[str, Any], markdown: str) -> None:
    """`name`.json and `name`.md in the folder `out`."""
    write_json(out / f"{name}.json", content)
    write_atomically(out / f"{name}.md", markdown.encode() + b"\n")
