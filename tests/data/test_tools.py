"""Every layout, made as its makers document it: read, converted to a plain folder, and read again."""

from __future__ import annotations

import base64
import io
import json
import shutil
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nnet_edge.cli.main import run
from nnet_edge.cli.options import LAYOUTS as NAMES
from nnet_edge.data.dataset import Dataset
from nnet_edge.data.layouts import LAYOUTS, find_categories, read_dataset
from nnet_edge.data.masks import read_marks
from nnet_edge.errors import ConfigError, DataError

HEIGHT, WIDTH = 40, 60
GOOD, JUDGED, DEFECTS = ("g0", "g1", "g2"), ("t0",), {"d0": "scratch", "d1": "dent"}
BOXES = {"d0": (10, 5, 30, 15), "d1": (2, 20, 12, 38)}  # left, top, right, bottom: that pixel is not marked
Made = dict[str, Any]  # what a maker says otherwise: layout, judged, kinds, masked


def picture(name: str) -> np.ndarray:
    """Noise that no other picture has."""
    return np.random.default_rng([ord(letter) for letter in name]).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def mask_of(name: str) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    if name in BOXES:
        left, top, right, bottom = BOXES[name]
        mask[top:bottom, left:right] = True
    return mask


def put(path: Path, name: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(name)).save(path, **({"compression": "tiff_lzw"} if path.suffix == ".tif" else {}))
    return path


def put_mask(path: Path, name: str, value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask_of(name).astype(np.uint8) * value).save(path)
    return path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def ring(name: str, inner: int = 0) -> list[list[float]]:
    """The corners of a box; `inner` 1 where a tool colours the outline, too."""
    left, top, right, bottom = BOXES[name]
    return [[left, top], [right - inner, top], [right - inner, bottom - inner], [left, bottom - inner]]


def flat(name: str) -> list[float]:
    return [value for point in ring(name) for value in point]


def runs(pixels: np.ndarray) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], pixels])))
    return [int(count) for count in np.diff([0, *edges, len(pixels)])]


def packed(mask: np.ndarray) -> str:
    from pycocotools.mask import encode

    return str(encode(np.asfortranarray(mask, np.uint8))["counts"].decode())


