"""Pictures of an evaluation: the sheet (image, mask, map, verdict) and the histogram of scores.

The colour scale is fixed: score / threshold from 0 to 2 in every row of every sheet, so pictures can be compared.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.bits import MOST
from nnet_edge.drawing import empty_figure
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.evaluation.evaluate import Evaluation
from nnet_edge.evaluation.sweep import images_csv, sweep, sweep_csv
from nnet_edge.files import write_atomically
from nnet_edge.frame import GOOD as GOOD_VERDICT
from nnet_edge.frame import REJECT
from nnet_edge.image_files import read_image
from nnet_edge.imaging import resize
from nnet_edge.metrics import judged_metrics

MAX_ROWS = 16
ROWS_IN_A_COLUMN = 8  # more rows go into a second column beside the first
WORST_OF_EACH_KIND = 3  # errors of each kind that the sheet shows first
SCALE_END = 2.0  # the colour scale ends at twice the threshold
COLOURS = "inferno"

INK, GREY, PALE = "#1f2933", "#66727f", "#eceff2"
RIGHT, WRONG = "#18794e", "#c62a2f"
GOOD, DEFECTIVE = "#3b7dd8", "#e07b1a"

CELL, GAP, TEXT, MARGIN = 1.5, 0.1, 2.35, 0.4  # inches
HEAD, FOOT = 1.5, 0.85
BINS = 36
LOG_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
DPI = 120


def write_evaluation(evaluation: Evaluation, out: Path) -> list[Path]:
    """The files metrics.json, sheet.png, histogram.png, images.csv and sweep.csv in the folder `out`, which is made.

    No file is ever half-written. Raises ConfigError for a folder that cannot be made or written, DataError for a disk
    that is full, MissingExtraError without matplotlib.
    """
    contents = {
        "metrics.json": json.dumps(evaluation.as_dict(), indent=2, allow_nan=False).encode() + b"\n",
        "sheet.png": draw_sheet(evaluation),
        "histogram.png": draw_histogram(evaluation),
        "images.csv": images_csv(evaluation).encode(),
        "sweep.csv": sweep_csv(evaluation, sweep(evaluation)).encode(),
    }
    for name, content in contents.items():
        try:
            write_atomically(out / name, content)
        except (PermissionError, FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise ConfigError(f"cannot write {out / name} ({error.strerror}): choose another folder") from error
        except OSError as error:
            full = f"cannot write {out / name} ({error.strerror}): make room or choose another folder"
            raise DataError(full) from error
    return [out / name for name in contents]


def draw_sheet(evaluation: Evaluation, max_rows: int = MAX_ROWS) -> bytes:
    """A PNG with a row (image, mask, map, verdict) for each of at most `max_rows` images, see `choose_rows`."""
    rows = choose_rows(evaluation, max_rows)
    columns = 1 if len(rows) <= ROWS_IN_A_COLUMN else 2
    height_in_rows = -(-len(rows) // columns)
    column_width = 3 * (CELL + GAP) + TEXT
    height = HEAD + height_in_rows * (CELL + GAP) + FOOT
    figure = new_figure(MARGIN + columns * (column_width + MARGIN), height)
    write_head(figure, evaluation, MARGIN)
    for place, index in enumerate(rows):
        column, row = divmod(place, height_in_rows)
        left = MARGIN + column * (column_width + MARGIN)
        if row == 0:
            for number, heading in enumerate(("image", "mask", "anomaly map", "verdict")):
                at = left + number * (CELL + GAP) + 0.04 * (number == 3)
                write(figure, at, height - HEAD + 0.1, heading, size=9.5, color=GREY)
        draw_row(figure, evaluation, index, left, height - HEAD - (row + 1) * (CELL + GAP) + GAP)
    draw_colour_bar(figure, columns)
    return to_png(figure)


def choose_rows(evaluation: Evaluation, limit: int) -> list[int]:
    """The images on the sheet: the worst errors of each kind first, then all defects and the good ones in turn.

    Of each group the highest score comes first, then the lowest, then the middle, then the rest, so that both ends are
    seen; the rows after the errors are ordered by group.
    """
    errors = [*evaluation.missed_defects[:WORST_OF_EACH_KIND], *evaluation.false_rejects[:WORST_OF_EACH_KIND]][:limit]
    groups: dict[tuple[bool, str], list[int]] = {}
    for index in np.argsort(-evaluation.scores, kind="stable"):
        sample = evaluation.samples[index]
        if index not in errors:
            groups.setdefault((not sample.is_anomalous, sample.defect), []).append(int(index))
    queues = {key: ends_first(groups[key]) for key in sorted(groups)}
    chosen: list[tuple[tuple[bool, str], int]] = []
    while any(queues.values()) and len(errors) + len(chosen) < limit:
        for key, queue in queues.items():
            if queue and len(errors) + len(chosen) < limit:
                chosen.append((key, queue.pop(0)))
    ordered = sorted(chosen, key=lambda pair: (pair[0], -evaluation.scores[pair[1]], pair[1]))
    return [int(index) for index in errors] + [index for _, index in ordered]


def ends_first(indices: Sequence[int]) -> list[int]:
    """The same indices: first, last, middle, then the rest in order."""
    return list(dict.fromkeys([indices[0], indices[-1], indices[len(indices) // 2], *indices]))


def draw_row(figure: Any, evaluation: Evaluation, index: int, left: float, bottom: float) -> None:
    """One image of the test set: three pictures and the verdict in words."""
    sample = evaluation.samples[index]
    image, truth, scored = (axes_at(figure, left + number * (CELL + GAP), bottom) for number in range(3))
    geometry = evaluation.geometry
    picture = read_image(sample.path, MOST if evaluation.depth is None else evaluation.depth.bits)
    image.imshow(resize(picture, geometry)[geometry.window.inside])
    image.spines[:].set(visible=True, color=PALE)  # a white picture still has an edge
    if not evaluation.has_mask[index] or not evaluation.labels[index]:
        truth.set_facecolor(PALE)
        word = "no defect" if evaluation.has_mask[index] else "no mask"
        truth.text(0.5, 0.5, word, transform=truth.transAxes, ha="center", va="center", color=GREY, fontsize=9)
    else:
        truth.imshow(evaluation.masks[index], cmap="gray", vmin=0, vmax=1)
    relative = evaluation.maps[index] / evaluation.threshold
    scored.imshow(relative, cmap=COLOURS, vmin=0, vmax=SCALE_END)
    if relative.min() < 1 < relative.max():
        scored.contour(relative, levels=[1.0], colors="white", linewidths=0.9)
    write_verdict(figure, evaluation, index, left + 3 * (CELL + GAP) + 0.04, bottom + CELL)


def write_verdict(figure: Any, evaluation: Evaluation, index: int, left: float, top: float) -> None:
    """What was decided, whether that was right, the score, and which image it was."""
    sample, rejected = evaluation.samples[index], evaluation.rejected[index]
    is_elsewhere = evaluation.is_marked[index] and not evaluation.found[index]
    outcome = {
        (True, True): "by luck: rejected elsewhere" if is_elsewhere else "right: defect found",
        (False, False): "right: good part",
        (False, True): "wrong: defect missed",
        (True, False): "wrong: good part",
    }[bool(rejected), sample.is_anomalous]
    color = RIGHT if outcome.startswith("right") else WRONG
    write(figure, left, top - 0.22, REJECT if rejected else GOOD_VERDICT, size=13, weight="bold", color=color)
    write(figure, left, top - 0.45, outcome, size=10, color=color)
    write(figure, left, top - 0.74, f"{number(evaluation.relative_scores[index])} × threshold", size=10)
    write(figure, left, top - 0.97, shorten(sample.defect if sample.is_anomalous else "good", 30), size=9, color=GREY)
    write(figure, left, top - 1.17, shorten(Path(evaluation.names[index]).name, 30), size=9, color=GREY)


def draw_colour_bar(figure: Any, columns: int) -> None:
    """The fixed scale, at the foot of the sheet."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    axes = axes_at(figure, MARGIN, 0.45, 3 * CELL + 2 * GAP, 0.13)
    scale = ScalarMappable(Normalize(0, SCALE_END), COLOURS)
    bar = figure.colorbar(scale, cax=axes, orientation="horizontal", ticks=[0, 0.5, 1, 1.5, 2])
    bar.ax.set_xticklabels(["0", "0.5", "1 = threshold", "1.5", "2 and above"], fontsize=8.5, color=INK)
    bar.ax.axvline(1, color="white", linewidth=1.6)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=3, color=GREY)
    words = "anomaly map / threshold; the white line encloses what lies above the threshold"
    place = (MARGIN + 3 * (CELL + GAP) + 0.04, 0.47) if columns > 1 else (MARGIN, 0.66)
    write(figure, *place, words, size=9, color=GREY)


