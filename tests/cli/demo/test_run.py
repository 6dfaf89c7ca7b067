"""The demo: what its page says is what was found; the whole walk, very small, leaves a folder that hangs together."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import cv2
import pytest

from nnet_edge.bundle import read_bundle
from nnet_edge.cli.demo.page import DemoRun, Verdicts, html, in_short
from nnet_edge.cli.demo.run import DemoSettings, run_demo
from nnet_edge.data.example_parts import DEFECTS, GOOD, camera
from nnet_edge.errors import ConfigError
from nnet_edge.evaluation.page import duration
from nnet_edge.methods.nnet.settings import TrainSettings
from nnet_edge.metrics import Metrics

SEED = 7
TINY = DemoSettings(
    train_parts=16,
    held_out_share=0.2,  # that is 10, the least
    test_good=4,
    test_each=2,
    camera_parts=16,
    camera_good_first=4,
    camera_hz=50.0,
    training=TrainSettings(epochs=2, batch=3, learning_rate=0.0002, align_epochs=1),
)


def figures(text: str) -> dict[str, tuple[str, str]]:
    """Label -> value and tone of the row of figures."""
    found = re.findall(r'<div class="figure (\w+)"><div class="label">(.*?)</div><div class="value">(.*?)</div>', text)
    return {unescape(label): (unescape(value), tone) for tone, label, value in found}


def test_verdicts_are_counted_against_the_truth() -> None:
    parts = list(camera(0, parts=40, good_first=5, defect_share=0.5))
    rejected = {
        index: part.defect in ("stain", GOOD) for index, part in enumerate(parts) if index != 3
    }  # 3 was dropped
    verdicts = Verdicts(parts, rejected)
    kinds = [part.defect for index, part in enumerate(parts) if index != 3]
    assert verdicts.count(GOOD) == (kinds.count(GOOD), kinds.count(GOOD))
    assert verdicts.count("stain") == (kinds.count("stain"), kinds.count("stain"))
    assert verdicts.count("dent") == (0, kinds.count("dent"))
    assert verdicts.count(None) == (kinds.count("stain"), len(kinds) - kinds.count(GOOD))
    first = verdicts.first_hit()
    assert first is not None
    assert parts[first].defect == "stain"
    assert not any(part.defect == "stain" for part in parts[:first])
    assert Verdicts(parts, dict.fromkeys(rejected, False)).first_hit() is None


def test_the_page_says_what_was_found(facts: DemoRun) -> None:
    found, defective = facts.verdicts.count(None)
    false, good = facts.verdicts.count(GOOD)
    assert found + false == facts.live.rejected
    assert defective + good == facts.live.frames == 30
    text = html(facts, facts.out)
    assert f"found {found} of {defective} parts" in text
    assert f"rejected {false} of {good} good ones" in text
    shown = figures(text)
    assert shown["Defects found"][0] == f"{found} of {defective}"
    auroc = facts.evaluation.metrics.image_auroc
    assert auroc is not None
    assert shown["Image AUROC"] == (f"{auroc:.3f}", "good" if auroc >= 0.97 else "bad")
    for defect in DEFECTS:
        assert f"<td>{defect}</td>" in text
    for words in ("weights.pth, sha256 0123", "chosen on 12 held-out images", "&lt;demo&gt;", "video/mp4", "12 epochs"):
        assert words in text
    assert "RANDOM" not in text
    assert in_short(facts)[1].startswith(f"camera: {found} of {defective} parts")


def test_a_random_teacher_is_said_loudly(facts: DemoRun) -> None:
    teacher = {"origin": "random weights (asked for)", "is_random": True}
    bundle = replace(facts.bundle, manifest=facts.bundle.manifest | {"teacher": teacher})
    random = replace(facts, bundle=bundle)
    text = html(random, facts.out)
    assert '<p class="warning" role="alert">THE TEACHER HAS RANDOM WEIGHTS' in text
    assert text.index("THE TEACHER HAS RANDOM WEIGHTS") < text.index('<div class="figures">')
    assert any("RANDOM WEIGHTS" in line for line in in_short(random))


def test_a_figure_that_cannot_be_computed_is_not_zero(facts: DemoRun) -> None:
    unknown = Metrics(**{**facts.evaluation.metrics, "pixel_ap": None})
    text = html(replace(facts, evaluation=replace(facts.evaluation, metrics=unknown)), facts.out)
    assert figures(text)["Pixel AP"] == ("not known", "plain")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (8.24, "8.2 s"), (125.4, "2 min 05 s"), (59.97, "60.0 s")]
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    impossible = replace(TINY, training=replace(TINY.training, batch=64))
    with pytest.raises(ConfigError, match="batch of 64 is impossible"):
        run_demo(tmp_path / "demo", SEED, settings=impossible)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept_unless_replacing_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        run_demo(tmp_path / "demo", SEED, settings=TINY)
    assert [path.name for path in tmp_path.rglob("*")] == ["demo", "mine.txt"]


@pytest.mark.slow
def test_the_whole_walk_leaves_a_folder_that_hangs_together(tmp_path: Path) -> None:
    said: list[str] = []
    report = run_demo(tmp_path / "demo", SEED, say=said.append, settings=TINY)
    out = tmp_path / "demo"
    assert report == out / "report.html"
    assert list(tmp_path.iterdir()) == [out]
    bundle = read_bundle(out / "bundle")
    assert bundle.manifest["metrics"]["image_auroc"] is not None
    assert bundle.manifest["teacher"]["is_random"] is False
    parts = list(camera(SEED, TINY.camera_parts, TINY.camera_good_first))
    truth = [json.loads(line) for line in (out / "truth.jsonl").read_text().splitlines()]
    assert [line["defect"] for line in truth] == [part.defect for part in parts]
    verdicts = [json.loads(line) for line in (out / "verdicts.jsonl").read_text().splitlines()]
    indices = [line["index"] for line in verdicts]
    assert indices == sorted(set(indices))
    assert set(indices) <= set(range(TINY.camera_parts))
    assert all(line["threshold"] == bundle.threshold.value for line in verdicts)
    rejects = sum(line["verdict"] == "anomalous" for line in verdicts)
    assert len(list((out / "rejects").glob("*/*.jpg"))) == rejects
    capture = cv2.VideoCapture(str(out / "line.mp4"))
    assert int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) == len(verdicts)
    capture.release()
    text = report.read_text(encoding="utf-8")
    links = re.findall(r'(?:href|src)="(?!data:)([^"]+)"', text)
    assert links
    assert all((out / unquote(link)).exists() for link in links)
    assert str(tmp_path / ".demo.") not in text  # the folder's name while it was being written
    assert "--force" not in text
    assert any("parts with a defect found" in line for line in said)
