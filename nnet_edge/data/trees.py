"""Layouts that names of folders describe: MVTec AD and its kin, KolektorSDD, SDD2, DAGM, a plain folder; see `layouts.py`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nnet_edge.data.dataset import GOOD, Found, Sample, Saturation, count
from nnet_edge.data.folders import (
    MASK_FOLDERS,
    choose_category,
    direct_files,
    find_files,
    find_images,
    find_part,
    folders,
    learnable,
)
from nnet_edge.data.masks import find_marking, looks_like_mask
from nnet_edge.data.pairing import Masks, Pictures, split_masks
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.files import IMAGE_SUFFIXES, read_regular

GOOD_NAMES = (GOOD, "ok", "normal")
BAD_NAMES = ("bad", "ng", "nok", "ko", "anomaly", "anomalous", "abnormal", "defect", "defects", "defective")
MASK_NAMES = ("masks", "mask", "ground_truth", "gt")
TEST_NAMES = ("test", "test_public")
UNSAID_NAMES = (  # beside good/ they may hold anything, good parts too
    *TEST_NAMES, "train", "training", "val", "valid", "validation", "all", "images", "mixed", "new", "old", "other", "others",
    "raw", "review", "rejects", "todo", "unknown", "unlabeled", "unlabelled", "unsorted",
)  # fmt: skip


def home_of(root: Path, category: str | None, is_category: Callable[[Path], bool]) -> Path:
    """The folder of the category: the root itself, or the one in it that was asked for."""
    found = [] if is_category(root) else [entry.name for entry in folders(root) if is_category(entry)]
    if found:
        return root / choose_category(found, category, root)
    if category not in (None, root.resolve().name):
        raise ConfigError(f'{root} is a category itself and holds no category "{category}": leave --category out')
    return root


def categories_of(root: Path, is_category: Callable[[Path], bool]) -> list[str]:
    found = [] if is_category(root) else [entry.name for entry in folders(root) if is_category(entry)]
    return found or [root.resolve().name]


def _refuse_strays(folder: Path, known: Iterable[Path | None], named: tuple[str, ...]) -> None:
    """Raise DataError when a folder that the layout does not know holds images: learned or not, it would be a guess."""
    used = set(known)
    for entry in folders(folder):
        if entry not in used and (images := find_images(entry)):
            names = ", ".join(f"{name}/" for name in named)
            raise DataError(f"{entry} holds images of no known use (first: {images[0]}): {folder} may hold {names}")


def _good_in(folder: Path, files: Sequence[Path], mask_mark: str) -> Pictures:
    """The good pictures among the `files`. Raises DataError when a mask among them marks a defect."""
    pictures = split_masks(folder, files)
    marking = find_marking(list(pictures.masks.values()), mask_mark)
    if marked := [path for path, is_marked in zip(pictures.masks, marking, strict=True) if is_marked]:
        raise DataError(
            f"{count(marked, 'image')} among the good ones with a mask that marks a defect: move them to bad/"
        )
    return pictures


def _masks_in(pictures: Pictures) -> list[Path]:
    return [mask for masks in pictures.masks.values() for mask in masks]


def _samples(
    pictures: Pictures, kind_of: Callable[[Path], str], homes: Sequence[Path], mask_root: Path | None
) -> list[Sample]:
    """Samples of `pictures`, each with its masks: those beside it, and those at its place in the tree `mask_root`."""
    masks = Masks(pictures.paths)
    masks.of.update(pictures.masks)
    if mask_root is not None and (found := find_files(mask_root)):
        masks.own(found, mask_root, homes)
    samples = []
    for path in pictures.paths:
        kind, own = kind_of(path), masks.of.get(path, ())
        samples.append(Sample(path, kind != GOOD, own[0] if own else None, kind, own[1:]))
    return samples


# --- MVTec AD and its kin


def is_mvtec(folder: Path) -> bool:
    return find_part(folder / "train", GOOD_NAMES) is not None


def read_mvtec(root: Path, category: str | None, split_csv: Path | None, mask_mark: str) -> Found:
    home = home_of(root, category, is_mvtec)
    good = find_part(home / "train", GOOD_NAMES)
    if good is None:
        raise DataError(f"{root} holds neither train/good nor categories with it: see the MVTec AD layout")
    test = find_part(home, TEST_NAMES) or home / "test"
    _refuse_strays(home / "train", (good,), (GOOD,))
    for part in (home / "train", test):
        if strays := direct_files(part, IMAGE_SUFFIXES) if part.is_dir() else []:
            raise DataError(f"{count(strays, 'image')} directly in {part}: move to good/ or to a folder of their own")
    learned = _good_in(good, find_files(good), mask_mark)

    def kind_of(path: Path) -> str:
        name = path.relative_to(test).parts[0]
        return GOOD if name.lower() in GOOD_NAMES else name

    samples = _samples(split_masks(test, find_files(test)), kind_of, (test,), find_part(home, MASK_NAMES))
    train, saturation = learnable(good, learned.paths), _read_saturation(home / "defects_config.json")
    return Found(home.resolve().name, train, samples, home, _masks_in(learned), saturation=saturation)


def _read_saturation(path: Path) -> tuple[Saturation, ...]:
    """What MVTec LOCO says of its defects; nothing where there is no such file. Raises DataError."""
    if not path.is_file():
        return ()
    try:
        return tuple(
            Saturation(int(one["pixel_value"]), float(one["saturation_threshold"]), bool(one["relative_saturation"]))
            for one in json.loads(read_regular(path))
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} does not say how much of a defect is enough, as MVTec LOCO's do: {error}") from error


# --- plain folder


@dataclass(frozen=True)
class _Parts:
    """The folders of a plain folder."""

    good: Path | None  # None: the folder itself
    bad: Path | None
    test_good: Path | None
    masks: Path | None
    home: Path  # that holds them

    @classmethod
    def of(cls, root: Path) -> _Parts:
        """Those in `root`."""
        home = root / "Data" / "Images" if (root / "Data" / "Images").is_dir() else root
        masks = find_part(root / "Data", MASK_NAMES) if home != root else find_part(root, MASK_NAMES)
        return cls(
            find_part(home, GOOD_NAMES), find_part(home, BAD_NAMES), find_part(home, ("test_good",)), masks, home
        )


def is_parts(folder: Path) -> bool:
    return _Parts.of(folder).good is not None


def is_folder(root: Path) -> bool:
    """Whether it holds its own good images, not categories that do."""
    return is_parts(root) or bool(direct_files(root, IMAGE_SUFFIXES)) or not any(map(is_parts, folders(root)))


def read_folder(root: Path, category: str | None, split_csv: Path | None, mask_mark: str) -> Found:
    home = root if is_folder(root) else home_of(root, category, is_parts)
    name = home.resolve().name
    if category not in (None, name):
        raise ConfigError(f'{root} is a plain folder and holds no category "{category}": leave --category out')
    parts = _Parts.of(home)
    direct = direct_files(parts.home)
    if parts.good is not None and (strays := direct_files(parts.home, IMAGE_SUFFIXES)):
        raise DataError(f"{count(strays, 'image')} lie beside {parts.good}: move them into it, or into bad/")
    place = parts.good or home
    learned = _good_in(place, direct if parts.good is None else find_files(parts.good), mask_mark)
    train = learnable(place, learned.paths)
    kinds = _kinds_beside_good(parts)
    known = (parts.good, parts.bad, parts.test_good, parts.masks, *kinds)
    _refuse_strays(parts.home, known, (GOOD, "bad", "test_good", "masks", "ground_truth"))
    bad = parts.home if kinds else parts.bad or parts.home / "bad"

    def kind_of(path: Path) -> str:
        names = path.relative_to(bad).parts
        return names[0] if len(names) > 1 else "bad"

    defects = split_masks(bad, [path for kind in kinds for path in find_files(kind)] if kinds else find_files(bad))
    if any(kind_of(path).lower() in GOOD_NAMES for path in defects.paths):
        raise DataError(f"{bad / GOOD} would be good and bad at once: move its images to {home / 'test_good'}")
    samples = _samples(defects, kind_of, tuple(dict.fromkeys((bad, parts.home))), parts.masks)
    if parts.test_good is not None:
        samples += _samples(split_masks(parts.test_good, find_files(parts.test_good)), lambda path: GOOD, (), None)
    named = ", ".join(f"{kind.name}/" for kind in kinds)
    note = (
        f"{named} beside {GOOD}/: taken for kinds of defect, as in bad/: tested, never learned; move away what is none"
    )
    return Found(name, train, samples, home, _masks_in(learned), (note,) if kinds else ())


def _kinds_beside_good(parts: _Parts) -> list[Path]:
    """Folders beside good/ that each hold a kind of defect: all others with images, where there is no bad/.

    Raises DataError for one whose name or content says otherwise.
    """
    if parts.good is None or parts.bad is not None:
        return []
    kinds = []
    for entry in folders(parts.home):
        if entry in (parts.good, parts.test_good, parts.masks) or not (images := find_images(entry)):
            continue
        if entry.name.lower() in UNSAID_NAMES or any(find_part(entry, names) for names in (GOOD_NAMES, BAD_NAMES)):
            raise DataError(
                f"{entry} lies beside {parts.good.name}/ and its name does not say if it holds good parts or defects "
                f"({count(images, 'image')}): move good ones to test_good/, defects to bad/{entry.name}/"
            )
        if entry.name.lower() not in MASK_FOLDERS and all(map(looks_like_mask, images[:5])):
            raise DataError(f"{entry} holds what looks like masks, not photographs: move them to masks/KIND OF DEFECT/")
        kinds.append(entry)
    return kinds


# --- KolektorSDD2


def is_ksdd2(folder: Path) -> bool:
    """Whether train/ and test/ hold pictures and, for each, a mask named so."""
    return all(
        (folder / part).is_dir() and any(path.stem.lower().endswith("_gt") for path in direct_files(folder / part))
        for part in ("train", "test")
    )


def read_ksdd2(root: Path, category: str | None, split_csv: Path | None, mask_mark: str) -> Found:
    home = home_of(root, category, is_ksdd2)
    found: dict[str, list[tuple[Path, tuple[Path, ...], bool]]] = {}
    for part in ("train", "test"):
        pictures = split_masks(home / part, find_files(home / part))
        if bare := [path for path in pictures.paths if path not in pictures.masks]:
            raise DataError(
                f"{count(bare, 'image')} without a mask named _GT, which says whether it is good: see KolektorSDD2"
            )
        groups = [pictures.masks[path] for path in pictures.paths]
        found[part] = list(zip(pictures.paths, groups, find_marking(groups, mask_mark), strict=True))
    good = [path for path, _, is_marked in found["train"] if not is_marked]
    others = [path for image, masks, _ in found["train"] for path in (image, *masks)]
    unlearned = len(found["train"]) - len(good)
    note = f"not used: {unlearned} images in {home / 'train'} whose masks mark a defect: only good ones are learned"
    samples = [
        Sample(path, is_marked, masks[0], "defect" if is_marked else GOOD, masks[1:])
        for path, masks, is_marked in found["test"]
    ]
    notes = (note,) if unlearned else ()
    return Found(home.resolve().name, learnable(home / "train", good), samples, home, others, notes)


# --- KolektorSDD


def is_ksdd(folder: Path) -> bool:
    """Whether its folders kos01, kos02, ... hold pictures and masks called _label."""
    return any(any(path.stem.lower().endswith("_label") for path in direct_files(entry)) for entry in _items_in(folder))


def _items_in(folder: Path) -> list[Path]:
    return [entry for entry in folders(folder) if entry.name.lower().startswith("kos")]


def read_ksdd(root: Path, category: str | None, split_csv: Path | None, mask_mark: str) -> Found:
    home = home_of(root, category, is_ksdd)
    pictures = split_masks(home, [path for entry in _items_in(home) for path in find_files(entry)])
    if bare := [path for path in pictures.paths if path not in pictures.masks]:
        raise DataError(
            f"{count(bare, 'image')} without a mask named _label, which says whether it is good: see KolektorSDD"
        )
    groups = [pictures.masks[path] for path in pictures.paths]
    found = list(zip(pictures.paths, groups, find_marking(groups, mask_mark), strict=True))
    good = [path for path, _, is_marked in found if not is_marked]
    samples = [Sample(path, True, masks[0], "defect", masks[1:]) for path, masks, is_marked in found if is_marked]
    others = [mask for _, masks, is_marked in found if not is_marked for mask in masks]
    return Found(home.resolve().name, learnable(home, good), samples, home, others)


# --- DAGM


def is_dagm(folder: Path) -> bool:
    """Whether Train/ holds pictures and, in Label/, masks of some of them."""
    train = find_part(folder, ("train",))
    labels = train and find_part(train, ("label",))
    return labels is not None and any(path.stem.lower().endswith("_label") for path in direct_files(labels))


def read_dagm(root: Path, category: str | None, split_csv: Path | None, mask_mark: str) -> Found:
    home = home_of(root, category, is_dagm)
    parts = [find_part(home, (name,)) for name in ("train", "test")]
    train, test = (split_masks(part, find_files(part)) if part else Pictures([]) for part in parts)
    good = [path for path in train.paths if path not in train.masks]
    place = parts[0] or home
    unlearned = len(train.paths) - len(good)
    notes = (f"not used: {unlearned} images in {place} with a label: only good ones are learned",) if unlearned else ()
    return Found(
        home.resolve().name,
        learnable(place, good),
        _samples(test, lambda path: "defect" if path in test.masks else GOOD, (), None),
        home,
        [*train.paths, *_masks_in(train)],
        notes,
    )
