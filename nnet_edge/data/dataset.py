"""Dataset: which pictures are learned from, which are judged, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnet_edge.data.shapes import Drawing

GOOD = "good"


@dataclass(frozen=True, slots=True)
class Sample:
    """One image to judge and what is known about it."""

    path: Path
    is_anomalous: bool
    mask_path: Path | None  # None: nothing marked; see layouts.py
    defect: str  # the kind of defect, "good" for good parts
    more_masks: tuple[Path, ...] = ()  # further masks of the same image, where each defect has its own
    mask_mark: str = "auto"  # what marks a defect in the masks; see masks.py
    drawing: Drawing | None = None  # shapes of a labelling tool, in place of masks

    @property
    def masks(self) -> tuple[Path, ...]:
        """All masks of the image; together they mark its defects."""
        return () if self.mask_path is None else (self.mask_path, *self.more_masks)

    @property
    def has_mask(self) -> bool:
        """Whether it is known where its defects lie."""
        return self.mask_path is not None or self.drawing is not None


@dataclass(frozen=True, slots=True)
class Saturation:
    """How much of a defect is enough, by the value of its mask (MVTec LOCO)."""

    value: int  # of the mask's pixels
    threshold: float  # pixels, or a share of the defect
    is_relative: bool

    def share(self, pixels: int) -> float:
        """The share of a defect of so many pixels."""
        enough = int(self.threshold * pixels) if self.is_relative else self.threshold
        return min(max(enough, 1) / max(pixels, 1), 1.0)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The good images of one category to learn from and the images to judge; both are sorted by path."""

    root: Path
    layout: str  # one of layouts.LAYOUTS
    category: str
    train: tuple[Path, ...]  # good images
    test: tuple[Sample, ...]  # may be empty
    notes: tuple[str, ...] = ()  # what was found and not used, one line each
    saturation: tuple[Saturation, ...] = ()  # for sPRO; of MVTec LOCO alone


@dataclass(frozen=True)
class Found:
    """What a layout found in a category."""

    category: str
    train: Sequence[Path]
    test: Sequence[Sample]
    home: Path  # where whatever is not used is named
    others: Sequence[Path] = ()  # used otherwise
    notes: tuple[str, ...] = ()
    saturation: tuple[Saturation, ...] = ()


def count(paths: list[Path], noun: str) -> str:
    """For example "3 masks (first: a/b_mask.png)"."""
    return f"{len(paths)} {noun}{'s' if len(paths) > 1 else ''} (first: {paths[0]})"
