"""What reports are written with: Markdown from a template, tables, the lines at their head, JSON files, figures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from nnet_edge.drawing import empty_figure
from nnet_edge.errors import MissingExtraError
from nnet_edge.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parents[1]
BENCH_EXTRA = "reports are written with jinja2 and tabulate: pip install 'nnet-edge[bench]'"


class Report(Protocol):
    """What a benchmark found."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        ...

    def markdown(self) -> str:
        """The same for people."""
        ...


def render(template: str, **values: object) -> str:
    """The Markdown that the file `template` below benchmarks/ makes of `values`; tables are aligned, empty ones left out.

    Raises MissingExtraError without jinja2 or tabulate.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError(BENCH_EXTRA) from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"told": told, "percent": percent, "plain_cell": lambda text: text.replace("|", "/")}
    environment.globals["head"] = head
    return "\n".join(aligned(environment.get_template(template).render(values)))


def aligned(text: str) -> Iterator[str]:
    """The lines of a Markdown text, its tables written anew."""
    for is_table, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if not is_table:
            yield from lines
            continue
        heads, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
        yield from markdown_table(heads, rows)


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A Markdown table as lines: two and one for each row; none without rows. Raises MissingExtraError without tabulate."""
    try:
        from tabulate import tabulate
    except ImportError as error:
        raise MissingExtraError(BENCH_EXTRA) from error
    if not rows:
        return []
    text = tabulate(rows, heads, tablefmt="github", stralign=None, numalign=None, disable_numparse=True, missingval="-")
    return str(text).splitlines()


def table_text(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The same as one text."""
    return "\n".join(markdown_table(heads, rows))


def head(warnings: Sequence[str], facts: Mapping[str, object]) -> str:
    """The warnings in bold, then a list of what a reader must know to judge the figures."""
    bold = [f"**{warning}**" for warning in warnings]
    return "\n".join([*bold, *([""] if bold else []), *(f"- {name}: {value}" for name, value in facts.items())])


def told(value: float | None, form: str) -> str:
    """The number in the format `form`, "-" for None."""
    return "-" if value is None else format(value, form)


def percent(value: float | None) -> str:
    """A share in percent, "-" for None."""
    return "-" if value is None else f"{100 * value:.1f}"


def plain(value: Any) -> Any:
    """`value` as JSON takes it: by its own `as_dict`, a dataclass without one by its fields."""
    if hasattr(value, "as_dict"):
        return value.as_dict()
    if is_dataclass(value):
        return plain_fields(value)
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def plain_fields(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON takes them."""
    return {field.name: plain(getattr(value, field.name)) for field in fields(value)}


def write_json(path: Path, content: object) -> None:
    """`content` as JSON in the file `path`, in one piece; NaN is an error."""
    write_atomically(path, json.dumps(plain(content), indent=2, allow_nan=False).encode() + b"\n")


def write_report(out: Path, name: str, report: Report) -> None:
    """`name`.json and `name`.md in the folder `out`."""
    write_json(out / f"{name}.json", report)
    write_atomically(out / f"{name}.md", report.markdown().encode() + b"\n")


DPI = 110


def new_figure(inches: tuple[float, float]) -> Figure:
    """An empty figure of that width and height. Raises MissingExtraError without matplotlib."""
    advice = "pip install 'nnet-edge[bench]', or say --no-plot where there is that option"
    return empty_figure(*inches, advice, dpi=DPI, layout="constrained")


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
