"""Speed: a random bundle through every contender for real, and the arithmetic of the report on known rounds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.benchmarks.command_line import run_command
from nnet_edge.benchmarks.contenders import SpeedSettings
from nnet_edge.benchmarks.random_bundle import command as random_bundle_command
from nnet_edge.benchmarks.random_bundle import make_random_bundle, real_pictures
from nnet_edge.benchmarks.speed import busy_percent, command, measure_speed, take_turns
from nnet_edge.benchmarks.speed_report import Result, Round, SpeedReport
from nnet_edge.bundle import Bundle
from nnet_edge.errors import ConfigError, DataError

TINY = SpeedSettings(frames=4, repeats=2, batches=(1, 2), threads=1)


@pytest.fixture(scope="module")
def random_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle of the smallest backbone with random weights."""
    return make_random_bundle(tmp_path_factory.mktemp("random") / "bundle", "efficientnet_lite0")


@pytest.fixture(scope="module")
def report(random_bundle: Bundle, parts_folder: Path) -> SpeedReport:
    """Two rounds of every contender on four pictures."""
    return measure_speed(random_bundle.path, parts_folder / "test_good", TINY, "the command")


def test_a_random_bundle_says_so_and_holds_no_training(random_bundle: Bundle, report: SpeedReport) -> None:
    assert random_bundle.manifest["teacher"]["is_random"] is True
    assert random_bundle.manifest["trained"]["epochs"] == 0
    assert random_bundle.threshold.held_out == len(real_pictures()) == 12
    assert report.warnings[0] == random_bundle.warnings[0]
    assert report.markdown().startswith("**THE TEACHER HAS RANDOM WEIGHTS")


def test_real_pictures_are_twelve_different_photographs() -> None:
    pictures = real_pictures()
    assert (pictures.shape, pictures.dtype) == ((12, 256, 256, 3), np.uint8)
    assert len(np.unique(pictures.reshape(12, -1), axis=0)) == 12
    assert pictures.std(axis=(1, 2, 3)).min() > 10


def test_every_contender_took_every_turn(report: SpeedReport) -> None:
    found = {(one.kind, one.system, one.precision, one.batch) for one in report.results}
    runners = {(kind, name, "fp32") for kind in ("bare", "stream") for name in ("openvino", "onnxruntime")}
    torch = {(kind, "torch", "fp32") for kind in ("torch eager", "torch network alone")}
    assert found == {(*one, batch) for one in runners | torch for batch in (1, 2)}
    for result in report.results:
        assert [turn.frames for turn in result.rounds] == [4, 4]
        assert all(turn.seconds > 0 for turn in result.rounds)
        latencies = 8 if result.kind == "stream" or result.batch == 1 else 4
        assert result.latency_count == latencies
        assert 1 <= result.met_batch <= result.batch
    assert all(one.rounds[0].rejected is not None for one in report.results if one.kind == "stream")


def test_a_ratio_of_stream_to_its_runner_and_to_torch_for_every_batch(report: SpeedReport) -> None:
    below = ["torch eager", "torch network alone", "bare openvino"]
    assert [(r.below, r.batch) for r in report.ratios if r.above == "stream openvino"] == [
        (name, batch) for batch in (1, 2) for name in below
    ]
    assert len(report.ratios) == 12


def test_the_header_names_what_made_the_numbers(report: SpeedReport) -> None:
    assert report.header["command"] == "the command"
    assert report.header["threads"] == "1 for every contender"
    assert "96x96 pixels, png" in report.header["pictures"]
    assert "efficientnet_lite0, input 256x256" in report.header["bundle"]
    assert "openvino 20" in report.header["versions"]


