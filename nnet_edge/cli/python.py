"""Commands as functions of Python: `nnet_edge.train` and `nnet_edge.evaluate`, with what they leave as objects."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.cli.keywords import parsed
from nnet_edge.cli.view import Verbosity, set_verbosity, verbosity
from nnet_edge.errors import EXIT_INTERRUPTED, TrainingError
from nnet_edge.scoring import Threshold
from nnet_edge.threads import wait_passively

if TYPE_CHECKING:
    from nnet_edge.evaluation.evaluate import Evaluation

PathLike = str | os.PathLike[str]
LOSSES, SHEET, HISTOGRAM, REPORT = "losses.png", "sheet.png", "histogram.png", "report.html"


def train(data: PathLike, out: PathLike | None = None, *, quiet: bool = False, **settings: Any) -> Training:
    """Learn from the good images of `data` as `nnet-edge train` does; gives the training with its bundle.

        trained = train("photos", "runs/part", epochs=20, false_rejects="1/200")
        inspector = load(trained)

    `out` is where bundle and training go, None: runs/NAME OF DATA. The settings are the options of the command, checked as it
    checks them and with its defaults: `false_rejects="1/200"` for --false-rejects, `set={"augmentation_copies": 0}` for --set,
    `force=True` for --force. With `quiet` warnings alone are said. Raises ConfigError for an unknown or invalid setting,
    DataError for photographs that cannot be learned from, TrainingError; KeyboardInterrupt where it was stopped, and
    `resume=True` goes on.
    """
    from nnet_edge.cli.train import BUNDLE, REFUSED, TRAINING, command, learn

    wait_passively()
    with said_less(quiet):
        given = {**settings, "out": None if out is None else os.fspath(out)}
        folder, code = learn(**parsed(command, [os.fspath(data)], given, "train"))
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt(f"the training in {folder} was stopped before its end: go on with resume=True")
    if code:
        raise TrainingError(f"the new bundle loses defects that the old one finds: it lies in {folder / REFUSED}")
    return Training(read_bundle(folder / BUNDLE), folder / TRAINING)


def evaluate(
    bundle: PathLike | Training, data: PathLike, out: PathLike | None = None, *, quiet: bool = False, **settings: Any
) -> Measurement:
    """Measure the bundle on the test images of `data` as `nnet-edge evaluate` does; gives figures, verdicts and the report.

    >>> measured = evaluate("runs/part/bundle", "photos", runner="openvino", threads=1, quiet=True)
    >>> measured.report
    PosixPath('runs/part/evaluation/report.html')
    >>> 0 <= measured.metrics["image_auroc"] <= 1
    True

    `out` is where the report goes, None: evaluation beside the bundle. The settings are the options of the command, checked
    as it checks them and with its defaults. Raises what the command says in one sentence: ConfigError, DataError, BundleError.
    """
    from nnet_edge.cli.evaluate import command, measure

    wait_passively()
    with said_less(quiet):
        given = {**settings, "out": None if out is None else os.fspath(out)}
        found = measure(**parsed(command, [os.fspath(bundle), os.fspath(data)], given, "evaluate"))
    return Measurement(found.evaluation, found.table, found.files)


@contextmanager
def said_less(quiet: bool) -> Iterator[None]:
    """Warnings alone, where it is asked for."""
    before = verbosity()
    if quiet:
        set_verbosity(Verbosity.QUIET)
    try:
        yield
    finally:
        set_verbosity(before)


@dataclass(frozen=True, repr=False)
class Training(os.PathLike[str]):
    """A finished training; `load`, `evaluate` and whatever takes a path take it for its bundle."""

    contents: Bundle
    folder: Path  # of the training: log.csv, losses.png, checkpoint

    @property
    def bundle(self) -> Path:
        """The folder of the bundle."""
        return self.contents.path

    @property
    def threshold(self) -> float:
        """The image score above which an image is anomalous."""
        return self.contents.threshold.value

    @property
    def promise(self) -> Threshold:
        """What the threshold is expected to cost; its `sentence()` says it in words."""
        return self.contents.threshold

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every report of the bundle must say."""
        return tuple(self.contents.warnings)

    def __fspath__(self) -> str:
        return os.fspath(self.bundle)

    def __repr__(self) -> str:
        manifest = self.contents.manifest
        return (
            f"Training({self.bundle}, {manifest['data']['learned']} images, {manifest['trained']['epochs']} epochs, threshold "
            f"{self.threshold:.4g})"
        )

    def _repr_html_(self) -> str:
        """For a notebook: what it is, and the picture of its losses."""
        lines = (repr(self), self.promise.sentence(), *self.warnings)
        return html_of(lines, {}, [self.folder / LOSSES])


@dataclass(frozen=True, repr=False)
class Measurement:
    """An evaluation with the files of its report."""

    evaluation: Evaluation  # every image's score, map and verdict
    table: str  # as the command prints it
    files: tuple[Path, ...]

    @property
    def metrics(self) -> dict[str, float | None]:
        """Name -> share from 0 to 1, None for what cannot be computed; false rejects and missed defects among them."""
        good, bad = int((~self.evaluation.labels).sum()), int(self.evaluation.labels.sum())
        return {
            **self.evaluation.metrics.as_dict(),
            "false_rejects": len(self.evaluation.false_rejects) / good if good else None,
            "missed_defects": len(self.evaluation.missed_defects) / bad if bad else None,
        }

    @property
    def report(self) -> Path:
        """The page of the report."""
        return self._file(REPORT)

    def _file(self, name: str) -> Path:
        return next(path for path in self.files if path.name == name)

    def __repr__(self) -> str:
        return f"Measurement({self.table.splitlines()[0]})\n" + "\n".join(self.table.splitlines()[1:])

    def _repr_html_(self) -> str:
        """For a notebook: the figures, the histogram of scores and the sheet of pictures."""
        from nnet_edge.evaluation.report import figures, summary

        rows = {label: f"{value} ({note})" for label, value, note, _ in figures(self.evaluation)}
        lines = (summary(self.evaluation), *self.evaluation.warnings)
        return html_of(lines, rows, [self._file(HISTOGRAM), self._file(SHEET)])


def html_of(lines: tuple[str, ...], rows: Mapping[str, str], pictures: list[Path]) -> str:
    """Paragraphs, a table and pictures, all inside the text."""
    from nnet_edge.evaluation.page import embedded

    table = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
    shown = [
        f'<img src="{embedded(path)}" alt="{escape(path.stem)}" style="max-width:100%">'
        for path in pictures
        if path.exists()
    ]
    return "".join((*(f"<p>{escape(line)}</p>" for line in lines), f"<table>{table}</table>" * bool(rows), *shown))
