"""Known answers: kept when an artefact is made, asked by whoever opens it, refused with both values when they differ."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from nnet_edge.bundle import MANIFEST, Artefact, Bundle, read_bundle
from nnet_edge.cli.main import run
from nnet_edge.errors import BundleError
from nnet_edge.files import sha256
from nnet_edge.frame import Outputs
from nnet_edge.known_answers import Answers, asked_frames, choose_frames, known_to, own_answers
from nnet_edge.runtime.runners.answers import add_answers, answer_fault, told
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.model import load_model, open_graph
from nnet_edge.settings.runner import RunnerSettings
from tests.conftest import MadeOnce

OLD = Path(__file__).parent / "data/from_0_1/bundle"  # of a tiny network: opened in no time
KINDS = ("openvino", "onnxruntime")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A bundle of before, which has no known answers."""
    return Path(shutil.copytree(OLD, tmp_path / "bundle"))


@pytest.fixture
def known(old: Path, made_once: MadeOnce) -> Bundle:
    """The same with answers."""

    def fill(folder: Path) -> None:
        add_answers(read_bundle(Path(shutil.copytree(OLD, folder, dirs_exist_ok=True))), KINDS)

    return read_bundle(Path(shutil.copytree(made_once("known_answers", fill), old, dirs_exist_ok=True)))


