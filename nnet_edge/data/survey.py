"""What a dataset holds: counts, sizes, depths, copies, near copies, exposure, masks; a contact sheet.

One picture is in memory at a time and thread; of each, 8 KiB are kept (its fine structure, see copies.py).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from nnet_edge.bits import to_8_bit
from nnet_edge.data.copies import NEAR, fine_structure
from nnet_edge.data.dataset import GOOD, Dataset, Sample
from nnet_edge.data.images import depth_of_set
from nnet_edge.data.masks import THREADS, read_marks
from nnet_edge.errors import DataError
from nnet_edge.image_files import Header, Picture, read_header, read_image, read_picture
from nnet_edge.imaging import resize

Progress = Callable[[int, int], None]
SHOWN = 5  # names in a line
FAR = 6.0  # deviations, by the median, from the usual brightness
LEAST_SPREAD = 2.0  # grey levels: good parts of a steady light are not outliers of each other
ROWS_AT_ONCE = 512


@dataclass(frozen=True)
class Look:
    """What is kept of a picture."""

    path: Path
    header: Header | None = None
    hash: bytes = b""  # of its pixels
    fine: np.ndarray | None = None  # float16 (4096,)
    mean: float = 0.0  # of its stored values
    brightest: Picture | None = None  # its brightest value, where it has 16 bits
    problem: str = ""  # why it cannot be used


@dataclass
class Survey:
    """What `nnet-edge data` says of a dataset; paths start at the data folder."""

    root: str
    layout: str
    category: str
    learned: int
    test_good: int
    defects: dict[str, int]  # kind -> pictures
    masked: int  # defects whose place is known
    sizes: dict[str, int] = field(default_factory=dict)  # "height x width" -> pictures
    formats: dict[str, int] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)  # "8 bits, 3 channels" -> pictures
    bits: int | None = None  # of pictures of 16 bits, by the values that they have
    duplicates: list[list[str]] = field(default_factory=list)  # groups of equal pixels
    near: list[list[str]] = field(default_factory=list)  # [test picture, learned picture]
    brightness: dict[str, float] | None = None  # of good pictures, grey levels of 255
    exposure: dict[str, float] = field(default_factory=dict)  # pictures of another brightness
    marked: dict[str, float] | None = None  # shares of a picture that masks mark
    problems: list[str] = field(default_factory=list)  # what training or evaluation would stop at
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For people."""
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.defects.items())
        total = sum(self.defects.values())
        lines = [
            f"layout   {self.layout}, category {self.category}",
            f"pictures {self.learned} good to learn, {self.test_good} good to test, {total} defects"
            + (f" ({kinds}), {self.masked} with a mask" if total else ""),
        ]
        tables = (("size", self.sizes), ("format", self.formats), ("depth", self.depths))
        lines += [
            f"{name:8} {_most(counts)}" + ", height x width" * (name == "size") for name, counts in tables if counts
        ]
        if self.bits is not None:
            lines.append(f"{'':8} the 16-bit pictures use {self.bits} bits")
        if self.marked is not None:
            least, middle, most = (f"{100 * self.marked[name]:.3g} %" for name in ("least", "median", "most"))
            lines.append(f"masks    mark {least} to {most} of a picture, median {middle}")
        if self.brightness is not None:
            lines.append(
                f"light    good pictures {self.brightness['median']:.0f} of 255, spread {self.brightness['spread']:.1f}"
            )
            found = [f"{name} ({value:.0f})" for name, value in self.exposure.items()]
            lines.append(f"{'':8} {len(found)} of another brightness{_first(found)}")
            equal = [" = ".join(group) for group in self.duplicates]
            lines.append(f"copies   {sum(map(len, self.duplicates)) - len(equal)} of equal pixels{_first(equal)}")
            pairs = [f"{test} of {learned}" for test, learned in self.near]
            lines.append(f"{'':8} {len(pairs)} near copies of learned pictures in the test{_first(pairs)}")
        return lines + [f"problem  {problem}" for problem in self.problems]


