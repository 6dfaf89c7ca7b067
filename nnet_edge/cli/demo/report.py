"""One HTML page that stands by itself: style inside, pictures inside, videos and files beside it, no scripts.

A `Page` is a heading, a row of figures and sections; a section is a row of blocks. Every value is escaped in one place.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from nnet_edge.errors import DataError
from nnet_edge.files import write_atomically

PICTURE_TYPES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
VIDEO_TYPES = {".webm": "video/webm", ".mp4": "video/mp4"}
TONES = ("plain", "good", "bad")


class Block(Protocol):
    """Something that a section shows."""

    def html(self, folder: Path) -> str:
        """The block as HTML; files are named relative to `folder`."""
        ...


@dataclass(frozen=True)
class Figure:
    """One number of the page's head, large, with what it means below it."""

    label: str
    value: str
    note: str = ""
    tone: str = "plain"  # one of TONES

    def html(self) -> str:
        """The figure as HTML."""
        tone = self.tone if self.tone in TONES else "plain"
        return (
            f'<div class="figure {tone}"><div class="label">{escape(self.label)}</div>'
            f'<div class="value">{escape(self.value)}</div><div class="note">{escape(self.note)}</div></div>'
        )


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str

    def html(self, folder: Path) -> str:
        """The paragraph as HTML."""
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class Alarm:
    """A paragraph that nobody can overlook."""

    text: str

    def html(self, folder: Path) -> str:
        """The warning as HTML."""
        return f'<p class="warning" role="alert">{escape(self.text)}</p>'


@dataclass(frozen=True)
class Command:
    """Command lines, set as they are typed."""

    text: str

    def html(self, folder: Path) -> str:
        """The lines as HTML."""
        return f"<pre><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True)
class Table:
    """Rows below a head; columns from `first_number` on are set flush right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    first_number: int = 1
    is_short: bool = False  # as wide as its content, not as the page

    def html(self, folder: Path) -> str:
        """The table as HTML."""
        caption = f"<caption>{escape(self.caption)}</caption>" if self.caption else ""
        head = "".join(self._cell("th", index, text) for index, text in enumerate(self.head))
        rows = "".join(
            f"<tr>{''.join(self._cell('td', index, text) for index, text in enumerate(row))}</tr>" for row in self.rows
        )
        width = ' class="short"' if self.is_short else ""
        table = f"<table{width}>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f'<div class="wide">{table}</div>'

    def _cell(self, tag: str, column: int, text: str) -> str:
        number = ' class="number"' if column >= self.first_number else ""
        return f"<{tag}{number}>{escape(str(text))}</{tag}>"


@dataclass(frozen=True)
class Picture:
    """A picture file, embedded in the page; raises DataError when it cannot be read."""

    path: Path
    alt: str
    caption: str = ""

    def html(self, folder: Path) -> str:
        """The picture as HTML."""
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return f'<figure><img alt="{escape(self.alt)}" src="{_embedded(self.path)}">{caption}</figure>'


@dataclass(frozen=True)
class Video:
    """A video file that lies in the page's folder or below it, with a picture to show before it plays."""

    path: Path
    caption: str = ""
    poster: Path | None = None

    def html(self, folder: Path) -> str:
        """The video as HTML; a browser that cannot play it shows a link."""
        address = _address(self.path, folder)
        poster = f' poster="{_embedded(self.poster)}"' if self.poster else ""
        kind = VIDEO_TYPES.get(self.path.suffix.lower(), "application/octet-stream")
        caption = f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else ""
        return (
            f'<figure><video controls muted loop playsinline preload="metadata"{poster}>'
            f'<source src="{address}" type="{kind}"><a href="{address}">{escape(self.path.name)}</a></video>'
            f"{caption}</figure>"
        )


