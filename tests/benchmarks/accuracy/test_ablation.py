"""The paper's tables: rows trained for real (an epoch, a few pictures), never computed twice, beside the paper's."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from nnet_edge.benchmarks.accuracy.ablation import (
    PRINTED,
    AblationTable,
    rows_of,
    run_table,
    trained_as,
    training_row,
)
from nnet_edge.benchmarks.accuracy.trainings import GridSettings, Watch
from nnet_edge.benchmarks.harness.grid import claiming
from nnet_edge.data.images import Dataset, read_dataset
from nnet_edge.errors import ConfigError, DataError
from nnet_edge.geometry import Geometry
from nnet_edge.methods.nnet.settings import ABLATIONS, PAPER
from nnet_edge.metrics import Metrics
from nnet_edge.training.loop import TrainOptions

SCHEMA = Path(__file__).parents[3] / "benchmarks/schemas/ablation.json"
OPTIONS = TrainOptions(device="cpu", precision="fp32", teacher_weights="random")
TINY = GridSettings(replace(PAPER, epochs=1, batch=7, input=Geometry(64, 64)), OPTIONS, seeds=(3,))


@pytest.fixture(scope="module")
def dataset(parts_folder: Path) -> Dataset:
    """24 good pictures (ten are held out), and four good and four with a stain, masks known, to judge."""
    return read_dataset(parts_folder)


@pytest.fixture(scope="module")
def measured(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[AblationTable, Path]:
    """Table 7, from one real training, and the folder that it left."""
    out = tmp_path_factory.mktemp("ablation")
    return run_table(7, [dataset], out, TINY, command="nnet-edge bench accuracy --table 7"), out


def test_table_7_is_one_training_with_three_map_subsets(dataset: Dataset, measured: tuple[AblationTable, Path]) -> None:
    table, out = measured
    out = out / dataset.category
    assert table.finished
    assert [path.name for path in out.glob("row_*")] == ["row_4.5"]
    files = sorted(path.name for path in (out / "row_4.5" / "seed_3").glob("*.json"))
    assert files == ["reading_both.json", "reading_forward.json", "reading_reverse.json"]
    both, forward, reverse = (json.loads((out / "row_4.5/seed_3" / name).read_text())["metrics"] for name in files)
    assert both != forward != reverse != both
    assert table.measured["7.1"][dataset.category][3] == Metrics(**reverse)


def test_the_file_and_the_markdown_say_the_same_as_the_table(
    dataset: Dataset, measured: tuple[AblationTable, Path]
) -> None:
    table, out = measured
    written = json.loads((out / "table_7.json").read_text())
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(written)
    assert written.items() >= json.loads(json.dumps(table.as_dict())).items()
    assert (written["command"], written["categories"]) == ("nnet-edge bench accuracy --table 7", [dataset.category])
    assert "libraries" in written["made"]
    assert written["finished"] is True
    text = table.markdown()
    assert "RANDOM WEIGHTS" in text  # the teacher's, and the table says so
    for row in ("7.1", "7.2", "7.3"):
        metrics = table.measured[row][dataset.category][3]
        assert metrics.pixel_ap is not None
        paper = PRINTED[row][0]
        assert paper is not None
        difference = f"{100 * metrics.pixel_ap - paper:+.2f}"
        line = next(line for line in text.splitlines() if line.startswith(f"| P-AP | {row} |"))
        assert f"| {100 * metrics.pixel_ap:.2f} | {paper:.2f} | {difference} |" in line


def test_a_finished_row_is_read_not_computed(
    dataset: Dataset, measured: tuple[AblationTable, Path], tmp_path: Path
) -> None:
    table, out = measured
    path = out / dataset.category / "row_4.5" / "seed_3" / "reading_both.json"
    before, told = path.stat().st_mtime_ns, []
    again = run_table(7, [dataset], out, TINY, watch=Watch(stop=lambda: pytest.fail("trained again"), say=told.append))
    assert again.measured == table.measured
    assert path.stat().st_mtime_ns == before
    assert told == []


def test_rows_of_other_settings_are_refused(dataset: Dataset, measured: tuple[AblationTable, Path]) -> None:
    out = measured[1]
    other = replace(TINY, training=replace(TINY.training, epochs=2))
    with pytest.raises(ConfigError, match=r"training\.epochs was 1, is 2.*another --out"):
        run_table(7, [dataset], out, other)


def test_a_stopped_row_goes_on_where_it_was(dataset: Dataset, tmp_path: Path) -> None:
    settings = replace(TINY, training=replace(TINY.training, epochs=2))
    asked = 0

    def stop_in_second_epoch() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3  # 14 pictures in batches of 7: two steps an epoch

    table = run_table(6, [dataset], tmp_path, settings, watch=Watch(stop=stop_in_second_epoch))
    assert not table.finished
    assert dict(table.measured) == {}
    told: list[str] = []
    asked_again = 0

    def stop_after_the_first_row() -> bool:
        nonlocal asked_again
        asked_again += 1
        return asked_again == 3  # the step that was left, the reading, a step of row 6.2

    table = run_table(6, [dataset], tmp_path, settings, watch=Watch(stop=stop_after_the_first_row, say=told.append))
    assert told[0] == f"{dataset.category}, row 6.1, seed 3: training on from epoch 2"
    assert list(table.measured) == ["6.1"]
    assert (
        tmp_path / dataset.category / "row_4.2" / "seed_3" / "reading_both.json"
    ).exists()  # 6.1 is 4.2, which Table 4 will find
    assert json.loads((tmp_path / "table_6.json").read_text())["finished"] is False
    assert "not finished" in table.markdown()


@pytest.mark.parametrize(
    ("row", "same"),
    [("4.1", "4.1"), ("5.1", "4.1"), ("5.4", "4.3"), ("6.1", "4.2"), ("6.4", "4.4"), ("7.2", "4.5"), ("6.3", "6.3")],
)
def test_rows_with_the_same_network_share_a_training(row: str, same: str) -> None:
    assert training_row(PAPER, row) == same


def test_four_tables_need_nine_trainings() -> None:
    assert len({training_row(PAPER, row) for row in ABLATIONS}) == 9
    assert trained_as(PAPER, "7.1", 5)[1].reading.branches == "reverse"
    assert trained_as(PAPER, "7.1", 5)[0].seed == 5


def test_every_row_has_the_papers_figures() -> None:
    assert set(PRINTED) == set(ABLATIONS)


def test_means_ranges_and_gains_over_the_seeds() -> None:
    def metrics(pixel_ap: float) -> Metrics:
        return Metrics(0.99, 0.98, pixel_ap, None, 0.9)

    measured = {row: {"x": {1: metrics(0.5), 2: metrics(0.6)}} for row in rows_of(5)}
    measured["5.3"] = {"x": {2: metrics(0.66), 1: metrics(0.52)}}  # whichever process was first
    table = AblationTable(5, {}, (), (1, 2), ("x",), measured)
    cell = next(cell for cell in table.cells if (cell["row"], cell["figure"]) == ("5.3", "pixel_ap"))
    assert cell["difference"] == pytest.approx(59.0 - 61.26)
    assert cell["gains"] == pytest.approx([2.0, 6.0])
    assert cell["paper_gain"] == pytest.approx(61.26 - 60.78)
    lines = table.markdown().splitlines()
    assert any("| 59.00 (52.00..66.00) | 61.26 | -2.26 | +4.00 (+2.00..+6.00) | +0.48 |" in line for line in lines)
    (exact,) = (line for line in lines if line.startswith("| P-PRO, exact | 5.3 |"))
    assert exact.endswith("| - | - | - | - | - |")  # neither measured here nor printed in the paper


def test_categories_are_averaged_over_the_seeds_that_all_of_them_have() -> None:
    def by_seed(*values: float, pixels: bool = True) -> dict[int, Metrics]:
        return {
            seed: Metrics(value, None, value if pixels else None, None, None) for seed, value in enumerate(values, 1)
        }

    def ours(table: AblationTable, figure: str) -> tuple[float, ...]:
        return next(tuple(cell["ours"]) for cell in table.cells if (cell["row"], cell["figure"]) == ("7.1", figure))

    def table(*categories: dict[int, Metrics]) -> AblationTable:
        measured = dict(zip("ab", categories, strict=True))
        return AblationTable(7, {"ours": "x"}, (), (1, 2), ("a", "b"), dict.fromkeys(rows_of(7), measured))

    both = table(by_seed(0.5, 0.7), by_seed(0.9))
    assert ours(both, "pixel_ap") == (pytest.approx(70),)
    assert not both.finished
    without_masks = table(by_seed(0.5, 0.7), by_seed(0.9, 0.9, pixels=False))
    assert without_masks.finished
    assert ours(without_masks, "image_auroc") == (pytest.approx(70), pytest.approx(80))
    assert ours(without_masks, "pixel_ap") == (pytest.approx(50), pytest.approx(70))


def test_a_row_that_another_process_claimed_is_passed_over(dataset: Dataset, tmp_path: Path) -> None:
    told: list[str] = []
    with claiming(tmp_path / dataset.category / "row_4.5" / "seed_3") as is_mine:
        assert is_mine
        table = run_table(
            7, [dataset], tmp_path, TINY, watch=Watch(stop=lambda: pytest.fail("trained"), say=told.append)
        )
    assert dict(table.measured) == {}
    assert told[0].startswith(f"{dataset.category}, row 7.1, seed 3: process {os.getpid()} on ")
    assert told[-1].startswith("3 of 3 are under way elsewhere")
    assert not (tmp_path / "table_7.json").exists()  # no table without a row


def test_a_row_that_another_process_finished_meanwhile_is_read_at_the_end(
    dataset: Dataset, measured: tuple[AblationTable, Path], tmp_path: Path
) -> None:
    done = measured[1] / dataset.category / "row_4.5" / "seed_3"
    folder = tmp_path / dataset.category / "row_4.5" / "seed_3"

    def other_process(line: str) -> None:
        if ", row 7.3, " in line:
            shutil.copytree(done, folder, ignore=shutil.ignore_patterns(".claim"), dirs_exist_ok=True)

    with claiming(folder):
        table = run_table(7, [dataset], tmp_path, TINY, watch=Watch(say=other_process))
    assert table.finished
    assert table.measured == measured[0].measured


def test_invalid_settings(dataset: Dataset, measured: tuple[AblationTable, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="table '3' is unknown: choose 4, 5, 6 or 7"):
        run_table(3, [dataset], tmp_path, TINY)
    with pytest.raises(ConfigError, match="each once"):
        GridSettings(seeds=(1, 1))
    with pytest.raises(ConfigError, match=r"categories parts.*each once"):
        run_table(4, [dataset, dataset], tmp_path, TINY)
    with pytest.raises(DataError, match="no test image"):
        run_table(4, [replace(dataset, test=())], tmp_path, TINY)
    damaged = tmp_path / dataset.category / "row_4.5"
    shutil.copytree(measured[1] / dataset.category / "row_4.5", damaged)
    (damaged / "seed_3/reading_both.json").write_text("{")
    with pytest.raises(DataError, match=r"reading_both\.json cannot be read.*delete it"):
        run_table(7, [dataset], tmp_path, TINY)