def survey(dataset: Dataset, headers_only: bool = False, progress: Progress | None = None) -> Survey:
    """What `dataset` holds; with `headers_only` no pixel is decoded: no copies, no exposure, no masks."""
    paths = [*dataset.train, *(sample.path for sample in dataset.test)]
    defects = Counter(sample.defect for sample in dataset.test if sample.is_anomalous)
    found = Survey(
        root=str(dataset.root), layout=dataset.layout, category=dataset.category, learned=len(dataset.train),
        test_good=sum(not sample.is_anomalous for sample in dataset.test), defects=dict(sorted(defects.items())),
        masked=sum(sample.is_anomalous and sample.has_mask for sample in dataset.test), notes=list(dataset.notes),
    )  # fmt: skip
    looks = _look_at(paths, _look_at_header if headers_only else _look, progress)
    found.problems += [look.problem for look in looks if look.problem]
    headers = [look.header for look in looks if look.header is not None]
    found.sizes = _counts(f"{one.size[0]} x {one.size[1]}" for one in headers)
    found.formats = _counts(one.format for one in headers)
    found.depths = _counts(f"{one.bits} bits, {one.channels} channel{'s' * (one.channels > 1)}" for one in headers)
    if not headers_only:
        _say_copies(found, dataset, looks)
        _say_exposure(found, dataset, looks)
        _say_masks(found, dataset)
    return found


def _look_at(paths: Sequence[Path], look: Callable[[Path], Look], progress: Progress | None) -> list[Look]:
    looks = []
    with ThreadPoolExecutor(THREADS) as pool:
        for done, one in enumerate(pool.map(look, paths), 1):
            looks.append(one)
            if progress is not None:
                progress(done, len(paths))
    return looks


def _look_at_header(path: Path) -> Look:
    try:
        return Look(path, read_header(path))
    except DataError as error:
        return Look(path, problem=str(error))


def _look(path: Path) -> Look:
    try:
        header, picture = read_header(path), read_picture(path)
    except DataError as error:
        return Look(path, problem=str(error))
    pixels, brightest = picture.pixels, None
    digest = hashlib.blake2b(repr(pixels.shape).encode() + pixels.tobytes()).digest()
    mean = float(pixels.mean())
    if pixels.dtype == np.uint16:
        brightest = Picture(pixels.max(keepdims=True), picture.bits)
        pixels = to_8_bit(pixels, max(8, int(pixels.max()).bit_length()))
    return Look(path, header, digest, fine_structure(resize(pixels)).astype(np.float16), mean, brightest)


def _say_copies(found: Survey, dataset: Dataset, looks: Sequence[Look]) -> None:
    groups: dict[bytes, list[str]] = defaultdict(list)
    for look in looks:
        if look.hash:
            groups[look.hash].append(_below(look.path, dataset.root))
    found.duplicates = [group for group in groups.values() if len(group) > 1]
    learned = [look for look in looks[: len(dataset.train)] if look.fine is not None]
    tests = [look for look in looks[len(dataset.train) :] if look.fine is not None]
    if not learned:
        return
    known = np.array([look.fine for look in learned])
    for start in range(0, len(tests), ROWS_AT_ONCE):
        rows = tests[start : start + ROWS_AT_ONCE]
        fine = np.array([look.fine for look in rows], np.float32)
        best, place = np.full(len(rows), -1.0, np.float32), np.zeros(len(rows), int)
        for first in range(0, len(known), ROWS_AT_ONCE):
            likeness = fine @ known[first : first + ROWS_AT_ONCE].astype(np.float32).T
            better = likeness.max(axis=1) > best
            place[better] = first + likeness.argmax(axis=1)[better]
            best = np.maximum(best, likeness.max(axis=1))
        for look, likeness, row in zip(rows, best, place, strict=True):
            if likeness > NEAR and look.hash != learned[row].hash:
                found.near.append([_below(one.path, dataset.root) for one in (look, learned[row])])


def _say_exposure(found: Survey, dataset: Dataset, looks: Sequence[Look]) -> None:
    deep = [look.brightest for look in looks if look.brightest is not None]
    if deep:
        found.bits = depth_of_set(deep, None).bits
    good = {sample.path for sample in dataset.test if not sample.is_anomalous} | set(dataset.train)
    white = {True: 2 ** (found.bits or 8) - 1, False: 255}
    levels = {look.path: look.mean * 255 / white[look.brightest is not None] for look in looks
              if look.path in good and look.header is not None}  # fmt: skip
    if not levels:
        return
    values = np.array(list(levels.values()))
    median = float(np.median(values))
    spread = 1.4826 * float(
        np.median(np.abs(values - median))
    )  # the standard deviation where it is a normal distribution
    found.brightness = {"median": round(median, 2), "spread": round(spread, 2)}
    limit = FAR * max(spread, LEAST_SPREAD)
    found.exposure = {
        _below(path, dataset.root): round(level, 1) for path, level in levels.items() if abs(level - median) > limit
    }


