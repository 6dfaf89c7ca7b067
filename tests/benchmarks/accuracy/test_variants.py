"""Hyper-parameters: readings of kept layer maps, a variant trained for real, and when a change counts as clear."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from nnet_edge.anomaly_map import LAYER_MAPS, Fusion, anomaly_map
from nnet_edge.benchmarks.accuracy.hyperparameters import Reading, Variant, find_variants, hyperparameters_of
from nnet_edge.benchmarks.accuracy.tables import AccuracyTables
from nnet_edge.benchmarks.accuracy.trainings import NOBODY, Watch, read_datasets
from nnet_edge.benchmarks.accuracy.variants import (
    FIGURES,
    CategoryBench,
    Difference,
    Row,
    VariantSettings,
    VariantTable,
    limited,
    run_variants,
    slug,
)
from nnet_edge.data.images import Dataset
from nnet_edge.data.seen import AskedInput
from nnet_edge.errors import ConfigError
from nnet_edge.evaluation.artefact import open_artifact
from nnet_edge.evaluation.evaluate import evaluate
from nnet_edge.methods.base import METHODS, MethodSettings
from nnet_edge.methods.nnet.settings import TUNED
from nnet_edge.metrics import Metrics
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.training.checkpoint import read_checkpoint
from tests.benchmarks.miniatures import OPTIONS, TRAINING

SCHEMA = Path(__file__).parents[3] / "benchmarks/schemas/levers.json"
SETTINGS = VariantSettings(TRAINING, OPTIONS, seeds=(3,), hyperparameters=("schedule", "stopping", "blur"))


@pytest.fixture(scope="module")
def candle(visa: Path) -> list[Dataset]:
    return read_datasets([visa], categories=["candle"])


def test_variants_share_the_training_of_accuracy_and_train_only_what_must_be(
    candle: list[Dataset], accuracy: tuple[AccuracyTables, Path]
) -> None:
    tables, out = accuracy
    told: list[str] = []
    table = run_variants(candle, out, SETTINGS, "nnet-edge bench levers", watch=Watch(say=told.append))
    assert told == []  # nothing was trained
    assert table.missing == 0
    base, row = table.base["candle"][3], tables.ours[0]
    assert row.metrics.pixel_ap == pytest.approx(base.pixel_ap, abs=1e-3)  # there OpenVINO, here PyTorch
    by_name = {row.variant: row for row in table.rows}
    assert list(by_name)[:2] == ["schedule=constant", "running mean at the end, no rule"]
    assert by_name["schedule=constant"].same_as_base == ("candle",)  # TRAINING has it already
    assert by_name["running mean at the end, no rule"].measured["candle"][3] == base  # no rule chose the weights here
    assert by_name["sigma 8"].measured["candle"][3] != base
    kept = json.loads((out / "levers.json").read_text())
    assert kept == json.loads(json.dumps(table.as_dict()))
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(kept)

    again = run_variants(
        candle, out, SETTINGS, "nnet-edge bench levers", watch=Watch(say=lambda line: pytest.fail(line))
    )
    assert again == table


@pytest.mark.parametrize(
    "asked", [AskedInput(tiles="1x2", crop="0,0,1,0.6"), AskedInput("letterbox", crop="0,0,1,0.5")]
)
def test_what_is_read_of_tiles_and_letterboxes_is_what_evaluation_judges(
    candle: list[Dataset], tmp_path: Path, asked: AskedInput
) -> None:
    settings = replace(SETTINGS, asked=asked, hyperparameters=("fusion",), variants=("sum",), with_training=False)
    found = run_variants(candle, tmp_path, settings, "").base["candle"][3]
    artifact = open_artifact(tmp_path / "candle/seed_3/training", RunnerSettings(threads=1), False)
    assert artifact.geometry.size == ((64, 96) if asked.tiles else (64, 64))
    with artifact.runner as runner:
        judged = evaluate(runner, candle[0], 1.0, geometry=artifact.geometry).metrics
    for figure in FIGURES:
        assert found[figure] == pytest.approx(judged[figure], abs=1e-3)
    with pytest.raises(ConfigError, match=r"data\.input\.\w+ was .*, is None"):
        run_variants(candle, tmp_path, replace(settings, asked=AskedInput(asked.fit)), "")


def test_what_follows_a_training_is_chosen_otherwise_without_another(
    candle: list[Dataset], accuracy: tuple[AccuracyTables, Path]
) -> None:
    settings = replace(SETTINGS, hyperparameters=("exponent power",), with_training=False)
    table = run_variants(candle, accuracy[1], settings, "x")
    power_2, power_8 = (row.measured["candle"][3] for row in table.rows)
    assert table.missing == 0
    assert power_2 != power_8
    bench, folder = CategoryBench(candle[0], accuracy[1] / "candle", settings, NOBODY), accuracy[1] / "candle/seed_3"
    changed = Variant("exponent_power=2", settles=("model.exponent_power=3",))
    with pytest.raises(ConfigError, match="settles"):
        bench.read(folder, read_checkpoint(folder / "training"), changed)


def test_a_variant_is_trained_once_in_a_folder_of_its_own(
    candle: list[Dataset], accuracy: tuple[AccuracyTables, Path]
) -> None:
    settings, out = replace(SETTINGS, hyperparameters=("rate",)), accuracy[1]
    told: list[str] = []
    stopped = run_variants(candle, out, settings, "x", watch=Watch(stop=lambda: len(told) == 1, say=told.append))
    assert (stopped.missing, told) == (2, ["candle, learning_rate=0.0025, seed 3: training"])
    table = run_variants(
        candle, out, replace(settings, with_training=False), "x", watch=Watch(say=lambda line: pytest.fail(line))
    )
    assert table.rows == ()
    finished = run_variants(candle, out, settings, "x", watch=Watch(say=told.append))
    assert told[1] == "candle, learning_rate=0.0025, seed 3: training on from epoch 1"
    assert finished.missing == 0
    lower, higher = (row.measured["candle"][3] for row in finished.rows)
    assert lower != higher != finished.base["candle"][3]
    other = replace(settings, training=replace(TRAINING, kd_weight=0.0))
    with pytest.raises(ConfigError, match=r"training\.kd_weight was 1\.2, is 0"):
        run_variants(candle, out, other, "x")


@pytest.mark.parametrize("method", METHODS.names())
def test_every_variant_can_be_trained_and_differs_from_its_fellows(method: str) -> None:
    tuned = METHODS.find(method).protocols["tuned"]
    settled = replace(tuned, augmentation_copies=0).with_length_for(84)
    found: dict[str, MethodSettings] = {}
    for lever, variant in find_variants(tuned):
        assert slug(variant.name) not in found
        settings = variant.settings(settled, 1000)
        if variant.is_trained:
            assert settings != settled, (lever, variant.name)
            assert settings not in found.values()
        found[slug(variant.name)] = settings
    assert found["turned-any-way-4-copies"].with_length_for(4 * 21).epochs == 12


def test_variants_of_a_method_are_those_of_its_folder_and_those_of_every_method_that_suit_it() -> None:
    dmdd, rbd, bikd = (METHODS.find(name).protocols["tuned"] for name in ("dmdd", "rbd", "bikd"))
    assert {"head", "abnormality", "synthesis", "blur"} <= set(hyperparameters_of(dmdd))
    assert "fusion" not in hyperparameters_of(dmdd)  # the head gives one map
    assert "fusion" in hyperparameters_of(dmdd.overridden("model.maps=both"))
    assert "synthesis" not in hyperparameters_of(rbd.overridden("corruption=mask"))
    assert "synthesis" not in hyperparameters_of(TUNED)
    assert {name for name, _ in find_variants(rbd, ("own",))} == {"corruption", "mask", "share", "consistency"}
    assert [variant.name for _, variant in find_variants(rbd, ("own",), ("corruption=mask",))] == ["corruption=mask"]
    assert {name for name, _ in find_variants(bikd, ("denoising", "own"))} >= {"denoising", "exchange", "backward"}
    with pytest.raises(ConfigError, match=r"lever 'luck' is unknown: choose own, fusion,"):
        find_variants(TUNED, ("luck",))
    assert [
        variant.name for _, variant in find_variants(TUNED, ("blur", "rate"), ("sigma 2", "learning_rate=0.01"))
    ] == [
        "sigma 2",
        "learning_rate=0.01",
    ]
    with pytest.raises(ConfigError, match="variant 'sigma 2' is unknown"):
        find_variants(TUNED, ("rate",), ("sigma 2",))


def test_a_sibling_of_n_net_is_read_and_trained_with_its_own_switches(candle: list[Dataset], tmp_path: Path) -> None:
    design = METHODS.find("rbd").protocols["design"]  # whose maps are added up
    settings = replace(
        SETTINGS, training=replace(design, epochs=1, batch=7), hyperparameters=("consistency", "fusion"),
        variants=("consistency_weight=0", "sum, weighed by the exponents", "product, exponents 1 1 1"),
    )  # fmt: skip
    table = run_variants(candle, tmp_path, settings, "nnet-edge bench levers --method rbd")
    assert table.missing == 0
    measured = {row.variant: row.measured["candle"][3] for row in table.rows}
    base = table.base["candle"][3]
    assert measured["sum, weighed by the exponents"] == base  # as it was trained
    assert base not in (measured["product, exponents 1 1 1"], measured["consistency_weight=0"])


def some_maps() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.random((2, 1, side, side), np.float32) for name in LAYER_MAPS for side in [int(name.split("_")[1])]
    }


def test_readings_of_layer_maps() -> None:
    maps, fusion = some_maps(), Fusion(True, (0.3, 0.3, 1.0), (1.0, 1.0, 0.1))
    as_trained = anomaly_map(maps, fusion=fusion)[:, 0]
    np.testing.assert_array_equal(Reading().maps(maps, fusion), as_trained)
    flat = {name: np.full_like(values, 0.5) for name, values in maps.items()}
    weighed = 0.3 * 1.0 + 0.3 * 1.0 + 1.0 * 0.55  # exponent times reverse and weighed forward map, scale by scale
    np.testing.assert_allclose(Reading("sum").maps(flat, fusion), weighed, rtol=1e-6)
    reverse = {name: values for name, values in maps.items() if name.startswith("reverse")}
    np.testing.assert_array_equal(Reading(branches="reverse").maps(maps, fusion), Reading().maps(reverse, fusion))
    spread = [np.std(Reading(sigma=sigma).maps(maps, fusion)) for sigma in (0, 2, 4, 8)]
    assert spread == sorted(spread, reverse=True)
    for wrong in ({"rule": "maximum"}, {"sigma": -1}, {"weights": "best"}):
        with pytest.raises(ConfigError):
            Reading(**wrong)  # type: ignore[arg-type]


def test_when_a_difference_is_clear() -> None:
    assert Difference((1.0, 2.0, 3.0)).direction == 1
    assert Difference((-1.0, -2.0, -3.0)).direction == -1
    assert Difference((0.1, 0.2, 6.0)).direction == 0  # one lucky seed
    assert Difference((-0.1, 2.0, 3.0)).direction == 0
    assert Difference((2.0, 2.0)).direction == 0  # too few
    assert Difference((1.0, 2.0, 3.0)).text() == "+2.0 ± 1.0"


def test_the_verdict_looks_at_every_category_and_figure() -> None:
    def measured(pixel_ap: float | None, pro: float, image: float) -> dict[int, Metrics]:
        step = 0.001
        return {
            seed: Metrics(image + seed * step, None, None if pixel_ap is None else pixel_ap + seed * step, pro, None)
            for seed in (1, 2, 3)
        }

    def verdict(*variant: dict[int, Metrics]) -> str:
        base = {"a": measured(0.5, 0.8, 0.9), "b": measured(None, 0.8, 0.9)}
        row = Row("x", "y", "", dict(zip("ab", variant, strict=True)))
        return VariantTable({}, (), (1, 2, 3), ("a", "b"), base, (row,), 0).verdict(row)

    assert verdict(measured(0.6, 0.8, 0.9), measured(None, 0.8, 0.95)) == "better"
    assert verdict(measured(0.6, 0.7, 0.9), measured(None, 0.8, 0.95)) == "mixed"
    assert verdict(measured(0.4, 0.8, 0.9), measured(None, 0.8, 0.85)) == "worse"
    assert verdict(measured(0.5, 0.8, 0.9), measured(None, 0.8, 0.9)) == "no clear change"
    assert verdict(measured(0.6, 0.8, 0.9), {1: Metrics(0.9, None, None, None, None)}) == "fewer than 3 seeds"


def test_a_limit_takes_as_many_good_as_bad_images_from_all_over_the_test(candle: list[Dataset]) -> None:
    kept = limited(candle[0], 2).test
    assert [(sample.is_anomalous, os.path.basename(sample.path)) for sample in kept] == [
        (True, "000.JPG"), (True, "002.JPG"), (False, "0019.JPG"), (False, "0021.JPG")]  # fmt: skip
    assert limited(candle[0], 99) == candle[0]
