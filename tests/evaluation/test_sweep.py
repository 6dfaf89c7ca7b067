"""What every threshold would cost, what 'found' means, and the report of an evaluation; all counts are known beforehand."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnet_edge.cli.main import run
from nnet_edge.data.images import read_dataset
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.evaluation.artefact import table_of
from nnet_edge.evaluation.evaluate import Evaluation, Recall, evaluate
from nnet_edge.evaluation.pictures import write_evaluation
from nnet_edge.evaluation.report import confusion, write_report
from nnet_edge.evaluation.sweep import Costs, cheapest, images_csv, proposal, shown, sweep, sweep_lines
from nnet_edge.frame import Outputs
from nnet_edge.scoring import Threshold
from tests.runtime.web.browser import CHROMIUM, Browser

SIDE = 64


class BrightnessRunner:
    """The brightness of each pixel is its anomaly."""

    name, precision = "brightness", "fp32"

    def infer(self, images: np.ndarray) -> Outputs:
        maps = images.mean(axis=3, dtype=np.float32)
        return Outputs(maps, maps.max(axis=(1, 2)))


def save(path: Path, place: int, brightness: int, second: int = 0) -> None:
    """A dark picture with a bright square at row and column `place`, and another one far from it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((SIDE, SIDE, 3), 10, np.uint8)
    pixels[place : place + 8, place : place + 8] = brightness
    pixels[48:56, 48:56] = np.maximum(pixels[48:56, 48:56], second)
    Image.fromarray(pixels).save(path)


def fill(root: Path, with_masks: bool = True) -> Path:
    """Good: 30, 60, 120, 140. Scratches: 80 (passed), 150 (found), 50 with 180 elsewhere. A dent: 200."""
    save(root / "train/good/000.png", 8, 20)
    for index, brightness in enumerate((30, 60, 120, 140)):
        save(root / f"test/good/{index}.png", 8, brightness)
    scratches = ((80, 0), (150, 0), (50, 180))
    for index, (brightness, second) in enumerate(scratches):
        save(root / f"test/scratch/{index}.png", 8, brightness, second)
    save(root / "test/dent/0.png", 8, 200)
    if with_masks:
        for name in ("scratch/0", "scratch/1", "scratch/2", "dent/0"):
            mask = np.zeros((SIDE, SIDE), np.uint8)
            mask[8:16, 8:16] = 255
            path = root / "ground_truth" / f"{name}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
    return root


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    return evaluate(BrightnessRunner(), read_dataset(fill(tmp_path / "bracket")), threshold=100.0)


def test_a_reject_elsewhere_is_rejected_and_not_found(evaluation: Evaluation) -> None:
    assert evaluation.recall_by_defect == {"dent": Recall(1, 1, 1, 1), "scratch": Recall(2, 1, 3, 3)}
    assert "  found              2 of 4 at their place\n    dent          1 of 1 rejected, 1 of 1 found" in table_of(
        evaluation
    )
    plain = evaluation.as_dict()
    assert plain["rejected_defects"] == {"rejected": 3, "found": 2, "marked": 4, "of": 4}
    assert {one["name"]: one["found"] for one in plain["scores"]}["test/scratch/2.png"] is False
    assert {one["name"]: one["found"] for one in plain["scores"]}["test/good/3.png"] is None
    assert confusion(evaluation) == [
        ["good", 4, 2, 2, ""], ["dent", 1, 0, 1, 1], ["scratch", 3, 1, 2, 1], ["all defects", 4, 1, 3, 2]
    ]  # fmt: skip


def test_without_masks_nothing_is_said_of_found(tmp_path: Path) -> None:
    found = evaluate(BrightnessRunner(), read_dataset(fill(tmp_path, with_masks=False)), threshold=100.0)
    assert found.recall_by_defect["scratch"] == Recall(2, None, 0, 3)
    assert "found" not in table_of(found)
    assert all(step.found is None for step in sweep(found))
    assert all(row["found"] == "" for row in csv.DictReader(io.StringIO(images_csv(found))))


def test_every_way_to_part_the_scores_is_counted(evaluation: Evaluation) -> None:
    steps = sweep(evaluation)
    assert [(step.false_rejects, step.misses, step.found) for step in steps] == [
        (3, 0, 4), (2, 0, 3), (2, 1, 2), (1, 1, 2), (0, 1, 2), (0, 2, 1), (0, 3, 1), (0, 4, 0)
    ]  # fmt: skip
    for step in steps:
        rejected = evaluation.scores > step.threshold
        assert step.false_rejects == (rejected & ~evaluation.labels).sum()
        assert step.misses == (~rejected & evaluation.labels).sum()
        assert step.relative == step.threshold / 100


@pytest.mark.parametrize(
    ("miss", "false_reject", "errors"),
    [(1, 1, (0, 1)), (10, 1, (2, 0)), (1, 10, (0, 1)), (3, 1, (2, 0)), (2, 1, (2, 0))],
)
def test_the_cheapest_follows_the_prices(
    evaluation: Evaluation, miss: float, false_reject: float, errors: tuple[int, int]
) -> None:
    costs = Costs(miss, false_reject)
    step = cheapest(evaluation, sweep(evaluation), costs)
    assert step is not None
    assert (step.false_rejects, step.misses) == errors  # of 2 and 1, which cost the same, the nearest to the present
    assert step.cost(costs) == min(one.cost(costs) for one in sweep(evaluation))
    assert f"stream --threshold {step.threshold:.6g} is the cheapest" in proposal(evaluation, step, costs)