@dataclass(frozen=True)
class Files:
    """A list of files in the page's folder: what each is, and its size."""

    entries: Sequence[tuple[Path, str]]

    def html(self, folder: Path) -> str:
        """The list as HTML, with links relative to the page."""
        rows = "".join(
            f'<li><a href="{_address(path, folder)}">{escape(_relative(path, folder))}</a>'
            f" <span>{escape(meaning)}{_size(path)}</span></li>"
            for path, meaning in self.entries
        )
        return f'<ul class="files">{rows}</ul>'


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it; `columns` puts the blocks side by side where the page is wide enough."""

    title: str
    blocks: Sequence[Block]
    columns: bool = False

    def html(self, folder: Path) -> str:
        """The section as HTML."""
        inner = "".join(block.html(folder) for block in self.blocks)
        order = "columns" if self.columns else "rows"
        return f'<section><h2>{escape(self.title)}</h2><div class="{order}">{inner}</div></section>'


@dataclass(frozen=True)
class Page:
    """The whole report."""

    title: str
    summary: str  # one or two sentences: what was found
    figures: Sequence[Figure]
    sections: Sequence[Section]
    warnings: Sequence[str] = field(default=())
    footer: str = ""

    def html(self, folder: Path) -> str:
        """The page as HTML; files are named relative to `folder`."""
        return _PAGE.format(
            title=escape(self.title),
            style=_STYLE,
            summary=escape(self.summary),
            warnings=_joined(Alarm(text).html(folder) for text in self.warnings),
            figures=_joined(figure.html() for figure in self.figures),
            sections=_joined(section.html(folder) for section in self.sections),
            footer=escape(self.footer),
        )


def write_report(page: Page, out: Path) -> Path:
    """Write `page` to the file `out` in one piece and give `out` back; raises DataError when a file is missing."""
    text = page.html(out.parent)
    try:
        write_atomically(out, text.encode())
    except OSError as error:
        raise DataError(f"cannot write the report {out}: {error.strerror or error}") from error
    return out


def _joined(pieces: Iterable[str]) -> str:
    return "\n".join(pieces)


def _embedded(path: Path) -> str:
    kind = PICTURE_TYPES.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"the report cannot show {path}: use {', '.join(sorted(PICTURE_TYPES))}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the report needs the picture {path}: {error.strerror or error}") from error
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _address(path: Path, folder: Path) -> str:
    if not path.exists():
        raise DataError(f"the report links {path}, which does not exist")
    return escape(quote(_relative(path, folder) + ("/" if path.is_dir() else "")))


def _size(path: Path) -> str:
    if path.is_dir():
        return ""
    size = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f", {size:.0f} {unit}" if unit == "B" or size >= 10 else f", {size:.1f} {unit}"
        size /= 1000
    return f", {size:.1f} GB"


_STYLE = """
:root { color-scheme: light dark; --paper: #f5f6f8; --card: #ffffff; --ink: #16202c; --soft: #5b6876; --line: #dde2e8;
  --accent: #1f5fbf; --good: #12734a; --good-paper: #e6f5ed; --bad: #b3261e; --bad-paper: #fdecea; --code: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --paper: #0f141a; --card: #182029; --ink: #e7ecf2; --soft: #9aa8b7;
  --line: #2b3642; --accent: #7fb0ff; --good: #6fd6a3; --good-paper: #14301f; --bad: #ff9d94; --bad-paper: #3a1917;
  --code: #10161d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.55;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 8px; letter-spacing: -0.01em; }
h2 { font-size: 1.15rem; margin: 0 0 14px; }
header p { color: var(--soft); font-size: 1.06rem; margin: 0 0 20px; max-width: 76ch; }
p { margin: 0 0 12px; max-width: 82ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 22px 24px 16px; margin-top: 20px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; }
.figure { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 14px 16px; }
.figure .label { color: var(--soft); font-size: 0.86rem; }
.figure .value { font-size: 1.6rem; font-weight: 650; white-space: nowrap; line-height: 1.3;
  font-variant-numeric: tabular-nums; }
.figure .note { color: var(--soft); font-size: 0.84rem; }
.figure.good { background: var(--good-paper); border-color: transparent; } .figure.good .value { color: var(--good); }
.figure.bad { background: var(--bad-paper); border-color: transparent; } .figure.bad .value { color: var(--bad); }
.warning { background: var(--bad-paper); color: var(--bad); border: 2px solid var(--bad); border-radius: 12px;
  padding: 14px 18px; font-weight: 650; max-width: none; margin: 0 0 18px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(420px, 100%), 1fr));
  gap: 10px 28px; align-items: start; }
.wide { overflow-x: auto; margin: 0 0 14px; }
table { border-collapse: collapse; width: 100%; font-size: 0.95rem; }
caption { text-align: left; color: var(--soft); font-size: 0.88rem; padding: 0 0 6px; }
table.short { width: auto; min-width: min(100%, 540px); }
th, td { text-align: left; padding: 7px 16px 7px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 600; font-size: 0.86rem; }
tbody tr:last-child td { border-bottom: 0; }
.number { text-align: right; padding: 7px 0 7px 16px; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 0 0 14px; }
img, video { display: block; max-width: 100%; height: auto; border-radius: 8px; margin: 0 auto; }
img { background: #ffffff; } video { background: #000000; width: 100%; max-height: 560px; }
figcaption { color: var(--soft); font-size: 0.88rem; margin-top: 8px; max-width: 82ch; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px;
  overflow-x: auto; margin: 0 0 14px; }
code { font: 0.88rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
a { color: var(--accent); }
.files { list-style: none; margin: 0 0 10px; padding: 0; } .files li { padding: 5px 0; }
.files span { color: var(--soft); margin-left: 8px; }
footer { color: var(--soft); font-size: 0.86rem; margin-top: 24px; }
@media print { body { background: #ffffff; } section, .figure { break-inside: avoid; } }
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header>
<h1>{title}</h1>
<p>{summary}</p>
</header>
{warnings}
<div class="figures">
{figures}
</div>
{sections}
<footer>{footer}</footer>
</main>
</body>
</html>
"""
