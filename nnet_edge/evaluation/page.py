"""Pages of reports: a template of the project becomes one HTML file with its style and pictures inside."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nnet_edge.errors import DataError, MissingExtraError
from nnet_edge.files import write_atomically

PICTURE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}
BASE = "nnet_edge.evaluation"  # holds the page around every report, and its parts


def write_page(text: str, out: Path) -> Path:
    """Write the page to the file `out` in one piece and give `out` back. Raises DataError when it cannot be written."""
    try:
        write_atomically(out, text.encode(errors="backslashreplace"))
    except OSError as error:
        raise DataError(f"cannot write the report {out}: {error.strerror or error}") from error
    return out


def render(package: str, template: str, folder: Path, values: Mapping[str, Any]) -> str:
    """The template of the package as HTML; files are named relative to `folder`. Raises MissingExtraError without jinja2."""
    try:
        from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
    except ImportError as error:
        raise MissingExtraError("the report needs jinja2: pip install 'nnet-edge[train]'") from error
    loaders = [PackageLoader(name, ".") for name in dict.fromkeys((package, BASE))]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "decimals": decimals,
        "duration": duration,
        "tone": tone,
        "embedded": embedded,
        "address": partial(address, folder=folder),
        "relative": partial(relative, folder=folder),
        "size": size,
    }
    return environment.get_template(template).render(values)


def decimals(value: float | None, places: int = 3) -> str:
    """A number as text, "not known" for None."""
    return "not known" if value is None else f"{value:.{places}f}"


def tone(value: float | None, least: float) -> str:
    """How a figure that has a goal is coloured."""
    return "plain" if value is None else "good" if value >= least else "bad"


def duration(seconds: float) -> str:
    """Seconds as people read them: "8.2 s", "2 min 05 s"."""
    whole = round(seconds)
    return f"{seconds:.1f} s" if seconds < 60 else f"{whole // 60} min {whole % 60:02d} s"


def embedded(path: Path) -> str:
    """The picture as an address that holds it. Raises DataError when it cannot be read or shown."""
    kind = PICTURE_TYPES.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"the report cannot show {path}: use {', '.join(sorted(PICTURE_TYPES))}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"the report needs the picture {path}: {error.strerror or error}") from error
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def relative(path: Path, folder: Path) -> str:
    """The path as seen from `folder`."""
    return Path(os.path.relpath(path, folder)).as_posix()


def address(path: Path, folder: Path) -> str:
    """The path as a link from a page in `folder`. Raises DataError when nothing is there."""
    if not path.exists():
        raise DataError(f"the report links {path}, which does not exist")
    return quote(relative(path, folder) + ("/" if path.is_dir() else ""))


def size(path: Path) -> str:
    """The size of a file as ", 1.5 kB"; nothing for a folder."""
    if path.is_dir():
        return ""
    count = float(path.stat().st_size)
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f", {count:.0f} {unit}" if unit == "B" or count >= 10 else f", {count:.1f} {unit}"
        count /= 1000
    return f", {count:.1f} GB"
