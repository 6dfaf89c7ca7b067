"""A small test set in MVTec AD's layout, judged by brightness, where every figure is known beforehand."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnet_edge.calibration.predictions import TestImages, metrics_of
from nnet_edge.cli.calibrate import changes_of
from nnet_edge.data.images import Dataset, read_dataset
from nnet_edge.errors import ConfigError, DataError, MissingExtraError
from nnet_edge.evaluation.artefact import table_of
from nnet_edge.evaluation.evaluate import Evaluation, Recall, evaluate
from nnet_edge.evaluation.pictures import (
    CELL,
    DPI,
    GAP,
    MAX_ROWS,
    TEXT,
    bin_edges,
    choose_rows,
    draw_row,
    figures_of,
    new_figure,
    number,
    shorten,
    to_png,
    write_evaluation,
)
from nnet_edge.frame import Outputs
from nnet_edge.metrics import METRICS, Metric, register

FILES = ["metrics.json", "sheet.png", "histogram.png", "images.csv", "sweep.csv"]
SIDE = 64  # the pictures; a 16-pixel square becomes one of 64 in the map


class BrightnessRunner:
    """The brightness of each pixel is its anomaly."""

    name, precision = "brightness", "fp32"

    def infer(self, images: np.ndarray) -> Outputs:
        maps = images.mean(axis=3, dtype=np.float32)
        return Outputs(maps, maps.max(axis=(1, 2)))


def save(path: Path, brightness: int, ground: int = 10) -> None:
    """A picture with a square of `brightness` on its `ground`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((SIDE, SIDE, 3), ground, np.uint8)
    pixels[16:32, 16:32] = brightness
    Image.fromarray(pixels).save(path)


def save_mask(root: Path, defect: str, stem: str, size: int = 16) -> None:
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[16 : 16 + size, 16 : 16 + size] = 255
    path = root / "ground_truth" / defect / f"{stem}_mask.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Good parts up to 60 and one of 120; scratches of 80 and 150, a stain of 200; the threshold to try is 100."""
    root = tmp_path / "bracket"
    save(root / "train" / "good" / "000.png", 20)
    for index, brightness in enumerate((30, 60, 120)):
        save(root / "test" / "good" / f"{index:03}.png", brightness)
    for defect, stem, brightness in (("scratch", "000", 80), ("scratch", "001", 150), ("stain", "000", 200)):
        save(root / "test" / defect / f"{stem}.png", brightness)
        save_mask(root, defect, stem)
    return root


@pytest.fixture
def dataset(root: Path) -> Dataset:
    return read_dataset(root)


@pytest.fixture
def evaluation(dataset: Dataset) -> Evaluation:
    return evaluate(BrightnessRunner(), dataset, threshold=100.0)


def test_enough_of_a_defect_is_all_of_it_where_loco_says_so(root: Path) -> None:
    """Of the stain (16 x 16) a column of 16 is marked bright; of two defects in its mask each has what is enough."""
    pixels = np.full((SIDE, SIDE, 3), 10, np.uint8)
    pixels[16:32, 16:20] = 200
    Image.fromarray(pixels).save(root / "test/stain/000.png")
    for kind in ("scratch", "stain"):
        shutil.rmtree(root / "ground_truth" / kind)
    shutil.rmtree(root / "test/scratch")
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[16:32, 16:32] = 241
    path = root / "ground_truth/stain/000/000.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(mask).save(path)
    config = {"defect_name": "stain", "pixel_value": 241, "saturation_threshold": 64, "relative_saturation": False}
    assert evaluate(BrightnessRunner(), read_dataset(root), 100).spro is None
    figures = []
    for change in ({}, {"saturation_threshold": 0.25, "relative_saturation": True}, {"saturation_threshold": 256}):
        (root / "defects_config.json").write_text(json.dumps([config | change]))
        found = evaluate(BrightnessRunner(), read_dataset(root), 100)
        assert found.as_dict()["spro"] == found.spro
        assert found.spro is not None
        figures.append(found.spro)
        assert "sPRO" in table_of(found)
    enough, relative, whole = figures
    assert enough == relative > 0.95 > 0.5 > whole
    (root / "defects_config.json").write_text(json.dumps([config | {"pixel_value": 7}]))
    with pytest.raises(DataError, match=r"000.png has the value 241, of which defects_config.json says nothing"):
        evaluate(BrightnessRunner(), read_dataset(root), 100)
    (root / "defects_config.json").write_text("[{}]")
    with pytest.raises(DataError, match=r"defects_config.json does not say how much of a defect is enough"):
        read_dataset(root)


