"""The layouts beside MVTec AD's, VisA's and a plain folder; masks beside pictures; what is not used has a name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnet_edge.data.dataset import Dataset, Sample
from nnet_edge.data.layouts import find_categories, read_dataset
from nnet_edge.data.masks import load_masks
from nnet_edge.errors import ConfigError, DataError


def put(path: Path, seed: int = 0) -> Path:
    """A small picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (12, 16, 3), np.uint8)).save(path)
    return path


def put_mask(path: Path, marks: bool = True, value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((12, 16), np.uint8)
    mask[2:6, 3:9] = value * marks
    Image.fromarray(mask).save(path)
    return path


def kinds(dataset: Dataset) -> dict[str, int]:
    return {kind: sum(sample.defect == kind for sample in dataset.test) for kind in {s.defect for s in dataset.test}}


def marked(dataset: Dataset) -> list[bool]:
    """Whether each test image is marked somewhere."""
    return load_masks(dataset.test)[0].any(axis=(1, 2)).tolist()


# --- the kin of MVTec AD


def test_btad(tmp_path: Path) -> None:
    for place in ("train/ok/0.bmp", "test/ok/0.bmp", "test/ko/0.bmp"):
        put(tmp_path / "01" / place)
    put_mask(tmp_path / "01/ground_truth/ko/0.png")
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, dataset.category, dataset.notes) == ("mvtec", "01", ())
    assert [path.name for path in dataset.train] == ["0.bmp"]
    assert kinds(dataset) == {"good": 1, "ko": 1}
    assert marked(dataset) == [True, False]


def test_mvtec_ad_2(tmp_path: Path) -> None:
    root = tmp_path / "can"
    for place in (
        "train/good",
        "validation/good",
        "test_public/good",
        "test_public/bad",
        "test_private",
        "test_private_mixed",
    ):
        put(root / place / "000_regular.png")
    mask = put_mask(root / "test_public/ground_truth/bad/000_regular_mask.png")
    dataset = read_dataset(root)
    assert kinds(dataset) == {"good": 1, "bad": 1}
    assert [sample.mask_path for sample in dataset.test] == [mask, None]
    assert dataset.notes == tuple(
        f"not used: 1 .png in {place}/ (first: {first})"
        for place, first in (
            ("test_private", "000_regular.png"),
            ("test_private_mixed", "000_regular.png"),
            ("validation", "good/000_regular.png"),
        )
    )


def test_loco_has_a_mask_for_each_defect_of_a_picture(tmp_path: Path) -> None:
    root = tmp_path / "box"
    put(root / "train/good/000.png")
    put(root / "test/logical_anomalies/000.png")
    masks = [put_mask(root / f"ground_truth/logical_anomalies/000/00{i}.png", value=240 + i) for i in (0, 1)]
    other = np.zeros((12, 16), np.uint8)
    other[8:11, 10:15] = 241
    Image.fromarray(other).save(masks[1])
    (sample,) = (dataset := read_dataset(root)).test
    assert sample.masks == tuple(masks)
    (both,), _ = load_masks(dataset.test)
    assert both[60, 60]
    assert both[200, 200]


def test_mvtec_3d_in_its_own_folders(tmp_path: Path) -> None:
    for place in ("train/good/rgb/0.png", "test/hole/rgb/0.png", "test/good/rgb/0.png"):
        put(tmp_path / place)
    for place in ("train/good/xyz/0.tiff", "test/hole/xyz/0.tiff"):
        put(tmp_path / place)
    put_mask(tmp_path / "test/hole/gt/0.png")
    put_mask(tmp_path / "test/good/gt/0.png", marks=False)
    dataset = read_dataset(tmp_path)
    assert [path.parent.name for path in dataset.train] == ["rgb"]
    assert kinds(dataset) == {"good": 1, "hole": 1}
    assert marked(dataset) == [False, True]
    assert [note.split(" (")[0] for note in dataset.notes] == [
        "not used: 1 .tiff in test/hole/xyz/",
        "not used: 1 .tiff in train/good/xyz/",
    ]


