"""matplotlib's empty figure, from an import that leaves nothing in the folders of whoever runs it."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "MPLCONFIGDIR"  # where matplotlib keeps a list of fonts; by default below ~/.cache and ~/.config


def empty_figure(width: float, height: float, advice: str = "pip install 'nnet-edge[train]'", **options: Any) -> Figure:
    """A figure in inches that draws into memory; no window, no state shared with others.

    Raises MissingExtraError, which ends in `advice`, without matplotlib.
    """
    try:
        with nothing_kept():
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(f"pictures need matplotlib: {advice}") from error
    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def nothing_kept() -> Iterator[None]:
    """A first import of matplotlib keeps its list of fonts in a temporary folder, unless MPLCONFIGDIR names one."""
    if "matplotlib" in sys.modules or FOLDER in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="nnet-edge-fonts-") as folder:
        os.environ[FOLDER] = folder
        try:
            yield
        finally:
            del os.environ[FOLDER]
