"""Layouts of a dataset on disk: which images of a folder are learned from and which are judged.

"mvtec"    CATEGORY/train/good, CATEGORY/test/<defect>, CATEGORY/ground_truth/<defect>/<stem>_mask.png. The root is a category,
           or holds several. So lie MVTec AD, LOCO (a folder of masks for each image), 3D-AD (rgb/ and gt/ in each kind), AD 2
           (test_public/, which holds its ground_truth/) and BTAD (ok and ko). `validation/` is not used.
"visa"     a split CSV with the columns object, split, label, image and mask; paths start at the root. It is looked for
           at split_csv/1cls.csv and 1cls.csv.
"real-iad" realiad_jsons/realiad_jsons/CATEGORY.json beside realiad_256/ (or _512, _1024) with the categories.
"ksdd2"    KolektorSDD2: train/ and test/ with 1.png and 1_GT.png; a picture is good when its mask marks nothing.
"ksdd"     KolektorSDD: kos01/Part0.jpg with Part0_label.bmp, good when it marks nothing; no part is set aside for a test.
"dagm"     DAGM 2007: CATEGORY/Train and Test with 0576.PNG and Label/0576_label.PNG, which only defects have.
"coco", "cvat", "yolo", "supervisely", "labelme"
           what labelling tools write (tools/): good is what has no mark (labels.py), shapes become masks (shapes.py).
"folder"   good images in ROOT/good, or in ROOT itself. ROOT/bad (its sub-folders name kinds of defect) and
           ROOT/test_good are never learned from: they are the test. Without bad/, any other folder beside good/ is a
           kind of defect, as good/ scratch/ dent/; one that may hold good parts (test/) is asked about.
           Without test_good the test holds only defects, and measuring it needs good images that training held out.
           Masks lie in ROOT/masks or ROOT/ground_truth at the same place as the image in ROOT/bad, named
           <stem>_mask.png or <stem>.png. VisA's own Data/Images/Normal and Anomaly with Data/Masks are such a folder, too, and
           a root may hold several.
"auto"     the first of these that fits.

Where "good" stands, "ok" and "normal" do as well, in capitals or not; so do "ng", "nok", "ko", "anomaly", "defect" for "bad".
Masks may also lie beside their pictures (pairing.py); those of good images must mark nothing.

Either every image of a defect has a mask or none has: a mix would count unmarked defects as good surface. Hidden files
and folders are passed over; links are followed, each folder once. `Dataset.notes` names every folder with images that are
not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nnet_edge.data.dataset import Dataset, Found, Sample, count
from nnet_edge.data.folders import find_images as find_images
from nnet_edge.data.folders import folders, name_unused
from nnet_edge.data.labels import Tool, files_of, is_here_or_below, names_of, to_found
from nnet_edge.data.masks import AUTO, check_mark
from nnet_edge.data.tables import (
    SIZES,
    SPLIT_FILES,
    has_split,
    has_tables,
    objects_of,
    read_real_iad,
    read_visa,
    tables_of,
)
from nnet_edge.data.tools.coco import Coco
from nnet_edge.data.tools.cvat import Cvat
from nnet_edge.data.tools.labelme import Labelme
from nnet_edge.data.tools.supervisely import Supervisely
from nnet_edge.data.tools.yolo import Yolo
from nnet_edge.data.trees import (
    TEST_NAMES,
    categories_of,
    is_dagm,
    is_folder,
    is_ksdd,
    is_ksdd2,
    is_mvtec,
    is_parts,
    read_dagm,
    read_folder,
    read_ksdd,
    read_ksdd2,
    read_mvtec,
)
from nnet_edge.errors import ConfigError, DataError

Reader = Callable[[Path, str | None, Path | None, str], Found]  # root, category, split CSV, what marks a defect
SEARCHED = 50  # folders of a root, for the layout that it nearly has


@dataclass(frozen=True)
class Sign:
    """What lies in every set of a layout."""

    words: str
    patterns: tuple[str, ...]  # one of which is there; relative to a category or to the root

    @classmethod
    def of(cls, words: str, *patterns: str) -> Sign:
        return cls(words, patterns or (words.rstrip("/"),))

    def is_in(self, folder: Path) -> bool:
        return any(next(folder.glob(pattern), None) is not None for pattern in self.patterns)


@dataclass(frozen=True)
class Layout:
    """One way in which a dataset lies on disk."""

    name: str
    is_here: Callable[[Path], bool]
    categories: Callable[[Path, Path | None], list[str]]  # of a root, with the split CSV asked for
    read: Reader
    signs: tuple[Sign, ...] = ()  # for a set that lacks some of it

    def lacks(self, root: Path) -> tuple[float, str]:
        """(share of the signs that are there, what is there and what is missing), of `root` or a folder in it."""
        best = (0.0, "")
        for folder in (root, *folders(root)[:SEARCHED]):
            there = [sign.is_in(folder) for sign in self.signs]
            words = [", ".join(one.words for one, is_in in zip(self.signs, there, strict=True) if is_in is asked)
                     for asked in (True, False)]  # fmt: skip
            share = sum(there) / max(len(there), 1)
            if best[0] < share < 1:
                best = (share, f"{words[0]} is there, {words[1]} is missing")
        return best


def read_dataset(
    root: Path,
    layout: str = AUTO,
    category: str | None = None,
    split_csv: Path | None = None,
    mask_mark: str = AUTO,
) -> Dataset:
    """The dataset under `root`; `layout` is one of the module's docstring, `mask_mark` one of masks.py.

    Opens no image but masks of good ones. Raises ConfigError when `root` is no folder, or an argument does not fit what is
    there; DataError when good images, an image that a table names, or some of the masks are missing, when files lie where the
    layout knows no use for them, or when a mask of a good image marks a defect.
    """
    check_mark(mask_mark)
    chosen = _choose_layout(root, layout, split_csv)
    try:
        found = chosen.read(root, category, split_csv, mask_mark)
    except DataError as error:
        if layout != AUTO or chosen.name != "folder":
            raise
        raise DataError(f"{error}{_name_nearest(root)}") from error
    samples = [replace(sample, mask_mark=mask_mark) for sample in sorted(found.test, key=lambda sample: sample.path)]
    _all_or_no_masks(samples)
    used = [*found.train, *found.others, *(path for sample in samples for path in (sample.path, *sample.masks))]
    notes = (*found.notes, *name_unused(found.home, used), *_name_strangers(root, found.home))
    if chosen.name == "folder":
        notes += tuple(
            f"not used: {path}, a label file of no tool that is known here" for path in _label_files(found.home)
        )
    return Dataset(
        root, chosen.name, found.category, tuple(sorted(found.train)), tuple(samples), notes, found.saturation
    )


def find_categories(root: Path, layout: str = AUTO, split_csv: Path | None = None) -> tuple[str, ...]:
    """The categories under `root`, sorted: those that `read_dataset` can be asked for; a plain folder is its own.

    Raises ConfigError and DataError as `read_dataset` does for what is no folder or holds no category.
    """
    return tuple(sorted(_choose_layout(root, layout, split_csv).categories(root, split_csv)))


def _choose_layout(root: Path, layout: str, split_csv: Path | None) -> Layout:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise ConfigError(f"data folder {root} {what}: give the folder that holds the images")
    if layout == AUTO:
        name = "visa" if split_csv is not None else next(one.name for one in LAYOUTS.values() if one.is_here(root))
    else:
        name = layout
    if name not in LAYOUTS:
        raise ConfigError(f'layout "{name}" is unknown: choose {AUTO}, {", ".join(LAYOUTS)}')
    if split_csv is not None and name != "visa":
        raise ConfigError(f'a split CSV ({split_csv}) belongs to the layout "visa", not "{name}"')
    return LAYOUTS[name]


def _label_files(folder: Path) -> list[Path]:
    """Files beside pictures that may hold labels: defects that only they name would be learned."""
    return [path for suffix in (".json", ".xml") for path in files_of((folder,), suffix)]


def _name_nearest(root: Path) -> str:
    """The layout that `root` has the largest part of, and what it lacks; nothing when it has none of any."""
    (share, what), name = max(
        ((layout.lacks(root), layout.name) for layout in LAYOUTS.values()), key=lambda one: one[0][0]
    )
    return f"; the nearest other layout is {name}: {what} (see docs/data.md)" if share else ""


def _all_or_no_masks(samples: Sequence[Sample]) -> None:
    defects = [sample for sample in samples if sample.is_anomalous]
    bare = [sample.path for sample in defects if not sample.has_mask]
    if bare and len(bare) < len(defects):
        raise DataError(
            f"{count(bare, 'image')} of a defect without a mask, while {len(defects) - len(bare)} others have one: "
            "mark every defect or remove all masks"
        )


def _name_strangers(root: Path, home: Path) -> tuple[str, ...]:
    """Lines about folders with images in a root of several categories that are no category."""
    if home == root or home.parent != root:
        return ()
    kinds = (is_mvtec, is_ksdd2, is_ksdd, is_dagm, is_parts, *(tool.is_here for tool in TOOLS.values()))
    strangers = [entry for entry in folders(root) if entry != home and not any(is_one(entry) for is_one in kinds)]
    return tuple(line for entry in strangers for line in name_unused(entry, ()))


def _is_or_holds(is_category: Callable[[Path], bool]) -> Callable[[Path], bool]:
    return lambda root: is_category(root) or any(map(is_category, folders(root)))


TOOLS: dict[str, Tool] = {  # in the order in which they are looked for
    "coco": Coco(), "supervisely": Supervisely(), "cvat": Cvat(), "yolo": Yolo(), "labelme": Labelme(),
}  # fmt: skip


def _of_tool(name: str, *signs: Sign) -> Layout:
    tool = TOOLS[name]
    return Layout(
        name,
        lambda root: is_here_or_below(tool, root),
        lambda root, _: names_of(tool, root),
        lambda root, category, split_csv, mask_mark: to_found(name, tool, root, category),
        signs,
    )


def _of_tree(name: str, is_category: Callable[[Path], bool], read: Reader, *signs: Sign) -> Layout:
    return Layout(name, _is_or_holds(is_category), lambda root, _: categories_of(root, is_category), read, signs)


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("visa", has_split, objects_of, read_visa,
               (Sign.of("split_csv/1cls.csv", *SPLIT_FILES), Sign.of("OBJECT/Data/Images/", "*/Data/Images"))),
        Layout("real-iad", has_tables, tables_of, read_real_iad,
               (Sign.of("realiad_jsons/"), Sign.of("realiad_256/ (or _512, _1024)", *SIZES))),
        _of_tool("coco"),
        _of_tool("supervisely", Sign.of("meta.json"), Sign.of("img/", "img", "*/img"), Sign.of("ann/", "ann", "*/ann")),
        _of_tool("cvat", Sign.of("annotations.xml"), Sign.of("images/")),
        _of_tool("yolo", Sign.of("data.yaml (or classes.txt)", "*.yaml", "classes.txt"),
                 Sign.of("images/", "images", "*/images"),
                 Sign.of("labels/*.txt", "labels/*.txt", "*/labels/*.txt", "labels/*/*.txt")),
        _of_tool("labelme"),
        _of_tree("mvtec", is_mvtec, read_mvtec, Sign.of("train/"), Sign.of("train/good/", "train/good", "train/ok"),
                 Sign.of("test/", *TEST_NAMES)),
        _of_tree("ksdd2", is_ksdd2, read_ksdd2, Sign.of("train/*.png"), Sign.of("train/*_GT.png"), Sign.of("test/*_GT.png")),
        _of_tree("dagm", is_dagm, read_dagm, Sign.of("Train/*.PNG"), Sign.of("Train/Label/"), Sign.of("Test/*.PNG"),
                 Sign.of("Test/Label/")),
        _of_tree("ksdd", is_ksdd, read_ksdd, Sign.of("kos01/", "kos[0-9]*"),
                 Sign.of("kos01/Part0_label.bmp", "kos*/*_label.bmp")),
        Layout("folder", lambda root: True,
               lambda root, _: [root.resolve().name] if is_folder(root) else categories_of(root, is_parts), read_folder),
    )
}  # fmt: skip
