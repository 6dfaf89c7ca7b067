"""The choice of method and backbone by painted anomalies on good parts, of equals the default; a sentence for each mistake."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.bundle import read_bundle
from nnet_edge.cli.main import run
from nnet_edge.geometry import Geometry
from nnet_edge.methods.base import METHODS
from nnet_edge.methods.teacher_weights import installed_backbones
from nnet_edge.training import choice
from nnet_edge.training.choice import BRIEF, Candidate, Choice, briefly, choose
from nnet_edge.training.loop import TrainOptions

pytestmark = pytest.mark.usefixtures("one_thread", "few_copies")
OPTIONS = TrainOptions("cpu", "fp32", teacher_weights="random")


@pytest.fixture
def few_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test here asks how well a candidate is judged."""
    monkeypatch.setattr(choice, "COPIES", 6)
    monkeypatch.setattr(choice, "ROUNDS", 1)


def candidate(method: str, pixel_ap: float, image_ms: float, image_auroc: float = 0.9) -> Candidate:
    return Candidate(method, "efficientnet_lite0", pixel_ap, image_auroc, 0.3, image_ms, 10.0)


def test_the_best_wins_and_of_equals_the_default_or_the_cheapest() -> None:
    usual, quick, poor = candidate("nnet", 0.50, 30), candidate("rbd", 0.52, 10), candidate("bikd", 0.3, 5)
    assert Choice((quick, usual, poor)).winner == usual
    assert "within 2 points of rbd's merit, and the default" in Choice((quick, usual, poor)).sentence()
    assert Choice((usual, poor)).winner == usual
    assert "the highest merit" in Choice((usual, poor)).sentence()
    better, slow = candidate("rbd", 0.6, 10), candidate("bikd", 0.62, 20)
    assert Choice((usual, slow, better)).winner == better  # the default is clearly behind
    assert "within 2 points of bikd's merit, and cheaper" in Choice((usual, slow, better)).sentence()
    larger = replace(usual, backbone="efficientnet_lite2", pixel_ap=0.51, image_ms=50)
    assert Choice((larger, usual)).winner == usual
    assert "within 2 points of nnet's merit, and cheaper" in Choice((larger, usual)).sentence()


def test_the_table_has_a_row_for_each_and_marks_the_winner() -> None:
    lines = Choice((candidate("bikd", 0.3, 5), candidate("nnet", 0.9, 30))).table().splitlines()
    assert lines[0].split() == [
        "method",
        "backbone",
        "merit",
        "pixel",
        "AP",
        "image",
        "AUROC",
        "spread",
        "ms",
        "an",
        "image",
        "s",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["nnet", "bikd"]
    assert [line.endswith("<- chosen") for line in lines] == [False, True, False]
    assert "90.0" in lines[1]


def test_a_candidate_is_trained_for_a_part_of_its_length() -> None:
    tuned = METHODS.find("rbd").protocols["tuned"]
    assert briefly(tuned).image_steps == round(BRIEF * tuned.image_steps)
    assert briefly(METHODS.find("rbd").protocols["design"]).epochs == round(BRIEF * 200)
    assert briefly(tuned).look_every == 0


def test_candidates_are_judged_and_nothing_is_left(small_washers: np.ndarray, tmp_path: Path) -> None:
    said: list[str] = []
    few = [replace(METHODS.find(name).protocols["tuned"], epochs=2, image_steps=0, augmentation_copies=0, batch=2,
                   input=Geometry(64, 64)) for name in ("rbd", "nnet")]  # fmt: skip
    found = choose(small_washers[:4], small_washers[4:], few, tmp_path / "candidates", OPTIONS, say=said.append)
    assert found is not None
    assert [one.method for one in found.candidates] == ["rbd", "nnet"]
    assert all(0 <= one.merit <= 1 and one.image_ms > 0 and one.spread >= 0 for one in found.candidates)
    assert not (tmp_path / "candidates").exists()
    assert [line for line in said if "briefly" in line] == [
        "candidate 1 of 2: RBD with efficientnet_lite0, briefly", "candidate 2 of 2: N-Net with efficientnet_lite0, briefly"
    ]  # fmt: skip
    assert json.loads(json.dumps(found.as_dict()))["candidates"][0]["merit"] == found.candidates[0].merit


def test_auto_trains_the_winner_and_the_manifest_says_why(
    parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--set", "image_steps=14", "--set", "look_every=0", "--set", "augmentation_copies=0", "--batch", "7",
             "--threads", "1", "--size", "64"]  # fmt: skip
    assert run(["train", str(parts_folder), "--method", "auto", "--out", str(tmp_path / "run"), *short]) == 0
    said = capsys.readouterr().err
    assert "<- chosen" in said
    assert "chosen on good parts: " in said
    manifest = read_bundle(tmp_path / "run/bundle").manifest
    made = manifest["data"]["choice"]
    assert manifest["system"] == made["method"]
    assert {one["method"] for one in made["candidates"]} == {"nnet", "bikd", "rbd"}
    assert "dmdd learns where synthetic anomalies are, so they cannot judge it: left out of the choice" in said


def test_backbones_are_those_with_weights() -> None:
    assert installed_backbones()[0] == "efficientnet_lite0"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "auto", "--ablation", "4.2"], "--ablation and auto contradict each other: name the method"),
        (["--method", "auto", "--paper-lr"], "--paper-lr and auto contradict each other"),
        (["--backbone", "auto", "--teacher-weights", "x.pth"], "--teacher-weights are of one backbone"),
        (["--method", "padim"], "--method: method 'padim' is unknown: choose bikd, dmdd, nnet, rbd"),
        (["--method", "rbdd"], "--method: method 'rbdd' is unknown: did you mean rbd?"),
        (["--method", "rbd", "--ablation", "4.2"], "there are no tables to ablate for RBD; use --set"),
        (["--method", "rbd", "--paper-lr"], "no paper of RBD prints a learning rate"),
        (["--method", "rbd", "--protocol", "paper"], "--protocol of RBD 'paper' is unknown: choose design or tuned"),
        (["--textures", "none-such"], "--textures: N-Net as it is set learns without synthetic anomalies"),
        (["--method", "rbd", "--textures", "none-such"], "none-such"),
        (["--method", "auto", "--set", "memory_rate=1"], "there is no setting memory_rate"),
    ],
)
def test_a_wrong_choice_is_one_sentence(
    words: list[str], says: str, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(parts_folder), "--out", str(tmp_path / "run"), "--threads", "1", *words]) in (1, 2)
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "run/bundle").exists()


def test_resume_with_another_method_is_refused(
    trained_run: Path, parts_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", str(parts_folder), "--out", str(trained_run), "--resume", "--method", "rbd"]) == 2
    assert (
        "--resume goes on with the settings that the training began with: leave out --method" in capsys.readouterr().err
    )