# --- others


def test_kolektor_sdd2_learns_what_is_not_marked(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number in range(3):
            put(tmp_path / part / f"{number}.png", seed=number)
            put_mask(tmp_path / part / f"{number}_GT.png", marks=number == 2)
    dataset = read_dataset(tmp_path)
    assert dataset.layout == "ksdd2"
    assert [path.name for path in dataset.train] == ["0.png", "1.png"]
    assert kinds(dataset) == {"good": 2, "defect": 1}
    assert marked(dataset) == [False, False, True]
    (note,) = dataset.notes
    assert note.startswith("not used: 1 images in ")
    assert note.endswith("only good ones are learned")
    (tmp_path / "train/0_GT.png").unlink()
    with pytest.raises(DataError, match=r"1 image \(first: .*train/0.png\) without a mask named _GT"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(("good", "bad"), [("OK", "NG"), ("Good", "Bad"), ("normal", "anomaly")])
def test_other_words_for_good_and_bad(tmp_path: Path, good: str, bad: str) -> None:
    put(tmp_path / good / "0.png")
    put(tmp_path / bad / "0.png")
    put(tmp_path / bad / "cut/1.png")
    dataset = read_dataset(tmp_path)
    assert len(dataset.train) == 1
    assert kinds(dataset) == {"bad": 1, "cut": 1}


def test_a_root_of_several_plain_folders(tmp_path: Path) -> None:
    for name in ("nut", "bolt"):
        put(tmp_path / name / "OK/0.png")
    put(tmp_path / "sketches/0.png")
    assert find_categories(tmp_path) == ("bolt", "nut")
    with pytest.raises(ConfigError, match="holds 2 categories: choose one with --category: bolt, nut"):
        read_dataset(tmp_path)
    dataset = read_dataset(tmp_path, category="nut")
    assert (dataset.category, len(dataset.train)) == ("nut", 1)
    (note,) = dataset.notes
    assert note.startswith("not used: 1 .png in ")
    assert "sketches" in note


def test_folders_beside_good_are_kinds_of_defect(tmp_path: Path) -> None:
    good, scratch, dent = (put(tmp_path / name) for name in ("good/a.png", "scratch/a.png", "dent/a.png"))
    masks = put_mask(tmp_path / "scratch/a_mask.png"), put_mask(tmp_path / "masks/dent/a.png")
    dataset = read_dataset(tmp_path)
    assert dataset.train == (good,)
    assert dataset.test == (Sample(dent, True, masks[1], "dent"), Sample(scratch, True, masks[0], "scratch"))
    assert "dent/, scratch/ beside good/: taken for kinds of defect" in dataset.notes[0]


@pytest.mark.parametrize(("stray", "question"), [
    ("unsorted/x.png", "does not say if it holds good parts or defects"),
    ("Test/x.png", "does not say if"),
    ("line2/ok/x.png", "does not say if"),
])  # fmt: skip
def test_folders_beside_good_that_may_hold_good_parts_are_asked_about(
    tmp_path: Path, stray: str, question: str
) -> None:
    put(tmp_path / "good/a.png")
    put(tmp_path / stray)
    with pytest.raises(DataError, match=question):
        read_dataset(tmp_path)


def test_masks_beside_good_are_no_defects(tmp_path: Path) -> None:
    put(tmp_path / "good/a.png")
    put(tmp_path / "scratch/a.png")
    put_mask(tmp_path / "scratch_marks/a.png")
    with pytest.raises(DataError, match="scratch_marks holds what looks like masks"):
        read_dataset(tmp_path)


def test_visa_without_a_split(tmp_path: Path) -> None:
    put(tmp_path / "candle/Data/Images/Normal/0.JPG")
    put(tmp_path / "candle/Data/Images/Anomaly/1.JPG")
    put_mask(tmp_path / "candle/Data/Masks/Anomaly/1.png", value=3)
    dataset = read_dataset(tmp_path)
    assert (dataset.category, len(dataset.train), dataset.notes) == ("candle", 1, ())
    assert marked(dataset) == [True]


def real_iad(root: Path) -> None:
    home = root / "realiad_256/mint"
    names = {f"OK/S{number}/{number}.jpg": "OK" for number in range(3)} | {"NG/QS/S1/9.jpg": "QS"}
    for name in (*names, "OK/S7/7.jpg"):
        put(home / name)
    put_mask(home / "NG/QS/S1/9.png")
    rows = [
        {
            "category": "mint",
            "anomaly_class": kind,
            "image_path": name,
            "mask_path": None if kind == "OK" else "NG/QS/S1/9.png",
        }
        for name, kind in names.items()
    ]
    table = root / "realiad_jsons/realiad_jsons/mint.json"
    table.parent.mkdir(parents=True)
    table.write_text(json.dumps({"meta": {"prefix": "mint/"}, "train": rows[:2], "test": rows[2:]}))


@pytest.mark.parametrize("place", [".", "realiad_256", "realiad_256/mint"])
def test_real_iad(tmp_path: Path, place: str) -> None:
    real_iad(tmp_path)
    dataset = read_dataset(tmp_path / place)
    assert (dataset.layout, dataset.category, len(dataset.train)) == ("real-iad", "mint", 2)
    assert kinds(dataset) == {"good": 1, "QS": 1}
    assert marked(dataset) == [True, False]
    assert dataset.notes == ("not used: 1 .jpg in OK/S7/ (first: 7.jpg)",)


def test_real_iad_without_its_tables_is_a_plain_folder(tmp_path: Path) -> None:
    real_iad(tmp_path)
    (tmp_path / "realiad_jsons").rename(tmp_path / "elsewhere")
    dataset = read_dataset(tmp_path / "realiad_256")
    assert (dataset.layout, dataset.category, len(dataset.train)) == ("folder", "mint", 4)
    assert kinds(dataset) == {"QS": 1}
    assert marked(dataset) == [True]


@pytest.mark.parametrize("text", ["[]", "{", '{"train": [{}], "test": []}', '{"train": 3}'])
def test_a_table_of_real_iad_that_is_none(tmp_path: Path, text: str) -> None:
    real_iad(tmp_path)
    (tmp_path / "realiad_jsons/realiad_jsons/mint.json").write_text(text)
    with pytest.raises(DataError, match=r"cannot read .*mint.json as a table of Real-IAD"):
        read_dataset(tmp_path)


# --- masks beside pictures


@pytest.mark.parametrize(
    "name", ["{}_mask.png", "{}_GT.png", "{}_gt.bmp", "{}_label.png", "{}-seg.png", "{}.mask.gif", "gt/{}.png"]
)
@pytest.mark.parametrize("layout", ["folder", "mvtec"])
def test_masks_beside_their_pictures_are_masks(tmp_path: Path, name: str, layout: str) -> None:
    good, bad = ("good", "bad/cut") if layout == "folder" else ("train/good", "test/cut")
    for number in range(2):
        put(tmp_path / good / f"{number}.png", seed=number)
        put_mask(tmp_path / good / name.format(number), marks=False)
        put(tmp_path / bad / f"{number}.jpg", seed=number)
        put_mask(tmp_path / bad / name.format(number))
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, dataset.notes) == (layout, ())
    assert [path.name for path in dataset.train] == ["0.png", "1.png"]
    assert [sample.path.name for sample in dataset.test] == ["0.jpg", "1.jpg"]
    assert marked(dataset) == [True, True]


def test_masks_directly_in_a_folder_of_good_pictures(tmp_path: Path) -> None:
    put(tmp_path / "0.png")
    mask = put_mask(tmp_path / "0_GT.png", marks=False)
    assert [path.name for path in read_dataset(tmp_path).train] == ["0.png"]
    put_mask(mask)
    with pytest.raises(
        DataError, match=r"1 image \(first: .*0.png\) among the good ones with a mask that marks a defect"
    ):
        read_dataset(tmp_path)


def test_a_photograph_named_like_a_mask_is_a_picture(tmp_path: Path) -> None:
    for name in ("good/bottle.png", "good/bottle_label.png", "good/gas_mask.png", "good/a.jpg", "good/a.png"):
        put(tmp_path / name)
    assert len(read_dataset(tmp_path).train) == 5
    for kind in ("label", "print"):
        put(tmp_path / f"bad/{kind}/0.png")
    assert kinds(read_dataset(tmp_path)) == {"label": 1, "print": 1}


def test_masks_beside_without_a_picture(tmp_path: Path) -> None:
    for name in ("good/0.png", "bad/1.png"):
        put(tmp_path / name)
    put_mask(tmp_path / "bad/1_mask.png")
    lost = put_mask(tmp_path / "bad/2_mask.png")
    with pytest.raises(DataError, match=r"1 mask \(first: .*bad/2_mask.png\) without an image of that name"):
        read_dataset(tmp_path)
    lost.unlink()
    put_mask(tmp_path / "bad/gt/7.png")
    with pytest.raises(DataError, match=r"1 mask \(first: .*bad/gt/7.png\) without an image of that name"):
        read_dataset(tmp_path)


def test_a_mask_beside_and_one_elsewhere(tmp_path: Path) -> None:
    for name in ("good/0.png", "bad/1.png"):
        put(tmp_path / name)
    for name in ("bad/1_mask.png", "masks/1.png"):
        put_mask(tmp_path / name)
    with pytest.raises(DataError, match=r"bad/1.png has two masks"):
        read_dataset(tmp_path)


# --- what is not used


def test_every_folder_and_suffix_that_is_not_used_is_named_once(tmp_path: Path) -> None:
    root = tmp_path / "nut"
    for place in ("train/good/0.png", "test/good/1.webp", "extra/a/1.png", "extra/b/2.tif"):
        put(root / place)
    for place in ("train/good/1.heic", "train/good/2.heic", "test/good/3.ppm", "old/c.dng", "old/notes.txt"):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_bytes(b"x")
    dataset = read_dataset(root)
    assert [sample.path.name for sample in dataset.test] == ["1.webp"]
    assert dataset.notes == (
        "not used: 1 .png, 1 .tif in extra/ (first: a/1.png)",
        "not used: 1 .dng in old/ (first: c.dng)",
        "not used: 1 .ppm in test/good/ (first: 3.ppm)",
        "not used: 2 .heic in train/good/ (first: 1.heic)",
    )


def test_many_unused_folders_are_counted(tmp_path: Path) -> None:
    put(tmp_path / "train/good/0.png")
    for number in range(25):
        put(tmp_path / f"part{number:02}/0.png")
    notes = read_dataset(tmp_path).notes
    assert len(notes) == 21
    assert notes[-1] == f"not used: pictures in 5 more folders of {tmp_path}"


def test_links_do_not_make_used_pictures_unused(tmp_path: Path) -> None:
    put(tmp_path / "good/0.png")
    put(tmp_path / "bad/1.png")
    (tmp_path / "bad/more").symlink_to(tmp_path / "store")
    put(tmp_path / "store/2.png").rename(tmp_path / "bad/2.png")
    (tmp_path / "store").rmdir()
    put(tmp_path.parent / f"{tmp_path.name}_store/3.png")
    (tmp_path / "bad/more").unlink()
    (tmp_path / "bad/more").symlink_to(tmp_path.parent / f"{tmp_path.name}_store")
    dataset = read_dataset(tmp_path)
    assert (len(dataset.test), dataset.notes) == (3, ())


def test_no_good_images_says_where_others_lie(tmp_path: Path) -> None:
    put(tmp_path / "monday/0.png")
    put(tmp_path / "tuesday/0.png")
    with pytest.raises(DataError, match=r"no good images in .*, where monday/, tuesday/ hold images: put photographs"):
        read_dataset(tmp_path)
