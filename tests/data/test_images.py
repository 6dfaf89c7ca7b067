"""The three layouts, what is wrong with them, and the images that come out."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnet_edge.data.dataset import Dataset, Sample
from nnet_edge.data.folders import find_images
from nnet_edge.data.holding_out import hold_out
from nnet_edge.data.images import find_duplicates, fingerprint, load_images, load_mask, read_dataset
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.image_files import read_image
from nnet_edge.imaging import resize

REAL = Path(os.environ.get("NNET_EDGE_DATA") or Path(__file__).parents[3] / "shared" / "data")


def put(path: Path, seed: int = 0, size: tuple[int, int] = (12, 16)) -> Path:
    """Write a small image of noise, with the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def put_mask(path: Path, size: tuple[int, int] = (12, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    mask[: size[0] // 2] = 1
    Image.fromarray(mask).save(path)
    return path


def break_off(path: Path) -> Path:
    path.write_bytes(put(path).read_bytes()[:200])
    return path


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "nut"
    for index in range(3):
        put(root / f"train/good/{index:03}.png", seed=index)
    put(root / "test/good/000.png", seed=10)
    for index, kind in enumerate(("crack", "stain")):
        put(root / f"test/{kind}/000.png", seed=20 + index)
        put_mask(root / f"ground_truth/{kind}/000_mask.png")
    return root


@pytest.fixture
def visa(tmp_path: Path) -> Path:
    root = tmp_path / "VisA"
    lines = ["object,split,label,image,mask"]
    for category in ("candle", "pcb1"):
        for number, (split, label) in enumerate(
            [("train", "normal"), ("train", "normal"), ("test", "normal"), ("test", "anomaly")]
        ):
            image = f"{category}/Data/Images/{label.title()}/{number:03}.JPG"
            put(root / image, seed=number)
            mask = f"{category}/Data/Masks/Anomaly/{number:03}.png" if label == "anomaly" else ""
            if mask:
                put_mask(root / mask)
            lines.append(f"{category},{split},{label},{image},{mask}")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "parts"
    for index, name in enumerate(("a.png", "b.JPG", "c.bmp", "d.TIFF")):
        put(root / "good" / name, seed=index, size=(10 + index, 20))
    put(root / "bad/e.png", seed=10)
    put(root / "bad/scratch/f.png", seed=11)
    return root


def split_file(visa: Path) -> Path:
    return visa / "split_csv/1cls.csv"


def edit_split(visa: Path, old: str, new: str) -> None:
    text = split_file(visa).read_text()
    assert old in text
    split_file(visa).write_text(text.replace(old, new))


# --- MVTec AD


@pytest.mark.parametrize("layout", ["auto", "mvtec"])
def test_mvtec(mvtec: Path, layout: str) -> None:
    dataset = read_dataset(mvtec, layout)
    assert (dataset.root, dataset.layout, dataset.category, dataset.notes) == (mvtec, "mvtec", "nut", ())
    assert dataset.train == tuple(mvtec / f"train/good/{index:03}.png" for index in range(3))
    truth = mvtec / "ground_truth"
    assert dataset.test == (
        Sample(mvtec / "test/crack/000.png", True, truth / "crack/000_mask.png", "crack"),
        Sample(mvtec / "test/good/000.png", False, None, "good"),
        Sample(mvtec / "test/stain/000.png", True, truth / "stain/000_mask.png", "stain"),
    )


def test_a_root_of_several_categories_needs_one(mvtec: Path) -> None:
    root = mvtec.parent
    assert read_dataset(root).category == "nut"  # the only one
    put(root / "bolt/train/good/0.png")
    (root / "licence").mkdir()
    with pytest.raises(ConfigError, match="holds 2 categories: choose one with --category: bolt, nut"):
        read_dataset(root)
    with pytest.raises(ConfigError, match=r'no category "screw" in .*: choose one of bolt, nut'):
        read_dataset(root, category="screw")
    chosen = read_dataset(root, category="bolt")
    assert (chosen.category, chosen.train, chosen.test) == ("bolt", (root / "bolt/train/good/0.png",), ())
    assert read_dataset(mvtec, category="nut").category == "nut"
    with pytest.raises(ConfigError, match="is a category itself"):
        read_dataset(mvtec, category="bolt")


def test_validation_is_not_used_and_says_so(mvtec: Path) -> None:
    put(mvtec / "validation/good/9.png")
    dataset = read_dataset(mvtec)
    assert len(dataset.train) == 3
    assert dataset.notes == ("not used: 1 .png in validation/ (first: good/9.png)",)


def test_mvtec_without_any_masks(mvtec: Path) -> None:
    for mask in find_images(mvtec / "ground_truth"):
        mask.unlink()
    assert [sample.mask_path for sample in read_dataset(mvtec).test] == [None, None, None]


def test_a_defect_without_a_mask_when_others_have_one(mvtec: Path) -> None:
    put(mvtec / "test/crack/001.png")
    with pytest.raises(
        DataError, match=r"1 image \(first: .*crack/001.png\) of a defect without a mask, while 2 others"
    ):
        read_dataset(mvtec)


def test_masks_without_images(mvtec: Path) -> None:
    put_mask(mvtec / "ground_truth/crack/007_mask.png")
    put_mask(mvtec / "ground_truth/dent/000_mask.png")
    with pytest.raises(
        DataError, match=r"2 masks \(first: .*crack/007_mask.png\) without an image of that name in .*test"
    ):
        read_dataset(mvtec)


def test_masks_that_fit_twice(mvtec: Path) -> None:
    double = put_mask(mvtec / "ground_truth/crack/000.png")
    with pytest.raises(DataError, match=r"crack/000.png has two masks"):
        read_dataset(mvtec)
    double.unlink()
    twin = put_mask(mvtec / "ground_truth/crack/000_mask.bmp")
    with pytest.raises(DataError, match=r"two masks of one name, .*000_mask.bmp and .*000_mask.png"):
        read_dataset(mvtec)
    twin.unlink()
    put(mvtec / "test/crack/000.jpg")
    with pytest.raises(DataError, match=r"000_mask.png fits two images, .*000.jpg and .*000.png"):
        read_dataset(mvtec)


@pytest.mark.parametrize("place", ["train/0.png", "test/0.png", "train/other/0.png"])
def test_mvtec_images_of_no_known_use(mvtec: Path, place: str) -> None:
    put(mvtec / place)
    with pytest.raises(DataError, match=rf"first: .*{place}"):
        read_dataset(mvtec)


def test_mvtec_without_categories(tmp_path: Path) -> None:
    put(tmp_path / "0.png")
    with pytest.raises(DataError, match="holds neither train/good nor categories"):
        read_dataset(tmp_path, "mvtec")


# --- VisA


@pytest.mark.parametrize("layout", ["auto", "visa"])
def test_visa(visa: Path, layout: str) -> None:
    dataset = read_dataset(visa, layout, category="pcb1")
    images, masks = visa / "pcb1/Data/Images", visa / "pcb1/Data/Masks"
    assert (dataset.layout, dataset.category) == ("visa", "pcb1")
    assert dataset.train == (images / "Normal/000.JPG", images / "Normal/001.JPG")
    assert dataset.test == (
        Sample(images / "Anomaly/003.JPG", True, masks / "Anomaly/003.png", "anomaly"),
        Sample(images / "Normal/002.JPG", False, None, "good"),
    )
    assert load_mask(dataset.test[0]).mean() == pytest.approx(0.5, abs=0.01)  # value 1 marks as 255 does


def test_visa_categories(visa: Path) -> None:
    with pytest.raises(ConfigError, match="holds 2 categories: choose one with --category: candle, pcb1"):
        read_dataset(visa)
    with pytest.raises(ConfigError, match=r'no category "pcb9" in .*: choose one of candle, pcb1'):
        read_dataset(visa, category="pcb9")


def test_visa_split_elsewhere_with_byte_order_mark(visa: Path, tmp_path: Path) -> None:
    other = tmp_path / "my split.csv"
    rows = "object,split,label,image,mask\r\ncandle,train,normal,candle\\Data\\Images\\Normal\\000.JPG,\r\n"
    other.write_bytes(b"\xef\xbb\xbf" + rows.encode())
    assert len(read_dataset(visa, split_csv=other).train) == 1
    with pytest.raises(ConfigError, match="belongs to the layout"):
        read_dataset(visa, "folder", split_csv=other)
    with pytest.raises(ConfigError, match=r"no split CSV at .*absent.csv: give it with --split-csv"):
        read_dataset(visa, split_csv=tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match=r"no split CSV at .*1cls.csv or .*1cls.csv"):
        read_dataset(visa / "candle", "visa")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("label,image", "kind,image", "lacks the columns label"),
        ("candle,test,anomaly", "candle,train,anomaly", "line 5: an anomaly in the train split"),
        ("candle,test,anomaly", "candle,test,bad", "line 5: split must be train or test, label normal or anomaly"),
        ("candle,train,normal,candle/Data/Images/Normal/001.JPG", "candle,train", "line 3: split must be"),
        ("candle/Data/Images/Normal/001", "candle/Data/Images/Normal/901", r"line 3: .*901.JPG does not exist"),
        ("candle/Data/Masks/Anomaly/003", "candle/Data/Masks/Anomaly/903", r"line 5: .*903.png does not exist"),
        ("candle,train", "candle,test", "no good images"),
    ],
)
def test_what_is_wrong_with_a_split(visa: Path, old: str, new: str, message: str) -> None:
    edit_split(visa, old, new)
    with pytest.raises(DataError, match=message):
        read_dataset(visa, category="candle")


def test_visa_masks_for_some_defects_only(visa: Path) -> None:
    put(visa / "extra.png")
    with split_file(visa).open("a") as file:
        file.write("candle,test,anomaly,extra.png,\n")
    with pytest.raises(DataError, match=r"first: .*extra.png\) of a defect without a mask"):
        read_dataset(visa, category="candle")


def test_a_split_that_is_no_table(visa: Path) -> None:
    split_file(visa).write_bytes(b"\xff\xfe\x00o\x00b")
    with pytest.raises(DataError, match=r"cannot read .*1cls.csv as a CSV"):
        read_dataset(visa)
    split_file(visa).write_text("object,split,label,image,mask\n")
    with pytest.raises(DataError, match="holds no rows"):
        read_dataset(visa)


# --- plain folder


@pytest.mark.parametrize("layout", ["auto", "folder"])
def test_folder(folder: Path, layout: str) -> None:
    dataset = read_dataset(folder, layout)
    assert (dataset.layout, dataset.category) == ("folder", "parts")
    assert [path.name for path in dataset.train] == ["a.png", "b.JPG", "c.bmp", "d.TIFF"]
    assert dataset.test == (
        Sample(folder / "bad/e.png", True, None, "bad"),
        Sample(folder / "bad/scratch/f.png", True, None, "scratch"),
    )


def test_folder_of_images_alone(tmp_path: Path) -> None:
    put(tmp_path / "parts/b.png")
    put(tmp_path / "parts/a.jpeg")
    dataset = read_dataset(tmp_path / "parts")
    assert [path.name for path in dataset.train] == ["a.jpeg", "b.png"]
    assert dataset.test == ()


@pytest.mark.parametrize("home", ["masks", "ground_truth"])
def test_folder_with_masks_and_good_parts_to_judge(folder: Path, home: str) -> None:
    put(folder / "test_good/g.png")
    first, second = put_mask(folder / home / "e.png"), put_mask(folder / home / "scratch/f_mask.bmp")
    assert [(sample.defect, sample.is_anomalous, sample.mask_path) for sample in read_dataset(folder).test] == [
        ("bad", True, first),
        ("scratch", True, second),
        ("good", False, None),
    ]


def test_folder_masks_without_images(folder: Path) -> None:
    put_mask(folder / "masks/f.png")  # must lie in masks/scratch, as f.png lies in bad/scratch
    with pytest.raises(DataError, match=r"1 mask \(first: .*masks/f.png\) without an image of that name in .*bad"):
        read_dataset(folder)


def test_folder_of_unclear_use(folder: Path) -> None:
    stray = put(folder / "stray.png")
    with pytest.raises(DataError, match=r"1 image \(first: .*stray.png\) lie beside .*good"):
        read_dataset(folder)
    stray.unlink()
    good = put(folder / "bad/good/x.png")
    with pytest.raises(DataError, match="would be good and bad at once"):
        read_dataset(folder)
    good.unlink()
    other = put(folder / "scratches/x.png")
    with pytest.raises(DataError, match=r"scratches holds images of no known use .*x.png.* may hold good/, bad/"):
        read_dataset(folder)
    other.unlink()
    (folder / "masks").mkdir()
    (folder / "ground_truth").mkdir()
    with pytest.raises(DataError, match="keep one of them"):
        read_dataset(folder)


def test_folder_has_no_categories(folder: Path) -> None:
    assert read_dataset(folder, category="parts").category == "parts"
    with pytest.raises(ConfigError, match="holds no category"):
        read_dataset(folder, category="nut")


# --- folders that cannot be used


@pytest.mark.parametrize("layout", ["auto", "folder"])
def test_empty_folder(tmp_path: Path, layout: str) -> None:
    with pytest.raises(DataError, match="no good images in"):
        read_dataset(tmp_path, layout)


def test_no_good_images_counts_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "b.txt").write_bytes(b"x")
    with pytest.raises(DataError, match=r"no good images in .* \(2 files of other kinds\)"):
        read_dataset(tmp_path)


