"""Leave-one-out: what is chosen without a category, and when a default may change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from nnet_edge.benchmarks.accuracy.hyperparameters import Reading
from nnet_edge.benchmarks.accuracy.leave_one_out import leave_one_out
from nnet_edge.benchmarks.accuracy.variants import Row, VariantTable
from nnet_edge.cli.main import commands
from nnet_edge.errors import ConfigError
from nnet_edge.metrics import Metrics

SEEDS = (1, 2, 3)
CATEGORIES = ("a", "b", "c")


def measured(**gains: float) -> dict[str, dict[int, Metrics]]:
    """Figures of a variant that gains so many points in each category; "c" has no masks."""
    return {
        name: {seed: figures(0.5 + gain / 100 + seed / 1000, name != "c") for seed in SEEDS}
        for name, gain in gains.items()
    }


def figures(value: float, has_masks: bool) -> Metrics:
    pixels = value if has_masks else None
    return Metrics(value, pixels, pixels, pixels, pixels)


def table(categories: tuple[str, ...] = CATEGORIES, **variants: dict[str, dict[int, Metrics]]) -> VariantTable:
    rows = tuple(Row("length", name, "", found) for name, found in variants.items())
    return VariantTable({"command": "x"}, (), SEEDS, categories, measured(a=0, b=0, c=0), rows, 0)


def test_a_choice_never_sees_the_category_that_judges_it() -> None:
    (choice,) = leave_one_out(table(lucky=measured(a=30, b=-1, c=-1), steady=measured(a=2, b=2, c=2))).choices
    by_category = {fold.category: fold for fold in choice.folds}
    assert by_category["a"].chosen == "steady"  # b and c say nothing for the lucky one
    assert by_category["a"].unseen == pytest.approx((2, 2, 2))
    assert (by_category["a"].looked, by_category["a"].looked_gain) == ("lucky", pytest.approx(30))
    assert by_category["b"].chosen == "lucky"
    assert by_category["b"].unseen == pytest.approx((-1, -1, -1))
    assert choice.on_all == "lucky"
    assert choice.verdict == "the base stays"  # no fold agrees, though looking at all of them finds nine points


def test_a_default_may_change_where_every_fold_and_seed_agree() -> None:
    (choice,) = leave_one_out(table(steady=measured(a=2, b=3, c=1), worse=measured(a=-2, b=-3, c=-1))).choices
    assert choice.by_seed == pytest.approx((2, 2, 2))
    assert choice.verdict == "steady may replace it"
    (choice,) = leave_one_out(table(worse=measured(a=-2, b=-3, c=-1))).choices
    assert {fold.chosen for fold in choice.folds} == {"base"}
    assert choice.verdict == "the base stays"


def test_unfinished_variants_take_no_part_and_two_categories_are_too_few() -> None:
    report = leave_one_out(table(steady=measured(a=2, b=3, c=1), unfinished=measured(a=90, b=90)))
    assert [fold.chosen for fold in report.choices[0].folds] == ["steady"] * 3
    assert leave_one_out(table(unfinished=measured(a=90, b=90))).choices == ()
    with pytest.raises(ConfigError, match="at least 3 categories"):
        leave_one_out(table(categories=("a", "b"), steady=measured(a=2, b=3)))


@pytest.mark.parametrize("command", ["accuracy", "levers"])
def test_too_few_sets_are_refused_before_anything_is_trained(command: str, visa: Path, tmp_path: Path) -> None:
    words = ["bench", command, str(visa), "--categories", "candle", "--leave-one-out", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(commands, words)
    assert isinstance(result.exception, ConfigError)
    assert "at least 3 categories" in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_the_report_is_json_and_a_table() -> None:
    report = leave_one_out(table(steady=measured(a=2, b=3, c=1)))
    assert json.loads(json.dumps(report.as_dict()))["choices"][0]["verdict"] == "steady may replace it"
    lines = report.markdown().splitlines()
    assert any("all of them" in line and "+2.0 ± 0.0" in line for line in lines)


def test_scores_of_a_map() -> None:
    maps = np.zeros((1, 20, 20), np.float32)
    maps[0, 0, 0], maps[0, 10, 10], maps[0, 10, 11] = 4, 2, 1
    assert Reading().scores(maps) == [4]
    assert Reading(border=1).scores(maps) == [2]
    assert Reading(score="top", top=2 / 400).scores(maps) == [3]
    assert Reading(score="mean").scores(maps) == pytest.approx([7 / 400])
    with pytest.raises(ConfigError, match="score"):
        Reading(score="median")
