"""The paper's protocol and ablations, and one setting changed by its name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.methods.nnet.settings import (
    ABLATIONS,
    LEAN,
    PAPER,
    PAPER_LEARNING_RATE,
    PROTOCOLS,
    TUNED,
    ModelSettings,
    TrainSettings,
    ablated,
)
from nnet_edge.settings.augmentation import Augmentation


def test_the_paper_s_protocol_is_the_paper_s() -> None:
    assert (PAPER.epochs, PAPER.batch, PAPER.betas) == (200, 16, (0.5, 0.999))
    assert PAPER.learning_rate == 0.005
    assert PAPER_LEARNING_RATE == 0.05
    assert (PAPER.kd_weight, PAPER.align_weight, PAPER.align_epochs, PAPER.query_weight) == (1.2, 1.0, 20, 0.002)
    assert (PAPER.schedule, PAPER.ema_decay, PAPER.distance, PAPER.seed) == ("constant", 0.0, "pixel", 111)
    assert PAPER.augmentation.copies == 1
    model = PAPER.model
    assert (model.memory_slots, model.memory_lambda_times_slots, model.memory_addressing) == (512, 1.0, "cos_softmax")
    assert (model.fpm_reduction, model.fpm_mid, model.residual_blocks) == (32, "bn_hswish", 4)
    assert (model.forward_p3_source, model.decoder_order, model.maps) == ("recalled", "encoder", "both")
    assert model.use_fpm
    assert model.use_nfs
    assert model.use_ffc
    assert model.use_forward
    assert model.align_corners
    assert not model.standardise
    assert not model.recall_residual
    assert (model.anchor, model.scale_exponents, model.memory_init) == (0.0, (1.0, 1.0, 1.0), "uniform")
    assert model.forward_weights == (1.0, 1.0, 1.0)
    assert PAPER.memory_rate == 1
    assert PROTOCOLS == {"paper": PAPER, "tuned": TUNED, "lean": LEAN}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("row", ABLATIONS)
def test_settings_survive_the_checkpoint_s_text(protocol: str, row: str) -> None:
    settings = ablated(PROTOCOLS[protocol], row)
    assert TrainSettings.from_dict(json.loads(json.dumps(settings.as_dict()))) == settings


SWITCHES = {  # what stands in the tables: FPM, NFS, FFC, forward branch
    "4.1": (False, False, False, False),
    "4.2": (True, False, False, False),
    "4.3": (False, True, True, False),
    "4.4": (True, False, False, True),
    "4.5": (True, True, True, True),
    "5.1": (False, False, False, False),
    "5.2": (False, True, False, False),
    "5.3": (False, False, True, False),
    "5.4": (False, True, True, False),
    "6.1": (True, False, False, False),
    "6.2": (True, False, False, True),
    "6.3": (True, False, False, True),
    "6.4": (True, False, False, True),
    "7.1": (True, True, True, True),
    "7.2": (True, True, True, True),
    "7.3": (True, True, True, True),
}


@pytest.mark.parametrize("row", ABLATIONS)
def test_rows_switch_what_the_tables_say(row: str) -> None:
    model = ablated(PAPER, row).model
    assert (model.use_fpm, model.use_nfs, model.use_ffc, model.use_forward) == SWITCHES[row]


def test_every_row_of_tables_4_to_7_is_there() -> None:
    assert set(ABLATIONS) == set(SWITCHES)


def test_rows_that_change_losses_and_maps() -> None:
    assert ablated(PAPER, "6.2").align_weight == 0
    assert ablated(PAPER, "6.2").kd_weight == 1.2
    assert ablated(PAPER, "6.3").kd_weight == 0
    assert ablated(PAPER, "6.3").align_weight == 1
    assert ablated(PAPER, "6.3").model.forward_map == "student"
    assert [ablated(PAPER, row).model.maps for row in ("7.1", "7.2", "7.3")] == ["reverse", "forward", "both"]
    assert ablated(PAPER, "4.5") == PAPER


def test_a_row_leaves_the_rest_alone() -> None:
    settings = replace(PAPER, seed=5, epochs=7, model=replace(PAPER.model, memory_slots=50))
    found = ablated(settings, "5.2")
    assert (found.seed, found.epochs, found.model.memory_slots) == (5, 7, 50)


@pytest.mark.parametrize("row", ["4.9", "4", "", "table 4"])
def test_unknown_row_is_wrong_use(row: str) -> None:
    with pytest.raises(ConfigError, match=r"ablation.*4\.1"):
        ablated(PAPER, row)


@pytest.mark.parametrize(
    ("change", "read", "expected"),
    [
        ("kd_weight=0", lambda settings: settings.kd_weight, 0.0),
        ("align_epochs=3", lambda settings: settings.align_epochs, 3),
        ("betas=0.9,0.99", lambda settings: settings.betas, (0.9, 0.99)),
        ("distance = global", lambda settings: settings.distance, "global"),
        ("model.memory_slots=50", lambda settings: settings.model.memory_slots, 50),
        ("model.use_ffc=False", lambda settings: settings.model.use_ffc, False),
        ("model.standardise=true", lambda settings: settings.model.standardise, True),
        ("model.memory_temperature=1e-1", lambda settings: settings.model.memory_temperature, 0.1),
        ("augmentation.copies=4", lambda settings: settings.augmentation.copies, 4),
        ("augmentation.flip_vertical=true", lambda settings: settings.augmentation.flip_vertical, True),
    ],
)
def test_one_setting_changes_and_nothing_else(
    change: str, read: Callable[[TrainSettings], object], expected: object
) -> None:
    found = PAPER.overridden(change)
    assert read(found) == expected
    assert type(read(found)) is type(read(PAPER))
    before, after = PAPER.as_dict(), found.as_dict()
    flat = [(part, name) for part in ("model", "augmentation") for name in before[part]]
    changed = [name for part, name in flat if before[part][name] != after[part][name]]
    changed += [name for name in before if name not in ("model", "augmentation") and before[name] != after[name]]
    assert changed == [change.split("=")[0].strip().split(".")[-1]]


@pytest.mark.parametrize(
    "change",
    [
        "kd_weight",
        "=3",
        "unknown=3",
        "model=3",
        "model.unknown=3",
        "augmentation.model.copies=3",
        "nowhere.copies=3",
        "epochs=3.5",
        "epochs=many",
        "epochs=0",
        "batch=1",
        "learning_rate=nan",
        "learning_rate=-1",
        "betas=one,two",
        "distance=sideways",
        "schedule=linear",
        "model.use_fpm=1",
        "model.maps=none",
        "model.memory_slots=0",
        "model.memory_temperature=0",
        "model.memory_addressing=hash",
        "model.memory_init=zeros",
        "model.anchor=-1",
        "model.scale_exponents=1,2",
        "model.scale_exponents=0,0,0",
        "augmentation.zoom=2",
    ],
)
def test_impossible_change_is_wrong_use_in_one_line(change: str) -> None:
    with pytest.raises(ConfigError) as caught:
        PAPER.overridden(change)
    assert "\n" not in str(caught.value)


def test_forward_maps_need_the_forward_branch() -> None:
    with pytest.raises(ConfigError, match="forward branch"):
        ModelSettings(maps="forward", use_forward=False)
    with pytest.raises(ConfigError, match="forward branch"):
        ablated(replace(PAPER, model=ModelSettings(maps="forward")), "4.1")


def test_settings_that_need_each_other() -> None:
    with pytest.raises(ConfigError, match="standardise"):
        ModelSettings(anchor=0.3)
    with pytest.raises(ConfigError, match="use_nfs"):
        ModelSettings(recall_residual=True, use_nfs=False)


def test_settings_of_another_version_are_named() -> None:
    values = TrainSettings(augmentation=Augmentation(copies=2)).as_dict()
    values["model"]["from_the_future"] = 1
    with pytest.raises(ConfigError, match="from_the_future"):
        TrainSettings.from_dict(values)