def test_verdicts_and_metrics_are_those_of_the_pictures(evaluation: Evaluation) -> None:
    scores = dict(zip(evaluation.names, evaluation.scores, strict=True))
    assert scores == {
        "test/good/000.png": 30,
        "test/good/001.png": 60,
        "test/good/002.png": 120,
        "test/scratch/000.png": 80,
        "test/scratch/001.png": 150,
        "test/stain/000.png": 200,
    }
    assert [evaluation.names[index] for index in evaluation.false_rejects] == ["test/good/002.png"]
    assert [evaluation.names[index] for index in evaluation.missed_defects] == ["test/scratch/000.png"]
    assert evaluation.recall_by_defect == {"scratch": Recall(1, 1, 2, 2), "stain": Recall(1, 1, 1, 1)}
    assert evaluation.metrics.image_auroc == pytest.approx(8 / 9)  # of 9 pairs one is in the wrong order
    assert evaluation.metrics.pixel_ap == pytest.approx((1 + 1 + 0.75) / 3, abs=0.02)  # the good square comes third
    assert evaluation.metrics.pro is not None
    assert evaluation.mask_disagreements == ()
    half_covered = 64**2 - 4  # the rule leaves out the corners of the enlarged square
    assert evaluation.masks.sum(axis=(1, 2)).tolist() == [0, 0, 0, half_covered, half_covered, half_covered]


@pytest.fixture
def recall() -> Iterator[Metric]:
    """A metric that only this file knows: the share of defective images above 100."""
    yield register(
        Metric("recall", "recall at 100", "rec", lambda it: float((it.scores[it.labels] > 100).mean()), False)
    )
    del METRICS["recall"]


def test_a_metric_that_is_registered_is_reported_and_judged(recall: Metric, dataset: Dataset) -> None:
    found = evaluate(BrightnessRunner(), dataset, threshold=100.0)
    assert found.as_dict()["metrics"]["recall"] == pytest.approx(2 / 3)
    assert "  recall at 100   66.7 %" in table_of(found)
    assert "recall at 100 66.7 %" in figures_of(found)
    images = TestImages(np.zeros((6, 1, 1, 3), np.uint8), found.labels, found.masks, found.has_mask)
    assert metrics_of(images, Outputs(found.maps, found.scores))["recall"] == pytest.approx(2 / 3)
    assert changes_of({"recall": -0.5}) == "rec -0.50"
    with pytest.raises(ConfigError, match="two metrics called 'recall'"):
        register(recall)


def test_the_metrics_of_a_report_are_those_of_the_registry_in_its_order(evaluation: Evaluation) -> None:
    assert list(evaluation.as_dict()["metrics"]) == list(METRICS)
    assert list(METRICS) == ["image_auroc", "pixel_auroc", "pixel_ap", "pro", "pro_rd4ad"]
    assert [metric.name for metric in METRICS.values() if not metric.is_judged] == ["pro_rd4ad"]
    assert not hasattr(evaluation.metrics, "recall")


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_the_batch_changes_nothing_and_progress_ends_at_the_end(dataset: Dataset, batch: int) -> None:
    steps: list[tuple[int, int]] = []
    found = evaluate(
        BrightnessRunner(), dataset, 100.0, batch, progress=lambda done, total: steps.append((done, total))
    )
    np.testing.assert_array_equal(found.scores, [30, 60, 120, 80, 150, 200])
    assert steps == sorted(steps)
    assert steps[-1] == (12, 12)


def test_a_bad_image_is_named_or_skipped_and_counted(root: Path) -> None:
    bad = root / "test" / "good" / "001.png"
    bad.write_bytes(bad.read_bytes()[:100])
    with pytest.raises(DataError, match=r"001\.png"):
        evaluate(BrightnessRunner(), read_dataset(root), 100.0)
    found = evaluate(BrightnessRunner(), read_dataset(root), 100.0, batch=1, skip_bad=True)
    assert len(found.samples) == len(found.scores) == len(found.maps) == 5
    assert found.as_dict()["images"] == {"good": 2, "anomalous": 3, "skipped": 1}
    assert [skipped["name"] for skipped in found.as_dict()["skipped"]] == ["test/good/001.png"]


def test_a_mask_that_vanishes_at_256_is_reported(root: Path) -> None:
    large = np.full((1024, 1024, 3), 10, np.uint8)
    large[500, 500] = 255
    Image.fromarray(large).save(root / "test" / "scratch" / "000.png")
    mask = (large[..., 0] == 255).astype(np.uint8)
    Image.fromarray(mask).save(root / "ground_truth" / "scratch" / "000_mask.png")
    found = evaluate(BrightnessRunner(), read_dataset(root), 100.0, mask_rule="half")
    assert found.mask_disagreements == ("test/scratch/000.png",)
    assert evaluate(BrightnessRunner(), read_dataset(root), 100.0, mask_rule="any").mask_disagreements == ()