def png(mask: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


# --- sets of research


def mvtec(root: Path, good: str = "good", test: str = "test", mask: str = "{}_mask.png", suffix: str = ".png") -> Made:
    """MVTec AD, MPDD; with other words BTAD and MVTec AD 2."""
    for name in GOOD:
        put(root / f"part/train/{good}/{name}{suffix}", name)
    put(root / f"part/{test}/{good}/t0{suffix}", "t0")
    truth = root / "part/test_public/ground_truth" if test == "test_public" else root / "part/ground_truth"
    for name, kind in DEFECTS.items():
        kind = {"ok": "ko"}.get(good, "bad" if test == "test_public" else kind)
        put(root / f"part/{test}/{kind}/{name}{suffix}", name)
        put_mask(truth / kind / mask.format(name), name)
    return {"layout": "mvtec"}


def mvtec_ad_2(root: Path) -> Made:
    for place in ("validation/good/v0_regular.png", "test_private/p0_regular.png", "test_private_mixed/p1_mixed.png"):
        put(root / "part" / place, place)
    return mvtec(root, test="test_public") | {"kinds": {"d0": "bad", "d1": "bad"}}


def btad(root: Path) -> Made:
    return mvtec(root, good="ok", mask="{}.png", suffix=".bmp") | {"kinds": {"d0": "ko", "d1": "ko"}}


def loco(root: Path) -> Made:
    """Several masks an image, each of one value; defects_config.json says what the values are."""
    mvtec(root)
    shutil.rmtree(root / "part/ground_truth")
    for name, kind in DEFECTS.items():
        for number, rows in enumerate((slice(0, 10), slice(10, HEIGHT))):
            half = np.zeros((HEIGHT, WIDTH), np.uint8)
            half[rows] = mask_of(name)[rows] * (240 + number)
            path = root / f"part/ground_truth/{kind}/{name}/{number:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(half).save(path)
    write(root / "part/defects_config.json", [
        {"defect_name": kind, "pixel_value": 240 + number, "saturation_threshold": 50, "relative_saturation": False}
        for number, kind in enumerate(("a", "b"))
    ])  # fmt: skip
    return {"layout": "mvtec"}


def visa(root: Path) -> Made:
    rows = ["object,split,label,image,mask"]
    for name in (*GOOD, *JUDGED, *DEFECTS):
        kind = "Anomaly" if name in DEFECTS else "Normal"
        image = put(root / f"part/Data/Images/{kind}/{name}.png", name).relative_to(root)
        mask = (
            put_mask(root / f"part/Data/Masks/{kind}/{name}.png", name, 3).relative_to(root) if name in DEFECTS else ""
        )
        rows.append(f"part,{'train' if name in GOOD else 'test'},{'anomaly' if mask else 'normal'},{image},{mask}")
    write(root / "split_csv/1cls.csv", "\n".join(rows))
    return {"layout": "visa", "kinds": {"d0": "anomaly", "d1": "anomaly"}}


def visa_original(root: Path) -> Made:
    visa(root)
    shutil.rmtree(root / "split_csv")
    return {"layout": "folder", "judged": (), "good": (*GOOD, *JUDGED), "kinds": {"d0": "bad", "d1": "bad"}}


def ksdd(root: Path) -> Made:
    """KolektorSDD: 50 folders, no part set aside."""
    for number, name in enumerate((*GOOD, *JUDGED, *DEFECTS)):
        put(root / f"kos{number // 2 + 1:02}/Part{number}.png", name)
        put_mask(root / f"kos{number // 2 + 1:02}/Part{number}_label.bmp", name)
    return {"layout": "ksdd", "judged": (), "good": (*GOOD, *JUDGED), "kinds": {"d0": "defect", "d1": "defect"}}


def ksdd2(root: Path) -> Made:
    for number, name in enumerate((*GOOD, *JUDGED, *DEFECTS)):
        part = "train" if name in GOOD else "test"
        put(root / part / f"{20000 + number}.png", name)
        put_mask(root / part / f"{20000 + number}_GT.png", name)
    return {"layout": "ksdd2", "kinds": {"d0": "defect", "d1": "defect"}}


def real_iad(root: Path) -> Made:
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for name in (*GOOD, *JUDGED, *DEFECTS):
        kind = DEFECTS.get(name, "OK")
        image = f"{'OK' if kind == 'OK' else f'NG/{kind}'}/S0001/part_0001_{name}_C1_20230101.png"
        put(root / "realiad_256/part" / image, name)
        mask = None if kind == "OK" else image.replace(".png", "_m.png")
        if mask:
            put_mask(root / "realiad_256/part" / mask, name)
        row = {"category": "part", "anomaly_class": kind, "image_path": image, "mask_path": mask}
        rows["train" if name in GOOD else "test"].append(row)
    meta = {"normal_class": "OK", "prefix": "part/"}
    write(root / "realiad_jsons/realiad_jsons/part.json", {"meta": meta} | rows)
    return {"layout": "real-iad"}


def dagm(root: Path) -> Made:
    """DAGM 2007: a class's Train/ and Test/, Label/ in each with masks of defects only; Labels.txt."""
    for number, name in enumerate((*GOOD, *JUDGED, *DEFECTS, "e0")):
        part = "Train" if name in GOOD or name == "e0" else "Test"
        put(root / f"Class1/{part}/{number:04}.PNG", name)
        if name in DEFECTS or name == "e0":
            put_mask(root / f"Class1/{part}/Label/{number:04}_label.PNG", "d0" if name == "e0" else name)
    write(root / "Class1/Train/Label/Labels.txt", "1\n")
    return {"layout": "dagm", "kinds": {"d0": "defect", "d1": "defect"}}


# --- labelling tools


def coco(root: Path, form: str = "polygons", home: str = "images", file: str = "annotations/instances_{}.json") -> Made:
    """CVAT's, FiftyOne's, labelme2coco's; Roboflow's with the file beside the pictures of each part."""
    kinds = {"scratch": 1, "dent": 2}
    for part, names in (("train", (*GOOD, "d1")), ("test", (*JUDGED, "d0"))):
        content: dict[str, Any] = {"info": {}, "licenses": [], "images": [], "annotations": []}
        content["categories"] = [{"id": 0, "name": "all", "supercategory": "none"}] + [
            {"id": number, "name": kind, "supercategory": "all"} for kind, number in kinds.items()
        ]
        for number, name in enumerate(names, 1):
            put(root / home.format(part) / f"{name}.png", name)
            content["images"].append({"id": number, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH})
            if name in DEFECTS:
                mask = mask_of(name)
                segmentation: Any = {
                    "polygons": [flat(name)],
                    "runs": {"size": [HEIGHT, WIDTH], "counts": runs(mask.T.ravel())},
                    "packed": {"size": [HEIGHT, WIDTH], "counts": packed(mask) if form == "packed" else ""},
                }[form]
                content["annotations"].append({
                    "id": number, "image_id": number, "category_id": kinds[DEFECTS[name]], "segmentation": segmentation,
                    "bbox": [0, 0, 1, 1], "area": 1.0, "iscrowd": int(form != "polygons"),
                })  # fmt: skip
        write(root / file.format(part), content)
    return {"layout": "coco"}


def roboflow_coco(root: Path) -> Made:
    write(root / "README.roboflow.txt", "exported")
    return coco(root, home="{}", file="{}/_annotations.coco.json")


def labelme(root: Path) -> Made:
    for name in (*GOOD, *DEFECTS):
        put(root / f"{name}.png", name)
    put(root / "test/good/t0.png", "t0")
    shapes = [
        {
            "label": "scratch",
            "points": ring("d0", 1),
            "shape_type": "polygon",
            "group_id": None,
            "flags": {},
            "mask": None,
        }
    ]
    left, top, right, bottom = BOXES["d1"]
    data = base64.b64encode(png(np.ones((bottom - top, right - left), bool))).decode()
    points = [[left, top], [right - 1, bottom - 1]]
    masks = [{"label": "dent", "points": points, "shape_type": "mask", "group_id": None, "flags": {}, "mask": data}]
    for name, marks in (("d0", shapes), ("d1", masks), ("g0", [])):
        write(root / f"{name}.json", {
            "version": "6.3.1", "flags": {}, "shapes": marks, "imagePath": f"..\\photos\\{name}.png", "imageData": None,
            "imageHeight": HEIGHT, "imageWidth": WIDTH,
        })  # fmt: skip
    return {"layout": "labelme"}


def cvat(root: Path) -> Made:
    left, top, right, bottom = BOXES["d1"]
    counts = ", ".join(map(str, [0, (right - left) * (bottom - top)]))
    marks = {
        "d0": '<polygon label="scratch" source="manual" occluded="0" z_order="0" points="{}"/>'.format(
            ";".join(f"{x:.2f},{y:.2f}" for x, y in ring("d0"))),
        "d1": f'<mask label="dent" source="manual" occluded="0" rle="{counts}" left="{left}" top="{top}" '
              f'width="{right - left}" height="{bottom - top}" z_order="0"/>',
    }  # fmt: skip
    lines = []
    for number, name in enumerate((*GOOD, *JUDGED, *DEFECTS)):
        put(root / f"images/day1/{name}.png", name)
        part = "Test" if name in JUDGED else "Train"
        lines.append(
            f'<image id="{number}" name="day1/{name}.png" subset="{part}" width="{WIDTH}" height="{HEIGHT}">'
            f"{marks.get(name, '')}</image>"
        )
    text = "".join(lines)
    write(root / "annotations.xml", f'<?xml version="1.0"?><annotations><version>1.1</version>{text}</annotations>')
    return {"layout": "cvat"}


def yolo(root: Path, home: str = "{kind}/{part}", yaml: str = "path: ../datasets/part\ntrain: images/train\n") -> Made:
    """Ultralytics' folders; Roboflow's are the other way round, and its data.yaml points beside the set."""
    for name in (*GOOD, *JUDGED, *DEFECTS):
        part = "val" if name in JUDGED else "train"
        put(root / home.format(kind="images", part=part) / f"{name}.png", name)
        if name in DEFECTS:
            words = " ".join(f"{x / WIDTH:.10g} {y / HEIGHT:.10g}" for x, y in ring(name))
            text = root / home.format(kind="labels", part=part) / f"{name}.txt"
            write(text, f"{list(DEFECTS.values()).index(DEFECTS[name])} {words}\n")
    write(root / home.format(kind="labels", part="train") / "g0.txt", "")
    write(root / "data.yaml", yaml + "nc: 2\nnames: ['scratch', 'dent']\n")
    return {"layout": "yolo"}


def roboflow_yolo(root: Path) -> Made:
    write(root / "README.roboflow.txt", "exported")
    return yolo(root, home="{part}/{kind}", yaml="train: ../train/images\nval: ../valid/images\n")


def supervisely(root: Path) -> Made:
    left, top, right, bottom = BOXES["d1"]
    bitmap = zlib.compress(png(np.ones((bottom - top, right - left), bool)))
    figures = {
        "d0": {"classTitle": "scratch", "geometryType": "polygon", "points": {"exterior": ring("d0", 1), "interior": []}},
        "d1": {"classTitle": "dent", "geometryType": "bitmap",
               "bitmap": {"origin": [left, top], "data": base64.b64encode(bitmap).decode()}},
    }  # fmt: skip
    classes = [{"title": kind, "shape": "any", "color": "#00FF00"} for kind in DEFECTS.values()]
    write(root / "meta.json", {"classes": classes, "tags": []})
    for name in (*GOOD, *JUDGED, *DEFECTS):
        home = root / ("test" if name in JUDGED else "ds0")
        put(home / f"img/{name}.png", name)
        objects = [figures[name]] if name in DEFECTS else []
        size = {"height": HEIGHT, "width": WIDTH}
        write(home / f"ann/{name}.png.json", {"description": "", "tags": [], "size": size, "objects": objects})
    return {"layout": "supervisely"}


def plain(root: Path) -> Made:
    for name in GOOD:
        put(root / f"good/{name}.png", name)
    put(root / "test_good/t0.png", "t0")
    for name, kind in DEFECTS.items():
        put(root / f"bad/{kind}/{name}.png", name)
        put_mask(root / f"masks/{kind}/{name}.png", name)
    return {"layout": "folder"}


MAKERS: dict[str, Callable[[Path], Made]] = {
    "MVTec AD and MPDD": mvtec, "MVTec AD 2": mvtec_ad_2, "MVTec LOCO": loco, "BTAD": btad, "VisA": visa,
    "VisA without a split": visa_original, "VisA for PyTorch": lambda root: mvtec(root / "1cls", mask="{}.png"),
    "KolektorSDD": ksdd, "KolektorSDD2": ksdd2, "Real-IAD": real_iad, "DAGM": dagm, "COCO polygons": coco,
    "COCO runs": lambda root: coco(root, "runs"), "COCO packed runs": lambda root: coco(root, "packed"),
    "Roboflow COCO": roboflow_coco, "labelme": labelme, "CVAT": cvat, "YOLO": yolo, "Roboflow YOLO": roboflow_yolo,
    "Supervisely": supervisely, "a plain folder": plain,
}  # fmt: skip


def name_of(path: Path) -> str:
    """Which of the pictures the file holds."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    known = [name for name in (*GOOD, *JUDGED, *DEFECTS) if np.array_equal(picture(name), pixels)]
    assert len(known) == 1, path
    return known[0]


def check(dataset: Dataset, made: Made, layout: str) -> None:
    """The dataset holds what was made: good pictures, kinds of defects, and masks pixel for pixel."""
    assert dataset.layout == layout
    assert sorted(map(name_of, dataset.train)) == sorted(made.get("good", GOOD))
    tests = {name_of(sample.path): sample for sample in dataset.test}
    kinds = made.get("kinds", DEFECTS)
    assert set(tests) == {*made.get("judged", JUDGED), *DEFECTS}
    for name, sample in tests.items():
        assert (sample.is_anomalous, sample.defect) == (name in DEFECTS, kinds.get(name, "good"))
        assert sample.has_mask or name not in DEFECTS
        there, doubts = read_marks(sample)
        assert not doubts
        assert np.array_equal(there, mask_of(name)), name


@pytest.mark.parametrize("name", MAKERS)
def test_a_set_is_read_and_comes_back_from_its_conversion(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pycocotools")
    made = MAKERS[name](tmp_path / "set")
    root = tmp_path / "set" / ("1cls" if name == "VisA for PyTorch" else "")
    dataset = read_dataset(root)
    check(dataset, made, made["layout"])
    assert run(["data", str(root), "--convert", str(tmp_path / "plain"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    defects = {
        kind: list(made.get("kinds", DEFECTS).values()).count(kind) for kind in made.get("kinds", DEFECTS).values()
    }
    assert (found["layout"], found["defects"], found["masked"], found["problems"]) == (made["layout"], defects, 2, [])
    assert (found["learned"], found["test_good"]) == (len(dataset.train), len(dataset.test) - 2)
    again = read_dataset(tmp_path / "plain")
    check(again, made, "folder")
    assert again.notes == ()
    assert {path.read_bytes() for path in again.train} == {path.read_bytes() for path in dataset.train}


def test_the_command_line_knows_every_layout() -> None:
    assert tuple(LAYOUTS) == NAMES


def test_several_sets_of_a_tool_are_categories(tmp_path: Path) -> None:
    for name in ("nut", "bolt"):
        coco(tmp_path / name)
    assert find_categories(tmp_path) == ("bolt", "nut")
    dataset = read_dataset(tmp_path, category="nut")
    assert (dataset.category, len(dataset.train), len(dataset.test)) == ("nut", 3, 3)


# --- what marks a defect


def labelled(root: Path, marks: Sequence[dict[str, Any]], kinds: Sequence[str] = ("scratch", "dent", "ok")) -> Dataset:
    """A COCO file of a good picture and of d0 with these annotations."""
    for name in ("g0", "d0"):
        put(root / f"{name}.png", name)
    write(root / "labels.json", {
        "images": [{"id": number, "file_name": f"{name}.png"} for number, name in enumerate(("g0", "d0"))],
        "categories": [{"id": number, "name": kind} for number, kind in enumerate(kinds)],
        "annotations": [{"id": number, "image_id": 1} | mark for number, mark in enumerate(marks)],
    })  # fmt: skip
    return read_dataset(root)


def test_several_marks_are_one_mask_and_several_kinds_combined(tmp_path: Path) -> None:
    rings = [{"category_id": number, "segmentation": [flat(name)]} for number, name in enumerate(BOXES)]
    (sample,) = labelled(tmp_path, rings).test
    assert sample.defect == "combined"
    assert np.array_equal(read_marks(sample)[0], mask_of("d0") | mask_of("d1"))


def test_a_box_of_a_detector_is_a_defect_without_a_mask(tmp_path: Path) -> None:
    boxes = [{"category_id": 0, "segmentation": [], "bbox": [1, 1, 5, 5]}]
    (sample,) = labelled(tmp_path, boxes).test
    assert (sample.is_anomalous, sample.defect, sample.has_mask) == (True, "scratch", False)


def test_a_class_called_ok_marks_nothing(tmp_path: Path) -> None:
    dataset = labelled(tmp_path, [{"category_id": 2, "segmentation": [flat("d0")]}])
    assert (len(dataset.train), dataset.test) == (2, ())


def test_what_is_ignored_is_not_used_and_marks_nothing_beside_other_marks(tmp_path: Path) -> None:
    ignored = {"category_id": 1, "segmentation": [flat("d1")]}
    kinds = ("scratch", "__ignore__")
    dataset = labelled(tmp_path / "alone", [ignored], kinds)
    assert (len(dataset.train), dataset.test) == (1, ())
    (note,) = dataset.notes
    assert "d0.png) with nothing but ignore" in note
    (sample,) = labelled(tmp_path / "beside", [ignored, {"category_id": 0, "segmentation": [flat("d0")]}], kinds).test
    assert sample.defect == "scratch"
    assert np.array_equal(read_marks(sample)[0], mask_of("d0"))


def test_a_project_of_cvat_has_a_folder_for_each_subset(tmp_path: Path) -> None:
    images = ""
    for part, name in (("Train", "g0"), ("Test", "t0")):
        put(tmp_path / f"images/{part}/0.png", name)
        images += f'<image id="0" name="0.png" subset="{part}"></image>'
    write(tmp_path / "annotations.xml", f"<annotations>{images}</annotations>")
    dataset = read_dataset(tmp_path)
    assert [name_of(path) for path in dataset.train] == ["g0"]
    assert [name_of(sample.path) for sample in dataset.test] == ["t0"]


def test_a_tag_of_cvat_and_a_flag_of_labelme_are_defects_without_a_mask(tmp_path: Path) -> None:
    for name in ("g0", "d0"):
        put(tmp_path / f"cvat/{name}.png", name)
        put(tmp_path / f"labelme/{name}.png", name)
    tag = '<image id="0" name="d0.png"><tag label="scratch"/></image><image id="1" name="g0.png"></image>'
    write(tmp_path / "cvat/annotations.xml", f"<annotations>{tag}</annotations>")
    write(
        tmp_path / "labelme/d0.json", {"imagePath": "d0.png", "shapes": [], "flags": {"scratch": True, "dent": False}}
    )
    for tool in ("cvat", "labelme"):
        (sample,) = read_dataset(tmp_path / tool).test
        assert (sample.path.name, sample.defect, sample.has_mask) == ("d0.png", "scratch", False)


def test_a_turned_box_of_cvat(tmp_path: Path) -> None:
    for name in ("g0", "d0"):
        put(tmp_path / f"{name}.png", name)
    box = '<box label="scratch" xtl="10" ytl="15" xbr="30" ybr="25" rotation="90"/>'
    images = f'<image name="d0.png">{box}</image><image name="g0.png"></image>'
    write(tmp_path / "annotations.xml", f"<annotations>{images}</annotations>")
    (sample,) = read_dataset(tmp_path).test
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[10:30, 15:25] = True
    assert np.array_equal(read_marks(sample)[0], expected)


def test_pictures_without_a_label_file_count_as_good_beside_labelled_ones_only(tmp_path: Path) -> None:
    labelme(tmp_path)
    put(tmp_path / "d0_json/img.png", "d0")  # what labelme_export_json leaves
    dataset = read_dataset(tmp_path)
    assert len(dataset.train) == 3
    assert dataset.notes == (
        "3 of 6 pictures have no label file and count as good",
        "not used: 1 .png in d0_json/ (first: img.png)",
    )


# --- names in label files


@pytest.mark.parametrize(
    "name",
    [
        "{root}/d0.png",
        "../../{outside}/d0.png",
        "C:\\data\\d0.png",
        "./d0.png",
        "images/train/d0.png",
        "{outside}/d0.png",
    ],
)
def test_a_name_in_a_label_file_finds_pictures_of_the_set_only(tmp_path: Path, name: str) -> None:
    labelled(tmp_path / "set", [{"category_id": 0, "segmentation": [flat("d0")]}])
    outside = put(tmp_path / "outside/d0.png", "g2")
    text = (tmp_path / "set/labels.json").read_text()
    said = name.format(root=tmp_path / "set", outside=outside.parent.name if name.startswith("..") else outside.parent)
    write(tmp_path / "set/labels.json", text.replace('"d0.png"', json.dumps(said)))
    (sample,) = read_dataset(tmp_path / "set").test
    assert sample.path == tmp_path / "set/d0.png"
    (tmp_path / "set/d0.png").unlink()
    with pytest.raises(DataError, match=r"labels.json names pictures that are not in .*; put them beside it"):
        read_dataset(tmp_path / "set")


def test_a_table_names_no_file_outside_its_set(tmp_path: Path) -> None:
    visa(tmp_path / "set")
    put(tmp_path / "elsewhere/g9.png", "g1")
    table = tmp_path / "set/split_csv/1cls.csv"
    for name in ("../elsewhere/g9.png", str(tmp_path / "elsewhere/g9.png")):
        write(table, f"object,split,label,image,mask\npart,train,normal,{name},")
        with pytest.raises(DataError, match=r"1cls.csv, line 2: .* lies outside .*set; nothing beyond"):
            read_dataset(tmp_path / "set")


def test_a_name_that_fits_two_pictures(tmp_path: Path) -> None:
    labelled(tmp_path, [])
    for part in ("a", "b"):
        put(tmp_path / part / "0.png", "g1")
    text = (tmp_path / "labels.json").read_text()
    write(tmp_path / "labels.json", text.replace('"d0.png"', '"0.png"'))
    with pytest.raises(
        DataError, match=r'"0.png" in .* fits two pictures, .*a/0.png and .*b/0.png: rename one of them'
    ):
        read_dataset(tmp_path)
    write(tmp_path / "labels.json", text.replace('"d0.png"', '"b/0.png"'))
    assert read_dataset(tmp_path).train == (tmp_path / "b/0.png", tmp_path / "g0.png")


def test_a_kind_of_defect_cannot_leave_the_converted_folder(tmp_path: Path) -> None:
    mark = {"category_id": 0, "segmentation": [flat("d0")]}
    for number, kind in enumerate(("../../up", "good part", "mask", "", "/", "a" * 300)):
        labelled(tmp_path / f"{number}/set", [mark], [kind])
        assert run(["data", str(tmp_path / f"{number}/set"), "--convert", str(tmp_path / f"{number}/out")]) == 0
        (path,) = (tmp_path / f"{number}/out/bad").glob("*/d0.png")
        assert {entry.name for entry in (tmp_path / str(number)).iterdir()} == {"set", "out"}
        (sample,) = read_dataset(tmp_path / f"{number}/out").test
        assert (sample.defect, sample.path) == (path.parent.name, path)
        assert np.array_equal(read_marks(sample)[0], mask_of("d0"))


# --- what cannot be used


def spoilt(maker: Callable[[Path], Made], file: str, old: str, new: str) -> Callable[[Path], None]:
    """A set, in a file of which something stands in the place of another."""

    def make(root: Path) -> None:
        maker(root)
        text = (root / file).read_text()
        assert old in text
        write(root / file, text.replace(old, new, 1))

    return make


def without(maker: Callable[[Path], Made], *files: str) -> Callable[[Path], None]:
    """A set that lacks some of its files."""

    def make(root: Path) -> None:
        maker(root)
        for file in files:
            shutil.rmtree(root / file) if (root / file).is_dir() else (root / file).unlink()

    return make


COCO_TEST, COCO_TRAIN = "annotations/instances_test.json", "annotations/instances_train.json"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "COCO without pictures": (
        without(coco, "images/d0.png", "images/t0.png"),
        r'instances_test.json names pictures that are not in .*: "t0.png" and 1 more; put them beside it',
    ),
    "COCO of another category": (
        spoilt(coco, COCO_TEST, '"category_id": 1', '"category_id": 7'),
        "instances_test.json is no label file of COCO: annotation 2 is of category 7, which it does not list",
    ),
    "COCO of another image": (
        spoilt(coco, COCO_TEST, '"image_id": 2', '"image_id": 9'),
        "annotation 2 is of image 9, which it does not list",
    ),
    "COCO with a word missing": (
        spoilt(coco, COCO_TEST, '"file_name"', '"name"'),
        "instances_test.json is no label file of COCO: 'file_name' is missing",
    ),
    "COCO cut off": (
        spoilt(coco, COCO_TEST, '"iscrowd": 0}]', '"iscrowd": 0}'),
        "instances_test.json is no label file of COCO: Expecting",
    ),
    "COCO twice": (
        lambda root: (coco(root), shutil.copy(root / COCO_TRAIN, root / "annotations/more.json")),
        r"d1.png is labelled twice, in .*instances_train.json, .* and .*more.json, .*: keep one",
    ),
    "labelme with points of a sketch": (
        spoilt(labelme, "d0.json", '"polygon"', '"spline"'),
        'd0.json is no label file of labelme: a shape of the type "spline" is not read: draw polygon',
    ),
    "labelme without its picture": (
        without(labelme, "d0.png"),
        r'd0.json names pictures that are not in .*: "..\\photos\\d0.png"; put them beside it',
    ),
    "CVAT with a polyline": (
        spoilt(cvat, "annotations.xml", "<polygon", "<polyline"),
        "annotations.xml is no label file of CVAT: a polyline marks no area: draw a polygon, a box, an ellipse or a mask",
    ),
    "CVAT cut off": (
        spoilt(cvat, "annotations.xml", "</annotations>", ""),
        "annotations.xml is no label file of CVAT: no element found",
    ),
    "CVAT with a document type": (
        spoilt(cvat, "annotations.xml", "<annotations>", "<!DOCTYPE annotations><annotations>"),
        "it declares a document type, which CVAT does not write",
    ),
    "CVAT of a video": (
        spoilt(cvat, "annotations.xml", "<image ", '<track id="0"></track><image '),
        "it holds the tracks of a video: export it as CVAT for images 1.1",
    ),
    "COCO without a part to learn": (
        without(coco, COCO_TRAIN),
        "of 2 pictures none is good to learn, without a mark and in no part for tests: add photographs of good parts",
    ),
    "YOLO of another class": (
        spoilt(yolo, "labels/train/d0.txt", "0 ", "5 "),
        r"d0.txt is no label file of YOLO: line 1 is of class 5, and there are 2 classes, from 0",
    ),
    "YOLO with half a point": (
        spoilt(yolo, "labels/train/d0.txt", "0 ", "0 0.5 "),
        "line 1 has 10 numbers: a class and x y of at least 3 points are wanted",
    ),
    "YOLO without a picture": (
        without(yolo, "images/train/d0.png"),
        r"1 label file \(first: .*labels/train/d0.txt\) without a picture of that name in images/",
    ),
    "YOLO without names": (
        spoilt(yolo, "data.yaml", "names: [", "names: {"),
        "data.yaml is no label file of YOLO: while parsing",
    ),
    "Supervisely without a label file": (
        without(supervisely, "ds0/ann/g1.png.json"),
        r"1 picture \(first: .*img/g1.png\) without its file in ann/, which Supervisely writes for each",
    ),
    "Supervisely with a line": (
        spoilt(supervisely, "ds0/ann/d0.png.json", '"polygon"', '"line"'),
        'd0.png.json is no label file of Supervisely: a figure of the type "line" is not read',
    ),
    "KolektorSDD without a mask": (
        without(ksdd, "kos01/Part0_label.bmp"),
        r"1 image \(first: .*kos01/Part0.png\) without a mask named _label, which says whether it is good",
    ),
    "DAGM without a picture": (
        without(dagm, "Class1/Test/0004.PNG"),
        r"1 mask \(first: .*Label/0004_label.PNG\) without an image of that name",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_set_that_cannot_be_read_is_one_sentence(name: str, tmp_path: Path) -> None:
    make, told = WRONG[name]
    pytest.importorskip("pycocotools")
    make(tmp_path)
    with pytest.raises(DataError, match=told):
        read_dataset(tmp_path)


@pytest.mark.parametrize("maker", [coco, cvat, labelme, supervisely])
def test_labels_of_another_size_are_a_problem_and_end_the_command_with_1(
    maker: Callable[[Path], Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    maker(tmp_path)
    (path,) = tmp_path.rglob("d0.png")
    Image.fromarray(picture("d0")[:20]).save(path)
    assert run(["data", str(tmp_path)]) == 1
    said = capsys.readouterr()
    told = f"was drawn on a picture of {HEIGHT} x {WIDTH} pixels (height x width) and the picture has 20 x {WIDTH}"
    assert told in said.out
    assert said.err.splitlines()[-1].startswith("nnet-edge: error: 1 pictures or masks cannot be used; the first: ")
    with pytest.raises(DataError, match=r"was drawn on a picture of"):
        read_marks(next(sample for sample in read_dataset(tmp_path).test if sample.path == path))


HALF: dict[str, tuple[Callable[[Path], Any], str]] = {
    "MVTec AD": (
        lambda root: [put(root / f"train/{name}.png", name) for name in GOOD],
        "the nearest other layout is mvtec: train/ is there, train/good/, test/ is missing",
    ),
    "Supervisely": (
        lambda root: (supervisely(root), [shutil.rmtree(path) for path in root.glob("*/ann")]),
        "the nearest other layout is supervisely: meta.json, img/ is there, ann/ is missing",
    ),
    "CVAT": (
        without(cvat, "annotations.xml"),
        "the nearest other layout is cvat: images/ is there, annotations.xml is missing",
    ),
    "YOLO": (
        without(yolo, "data.yaml"),
        r"the nearest other layout is yolo: images/, labels/\*.txt is there, data.yaml \(or classes.txt\) is missing",
    ),
    "Real-IAD": (
        lambda root: (real_iad(root), shutil.rmtree(root / "realiad_256")),
        r"the nearest other layout is real-iad: realiad_jsons/ is there, realiad_256/ \(or _512, _1024\) is missing",
    ),
    "DAGM": (
        lambda root: (dagm(root), [shutil.rmtree(path) for path in root.rglob("Label")]),
        r"the nearest other layout is dagm: Train/\*.PNG, Test/\*.PNG is there, Train/Label/, Test/Label/ is missing",
    ),
}


@pytest.mark.parametrize("name", HALF)
def test_half_a_layout_names_the_nearest_and_what_is_missing(name: str, tmp_path: Path) -> None:
    make, told = HALF[name]
    make(tmp_path)
    with pytest.raises(DataError, match=told):
        read_dataset(tmp_path)


def test_a_label_file_of_no_known_tool_is_named(tmp_path: Path) -> None:
    labelled(tmp_path, [])
    text = (tmp_path / "labels.json").read_text()
    write(tmp_path / "labels.json", text.replace('"annotations"', '"results"'))
    dataset = read_dataset(tmp_path)
    assert (dataset.layout, len(dataset.train)) == ("folder", 2)
    assert dataset.notes == (f"not used: {tmp_path}/labels.json, a label file of no tool that is known here",)


def test_a_layout_that_was_asked_for_and_is_not_there(tmp_path: Path) -> None:
    plain(tmp_path)
    with pytest.raises(DataError, match=r"holds no label files of coco: docs/data.md says where they lie"):
        read_dataset(tmp_path, "coco")
    with pytest.raises(ConfigError, match='layout "cocoa" is unknown'):
        read_dataset(tmp_path, "cocoa")
