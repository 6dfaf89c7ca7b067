"""Masks of a dataset: how their pixels mark a defect, and which of them leave a doubt.

A mask marks where its stored value is not 0, whatever the value. Files of other habits (inverted, a grey ground, the marks in
the transparency) would mark nearly everything; they are refused with a question, and `mask_mark` is its answer:

"nonzero"  where the stored value is not 0; of a palette that is the index ("auto" is the same, but asks in doubt)
"bright"   where the mask, as it is shown, is brighter than the middle of its darkest and brightest value; "dark" is the rest
"alpha"    where it is opaque
a number   where the stored value is this one
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from nnet_edge.data.dataset import Sample
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.image_files import Labels, read_image, read_labels, read_size
from nnet_edge.imaging import MaskRule, resize_mask
from nnet_edge.machine import usable_cores

AUTO = "auto"
LARGE = 0.5  # share of a picture, and of its outermost pixels: an inverted mask marks more of both, real defects less of one
FEW_VALUES = 16  # indices of defects; a mask with more was drawn softly or saved lossily
BLURRED = 0.01  # share of a picture that may be marked faintly
THREADS = min(8, usable_cores())

READINGS: dict[str, Callable[[Labels], np.ndarray]] = {
    "nonzero": lambda labels: labels.values != 0 if labels.values.ndim == 2 else np.any(labels.values != 0, axis=2),
    "bright": lambda labels: labels.grey > _middle(labels.grey),
    "dark": lambda labels: labels.grey <= _middle(labels.grey),
    "alpha": lambda labels: labels.grey < 0 if labels.alpha is None else labels.alpha > 127,
}


def check_mark(mark: str) -> str:
    """`mark` itself. Raises ConfigError unless it is one of the module's docstring."""
    if mark != AUTO and mark not in READINGS and not mark.isdecimal():
        raise ConfigError(f'mask mark "{mark}" is unknown: choose {AUTO}, {", ".join(READINGS)} or a value such as 255')
    return mark


def marked(labels: Labels, mark: str, path: Path) -> np.ndarray:
    """Where the mask at `path` marks a defect, bool (H, W). Raises DataError where `mark` does not fit it."""
    if mark.isdecimal():
        if labels.values.ndim == 3:
            raise DataError(
                f"mask {path} has colours, no single values: --mask-mark {mark} does not fit; see bright, dark"
            )
        return labels.values == int(mark)
    if mark == "alpha" and labels.alpha is None:
        raise DataError(f"mask {path} has no transparency: --mask-mark alpha does not fit; see bright, dark, nonzero")
    return READINGS["nonzero" if mark == AUTO else mark](labels)


def doubt(labels: Labels, is_anomalous: bool | None) -> str | None:
    """Why the mask may mean something else than its values say, half a sentence; `is_anomalous` None: not known."""
    there = READINGS["nonzero"](labels)
    share, ring = there.mean(), np.concatenate([there[0], there[-1], there[:, 0], there[:, -1]]).mean()
    if labels.alpha is not None and np.ptp(labels.alpha) and ((labels.alpha > 127) != there).mean() > BLURRED:
        return "marks one place by its colours and another by its transparency"
    if share > LARGE and ring > LARGE:
        return f"marks {share:.0%} of its picture, the edges too"
    if is_anomalous is False and there.any():
        return "marks a defect on a good part"
    strong = READINGS["bright"](labels)
    is_blurred = 2 * strong.sum() < there.sum() and (there & ~strong).mean() > BLURRED
    if is_blurred and len(np.unique(labels.values)) > FEW_VALUES:
        return f"marks {share:.1%} of its picture, most of that faintly"
    return None


def load_mask(sample: Sample, rule: MaskRule = "half", geometry: Geometry = DEFAULT) -> np.ndarray:
    """Where `sample` is marked as defective, by the rule of `imaging.resize_mask`: bool (height, width).

    A good sample without a mask gives all False. Raises DataError when a mask cannot be read, has another size than its image
    or leaves a doubt, or when an anomalous sample has none.
    """
    if not sample.has_mask:
        if sample.is_anomalous:
            raise DataError(f"{sample.path} shows a defect and has no mask: pixel metrics need one")
        return np.zeros(geometry.size, bool)
    return load_masks([sample], rule, geometry)[0][0]