def test_defects_without_masks_leave_the_pixel_metrics_alone(dataset: Dataset, evaluation: Evaluation) -> None:
    def without_masks(*defects: str) -> Dataset:
        return replace(
            dataset, test=tuple(replace(s, mask_path=None) if s.defect in defects else s for s in dataset.test)
        )

    none = evaluate(BrightnessRunner(), without_masks("scratch", "stain"), 100.0)
    assert none.metrics.image_auroc == evaluation.metrics.image_auroc
    assert (none.metrics.pixel_auroc, none.metrics.pixel_ap, none.metrics.pro, none.metrics.pro_rd4ad) == (None,) * 4
    some = evaluate(BrightnessRunner(), without_masks("scratch"), 100.0)
    assert some.metrics.pixel_ap == pytest.approx(1, abs=0.01)  # the stain is brighter than all good squares
    assert some.metrics.image_auroc == evaluation.metrics.image_auroc
    assert some.as_dict()["without_mask"] == ["test/scratch/000.png", "test/scratch/001.png"]


def test_only_good_images_still_give_verdicts(dataset: Dataset, tmp_path: Path) -> None:
    only_good = replace(dataset, test=tuple(sample for sample in dataset.test if not sample.is_anomalous))
    found = evaluate(BrightnessRunner(), only_good, 100.0)
    assert found.metrics.image_auroc is None
    assert found.as_dict()["false_rejects"] == {"count": 1, "of": 3}
    assert len(write_evaluation(found, tmp_path / "out")) == len(FILES)


def test_what_cannot_be_meant_is_refused(dataset: Dataset) -> None:
    for threshold in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="threshold"):
            evaluate(BrightnessRunner(), dataset, threshold)
    with pytest.raises(ConfigError, match="batch of 0"):
        evaluate(BrightnessRunner(), dataset, 1.0, batch=0)
    with pytest.raises(DataError, match="no test image"):
        evaluate(BrightnessRunner(), replace(dataset, test=()), 1.0)


def test_outputs_that_are_no_numbers_name_the_image(dataset: Dataset) -> None:
    class BrokenRunner(BrightnessRunner):
        def infer(self, images: np.ndarray) -> Outputs:
            outputs = super().infer(images)
            outputs.anomaly_map[outputs.image_score == 150, 3, 3] = np.nan
            return outputs

    with pytest.raises(DataError, match=r"brightness \(fp32\) gives NaN or infinite outputs for .*scratch/001\.png"):
        evaluate(BrokenRunner(), dataset, 1.0, batch=2)


