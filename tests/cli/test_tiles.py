"""A bundle of tiles and a crop, from training to the line: every command judges by what the manifest says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.bundle import Bundle, changed, read_bundle
from nnet_edge.calibration import gate as gates
from nnet_edge.cli.main import run
from nnet_edge.evaluation.artefact import open_artifact
from nnet_edge.kept_frames import frame_hash
from nnet_edge.known_answers import asked_frames
from nnet_edge.runtime.runners.tiled import TiledRunner
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.tiles import CropShare, Tiles
from tests.conftest import good_part

HEIGHT, WIDTH = 300, 500
CROP = (40, 30, 400, 240)  # x, y, width, height
QUICK = ["--set", "augmentation_copies=0", "--set", "model.memory_slots=64", "--epochs", "1", "--batch", "8"]
ONE = ["--threads", "1"]


def picture(seed: int) -> np.ndarray:
    """Two washers on a belt, uint8 BGR (300, 500, 3); right of them lies clutter that differs from picture to picture."""
    belt = np.full((HEIGHT, WIDTH, 3), 40, np.uint8)
    belt[40:240, 50:250], belt[60:260, 230:430] = good_part(seed, 200), good_part(seed + 1000, 200)
    belt[:, 450:] = np.random.default_rng(seed).integers(0, 255, (HEIGHT, 50, 3), np.uint8)
    return belt


def stained(seed: int, x: int, y: int) -> tuple[np.ndarray, np.ndarray]:
    """The same with a stain there, and its mask."""
    found, mask = picture(seed), np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.circle(mask, (x, y), 12, 255, -1)
    found[mask > 0] = (30, 220, 240)
    return found, mask


def fill_pictures(root: Path) -> None:
    for name in ("good", "test_good", "bad/stain", "bad/outside", "masks/stain", "masks/outside"):
        (root / name).mkdir(parents=True)
    for seed in range(14):
        cv2.imwrite(str(root / "good" / f"{seed:02d}.png"), picture(seed))
    for seed, (x, y) in enumerate([(120, 100), (300, 200)]):
        cv2.imwrite(str(root / "test_good" / f"{seed}.png"), picture(100 + seed))
        for kind, place in (("stain", (x, y)), ("outside", (470, y))):
            found, mask = stained(200 + seed, *place)
            cv2.imwrite(str(root / "bad" / kind / f"{seed}.png"), found)
            cv2.imwrite(str(root / "masks" / kind / f"{seed}.png"), mask)


@pytest.fixture(scope="session")
def pictures(made_once: Callable[..., Path]) -> Path:
    return made_once("tiled_pictures", fill_pictures)


@pytest.fixture(scope="session")
def tiled_run(pictures: Path, made_once: Callable[..., Path]) -> Path:
    """run/{training,bundle} of 1x2 tiles of a crop, and said.txt, what the command said."""

    def fill(folder: Path) -> None:
        asked = ["--size", "64", "--tiles", "1x2", "--crop", ",".join(map(str, CROP)), *QUICK, *ONE]
        with (folder / "said.txt").open("w") as said, redirect_stderr(said):
            assert run(["train", str(pictures), "--out", str(folder / "run"), *asked]) == 0

    return made_once("tiled", fill)


@pytest.fixture
def tiled_bundle(tiled_run: Path, tmp_path: Path) -> Bundle:
    return read_bundle(Path(shutil.copytree(tiled_run / "run/bundle", tmp_path / "bundle")))


@pytest.fixture(scope="module", autouse=True)
def few_rounds() -> Iterator[None]:
    """No test here asks how fast a graph is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "ROUNDS", 5)
        yield


def scores_of(lines: Path) -> dict[str, float]:
    return {found["name"]: found["score"] for found in map(json.loads, lines.read_text().splitlines())}


