"""Which categories a benchmark runs over, and to which of the paper's data sets they belong."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nnet_edge.errors import ConfigError
from nnet_edge.layouts import Dataset, find_categories, read_dataset

MVTEC_TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
MVTEC_OBJECTS = ("bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush", "transistor",
                 "zipper")  # fmt: skip
VISA_CATEGORIES = ("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2", "pcb1", "pcb2", "pcb3",
                   "pcb4", "pipe_fryum")  # fmt: skip
PAPER_SETS = {"MVTec AD": (*MVTEC_TEXTURES, *MVTEC_OBJECTS), "VisA": VISA_CATEGORIES}


def read_datasets(
    roots: Sequence[Path], layout: str = "auto", categories: Sequence[str] = (), split_csv: Path | None = None
) -> list[Dataset]:
    """Every category under the folders `roots`, or those of the names `categories`, in their order; no image is opened.

    Raises ConfigError when a name is not there or two folders hold one name, and what `read_dataset` raises.
    """
    places: dict[str, Path] = {}
    for root in roots:
        for name in find_categories(root, layout, split_csv):
            if name in places:
                raise ConfigError(f"category {name} lies in {places[name]} and in {root}: give one of them")
            places[name] = root
    for name in categories:
        if name not in places:
            raise ConfigError(f"no category {name!r} in the folders given: choose of {', '.join(places) or 'none'}")
    return [read_dataset(places[name], layout, name, split_csv) for name in categories or places]


def paper_set_of(category: str) -> str | None:
    """The paper's data set that has a category of this name, None for data of one's own."""
    return next((name for name, known in PAPER_SETS.items() if category in known), None)