def load_masks(
    samples: Sequence[Sample], rule: MaskRule = "half", geometry: Geometry = DEFAULT
) -> tuple[np.ndarray, np.ndarray]:
    """The masks of `samples`, bool (N, height, width), and whether each is known, bool (N,); it is for every good image.

    Raises DataError for a mask that cannot be read or has another size than its image, and one for all that leave a doubt.
    """
    known = [sample for sample in samples if sample.has_mask]
    masks = np.zeros((len(samples), *geometry.size), bool)
    doubts: list[tuple[Path, str]] = []
    empty: list[Path] = []
    rows = (row for row, sample in enumerate(samples) if sample.has_mask)
    with ThreadPoolExecutor(THREADS) as pool:
        for row, sample, (there, found) in zip(rows, known, pool.map(read_marks, known), strict=True):
            masks[row] = resize_mask(there, geometry, rule)
            doubts += found
            if sample.is_anomalous and sample.masks and not there.any():
                empty.append(sample.masks[0])
    if empty and not doubts and len(empty) == sum(sample.is_anomalous and bool(sample.masks) for sample in known):
        doubts = [(path, "marks nothing on a defect, and so do all") for path in empty]
    ask(doubts, sum(len(sample.masks) for sample in known))
    return masks, np.array([sample.has_mask or not sample.is_anomalous for sample in samples], bool)


def find_marking(masks: Sequence[tuple[Path, ...]], mark: str) -> list[bool]:
    """Whether each group of masks marks anything. Raises DataError for masks that cannot be read or leave a doubt."""
    doubts: list[tuple[Path, str]] = []

    def read(group: tuple[Path, ...]) -> bool:
        found = [(path, read_labels(path)) for path in group]
        if mark == AUTO:
            doubts.extend((path, why) for path, labels in found if (why := doubt(labels, None)))
        return any(marked(labels, mark, path).any() for path, labels in found)

    with ThreadPoolExecutor(THREADS) as pool:
        marking = list(pool.map(read, masks))
    ask(doubts, sum(map(len, masks)))
    return marking


def ask(doubts: Sequence[tuple[Path, str]], masks: int) -> None:
    """Raise DataError when there are doubts, with what each reading would mark of the first mask."""
    if not doubts:
        return
    (path, why), labels = doubts[0], read_labels(doubts[0][0])
    readings = {
        name: read(labels).mean() for name, read in READINGS.items() if name != "alpha" or labels.alpha is not None
    }
    choices = ", ".join(f"{name} ({share:.1%} of this one)" for name, share in readings.items())
    raise DataError(
        f"{len(doubts)} of {masks} masks leave a doubt (first: {path} {why}): say by --mask-mark what marks a defect: "
        f"{choices}, or the stored value"
    )


def looks_like_mask(path: Path) -> bool:
    """Whether the picture at `path` has few values, as a mask; true also for one that cannot be read as a picture."""
    try:
        return has_few_values(read_image(path)[..., 0] if path.suffix.lower() != ".gif" else read_labels(path).grey)
    except DataError:
        return True  # 32 bits a pixel, or damaged: by its name it is one, and reading it will say what is wrong


def has_few_values(grey: np.ndarray) -> bool:
    """Whether `grey`, uint8 (H, W), has few values, or nearly all its pixels one of two; a photograph has many."""
    counts = np.bincount(grey.ravel(), minlength=256)
    near = np.convolve(counts, np.ones(17, int), mode="same")  # a lossy file has values beside the true ones
    most, place = near.max(), int(near.argmax())
    near[max(0, place - 16) : place + 17] = 0
    return bool(np.count_nonzero(counts) <= FEW_VALUES or most + near.max() > 0.98 * counts.sum())


def find_mask_like(images: np.ndarray, paths: Sequence[Path]) -> list[Path]:
    """Those of the pictures `images`, uint8 (N, H, W, 3), that look like masks, unless most of them do."""
    found = [path for path, image in zip(paths, images, strict=True) if has_few_values(image[..., 0])]
    return found if 2 * len(found) <= len(paths) else []


def read_marks(sample: Sample) -> tuple[np.ndarray, list[tuple[Path, str]]]:
    """Where `sample` is marked in its own size, bool (H, W), and which masks leave a doubt. Raises DataError as `load_mask`."""
    size = read_size(sample.path)
    there = np.zeros(size, bool) if sample.drawing is None else sample.drawing.mask(size)
    doubts = []
    for path in sample.masks:
        labels = read_labels(path)
        if labels.grey.shape != size:
            sizes = [f"{height} x {width} (height x width)" for height, width in (labels.grey.shape, size)]
            raise DataError(
                f"mask {path} has {sizes[0]} pixels and its image {sample.path} {sizes[1]}: "
                "make them the same (an image's EXIF turn counts)"
            )
        if sample.mask_mark == AUTO and (why := doubt(labels, sample.is_anomalous)):
            doubts.append((path, why))
        there |= marked(labels, sample.mask_mark, path)
    return there, doubts


def _middle(grey: np.ndarray) -> float:
    """Between the darkest and the brightest value; of a picture of one value, half of white."""
    darkest, brightest = int(grey.min()), int(grey.max())
    return (darkest + brightest) / 2 if darkest < brightest else 127