def test_the_manifest_holds_tiles_and_crop_and_train_says_what_they_see(tiled_run: Path, tiled_bundle: Bundle) -> None:
    geometry = tiled_bundle.geometry
    assert geometry.tiles == Tiles(1, 2, height=64, width=64)
    assert geometry.crop == CropShare(CROP[0] / WIDTH, CROP[1] / HEIGHT, CROP[2] / WIDTH, CROP[3] / HEIGHT)
    assert (geometry.size, geometry.network.size) == ((64, 96), (64, 64))
    assert {name: tiled_bundle.manifest["input"][name] for name in ("height", "width", "tiles")} == {
        "height": 64, "width": 64, "tiles": {"rows": 1, "columns": 2, "overlap": 0.25}}  # fmt: skip
    assert tiled_bundle.frames("held_out").shape == (10, 64, 96, 3)
    assert tiled_bundle.manifest["data"]["learned"] == 4
    said = (tiled_run / "said.txt").read_text()
    assert "a defect must have about 34x30 pixels of the photograph to be seen (8x8 of the network" in said
    assert said.count("judged is the bundle's crop, 8.0% to 88.0% of the width, 10.0% to 90.0% of the height") == 1


def test_runner_and_pytorch_agree_and_the_stream_gives_their_scores(
    tiled_run: Path, pictures: Path, tmp_path: Path
) -> None:
    bundle, scores = tiled_run / "run/bundle", {}
    for name, more in (("runner", []), ("torch", ["--torch"])):
        out = tmp_path / name
        assert run(["evaluate", str(bundle), str(pictures), "--out", str(out), *more, *ONE]) == 0
        found = json.loads((out / "metrics.json").read_text())
        scores[name] = {row["name"]: row["score"] for row in found["scores"]}
        assert found["metrics"]["pixel_auroc"] is not None
    assert scores["torch"] == pytest.approx(scores["runner"], rel=1e-4)
    lines = tmp_path / "lines.jsonl"
    asked = ["--bundle", str(bundle), "--json", str(lines), "--rejects", str(tmp_path / "rejects"), *ONE]
    assert run(["stream", str(pictures / "bad/stain"), *asked]) == 0
    streamed = {f"bad/stain/{name}": score for name, score in scores_of(lines).items()}
    assert streamed == pytest.approx({name: scores["runner"][name] for name in streamed}, rel=1e-5)
    assert len(streamed) == 2


def test_what_lies_outside_the_crop_changes_nothing(tiled_run: Path, tmp_path: Path) -> None:
    folder, lines = tmp_path / "frames", tmp_path / "lines.jsonl"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), picture(300))
    cv2.imwrite(str(folder / "b.png"), stained(300, 470, 200)[0])
    asked = ["--bundle", str(tiled_run / "run/bundle"), "--json", str(lines), "--runner-batch", "1", *ONE]
    assert run(["stream", str(folder), *asked]) == 0
    found = scores_of(lines)
    assert found["a.png"] == found["b.png"]


def test_a_config_check_and_a_checkpoint_know_the_tiles(tiled_run: Path) -> None:
    artifact = open_artifact(tiled_run / "run/training", RunnerSettings(), False)
    with artifact.runner as runner:
        assert isinstance(runner, TiledRunner)
        assert runner.input_shape == (64, 96, 3)
    assert artifact.geometry == read_bundle(tiled_run / "run/bundle").geometry


def test_calibration_sees_tiles_and_the_gate_whole_pictures(
    tiled_bundle: Bundle, pictures: Path, tmp_path: Path
) -> None:
    wide = ["--metric-points", "100", "--band", "9", "--frames", "8", "--precision", "int8", "--runner", "openvino"]
    assert run(["calibrate", str(tiled_bundle.path), str(pictures), *wide, *ONE]) == 0
    found = read_bundle(tiled_bundle.path)
    frames = found.frames("int8")
    assert frames.shape == (8, 64, 64, 3)
    held_out = {frame_hash(tile) for tile in found.geometry.cut(found.frames("held_out"))}
    assert held_out.isdisjoint({frame_hash(frame) for frame in frames})
    gate = found.artefact("int8").record["gates"]["openvino"]
    assert gate["images"] == 10 + 6
    lines = tmp_path / "lines.jsonl"
    asked = ["--bundle", str(found.path), "--precision", "int8", "--json", str(lines), *ONE]
    assert run(["stream", str(pictures / "bad/stain"), *asked]) == 0
    assert len(scores_of(lines)) == 2