def test_only_bad_images(tmp_path: Path) -> None:
    put(tmp_path / "bad/a.png")
    (tmp_path / "good").mkdir()
    with pytest.raises(DataError, match=r"no good images in .*good"):
        read_dataset(tmp_path)


def test_empty_train_good(mvtec: Path) -> None:
    for path in find_images(mvtec / "train"):
        path.unlink()
    with pytest.raises(DataError, match=r"no good images in .*train/good"):
        read_dataset(mvtec)


def test_missing_folder_file_and_unknown_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="absent does not exist"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"a.png is not a folder"):
        read_dataset(put(tmp_path / "a.png"))
    with pytest.raises(ConfigError, match='layout "cocoa" is unknown'):
        read_dataset(tmp_path, "cocoa")


def test_hidden_files_are_passed_over(folder: Path) -> None:
    for name in (".hidden.png", "._a.png", ".thumbnails/a.png", "__MACOSX/a.png"):
        put(folder / "good" / name)
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store", "notes.txt"):
        (folder / "good" / name).write_bytes(b"x")
    assert len(read_dataset(folder).train) == 4


def test_links_are_followed_once(folder: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/z.png", seed=5)
    (folder / "good/linked").symlink_to(tmp_path / "elsewhere")
    (folder / "good/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(folder / "good")
    (folder / "good/up").symlink_to(folder)  # would bring bad/ in as good
    (folder / "good/self").symlink_to(folder / "good/self")
    names = [str(path.relative_to(folder / "good")) for path in read_dataset(folder).train]
    assert names == ["a.png", "again/z.png", "b.JPG", "c.bmp", "d.TIFF"]


# --- pixels


def test_load_images(folder: Path) -> None:
    paths = read_dataset(folder).train
    done: list[tuple[int, int]] = []
    loaded = load_images(paths, progress=lambda *counts: done.append(counts))
    assert (loaded.paths, loaded.skipped, loaded.images.dtype) == (paths, (), np.uint8)
    assert loaded.images.shape == (4, 256, 256, 3)
    for image, path in zip(loaded.images, paths, strict=True):
        np.testing.assert_array_equal(image, resize(read_image(path)))
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert load_images([]).images.shape == (0, 256, 256, 3)


def test_bad_images_are_named_or_skipped_and_counted(folder: Path) -> None:
    broken = break_off(folder / "good/b2.png")
    (folder / "good/nowhere.png").symlink_to(folder / "absent.png")
    paths = read_dataset(folder).train
    with pytest.raises(DataError, match=r"b2.png: .*truncated"):
        load_images(paths)
    loaded = load_images(paths, skip_bad=True)
    assert [path.name for path in loaded.paths] == ["a.png", "b.JPG", "c.bmp", "d.TIFF"]
    assert len(loaded.images) == 4
    np.testing.assert_array_equal(loaded.images[3], resize(read_image(paths[4])))
    assert [skipped.path.name for skipped in loaded.skipped] == ["b2.png", "nowhere.png"]
    assert str(broken) in loaded.skipped[0].reason
    with pytest.raises(DataError, match=r"none of 1 images could be read; the first: .*b2.png"):
        load_images([broken], skip_bad=True)


def test_load_mask(tmp_path: Path) -> None:
    image = put(tmp_path / "a.png")
    mask = load_mask(Sample(image, True, put_mask(tmp_path / "m.png"), "crack"), rule="any")
    assert (mask.shape, mask.dtype) == ((256, 256), bool)
    assert mask[:128].all()
    assert not mask[150:].any()
    assert not load_mask(Sample(image, False, None, "good")).any()
    with pytest.raises(DataError, match=r"a.png shows a defect and has no mask"):
        load_mask(Sample(image, True, None, "crack"))


def test_a_mask_of_another_size(tmp_path: Path) -> None:
    image, mask = put(tmp_path / "a.png"), put_mask(tmp_path / "m.png", size=(16, 12))
    with pytest.raises(DataError, match=r"m.png has 16 x 12 .* and its image .*a.png 12 x 16"):
        load_mask(Sample(image, True, mask, "crack"))


def test_a_mask_fits_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    upright = Sample(tmp_path / "a.jpg", True, put_mask(tmp_path / "m.png", size=(16, 12)), "crack")
    assert load_mask(upright).any()


def test_find_duplicates_whatever_the_format(tmp_path: Path) -> None:
    train = tuple(put(tmp_path / name, seed) for name, seed in (("a.png", 1), ("b.png", 2), ("c.bmp", 2)))
    tests = [put(tmp_path / "d.tif", seed=2), put(tmp_path / "e.png", seed=3), break_off(tmp_path / "f.png")]
    turned = put(tmp_path / "g.png", seed=1, size=(16, 12))  # the same bytes in another shape
    samples = tuple(Sample(path, False, None, "good") for path in (*tests, turned))
    dataset = Dataset(tmp_path, "folder", "parts", train, samples)
    assert find_duplicates(dataset) == [(train[1], tests[0]), (train[2], tests[0])]
    assert find_duplicates(Dataset(tmp_path, "folder", "parts", train, ())) == []


def test_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a.png", seed=1), put(tmp_path / "b.png", seed=2)
    before = fingerprint([first, second])
    assert len(before) == 64
    assert fingerprint([second, first]) == before
    moved = second.rename(tmp_path / "0.png")
    assert fingerprint([first, moved]) == before
    assert fingerprint([first, moved, moved]) != before
    put(first, seed=3)
    assert fingerprint([first, moved]) != before
    with pytest.raises(DataError, match=r"cannot read .*absent.png for the fingerprint"):
        fingerprint([tmp_path / "absent.png"])


def test_hold_out() -> None:
    paths = [Path(f"{index:03}.png") for index in range(100)]
    learned, held = hold_out(paths, seed=0)
    assert (len(learned), len(held)) == (85, 15)
    assert sorted(learned + held) == paths
    assert (learned, held) == (sorted(learned), sorted(held))
    assert hold_out(paths[::-1], seed=0) == (learned, held)
    assert hold_out(paths, seed=1)[1] != held
    assert len(hold_out(paths[:31], seed=0)[1]) == 10
    assert len(hold_out(paths[:12], seed=0)[0]) == 2
    assert len(hold_out(paths[:4], seed=0, share=0.9, at_least=1)[0]) == 2
    assert len({path for seed in range(60) for path in hold_out(paths, seed)[1]}) == 100  # every image has its turn


def test_hold_out_of_too_few() -> None:
    paths = [Path(f"{index}.png") for index in range(11)]
    with pytest.raises(DataError, match="11 good images are too few: at least 12 are needed, 10 to hold out"):
        hold_out(paths, seed=0)
    with pytest.raises(ConfigError, match="cannot hold out a share of 1"):
        hold_out(paths, seed=0, share=1.0)


@pytest.mark.skipif(not REAL.is_dir(), reason=f"real images are not at {REAL}: set NNET_EDGE_DATA")
@pytest.mark.parametrize(
    ("place", "learned", "judged", "masked"),
    [
        ("mvtec3d/tire", 210, 112, 87),
        ("magnetic_tile/magnetic_tile", 720, 620, 388),
        ("bsdata/ball_screw", 241, 191, 122),
        ("aws_lookout/cookie", 31, 46, 32),
        ("aws_lookout/alien_toy", 40, 78, 0),
    ],
)
def test_real_folders(place: str, learned: int, judged: int, masked: int) -> None:
    dataset = read_dataset(REAL / place)
    samples = [sample for sample in dataset.test if sample.mask_path is not None]
    assert (len(dataset.train), len(dataset.test), len(samples)) == (learned, judged, masked)
    assert all(load_mask(sample, rule="any").any() for sample in samples[:5])
    assert load_images(dataset.train[:3]).images.std() > 1
