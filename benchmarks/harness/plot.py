"""Pictures of benchmarks: an empty figure of matplotlib, or one clear error; the head, and the file, written in one piece."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import MissingExtraError
from nnet_edge.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110


def new_figure(inches: tuple[float, float]) -> Figure:
    """An empty figure of that width and height. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "pictures need matplotlib: pip install 'nnet-edge[bench]', or say --no-plot where there is that option"
        ) from error
    figure = Figure(figsize=inches, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_measured(figure: Figure, path: Path, bundle: str, machine: dict[str, Any], warnings: Sequence[str]) -> None:
    """Write `figure` to `path` (PNG): headed by what was measured where, the first warning in red below."""
    processor = machine["processor"].split(";")[0]
    figure.suptitle(f"{bundle}; {processor}; threads: {machine['threads']}", fontsize=11)
    if warnings:
        figure.supxlabel(warnings[0], color="#b00020", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png_of(figure))


def png_of(figure: Figure) -> bytes:
    """The figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
