"""Accuracy: miniatures of VisA and MVTec AD measured for real, beside the paper's figures; claims of two processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from nnet_edge.benchmarks.accuracy.accuracy import run_accuracy
from nnet_edge.benchmarks.accuracy.tables import (
    MVTEC_TEXTURES,
    PAPER_SETS,
    ROW_SCHEMA,
    TABLE_1,
    TABLE_3,
    TABLE_3_AVERAGES,
    AccuracyRow,
    AccuracyTables,
    read_baseline_rows,
)
from nnet_edge.benchmarks.accuracy.trainings import Watch, read_datasets, weights_key
from nnet_edge.benchmarks.harness.grid import claiming, holder
from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.metrics import Metrics
from nnet_edge.settings.runner import RunnerSettings
from tests.benchmarks.miniatures import TINY, put
from tests.conftest import bad_part, good_part

SCHEMAS = Path(__file__).parents[3] / "benchmarks/schemas"


def make_mvtec(root: Path, image_suffix: str, mask_ending: str, bad: str) -> Path:
    """The MVTec AD layout: bottle and tile."""
    for category in ("bottle", "tile"):
        for number in range(19):
            put(root / category / f"train/good/{number:03}{image_suffix}", good_part(number))
        put(root / category / f"test/good/000{image_suffix}", good_part(60))
        picture, mask = bad_part(70)
        put(root / category / f"test/{bad}/000{image_suffix}", picture)
        put(root / category / f"ground_truth/{bad}/000{mask_ending}", 255 * mask.astype(np.uint8))
    return root


def test_a_row_is_measured_in_both_precisions_and_keeps_to_the_schema(accuracy: tuple[AccuracyTables, Path]) -> None:
    tables, out = accuracy
    assert tables.finished
    assert [row.precision for row in tables.ours] == ["fp32", "int8"]
    schema = json.loads((SCHEMAS / "accuracy_row.json").read_text())
    check = jsonschema.Draft202012Validator(schema)
    for row in tables.ours:
        known = json.loads((out / f"candle/seed_3/{row.precision}.json").read_text())
        check.validate(known)
        assert set(known) == set(schema["properties"])
        assert Metrics(**known["metrics"]) == row.metrics
        assert known["images"] == {"good": 3, "anomalous": 3, "skipped": 0, "learned": 9, "held_out": 10}
        assert row.metrics.pixel_ap is not None
        with pytest.raises(jsonschema.ValidationError):
            check.validate(known | {"metrics": {"pixel_ap": 61.2}})
    manifest = json.loads((out / "candle/seed_3/bundle/manifest.json").read_text())
    gate = manifest["artefacts"]["nnet.int8.onnx"]["gates"][tables_runner(out)]
    assert gate["metrics"] == {}  # it never saw a defect


def tables_runner(out: Path) -> str:
    return str(json.loads((out / "candle/seed_3/int8.json").read_text())["runner"])


def test_visa_s_table_1_is_beside_the_paper_s(accuracy: tuple[AccuracyTables, Path]) -> None:
    tables, out = accuracy
    cell = next(cell for cell in tables.table_1("VisA") if cell["figure"] == "pixel_ap")
    pixel_ap = tables.ours[0].metrics.pixel_ap
    assert pixel_ap is not None
    assert (cell["paper"], cell["categories"], cell["of"]) == (45.8, 1, 12)
    assert cell["difference"] == pytest.approx(100 * pixel_ap - 45.8)
    assert tables.table_1("MVTec AD") == tables.table_3() == []
    text = (out / "accuracy.md").read_text()
    assert "Table 1 of the paper, VisA (1 of 12 categories)" in text
    assert "RANDOM WEIGHTS" in text
    written = json.loads((out / "accuracy.json").read_text())
    jsonschema.Draft202012Validator(json.loads((SCHEMAS / "accuracy.json").read_text())).validate(written)
    assert written["finished"] is True


def test_finished_rows_are_read_and_rows_of_another_run_refused(
    visa: Path, accuracy: tuple[AccuracyTables, Path]
) -> None:
    tables, out = accuracy
    datasets = read_datasets([visa], categories=["candle"])
    again = run_accuracy(
        datasets, out, TINY, tables.command, watch=Watch(report=lambda progress: pytest.fail("trained again"))
    )
    assert again == tables
    other = replace(TINY, training=replace(TINY.training, batch=8))
    kept = {name: (out / name).read_bytes() for name in ("accuracy.json", "accuracy.md")}
    with pytest.raises(ConfigError, match=r"training\.batch was 7, is 8.*another --out"):
        run_accuracy(datasets, out, other, "")
    for options, was in (
        (replace(TINY.options, precision="auto"), "computed.precision was fp32, is auto"),
        (replace(TINY.options, teacher_weights=None), "computed.teacher was random, is default"),
    ):
        with pytest.raises(ConfigError, match=was):
            run_accuracy(datasets, out, replace(TINY, options=options), "")
    with pytest.raises(ConfigError, match=r"test.runner was \w+, is onnxruntime"):
        run_accuracy(datasets, out, replace(TINY, runner=RunnerSettings("onnxruntime", threads=1)), "")
    assert {name: (out / name).read_bytes() for name in kept} == kept  # a refused run costs no table


def test_rows_of_before_the_key_had_all_are_read_where_they_are_of_the_defaults(
    visa: Path, accuracy: tuple[AccuracyTables, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "candle" / "seed_3"
    folder.mkdir(parents=True)
    for precision in ("fp32", "int8"):
        known = json.loads((accuracy[1] / f"candle/seed_3/{precision}.json").read_text())
        del known["key"]["computed"], known["key"]["test"]["runner"]
        (folder / f"{precision}.json").write_text(json.dumps(known))
    datasets = read_datasets([visa], categories=["candle"])
    defaults = replace(TINY, options=replace(TINY.options, precision="auto", teacher_weights=None))
    assert run_accuracy(datasets, tmp_path, defaults, "").ours == accuracy[0].ours
    with pytest.raises(ConfigError, match=r"computed.precision was auto, is fp32"):
        run_accuracy(datasets, tmp_path, TINY, "")


def test_weights_of_the_teacher_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    one, other = tmp_path / "a.pth", tmp_path / "b.pth"
    one.write_bytes(b"weights")
    other.write_bytes(b"weights")
    assert weights_key(str(one)) == weights_key(str(other))
    other.write_bytes(b"others")
    assert len({weights_key(str(one)), weights_key(str(other)), weights_key(None), weights_key("random")}) == 4


def test_what_another_process_claimed_is_left_to_it(visa: Path, tmp_path: Path) -> None:
    told: list[str] = []
    with claiming(tmp_path / "pcb1/seed_3"):
        datasets = read_datasets([visa], categories=["pcb1"])
        tables = run_accuracy(datasets, tmp_path, TINY, "", watch=Watch(stop=lambda: False, say=told.append))
    assert not tables.finished
    assert told[0] == f"pcb1, seed 3: {holder(tmp_path / 'pcb1/seed_3')} is at it"
    assert told[-1] == "1 of 1 are under way elsewhere: the same command reads them when they are done"
    assert not (tmp_path / "accuracy.json").exists()  # no table without a row


def test_what_another_process_finished_meanwhile_is_read_at_the_end(
    visa: Path, accuracy: tuple[AccuracyTables, Path], tmp_path: Path
) -> None:
    done = accuracy[1] / "candle" / "seed_3"
    with ExitStack() as stack:
        stack.enter_context(claiming(tmp_path / "candle" / "seed_3"))

        def other_process(line: str) -> None:
            if line.startswith("candle, seed 3: process"):
                for precision in ("fp32", "int8"):
                    shutil.copy(done / f"{precision}.json", tmp_path / "candle" / "seed_3")

        datasets = read_datasets([visa], categories=["candle"])
        tables = run_accuracy(datasets, tmp_path, TINY, "", watch=Watch(say=other_process))
    assert tables.finished
    assert tables.ours == accuracy[0].ours
    assert json.loads((tmp_path / "accuracy.json").read_text())["finished"] is True


def test_the_claim_of_a_killed_process_is_free_at_once(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from nnet_edge.benchmarks.harness.grid import claiming\n"
        "with claiming(Path(sys.argv[1])) as is_mine: print(is_mine, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with claiming(tmp_path) as is_mine:
            assert not is_mine
        assert holder(tmp_path).startswith(f"process {other.pid} on ")
        os.kill(other.pid, signal.SIGKILL)
        other.wait(10)
        with claiming(tmp_path) as is_mine:
            assert is_mine


@pytest.mark.parametrize(
    ("image_suffix", "mask_ending", "bad"),
    [(".png", "_mask.png", "broken"), (".JPG", ".png", "bad")],  # MVTec AD; VisA as its own script brings it to 1cls/
)
def test_categories_of_the_mvtec_layout(tmp_path: Path, image_suffix: str, mask_ending: str, bad: str) -> None:
    root = make_mvtec(tmp_path / "data", image_suffix, mask_ending, bad)
    assert [dataset.category for dataset in read_datasets([root])] == ["bottle", "tile"]
    (tile,) = read_datasets([root], categories=["tile"])
    assert (len(tile.train), [sample.mask_path is not None for sample in tile.test]) == (19, [True, False])
    assert [one.category for one in read_datasets([root / "tile", root / "bottle"])] == ["tile", "bottle"]
    with pytest.raises(ConfigError, match=r"no category 'cable'.*bottle, tile"):
        read_datasets([root], categories=["cable"])
    with pytest.raises(ConfigError, match="category bottle lies in"):
        read_datasets([root, root / "bottle"])


def test_a_table_of_the_paper_on_a_category_of_mvtec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_mvtec(tmp_path / "data", ".png", "_mask.png", "broken")
    command = ["bench", "accuracy", str(root), "--categories", "tile", "--table", "7", "--seeds", "5", "--epochs", "1"]
    out = tmp_path / "out"
    quick = ["--batch", "7", "--teacher-weights", "random", "--precision", "fp32"]
    assert run([*command, *quick, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    ours = 100 * json.loads((out / "tile/row_4.5/seed_5/reading_both.json").read_text())["metrics"]["pixel_auroc"]
    assert f"| P-AUROC | 7.3 | maps M1 to M6 | {ours:.2f} | 98.30 | {ours - 98.3:+.2f} |" in text


def row(category: str, seed: int, pixel_ap: float | None, method: str = "N-Net") -> AccuracyRow:
    return AccuracyRow(method, "x", "fp32", category, seed, Metrics(0.9, 0.9, pixel_ap, 0.9, 0.9))


def test_averages_of_table_3_stand_only_where_they_are_complete() -> None:
    rows = [row(name, seed, 0.5 + 0.1 * seed) for name in MVTEC_TEXTURES for seed in (1, 2)] + [row("pill", 1, 0.8)]
    tables = AccuracyTables("", PAPER_SETS["MVTec AD"], (1, 2), tuple(rows))
    cells = {cell["category"]: cell for cell in tables.table_3()}
    assert set(cells) == {*MVTEC_TEXTURES, "pill", "average, textures"}
    assert cells["average, textures"]["ours"] == pytest.approx([60, 70])
    assert cells["average, textures"]["difference"] == pytest.approx(65 - 59.9)
    assert cells["pill"]["difference"] == pytest.approx(80 - 81.7)
    assert "| N-Net, x, fp32 | carpet | 65.0 ± 7.1 | 69.4 | -4.4 | RD 66.8 |" in tables.markdown()
    assert not tables.finished


def test_a_peer_stands_beside_ours_and_a_category_without_masks_is_averaged_over(tmp_path: Path) -> None:
    known = {
        "schema": ROW_SCHEMA,
        "method": "PaDiM",
        "backbone": "x",
        "precision": "fp32",
        "category": "toy",
        "seed": 0,
    }
    (tmp_path / "padim.json").write_text(json.dumps(known | {"metrics": {"image_auroc": 0.75}}))
    (tmp_path / "other.json").write_text("[]")
    peers = read_baseline_rows(tmp_path)
    ours = (row("toy", 1, None), row("part", 1, 0.5))
    lines = AccuracyTables("", ("toy", "part"), (1,), ours, tuple(peers)).markdown().splitlines()
    assert "| toy | PaDiM, x, fp32 | 75.0 | - | - | - | - | 1 |" in lines
    assert "| mean of 2 | N-Net, x, fp32 | 90.0 | 90.0 | 50.0 | 90.0 | 90.0 | 1 |" in lines
    assert not any(line.startswith("| mean of 2 | PaDiM") for line in lines)
    (tmp_path / "other.json").write_text("{")
    with pytest.raises(DataError, match=r"other\.json cannot be read as a row"):
        read_baseline_rows(tmp_path)


def test_the_paper_s_means_agree_with_its_rows() -> None:
    """As the specification found: within 0.05 and the rounding of two printed digits."""
    for method, printed in enumerate(zip(*TABLE_3.values(), strict=True)):
        assert np.mean(printed) == pytest.approx(TABLE_3_AVERAGES["all"][method], abs=0.0601)
        assert np.mean(printed[:5]) == pytest.approx(TABLE_3_AVERAGES["textures"][method], abs=0.0601)
        assert np.mean(printed[5:]) == pytest.approx(TABLE_3_AVERAGES["objects"][method], abs=0.0601)
    assert TABLE_1["MVTec AD"]["pixel_ap"][-1] == TABLE_3_AVERAGES["all"][-1]