def draw_histogram(evaluation: Evaluation) -> bytes:
    """A PNG with how many good and how many defective images have which score / threshold; the line is at 1."""
    relative, labels = evaluation.relative_scores, evaluation.labels
    figure = new_figure(9.2, 5.0)
    write_head(figure, evaluation, 0.75)
    axes = figure.add_axes((0.75 / 9.2, 0.62 / 5.0, 8.15 / 9.2, 2.9 / 5.0))
    is_wide = relative.min() > 0 and relative.max() / relative.min() > 12
    bins = bin_edges(relative, is_wide)
    for chosen, color, word in ((~labels, GOOD, "good"), (labels, DEFECTIVE, "defective")):
        if chosen.any():
            label = f"{word}, {chosen.sum()} images"
            axes.hist(relative[chosen], bins, color=color, alpha=0.55, label=label, edgecolor="white", linewidth=0.6)
    axes.axvline(1, color=INK, linewidth=1.6, linestyle=(0, (4, 2)), label="threshold")
    if is_wide:
        axes.set_xscale("log")
        ticks = [tick for tick in LOG_TICKS if bins[0] <= tick <= bins[-1]]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlim(bins[0], bins[-1])
    axes.set_xlabel("image score / threshold" + (", logarithmic" if is_wide else ""), color=INK)
    axes.set_ylabel("images", color=INK)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=PALE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9.5, borderaxespad=0.1)
    return to_png(figure)


