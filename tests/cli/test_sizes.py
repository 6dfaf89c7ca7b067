"""Inputs that are not 256x256, all the way: train, export, calibrate, stream on both runners, evaluate."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from nnet_edge.bundle import add_artefact, read_bundle, write_manifest
from nnet_edge.cli.main import run
from nnet_edge.errors import BundleError, EngineBuildError
from nnet_edge.evaluation.artefact import open_weights
from nnet_edge.geometry import Geometry
from nnet_edge.runtime.runners.base import infer_all, load_runner
from nnet_edge.runtime.runners.trt.record import Place, require_engine
from nnet_edge.settings.runner import RunnerSettings

HEIGHT, WIDTH = 80, 160  # of the pictures; in an input of 64x96 a letterbox of 48x96
QUICK = ["--teacher-weights", "random", "--epochs", "1", "--batch", "4", "--set", "model.memory_slots=16",
         "--set", "augmentation_copies=2", "--threads", "1"]  # fmt: skip


def part(seed: int, is_bad: bool = False, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    picture = np.full((*size, 3), 60, np.uint8)
    cv2.ellipse(picture, (size[1] // 2, size[0] // 2), (size[1] // 3, size[0] // 3), 0, 0, 360, (150, 155, 160), -1)
    if is_bad:
        cv2.circle(picture, (size[1] // 2, size[0] // 2), size[0] // 8, (20, 220, 250), -1)
    return np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def plates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 good plates, 2 with a spot, the mask of each, and one good plate of another shape."""
    root = tmp_path_factory.mktemp("plates")
    for name in ("good", "test_good", "bad/spot", "masks/spot"):
        (root / name).mkdir(parents=True)
    for seed in range(20):
        cv2.imwrite(str(root / f"good/{seed:02d}.png"), part(seed))
    cv2.imwrite(str(root / "test_good/0.png"), part(40))
    cv2.imwrite(str(root / "test_good/1.png"), part(41, size=(HEIGHT, HEIGHT)))
    for seed in range(2):
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        cv2.circle(mask, (WIDTH // 2, HEIGHT // 2), HEIGHT // 8, 255, -1)
        cv2.imwrite(str(root / f"bad/spot/{seed}.png"), part(50 + seed, is_bad=True))
        cv2.imwrite(str(root / f"masks/spot/{seed}.png"), mask)
    return root


@pytest.fixture(scope="module")
def letterboxed(plates: Path, tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    out = tmp_path_factory.mktemp("sizes") / "run"
    assert run(["train", str(plates), "--out", str(out), "--size", "64x96", "--fit", "letterbox", *QUICK]) == 0
    return out


def test_the_bundle_says_its_size_and_both_runners_give_what_pytorch_gives(letterboxed: Path) -> None:
    bundle = read_bundle(letterboxed / "bundle")
    assert bundle.geometry == Geometry(64, 96, "letterbox", (HEIGHT, WIDTH))
    assert bundle.manifest["input"]["fit"] == "letterbox"
    assert bundle.manifest["data"]["pictures"] == {"height": [80, 80], "width": [160, 160], "shape": [2.0, 2.0]}
    frames = bundle.frames("held_out")
    assert frames.shape == (10, 64, 96, 3)
    facts = {entry.key: entry.value for entry in onnx.load(bundle.graph).metadata_props}
    assert facts["nnet_edge.input"].startswith("uint8 RGB NHWC 64x96, Pillow bilinear with antialias, letterbox 48x96")
    expected = infer_all(open_weights(bundle, RunnerSettings()), frames)
    assert (expected.anomaly_map[:, :8] == 0).all()  # beside the letterbox
    assert (expected.anomaly_map[:, 8:-8] > 0).all()
    for kind in ("openvino", "onnxruntime"):
        with load_runner(bundle.graph, RunnerSettings(kind=kind, threads=1)) as runner:
            assert runner.input_shape == (64, 96, 3)
            found = infer_all(runner, frames)
        np.testing.assert_allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.image_score, expected.image_score, rtol=1e-4)


@pytest.mark.parametrize("runner", ["openvino", "onnxruntime"])
def test_a_stream_judges_at_that_size_and_notes_another_shape_once(
    letterboxed: Path, plates: Path, tmp_path: Path, runner: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(plates / "test_good", tmp_path / "all")
    shutil.copy(plates / "test_good/1.png", tmp_path / "all/2.png")
    arguments = ["--bundle", str(letterboxed / "bundle"), "--runner", runner, "--threads", "1"]
    logs = [tmp_path / "lines.jsonl", tmp_path / "events.jsonl"]
    assert run(["stream", str(tmp_path / "all"), *arguments, "--json", str(logs[0]), "--events", str(logs[1])]) == 0
    lines, events = ([json.loads(line) for line in log.read_text().splitlines()] for log in logs)
    verdicts = {line["name"]: line for line in lines}
    assert len(verdicts) == 3
    assert all("judged" not in line for line in verdicts.values())
    (told,) = [line["facts"] for line in events if line["event"] == "picture.differs"]
    assert (told["height"], told["width"]) == (80, 80)
    assert "80x80 pixels has another shape than those that were learned from (160x80)" in told["reason"]
    assert told["reason"] in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.slow
def test_calibrate_and_evaluate_at_that_size(
    letterboxed: Path, plates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = shutil.copytree(letterboxed / "bundle", tmp_path / "bundle")
    wide = ["--metric-points", "100", "--band", "9", "--runner", "openvino", "--threads", "1", "--precision", "int8"]
    assert run(["calibrate", str(bundle), str(plates), *wide]) == 0
    asked = [
        "evaluate",
        str(bundle),
        str(plates),
        "--precision",
        "int8",
        "--out",
        str(tmp_path / "report"),
        "--threads",
        "1",
    ]
    assert run(asked) == 0
    figures = json.loads((tmp_path / "report/metrics.json").read_text())
    assert figures["images"] == {"good": 2, "anomalous": 2, "skipped": 0}
    assert figures["metrics"]["pixel_auroc"] is not None
    assert figures["mask_disagreements"] == []
    (note,) = figures["notes"]
    assert note.startswith("1 of 4 images (first: 1.png): a picture of 80x80 pixels has another shape")
    assert (tmp_path / "report/sheet.png").stat().st_size > 1000
    capsys.readouterr()


def test_a_crop_says_what_it_leaves_out(
    letterboxed: Path, plates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same weights, which know no fit, told that pictures were cropped."""
    bundle = shutil.copytree(letterboxed / "bundle", tmp_path / "bundle")
    manifest = read_bundle(bundle).manifest
    write_manifest(bundle, manifest | {"input": manifest["input"] | {"fit": "crop"}})
    report, lines = tmp_path / "report", tmp_path / "lines.jsonl"
    assert run(["evaluate", str(bundle), str(plates), "--out", str(report), "--threads", "1"]) == 0
    notes = json.loads((report / "metrics.json").read_text())["notes"]
    left_out = (
        "the fit crop judges the middle 100% of each picture's height and 75% of its width; the rest is not judged"
    )
    assert left_out in notes
    assert f"note: {left_out}" in capsys.readouterr().err
    asked = ["stream", str(plates / "bad/spot"), "--bundle", str(bundle), "--threads", "1", "--json", str(lines)]
    assert run([*asked, "--threshold", "1e-9", "--rejects", str(tmp_path / "rejects")]) == 0
    verdict = json.loads(lines.read_text().splitlines()[0])
    assert verdict["judged"] == {"x": 20, "y": 0, "width": 120, "height": 80}
    assert all(region["x"] >= 20 and region["x"] + region["width"] <= 140 for region in verdict["regions"])
    assert verdict["regions"]
    assert list((tmp_path / "rejects").rglob("*.jpg"))


def test_an_engine_is_of_its_bundles_size(letterboxed: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
    from nnet_edge.export.engine import build_engine
    from nnet_edge.export.engine_settings import EngineSettings, Profile, parse_target

    bundle = read_bundle(Path(shutil.copytree(letterboxed / "bundle", tmp_path / "bundle")))
    built = build_engine(bundle.graph, EngineSettings(parse_target("rtx:sm86"), Profile(1, 2, 2)))
    assert built.record.input == (64, 96)
    made = json.loads(json.dumps(built.record.as_dict()))
    source = bundle.manifest["files"]["nnet.onnx"]
    record = {"kind": "engine", "precision": "fp32", "source": source, "made": made, "gates": {}}
    bundle = add_artefact(bundle, "nnet.fp32.rtx-sm86.engine", built.content, record)
    engine = bundle.path / "nnet.fp32.rtx-sm86.engine"
    place = Place("tensorrt_rtx", built.record.version, built.record.system, "8.6")
    assert require_engine(engine, place).input == (64, 96)
    write_manifest(bundle.path, bundle.manifest | {"input": bundle.manifest["input"] | {"height": 512, "width": 512}})
    with pytest.raises(
        BundleError, match=r"it takes images of 64x96 pixels and the bundle's are 512x512\. Build it again"
    ):
        require_engine(engine, place)
    with pytest.raises(
        EngineBuildError, match=r"takes images UINT8 \(-1, 64, 96, 3\) instead of images UINT8 \(-1, 512"
    ):
        build_engine(bundle.graph, EngineSettings(parse_target("rtx:sm86"), Profile(1, 2, 2)))


REFUSED: dict[str, tuple[list[str], str]] = {
    "no multiple": (["--size", "300"], "multiples of 32; the nearest is 288x288"),
    "no size": (["--size", "large"], "--size large: give a side, as 384, or HEIGHTxWIDTH, as 256x512"),
    "too small": (["--size", "32"], "must be from 64 to 2048"),
    "by --set": (["--set", "input.height=320"], "the input is set by --size and --fit"),
    "larger than memory": (
        ["--size", "2048", "--batch", "9"],
        "needs about .* GiB of memory and .* GiB are free: give a smaller",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_in_a_sentence(
    name: str, plates: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, says = REFUSED[name]
    monkeypatch.setattr("nnet_edge.training.memory.free_memory", lambda: 1 << 30)
    assert run(["train", str(plates), "--out", str(tmp_path / "run"), "--teacher-weights", "random", *arguments]) != 0
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(says, said), said
    assert not (tmp_path / "run/bundle").exists()


def test_a_resumed_training_keeps_its_size(letterboxed: Path, plates: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(plates), "--out", str(letterboxed), "--resume", "--size", "64"]) != 0
    assert "leave out --size" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["openvino", "onnxruntime"])
def test_a_graph_of_another_size_than_its_bundle_is_refused(letterboxed: Path, tmp_path: Path, kind: str) -> None:
    copy = shutil.copytree(letterboxed / "bundle", tmp_path / "bundle")
    manifest: dict[str, Any] = json.loads((copy / "manifest.json").read_text())
    manifest["input"] |= {"height": 512, "width": 512}
    write_manifest(copy, manifest)
    with pytest.raises(BundleError, match="takes images of 64x96 pixels and its bundle's manifest says 512x512"):
        load_runner(copy / "nnet.onnx", RunnerSettings(kind=kind, threads=1))