def test_answers_are_of_the_stitched_maps(tiled_bundle: Bundle) -> None:
    before = tiled_bundle.manifest["known_answers"]
    without = changed(tiled_bundle, known_answers={"frames": []})
    assert not asked_frames(without)
    assert run(["answers", str(tiled_bundle.path)]) == 0
    after = read_bundle(tiled_bundle.path).manifest["known_answers"]
    assert after["frames"] == before["frames"]
    for name, answers in before["answers"].items():
        assert after["answers"][name]["scores"] == pytest.approx(answers["scores"], rel=1e-4)


def test_tiles_that_the_manifest_lost_are_noticed(tiled_bundle: Bundle, pictures: Path, capfd: Any) -> None:
    fields = {name: value for name, value in tiled_bundle.manifest["input"].items() if name != "tiles"}
    changed(tiled_bundle, input=fields)
    assert run(["stream", str(pictures / "bad/stain"), "--bundle", str(tiled_bundle.path), *ONE]) != 0
    assert "does not show what its name says" in capfd.readouterr().err


def test_the_tiles_of_a_training_that_goes_on_are_its_own(tiled_run: Path, pictures: Path, capfd: Any) -> None:
    out = str(tiled_run / "run")
    for asked in (["--tiles", "1x2"], ["--overlap", "0.5"], ["--crop", "auto"]):
        assert run(["train", str(pictures), "--out", out, "--resume", *asked]) == 2
        assert f"leave out {asked[0]}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["--tiles", "1x1"], "1x1 tiles are invalid"),
        (["--tiles", "many"], "is no grid: give ROWSxCOLUMNS as 2x3, or auto"),
        (["--tiles", "6x6"], "enlarged more than 2 times it shows nothing new; give fewer tiles"),
        (["--tiles", "2x2", "--overlap", "0.7"], "an overlap of 0.7 is invalid"),
        (["--overlap", "0.3"], "--overlap belongs to --tiles"),
        (["--crop", "0,0,501,300"], "lies outside the good images, which have 500x300 pixels"),
        (["--crop", "0.5,0.5,0.6,0.1"], "lies outside the picture"),
        (["--crop", "left"], "is no rectangle"),
    ],
)
def test_odd_tiles_and_crops_are_one_sentence(
    pictures: Path, tmp_path: Path, capfd: Any, asked: list[str], words: str
) -> None:
    assert run(["train", str(pictures), "--out", str(tmp_path / "out"), *asked, *QUICK]) == 2
    said = capfd.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "out/training").exists()


def test_a_benchmark_of_trainings_asks_for_tiles_in_the_same_words(pictures: Path, tmp_path: Path, capfd: Any) -> None:
    for command in (["accuracy"], ["levers", "--readings-only"]):
        asked = [str(pictures), "--out", str(tmp_path), "--size", "64", "--tiles", "9x9", *QUICK]
        assert run(["bench", *command, *asked]) == 2
        assert "9x9 tiles are invalid" in capfd.readouterr().err


def test_crop_auto_leaves_its_picture(pictures: Path, tmp_path: Path, capfd: Any) -> None:
    out = tmp_path / "out"
    asked = ["--crop", "auto", "--tiles", "9x9", *QUICK]  # which ends it behind the crop
    assert run(["train", str(pictures), "--out", str(out), *asked]) == 2
    said = capfd.readouterr().err
    assert f"{out / 'crop.png'} shows it" in said
    assert (out / "crop.png").is_file()