def bin_edges(relative: np.ndarray, is_wide: bool) -> np.ndarray:
    """The edges of about 36 bins around all scores, equal or, when they are wide, of equal ratio; 1 is one of them."""
    scale = np.log(relative) if is_wide else relative
    line = 0.0 if is_wide else 1.0
    low, high = min(scale.min(), line - 0.1), max(scale.max(), line + 0.1)
    step = (high - low) / BINS
    edges = line + step * np.arange(np.floor((low - line) / step), np.ceil((high - line) / step) + 1)
    return np.exp(edges) if is_wide else edges


def write_head(figure: Any, evaluation: Evaluation, left: float) -> None:
    """Three lines at the top: what was judged by what, how well it is told apart, what went wrong."""
    top = figure.get_size_inches()[1]
    title = f"{shorten(evaluation.category, 36)}  ·  {evaluation.runner} {evaluation.precision}"
    write(figure, left, top - 0.45, title, size=15, weight="bold")
    write(figure, left, top - 0.2, "  ·  ".join(evaluation.warnings), size=9, color=WRONG, weight="bold")
    write(figure, left, top - 0.75, figures_of(evaluation), size=10.5)
    write(figure, left, top - 1.0, verdicts_of(evaluation), size=10.5, color=GREY)


def figures_of(evaluation: Evaluation) -> str:
    """The metrics that could be computed, in per cent."""
    named = [(metric.label, evaluation.metrics[metric.name]) for metric in judged_metrics()]
    known = [f"{word} {100 * value:.1f} %" for word, value in named if value is not None]
    return "  ·  ".join(known) if known else "no metric: the test set needs good and defective images"


def verdicts_of(evaluation: Evaluation) -> str:
    """The errors at the threshold, in counts."""
    good, defective = int((~evaluation.labels).sum()), int(evaluation.labels.sum())
    text = f"{len(evaluation.false_rejects)} of {good} good images rejected"
    text += f",  {len(evaluation.missed_defects)} of {defective} defective images missed"
    return text + (f",  {len(evaluation.skipped)} unreadable images skipped" if evaluation.skipped else "")


def number(value: float) -> str:
    """A relative score with three digits that count; beside 1, enough of them to tell the side."""
    if value != 1 and f"{value:.2f}" == "1.00":
        return f"{value:.4f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def shorten(text: str, longest: int) -> str:
    """The text with its middle left out where it is too long; the end of a file name tells it from its neighbours."""
    return text if len(text) <= longest else f"{text[: longest // 3]}…{text[-(longest - longest // 3 - 1) :]}"


def new_figure(width: float, height: float) -> Any:
    """An empty white figure in inches. Raises MissingExtraError without matplotlib."""
    return empty_figure(width, height, dpi=DPI, facecolor="white")


def axes_at(figure: Any, left: float, bottom: float, width: float = CELL, height: float = CELL) -> Any:
    """Axes without ticks and frame at a place in inches."""
    whole_width, whole_height = figure.get_size_inches()
    axes = figure.add_axes((left / whole_width, bottom / whole_height, width / whole_width, height / whole_height))
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def write(
    figure: Any, left: float, bottom: float, text: str, size: float, color: str = INK, weight: str = "normal"
) -> None:
    """The text at a place in inches, letter by letter: a dollar sign in a file name is no formula."""
    width, height = figure.get_size_inches()
    figure.text(left / width, bottom / height, text, fontsize=size, color=color, fontweight=weight, parse_math=False)


def to_png(figure: Any) -> bytes:
    """The figure as a PNG file's bytes; a letter that the font lacks becomes a box, without a warning."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        figure.savefig(file, format="png")
    return file.getvalue()