def test_five_files_are_written(evaluation: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    assert [path.name for path in write_evaluation(evaluation, out)] == FILES
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
    read = json.loads((out / "metrics.json").read_text())
    assert read == evaluation.as_dict()
    assert read["metrics"]["image_auroc"] == pytest.approx(8 / 9)
    assert read["scores"][3] == {
        "name": "test/scratch/000.png",
        "defect": "scratch",
        "is_anomalous": True,
        "score": 80.0,
        "relative_score": 0.8,
        "rejected": False,
        "found": False,
    }
    assert sum(read["share_of_time"].values()) == pytest.approx(1)
    write_evaluation(evaluation, out)  # a second time replaces the first


def colours(path: Path) -> np.ndarray:
    """The different colours (n, 3) of a picture."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(np.int64)
    packed = np.unique(pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2])
    return np.stack([packed >> 16, packed >> 8 & 255, packed & 255], axis=1)


def has_colour(path: Path, colour: Sequence[float]) -> bool:
    return bool((np.abs(colours(path) - colour).max(axis=1) <= 2).any())


def test_sheet_colours_verdicts_by_whether_they_were_right(evaluation: Evaluation, tmp_path: Path) -> None:
    right, wrong = (0x18, 0x79, 0x4E), (0xC6, 0x2A, 0x2F)
    sheet = write_evaluation(evaluation, tmp_path)[1]
    assert has_colour(sheet, right)
    assert has_colour(sheet, wrong)  # one is missed, one is rejected wrongly
    only_good = replace(evaluation, threshold=1000.0, labels=np.zeros(6, bool), samples=(evaluation.samples[0],) * 6)
    sheet = write_evaluation(only_good, tmp_path / "right")[1]
    assert has_colour(sheet, right)
    assert not has_colour(sheet, wrong)


def test_the_colour_of_a_map_depends_on_score_and_threshold_alone(evaluation: Evaluation) -> None:
    from matplotlib import colormaps

    def colour_of_square(maps: np.ndarray, threshold: float) -> list[int]:
        figure = new_figure(3 * (CELL + GAP) + TEXT, CELL)
        draw_row(figure, replace(evaluation, maps=maps, threshold=threshold), 3, 0.0, 0.0)
        pixels = np.asarray(Image.open(io.BytesIO(to_png(figure))).convert("RGB"))
        middle_of_square = 0.375  # of the picture, from the top and from the left
        row = round(middle_of_square * CELL * DPI)
        return pixels[row, round((2 * (CELL + GAP) + middle_of_square * CELL) * DPI)].tolist()

    for factor, threshold in ((1.0, 100.0), (1.0, 60.0), (1.0, 20.0), (5.0, 500.0)):
        relative = min(80 * factor / threshold, 2.0)
        expected = [255 * part for part in colormaps["inferno"](relative / 2)[:3]]
        np.testing.assert_allclose(colour_of_square(evaluation.maps * np.float32(factor), threshold), expected, atol=3)


def test_names_that_are_no_formula_and_letters_without_glyph_are_drawn(root: Path, tmp_path: Path) -> None:
    for name in ("$x_1$^{.png", "良品.png"):
        save(root / "test" / "good" / name, 50)
    found = evaluate(BrightnessRunner(), read_dataset(root), 100.0)
    with Image.open(io.BytesIO(write_evaluation(found, tmp_path / "out")[1].read_bytes())) as picture:
        assert picture.width > 900


def test_rows_are_errors_first_then_spread_over_the_defects(evaluation: Evaluation) -> None:
    random = np.random.default_rng(0)
    kinds = ["good"] * 40 + ["scratch"] * 40 + ["stain"] * 3
    samples = tuple(
        replace(evaluation.samples[0], defect=kind, is_anomalous=kind != "good", path=Path(f"{number}.png"))
        for number, kind in enumerate(kinds)
    )
    labels = np.array([kind != "good" for kind in kinds])
    many = replace(evaluation, samples=samples, labels=labels, scores=random.random(83) + 0.5 * labels, threshold=0.75)
    rows = choose_rows(many, MAX_ROWS)
    assert len(rows) == len(set(rows)) == MAX_ROWS
    assert rows[:3] == many.missed_defects[:3].tolist()
    assert rows[3:6] == many.false_rejects[:3].tolist()
    shown = [kinds[row] for row in rows[6:]]
    assert shown == sorted(shown, key=["scratch", "stain", "good"].index)
    assert min(shown.count("scratch"), shown.count("good")) >= 3
    assert shown.count("stain") >= 2
    highest = max((row for row in range(40, 80)), key=lambda row: many.scores[row])
    assert highest in rows
    assert choose_rows(many, 2) == many.missed_defects[:2].tolist()
    assert sorted(choose_rows(evaluation, MAX_ROWS)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("relative", [[0.5, 0.9, 1.3], [0.01, 1.0, 90.0], [0.2, 0.2], [5.0], [0.0, 3.0]])
def test_bins_hold_every_score_and_have_an_edge_at_the_threshold(relative: list[float]) -> None:
    scores = np.array(relative)
    edges = bin_edges(scores, is_wide=bool(scores.min() > 0 and scores.max() / scores.min() > 12))
    assert np.isclose(edges, 1, atol=1e-12).any()
    assert edges[0] <= scores.min() + 1e-12
    assert edges[-1] >= scores.max() - 1e-12
    assert len(edges) <= 40


def test_short_words() -> None:
    assert [number(value) for value in (0.5, 0.9991, 1.0, 1.004, 12.34, 250.4)] == [
        "0.50",
        "0.9991",
        "1.00",
        "1.0040",
        "12.3",
        "250",
    ]
    assert shorten("abc.png", 26) == "abc.png"
    assert shorten("camera_2_2024-05-01_part_000123.png", 26) == "camera_2…1_part_000123.png"


def test_a_folder_that_cannot_be_written_is_a_wrong_use(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match="choose another folder"):
        write_evaluation(evaluation, tmp_path / "file")


def test_a_disk_that_takes_no_more_leaves_nothing_half_written(evaluation: Evaluation, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits are POSIX's")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DataError, match="make room or choose another folder"):
            write_evaluation(evaluation, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "out").iterdir()) == []


def test_without_matplotlib_the_extra_is_named(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"nnet-edge\[train\]"):
        write_evaluation(evaluation, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_are_no_plain_text_cost_no_report(root: Path, tmp_path: Path) -> None:
    for kind, stem in (("scratch", os.fsdecode(b"teil_\xe4")), (os.fsdecode(b"bruch_\xfc"), "a\x1b[31m")):
        save(root / "test" / kind / f"{stem}.png", 150)
        save_mask(root, kind, stem)
    found = evaluate(BrightnessRunner(), read_dataset(root), threshold=100.0)
    assert r"test/scratch/teil_\xe4.png" in found.names
    assert found.recall_by_defect[r"bruch_\xfc"] == Recall(1, 1, 1, 1)
    assert len(write_evaluation(found, tmp_path / "out")) == len(FILES)
    (table_of(found) + json.dumps(found.as_dict(), ensure_ascii=False)).encode()