@pytest.mark.parametrize(("busy", "warns"), [(9.0, False), (60.0, True)])
def test_a_busy_machine_is_named(
    random_bundle: Bundle, parts_folder: Path, monkeypatch: pytest.MonkeyPatch, busy: float, warns: bool
) -> None:
    monkeypatch.setattr("nnet_edge.benchmarks.speed.busy_percent", lambda: busy)
    one = SpeedSettings(frames=1, repeats=1, batches=(1,), threads=1, kinds=("openvino",), with_torch=False)
    report = measure_speed(random_bundle.path, parts_folder / "test_good", one)
    assert ("NOT IDLE (60 % busy" in report.markdown()) is warns
    assert report.header["busy before"] == f"{busy:.0f} % of all cores"


def test_how_busy_the_machine_is_can_be_asked() -> None:
    assert 0 <= busy_percent() <= 100


def test_the_command_writes_json_and_a_table(
    random_bundle: Bundle, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speed.json"
    arguments = [random_bundle.path, parts_folder / "good", "--frames", 2, "--repeats", 1, "--batch", 2, "--threads", 1,
                 "--runner", "openvino", "--no-torch", "--json", out]  # fmt: skip
    assert run_command(command, [str(value) for value in arguments]) == 0
    written = json.loads(out.read_text())
    assert [one["kind"] for one in written["results"]] == ["bare", "stream"]
    assert written["ratios"][0]["to"] == "bare openvino"
    printed = capsys.readouterr().out
    for result in written["results"]:
        assert f"{result['frames_per_s']['median']:.1f} (" in printed
    assert "2 (96x96 pixels, png)" in printed  # the first two of 24 pictures


def test_medians_ranges_percentiles_and_paired_ratios() -> None:
    def result(kind: str, rates: list[float]) -> Result:
        rounds = [Round(10, 10 / rate, tuple(range(1, 11)), 5) for rate in rates]
        return Result(kind, "openvino", "fp32", 8, tuple(rounds))

    report = SpeedReport({}, (), (result("bare", [10, 40, 20]), result("stream", [9, 20, 19])))
    bare = report.results[0]
    assert (bare.frames_per_s.median, bare.frames_per_s.smallest, bare.frames_per_s.largest) == (20, 10, 40)
    assert bare.latencies_ms == pytest.approx((5.5, 10.0, 10.0))
    assert (bare.latency_count, bare.met_batch) == (30, 2.0)
    (ratio,) = report.ratios  # of the rounds 0.9, 0.5, 0.95; that of the medians would be 0.95
    assert ratio.value.as_dict() == pytest.approx({"median": 0.9, "min": 0.5, "max": 0.95})
    assert "0.90 (0.50..0.95)" in report.markdown()


def test_turns_alternate_and_each_round_starts_with_another() -> None:
    order: list[str] = []

    class Recorder:
        kind = system = precision = "none"
        batch = 1

        def __init__(self, name: str) -> None:
            self.name = name

        def warm_up(self) -> None:
            order.append(f"warm {self.name}")

        def measure(self) -> Round:
            order.append(self.name)
            return Round(1, 1.0, (1.0,), 1)

    rounds = take_turns([Recorder("a"), Recorder("b"), Recorder("c")], 3)
    assert order == ["warm a", "warm b", "warm c", *"abc", *"bca", *"cab"]
    assert [len(turns) for turns in rounds] == [3, 3, 3]


def test_what_cannot_be_meant(random_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="10 frames are no multiple of the batch 8"):
        SpeedSettings(frames=10)
    with pytest.raises(ConfigError, match="nothing to measure"):
        SpeedSettings(kinds=(), with_torch=False)
    with pytest.raises(DataError, match="no images in"):
        measure_speed(random_bundle.path, tmp_path, TINY)
    assert run_command(command, [str(tmp_path / "none"), str(tmp_path)]) == 1
    assert run_command(command, [str(tmp_path), "--frames"]) == 2
    assert run_command(random_bundle_command, [str(random_bundle.path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in errors] == [True] * 3
    assert "there is no bundle at" in errors[0]
    assert "exists already" in errors[2]
