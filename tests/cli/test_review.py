"""`nnet-edge review` and what follows it: a training that goes on from a bundle and proves that it loses no defect."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.bundle import id_of, read_bundle
from nnet_edge.cli import train as train_module
from nnet_edge.cli import training_settings
from nnet_edge.cli.main import run
from nnet_edge.data.layouts import read_dataset
from nnet_edge.errors import TrainingError
from nnet_edge.evaluation.proof import prove
from nnet_edge.runtime.history.database import ACCEPTED, Bounds, Entry, HistoryWriter
from nnet_edge.runtime.history.labels import add_label
from nnet_edge.runtime.sinks.fields import utc_text
from nnet_edge.settings.runner import RunnerSettings

ONE_THREAD = ["--threads", "1"]


@pytest.fixture
def history(parts_folder: Path, trained_run: Path, tmp_path: Path) -> Path:
    """Two false alarms and a true defect, which the bundle judged."""
    path, bundle_id = tmp_path / "history.db", id_of(read_bundle(trained_run / "bundle").manifest)
    writer = HistoryWriter(path, Bounds(1e4, 1 << 40, 10))
    writer.open()
    for number, name in enumerate(("test_good/0", "test_good/1", "bad/stain/0", "test_good/2")):
        is_bad = number < 3
        fields = {
            "id": f"left/S/{number}", "stream": "left", "index": number, "time": utc_text(1_795_000_000_000 + number),
            "score": 1.5 if is_bad else 0.5, "threshold": 1.0, "verdict": "anomalous" if is_bad else "good", "regions": [],
            "bundle_id": bundle_id, "size": [96, 96],
        }  # fmt: skip
        kind = "original" if is_bad else ACCEPTED
        writer.add([Entry(fields, {kind: (parts_folder / f"{name}.png").read_bytes()})])
    writer.close()
    for row, label, defect in (
        (1, "false_alarm", None),
        (2, "false_alarm", None),
        (3, "true_defect", "stain"),
        (4, "good", None),
    ):
        add_label(path, row, "Ann", label, defect)
    return path


@pytest.mark.slow
def test_a_review_exports_and_a_training_goes_on_and_proves(
    history: Path, trained_run: Path, parts_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle, added = trained_run / "bundle", tmp_path / "added"
    assert run(["review", str(bundle), str(history), "--export", str(added)]) == 0
    said = capfd.readouterr()
    assert "labelled parts of this bundle: 3 good (2 of them false alarms), 1 with a defect" in said.out
    assert "wrote 3 good and 1 defective parts" in said.err
    command = [
        "train",
        str(parts_folder),
        "--resume-from",
        str(bundle),
        "--add",
        str(added),
        "--out",
        str(tmp_path / "next"),
    ]
    code = run([*command, "--epochs", "1", "--batch", "7", *ONE_THREAD])
    said = capfd.readouterr()
    assert "17 good images to learn from, 10 held out" in said.err  # 24 old and 3 new ones
    assert f"{parts_folder}: of 4 with a defect the old bundle rejects " in said.err
    assert f"{added}: of 1 with a defect the old bundle rejects " in said.err
    kept = "bundle" if code == 0 else train_module.REFUSED
    old, new = read_bundle(bundle).manifest, read_bundle(tmp_path / "next" / kept).manifest
    chosen = {"scale_exponents": None}  # anew, at the end
    assert new["train"]["model"] | chosen == old["train"]["model"] | chosen
    assert new["data"]["fingerprint"] != old["data"]["fingerprint"]
    assert new["teacher"] == old["teacher"]
    held = set(new["data"]["held_out_files"])
    assert held == set(old["data"]["held_out_files"])  # ten, of which none of the three new ones is needed
    assert held.isdisjoint(old["data"]["learned_files"])  # none that chooses the threshold was ever learned


@pytest.mark.slow
def test_a_training_anew_with_added_parts_is_proved_too(
    trained_run: Path, parts_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bundle, added = trained_run / "bundle", tmp_path / "added"
    for kind, source in (("good", "test_good"), ("bad/stain", "bad/stain")):
        shutil.copytree(parts_folder / source, added / kind)
    command = [
        "train",
        str(parts_folder),
        "--no-worse-than",
        str(bundle),
        "--add",
        str(added),
        "--out",
        str(tmp_path / "next"),
    ]
    small = ["--size", "64", "--epochs", "1", "--batch", "7", "--backbone", "resnet18", "--teacher-weights", "random"]
    code = run([*command, *small, *ONE_THREAD])
    said = capfd.readouterr().err
    more = len(list((added / "good").iterdir()))
    old = read_bundle(bundle).manifest
    new = read_bundle(tmp_path / "next" / ("bundle" if code == 0 else train_module.REFUSED)).manifest
    assert new["data"]["learned"] + new["data"]["held_out"] == old["data"]["learned"] + old["data"]["held_out"] + more
    assert new["data"]["goes_on_from"] is None
    assert "learning_on" not in new["trained"]
    for folder in (parts_folder, added):
        assert f"{folder}: of 4 with a defect the old bundle rejects " in said


def test_groups_of_the_data_that_added_parts_have_not_are_told_of(
    parts_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def keep(*arguments: Any) -> bool:
        asked.append(arguments[5]["groups"])
        return True

    monkeypatch.setattr(train_module, "train_bundle", keep)
    grouped = tmp_path / "photos"
    for day in ("monday", "tuesday", "friday"):
        shutil.copytree(parts_folder / "good", grouped / "good" / day)
    for groups, told in (([], True), (["--groups", "none"], False)):
        assert run(["train", str(grouped), "--add", str(parts_folder), "--out", str(tmp_path / "out"), *groups]) == 0
        assert ("has groups and" in capsys.readouterr().err) is told
    assert asked == ["none", "none"]


@pytest.mark.slow
def test_a_bundle_that_loses_a_defect_is_put_aside(
    trained_run: Path, parts_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    blind = tmp_path / "next"
    shutil.copytree(trained_run / "bundle", blind / "bundle")
    manifest = json.loads((blind / "bundle/manifest.json").read_text())
    promised = manifest["threshold"]["expected_false_rejects"]
    manifest["threshold"]["value"] = 1e6
    (blind / "bundle/manifest.json").write_text(json.dumps(manifest))
    datasets = [read_dataset(parts_folder)]
    proof = prove(trained_run / "bundle", blind / "bundle", datasets, RunnerSettings(threads=1))
    assert len(proof.lost) == int(proof.compared[0].old.rejected[proof.compared[0].old.labels].sum()) > 0
    options: dict[str, Any] = {"skip_bad_images": False}
    assert not train_module.prove_bundle(trained_run / "bundle", blind, datasets, RunnerSettings(threads=1), options)
    assert not (blind / "bundle").exists()
    assert (blind / "bundle-refused/manifest.json").exists()
    said = capfd.readouterr().err
    assert "loses defects that the old one finds" in said
    assert "fewer false rejects" not in said  # both promise the same
    manifest["threshold"]["expected_false_rejects"] = promised / 1.6
    shutil.move(blind / "bundle-refused", blind / "bundle")
    (blind / "bundle/manifest.json").write_text(json.dumps(manifest))
    assert not train_module.prove_bundle(trained_run / "bundle", blind, datasets, RunnerSettings(threads=1), options)
    asked = re.search(r"--resume --false-rejects ([0-9.]+) ", capfd.readouterr().err)
    assert asked is not None
    assert float(asked[1]) == pytest.approx(2 * promised / 1.6, abs=1e-4)  # a multiple of what it promises
    shutil.copytree(trained_run / "bundle", blind / "bundle")
    assert train_module.prove_bundle(trained_run / "bundle", blind, datasets, RunnerSettings(threads=1), options)
    assert not (blind / "bundle-refused").exists()  # that of an earlier run
    same = prove(trained_run / "bundle", trained_run / "bundle", datasets, RunnerSettings(threads=1))
    assert same.lost == ()


def test_what_does_not_go_together_is_refused(
    trained_run: Path, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(trained_run / "bundle")
    (tmp_path / "good").mkdir()
    assert cv2.imwrite(str(tmp_path / "good/0.png"), np.zeros((96, 96, 3), np.uint8))
    refused = tmp_path / "out" / train_module.REFUSED
    shutil.copytree(bundle, refused)
    wrong: list[tuple[list[str], str]] = [
        (["--add", str(tmp_path / "absent")], "absent"),
        (["--resume-from", bundle, "--no-worse-than", bundle], "leave out --no-worse-than"),
        (["--no-worse-than", bundle, "--out", str(trained_run)], "give another folder"),
        (["--no-worse-than", str(refused)], "give another folder"),  # which the proof would delete
        (["--no-worse-than", str(tmp_path)], "manifest"),
        (["--resume-from", bundle, "--backbone", "resnet18"], "leave out --backbone"),
        (["--resume-from", bundle, "--folds", "3"], "leave out --folds"),
        (["--resume-from", bundle, "--protocol", "tuned"], "--protocol lean makes it small"),
        (["--resume-from", bundle, "--epochs", "0"], "epochs is 0"),
        (["--resume-from", bundle, "--out", str(trained_run)], "give another folder"),
        (["--resume-from", str(tmp_path)], "manifest"),
    ]
    for options, told in wrong:
        out = [] if "--out" in options else ["--out", str(tmp_path / "out")]
        assert run(["train", str(parts_folder), *out, *options]) != 0
        assert told in capsys.readouterr().err


@pytest.mark.usefixtures("one_thread")
def test_a_training_that_goes_on_begins_with_what_the_bundle_knows(trained_run: Path, tmp_path: Path) -> None:
    import torch

    from nnet_edge.methods.compute import Compute
    from nnet_edge.methods.network import PLACE_FACTORS
    from nnet_edge.training.start import start_afresh

    base = read_bundle(trained_run / "bundle")
    learned = training_settings.learned_by(base)
    defaults: Callable[..., Any] = training_settings.settings_of
    nothing = dict.fromkeys(training_settings.SETTING_OPTIONS) | {"folds": 1, "seed": 5}
    settings = defaults(base, nothing)
    images = np.zeros((4, 256, 256, 3), np.uint8)
    start = start_afresh(
        images, images, settings, tmp_path, Compute(torch.device("cpu"), "fp32"), None, {}, print, learned
    )
    found = start.network.state_dict()
    assert set(found) == set(learned.weights) - {PLACE_FACTORS}
    assert all(torch.equal(value, learned.weights[name]) for name, value in found.items())
    assert settings.epochs == base.manifest["train"]["epochs"]
    assert start.position == (settings.epochs, 0)  # its passes are over: it learns on


def test_a_training_that_goes_on_is_resumed_with_its_bundle() -> None:
    facts = {"fingerprint": "f", "held_out": 10, "seed": 0, "together": "equal", "folds": 1, "groups": None}
    began: Any = SimpleNamespace(facts={"data": facts | {"goes_on_from": "abc"}}, settings="its settings")
    now: Any = SimpleNamespace(facts=facts | {"goes_on_from": "abc"})
    alone: Any = SimpleNamespace(facts=facts | {"goes_on_from": None})
    assert training_settings.known_settings(began, now) == "its settings"
    with pytest.raises(TrainingError, match=r"goes_on_from was abc, is None.* and --resume-from"):
        training_settings.known_settings(began, alone)
    older: Any = SimpleNamespace(facts={"data": facts}, settings="its settings")  # of before there was the key
    assert training_settings.known_settings(older, alone) == "its settings"