def test_a_threshold_that_none_undercuts_stays(evaluation: Evaluation) -> None:
    good_one = replace(evaluation, threshold=145.0)
    step = cheapest(good_one, sweep(good_one), Costs())
    assert step is not None
    assert step.relative == 1
    assert "no threshold is cheaper" in proposal(good_one, step, Costs())
    assert [mark for _, mark in shown(good_one, sweep(good_one), step)].count("now, cheapest") == 1


@pytest.mark.parametrize("cost", [0.0, -1.0, float("nan"), float("inf")])
def test_a_cost_that_is_not_positive_is_refused(cost: float) -> None:
    with pytest.raises(ConfigError, match=r"--cost-miss .*: give a number above 0"):
        Costs(miss=cost)
    with pytest.raises(ConfigError, match=r"--cost-false .*: give a number above 0"):
        Costs(false_reject=cost)


def test_the_terminal_shows_both_prices(evaluation: Evaluation) -> None:
    lines = list(sweep_lines(evaluation, Costs(10)))
    assert lines[0] == "  threshold     false rejects of 4, missed of 4, found of 4"
    (now,) = (line for line in lines if line.endswith("<- now"))
    assert now.split()[:4] == ["1.000", "2", "1", "2"]
    (best,) = (line for line in lines if line.endswith("<- cheapest"))
    assert best.split()[1:4] == ["2", "0", "3"]
    some = replace(evaluation, labels=np.zeros_like(evaluation.labels))
    assert list(sweep_lines(some, Costs())) == []  # nothing is known of defects: nothing is proposed


def test_text_that_a_spreadsheet_would_compute_is_only_text(evaluation: Evaluation) -> None:
    sample = replace(evaluation.samples[0], path=evaluation.root / "=SUM(A1).png", defect="=1+1", is_anomalous=True)
    odd = replace(evaluation, samples=(sample, *evaluation.samples[1:]))
    rows = list(csv.DictReader(io.StringIO(images_csv(odd))))
    assert (rows[0]["name"], rows[0]["defect"]) == ("'=SUM(A1).png", "'=1+1")
    assert [float(row["relative_score"]) for row in rows] == pytest.approx(evaluation.relative_scores.tolist())


def test_the_report_stands_by_itself_and_escapes_names(evaluation: Evaluation, tmp_path: Path) -> None:
    promised = Threshold(100.0, 36, 36, 1 / 37, (1 / 702, 1 / 13), None)
    named = replace(evaluation, category="<b>bracket</b>", promised=promised)
    assert "  false rejects      2 of 4\n    promised: 1 of 37 good parts rejected (90 %" in table_of(named)
    out = tmp_path / "evaluation"
    write_evaluation(named, out)
    page = write_report(named, out, Costs(10), {"bundle": "runs/<i>"}).read_text()
    assert "&lt;b&gt;bracket&lt;/b&gt;" in page
    assert "runs/&lt;i&gt;" in page
    assert "<b>" not in page
    assert "Expected: 1 of 37 good parts rejected (90 % interval: 1 of 702 to 1 of 13)" in page
    assert (
        "2 of 4 good ones were rejected, of 4 with a defect 3 were rejected, of 4 marked defects 2 were found where they are"
        in page
    )
    assert page.count("data:image/png;base64,") == 2
    assert "<script" not in page
    for name in ("metrics.json", "images.csv", "sweep.csv"):
        assert f'href="{name}"' in page
    (out / "sheet.png").unlink()
    with pytest.raises(DataError, match="needs the picture"):
        write_report(named, out, Costs(), {})


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_report_is_whole_on_a_phone_and_on_a_screen(evaluation: Evaluation, tmp_path: Path) -> None:
    out = tmp_path / "report"
    write_evaluation(evaluation, out)
    page = write_report(
        evaluation, out, Costs(), {"bundle": "/home/somebody/a/long/path/of/a/bundle/that/has/no/space"}
    )
    shown = "[...document.querySelectorAll('main *')].filter(e => !e.closest('.large'))"
    with Browser(tmp_path / "browser", 1280, 900) as browser:
        for width in (390, 1280):
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=width < 500
            )
            browser.open(page.as_uri())
            assert browser.value("document.documentElement.scrollWidth <= innerWidth")
            assert (
                browser.value(
                    f"{shown}.filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.outerHTML)"
                )
                == []
            )
            # nothing is cut off that does not say so by a bar: only the sheet of pictures may be pushed sideways
            cut_off = f"{shown}.filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1).map(e => e.outerHTML)"
            assert browser.value(cut_off) == []
        assert not browser.complaints


def test_the_command_writes_report_and_tables_and_names_what_is_wrong(
    trained_run: Path, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(trained_run / "bundle")
    assert run(["evaluate", bundle, str(parts_folder), "--out", str(tmp_path), "--cost-miss", "0"]) == 2
    assert "--cost-miss 0: give a number above 0" in capsys.readouterr().err
    assert (
        run(["evaluate", bundle, str(parts_folder), "--out", str(tmp_path), "--cost-miss", "5", "--threads", "1"]) == 0
    )
    said = capsys.readouterr()
    assert "threshold     false rejects of 4, missed of 4, found of 4" in said.out
    assert "promised: " in said.out
    assert f"wrote {tmp_path / 'report.html'}" in said.err
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["promised"]["held_out"] == 10
    rows = list(csv.DictReader(io.StringIO((tmp_path / "sweep.csv").read_text())))
    assert int(rows[-1]["missed"]) == 4