def change(path: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    alter(manifest)
    (path / MANIFEST).write_text(json.dumps(manifest))


def spoil(path: Path, value: float, name: str = "nnet.onnx") -> None:
    """Write `value` times every weight of the last float matrix of four axes, and its hash into the manifest."""
    model = onnx.load(path / name)
    weights = [item for item in model.graph.initializer if item.data_type == 1 and len(item.dims) == 4][-1]
    weights.CopyFrom(numpy_helper.from_array(np.float32(value) * numpy_helper.to_array(weights), weights.name))
    onnx.save(model, path / name)
    change(path, lambda manifest: manifest["files"].update({name: sha256(path / name)}))


def open_and_close(path: Path, kind: str, precision: str | None = None) -> None:
    runner, _ = open_graph(read_bundle(path), RunnerSettings(kind=kind, threads=1), precision)
    with runner:
        pass


def test_the_frames_are_those_of_the_lowest_the_middle_and_the_highest_score() -> None:
    hashes, scores = ["c", "a", "b", "e", "d"], np.array([3.0, 1.0, 2.0, 5.0, 1.0])
    assert choose_frames(hashes, scores) == ["a", "b", "e"]
    assert choose_frames(hashes[::-1], scores[::-1]) == ["a", "b", "e"], "whatever their order"
    assert choose_frames(["a", "a"], np.array([1.0, 1.0])) == ["a"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_bundle_opens_on_every_runner_in_every_precision(known: Bundle, kind: str) -> None:
    frames = known.manifest["frames"]["held_out"]
    assert len(set(asked_frames(known))) == 3
    assert set(asked_frames(known)) <= set(frames)
    assert set(own_answers(known, known.artefacts[0])) == set(KINDS)
    open_and_close(known.path, kind)
    assert add_answers(read_bundle(known.path), KINDS).manifest == known.manifest


@pytest.mark.parametrize("kind", KINDS)
def test_a_poisoned_weight_is_refused_with_both_values(known: Bundle, kind: str) -> None:
    expected = own_answers(known, known.artefacts[0])[kind]["scores"]
    spoil(known.path, 0.7)
    with pytest.raises(BundleError, match=r"does not give its known answers: frames/.* and must have ") as caught:
        open_and_close(known.path, kind)
    assert any(f"must have {score:.6g}" in str(caught.value) for score in expected)
    assert f"nnet.onnx on {kind}" in str(caught.value)


def test_stream_and_evaluate_judge_nothing_by_it(
    known: Bundle, tmp_path: Path, parts_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(known.path, 0.7)
    log = tmp_path / "verdicts.jsonl"
    assert run(["stream", "synthetic:3", "--bundle", str(known.path), "--json", str(log)]) == 1
    assert "does not give its known answers" in capsys.readouterr().err
    assert not log.exists() or "score" not in log.read_text()
    assert run(["evaluate", str(known.path), str(parts_folder), "--out", str(tmp_path / "evaluation")]) == 1
    assert "does not give its known answers" in capsys.readouterr().err


def test_a_line_keeps_its_bundle_when_the_other_answers_wrongly(known: Bundle, tmp_path: Path) -> None:
    other = Path(shutil.copytree(known.path, tmp_path / "other"))
    spoil(other, 0.7)
    settings = RunnerSettings("onnxruntime", threads=1)
    line = Line(load_model(known.path, settings), load=lambda path: load_model(path, settings))
    with line.running():
        with pytest.raises(BundleError, match="does not give its known answers"):
            line.swap(other)
        assert line.model().path == known.path


def test_a_map_that_differs_is_named_by_its_place(known: Bundle) -> None:
    answers = Answers.of(Outputs(np.ones((1, 256, 256), np.float32), np.ones(1, np.float32)))
    other = np.ones((1, 256, 256), np.float32)
    other[0, 32:64, 96:128] = 1.5
    found = Answers.of(Outputs(other, np.ones(1, np.float32)))
    says = "has 1.5 in row 2, column 4 of its 8x8 map and must have 1 .1% of the threshold 1 are allowed"
    assert says.replace(" .1%", " (1%") in answers.fault(found, ["x"], 1.0, 0.01)
    assert answers.fault(found, ["x"], 1.0, 0.6) == answers.fault(answers, ["x"], 1.0, 0.01) == ""
    again = Answers.from_dict(json.loads(json.dumps(answers.as_dict())), "x")
    assert answers.fault(again, ["x"], 1.0, 1e-6) == ""
    for bad in (np.nan, np.inf, -np.inf):
        assert "must have 1" in answers.fault(Answers(np.array([bad]), answers.maps), ["x"], 1.0, 0.05)
        assert "must have 1" in answers.fault(Answers(answers.scores, np.full((1, 8, 8), bad)), ["x"], 1.0, 0.05)


def test_a_bundle_of_before_loads_and_a_line_says_once_how_to_add_answers(
    old: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    told.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            open_and_close(old, "onnxruntime")
    (line,) = [record.message for record in caplog.records if "known answers" in record.message]
    assert f"nnet-edge answers {old}" in line
    assert run(["answers", str(old)]) == 0
    assert "answers of 3 frames on openvino and onnxruntime are kept" in capsys.readouterr().err
    assert run(["answers", str(old)]) == 0
    assert "they stay" in capsys.readouterr().err
    caplog.clear()
    open_and_close(old, "openvino")
    assert not caplog.records
    spoil(old, 0.7)
    with pytest.raises(BundleError, match="does not give its known answers"):
        open_and_close(old, "openvino")


def test_an_engine_answers_as_the_graph_that_it_was_built_of_until_it_has_answers_of_its_own(known: Bundle) -> None:
    of_graph = own_answers(known, known.artefacts[0])
    record: dict[str, Any] = {"kind": "engine", "precision": "fp32", "source": "", "made": {}, "gates": {}}
    engine = Artefact(known.path / "nnet.fp32.local.engine", "engine", "fp32", record)
    found = known_to(known, engine, "tensorrt")
    assert found is not None
    assert (found[0].as_dict(), found[1]) == (of_graph["openvino"], 0.02)
    own = {"scores": [1.0, 2.0, 3.0], "maps": of_graph["openvino"]["maps"]}
    found = known_to(known, replace(engine, record=record | {"answers": {"tensorrt": own}}), "tensorrt")
    assert found is not None
    assert (found[0].as_dict(), found[1]) == (own, 0.01)
    wrong = replace(engine, record=record | {"answers": {"tensorrt": own}})
    with load_runner(known.graph, RunnerSettings("onnxruntime", threads=1)) as runner:
        runner.name = "tensorrt"  # an engine of another network, as far as its answers go
        fault = answer_fault(known, wrong, runner)
        assert "and must have 1 (1% of the threshold" in fault
        assert answer_fault(known, engine, runner) == ""


@pytest.mark.parametrize(
    "alter",
    [
        lambda known: known.update(frames=["0" * 16]),
        lambda known: known.update(frames="all"),
        lambda known: known.update(answers=[1]),
        lambda known: known["answers"]["openvino"].pop("maps"),
        lambda known: known["answers"]["openvino"].update(scores=["x", 1, 2]),
        lambda known: known["answers"]["openvino"]["maps"].pop(),
        lambda known: known["answers"]["openvino"].update(scores=[], maps=[]),
    ],
)
def test_answers_that_are_none_are_refused(known: Bundle, alter: Callable[[dict[str, Any]], object]) -> None:
    change(known.path, lambda manifest: alter(manifest["known_answers"]))
    with pytest.raises(BundleError, match="known answers"):
        open_and_close(known.path, "openvino")
