"""`nnet_edge.train` and `nnet_edge.evaluate`: the commands as functions, checked as the commands check."""

from __future__ import annotations

import json
import pickle
import re
import threading
from pathlib import Path
from typing import Any

import pytest

import nnet_edge
from nnet_edge.cli.evaluate import command as evaluate_command
from nnet_edge.cli.keywords import options_of, parsed
from nnet_edge.cli.main import run
from nnet_edge.cli.train import command as train_command
from nnet_edge.cli.view import Verbosity, verbosity
from nnet_edge.errors import BundleError, ConfigError, DataError, TrainingError
from nnet_edge.runtime.stream.running import stopping_on_signals


@pytest.fixture(scope="module")
def trained(second_run: Path) -> nnet_edge.Training:
    """What `nnet_edge.train` gave."""
    return pickle.loads((second_run / "trained.pickle").read_bytes())  # of this very test run


def test_a_training_is_its_bundle(trained: nnet_edge.Training, second_run: Path) -> None:
    assert (trained.bundle, trained.folder) == (second_run / "run/bundle", second_run / "run/training")
    manifest = json.loads((trained.bundle / "manifest.json").read_text())
    assert trained.threshold == trained.promise.value == manifest["threshold"]["value"]
    assert repr(trained) == (
        f"Training({trained.bundle}, {manifest['data']['learned']} images, 1 epochs, threshold {trained.threshold:.4g})"
    )
    assert Path(trained) == trained.bundle
    html = trained._repr_html_()
    assert "expected: " in html
    assert html.count("data:image/png;base64,") == 1
    with nnet_edge.load(trained, threads=1) as inspector:
        assert inspector.threshold == trained.threshold
    said = (second_run / "said.txt").read_text()
    assert "skipped 1 images that cannot be read or are damaged: truncated.png" in said


def test_a_measurement_is_that_of_the_command(
    trained: nnet_edge.Training, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = nnet_edge.evaluate(trained, parts_folder, tmp_path / "called", threads=1, quiet=True)
    assert verbosity() is Verbosity.NORMAL
    said = capsys.readouterr()
    assert said.out == ""
    assert all(line.startswith("warning:") for line in said.err.splitlines())
    asked = ["evaluate", str(trained.bundle), str(parts_folder), "--out", str(tmp_path / "typed"), "--threads", "1"]
    assert run(asked) == 0
    assert found.table in capsys.readouterr().out
    typed, called = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("typed", "called"))
    assert (typed["scores"], typed["metrics"]) == (called["scores"], called["metrics"])
    assert found.metrics == called["metrics"] | {
        "false_rejects": called["false_rejects"]["count"] / called["false_rejects"]["of"],
        "missed_defects": called["missed_defects"]["count"] / called["missed_defects"]["of"],
    }
    assert found.report == tmp_path / "called/report.html"
    assert re.match(r"Measurement\(.*: 8 images on openvino, fp32\)\n  image AUROC", repr(found))
    html = found._repr_html_()
    assert html.count("data:image/png;base64,") == 2
    assert "Image AUROC" in html


def test_a_setting_that_is_not_given_has_the_default_of_the_command() -> None:
    for command, words in ((train_command, ["photos"]), (evaluate_command, ["bundle", "photos"])):
        typed = command.make_context(command.name, list(words)).params
        assert parsed(command, words, {}, "here") == typed
        assert parsed(command, words, dict.fromkeys(options_of(command)), "here") == typed
    given = parsed(train_command, ["-odd name"], {"set": {"a": 1, "b.c": True}, "false_rejects": "1/200", "margin": -1.5,
                                                 "force": True, "resume": False, "size": 384}, "here")  # fmt: skip
    assert given["data"] == Path("-odd name")
    assert given["overrides"] == ("a=1", "b.c=true")
    assert {name: given[name] for name in ("false_rejects", "margin", "force", "resume", "size")} == {
        "false_rejects": 0.005, "margin": -1.5, "force": True, "resume": False, "size": "384"}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"epoch": 3}, "train has a key 'epoch' that is unknown: did you mean epochs?"),
        ({"epochs": "many"}, "train: Invalid value for '--epochs': 'many' is not a valid integer"),
        ({"force": "yes"}, "train: force is 'yes': it must be true or false"),
        ({"epochs": True}, "train: epochs is True: it must be a text or a number"),
        ({"method": "magic"}, "--method"),
        ({"size": 63}, "an input of 63x63 pixels is impossible"),
        ({"false_rejects": 2}, "'2' is not between 0 and 1"),
        ({"resume_from": "a", "no_worse_than": "b"}, "leave out --no-worse-than"),
    ],
)
def test_wrong_settings_of_a_training_are_one_sentence(
    settings: dict[str, Any], words: str, parts_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        nnet_edge.train(parts_folder, tmp_path / "out", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out/training").exists()


def test_what_cannot_be_learned_from_or_measured_is_one_sentence(
    trained: nnet_edge.Training, parts_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises((ConfigError, DataError), match="nothing"):
        nnet_edge.train(tmp_path / "nothing")
    with pytest.raises(BundleError, match="there is no bundle at"):
        nnet_edge.evaluate(tmp_path / "nothing", parts_folder)
    with pytest.raises(ConfigError, match="holds a training already"):
        nnet_edge.train(parts_folder, trained.folder.parent)
    with pytest.raises(ConfigError, match=r"evaluate: Invalid value for '--mask-rule': 'most'"):
        nnet_edge.evaluate(trained, parts_folder, mask_rule="most")


def test_a_training_that_was_stopped_or_refused_is_no_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("nnet_edge.cli.train.learn", lambda **options: (tmp_path, 130))
    with pytest.raises(KeyboardInterrupt, match="go on with resume=True"):
        nnet_edge.train("photos")
    monkeypatch.setattr("nnet_edge.cli.train.learn", lambda **options: (tmp_path, 1))
    with pytest.raises(TrainingError, match="loses defects that the old one finds"):
        nnet_edge.train("photos")


def test_a_thread_that_is_given_no_signals_may_train() -> None:
    found = []

    def work() -> None:
        with stopping_on_signals() as stop:
            found.append(stop.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert found == [False]