def _say_masks(found: Survey, dataset: Dataset) -> None:
    def share(sample: Sample) -> float | str:
        try:
            there, doubts = read_marks(sample)
        except DataError as error:
            return str(error)
        return f"mask {doubts[0][0]} {doubts[0][1]}: see --mask-mark" if doubts else float(there.mean())

    masked = [sample for sample in dataset.test if sample.has_mask and sample.is_anomalous]
    with ThreadPoolExecutor(THREADS) as pool:
        shares = list(pool.map(share, masked))
    found.problems += [one for one in shares if isinstance(one, str) and one not in found.problems]
    known = [one for one in shares if isinstance(one, float)]
    if known:
        least, median, most = (float(np.quantile(known, part)) for part in (0, 0.5, 1))
        found.marked = {"least": least, "median": median, "most": most}


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _counts(values: Any) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _most(counts: dict[str, int]) -> str:
    shown = [f"{value} ({count})" for value, count in list(counts.items())[:SHOWN]]
    more = len(counts) - len(shown)
    return ", ".join(shown) + (f", {more} more" if more > 0 else "")


def _first(found: Sequence[str]) -> str:
    return f": {', '.join(found[:SHOWN])}{', ...' * (len(found) > SHOWN)}" if found else ""


# --- contact sheet

TILE, GAP, COLUMNS, ROWS, CAPTION = 160, 6, 8, 12, 20  # pixels, pixels, pictures a row, kinds, pixels
OUTLINE, PAPER, INK = (255, 60, 60), 255, 40


def contact_sheet(dataset: Dataset, bits: int | None = None) -> bytes:
    """A PNG: a row of good pictures to learn, one of those to test, and one of each kind of defect, its masks outlined."""
    rows: list[tuple[str, Sequence[Sample]]] = [
        ("good, learned", [Sample(path, False, None, GOOD) for path in dataset.train])
    ]
    by_kind: dict[str, list[Sample]] = defaultdict(list)
    for sample in sorted(dataset.test, key=lambda sample: (sample.is_anomalous, sample.defect)):
        by_kind[sample.defect if sample.is_anomalous else "good, test"].append(sample)
    rows += list(by_kind.items())
    shown = rows[:ROWS]
    height = GAP + len(shown) * (CAPTION + TILE + GAP)
    sheet = np.full((height, GAP + COLUMNS * (TILE + GAP), 3), PAPER, np.uint8)
    for number, (name, samples) in enumerate(shown):
        top = GAP + number * (CAPTION + TILE + GAP)
        more = f", {len(rows) - ROWS} more kinds" if number == ROWS - 1 and len(rows) > ROWS else ""
        text = f"{name}: {len(samples)}{more}".encode("ascii", "replace").decode()  # OpenCV's font has no others
        cv2.putText(sheet, text, (GAP, top + CAPTION - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (INK,) * 3, 1, cv2.LINE_AA)
        chosen = np.linspace(0, len(samples), min(COLUMNS, len(samples)), endpoint=False).astype(int)
        for column, row in enumerate(chosen):
            left = GAP + column * (TILE + GAP)
            sheet[top + CAPTION : top + CAPTION + TILE, left : left + TILE] = _tile(samples[row], bits)
    return bytes(cv2.imencode(".png", sheet[..., ::-1])[1])


def _tile(sample: Sample, bits: int | None) -> np.ndarray:
    """The picture in a square, its mask outlined; grey where it cannot be read."""
    tile = np.full((TILE, TILE, 3), 224, np.uint8)
    try:
        image = read_image(sample.path) if bits is None else read_image(sample.path, bits)
        marks = read_marks(sample)[0] if sample.has_mask else None
    except DataError:
        return tile
    scale = TILE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    if marks is not None:
        there = cv2.resize(marks.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA)
        edges, _ = cv2.findContours((there > 0).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(small, edges, -1, OUTLINE, 1)
    top, left = (TILE - height) // 2, (TILE - width) // 2
    tile[top : top + height, left : left + width] = small
    return tile
