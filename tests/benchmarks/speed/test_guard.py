"""The guard lets the same speed pass and catches a real slow-down, of made work and of the real runner and stream."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.benchmarks.speed.guard import (
    ATTEMPTS,
    BASELINES,
    ELSEWHERE,
    SCHEMA,
    Limit,
    Ratio,
    by_child,
    by_processor,
    judge,
    limit_of,
    limits_here,
    limits_of,
    line_ratio,
    markdown,
    measure,
    product,
    read_baselines,
    runner_ratios,
)
from nnet_edge.bundle import Bundle
from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError
from nnet_edge.frame import Outputs
from nnet_edge.image_files import read_size
from nnet_edge.runtime.runners.base import Runner, load_runner
from nnet_edge.runtime.stream.judge import Judge
from nnet_edge.settings.runner import RunnerSettings

QUIET = {"ratio": Limit(2.0, 0.2)}


def work(steps: int) -> Callable[[], object]:
    """Arithmetic that keeps one core busy."""
    matrix = np.full((96, 96), 1e-3)
    return lambda: [matrix @ matrix for _ in range(steps)]


class Slower:
    """A runner that computes everything that many times, `start` included."""

    def __init__(self, runner: Runner, times: int) -> None:
        self.name, self.precision = runner.name, runner.precision
        self.max_batch, self.input_shape = runner.max_batch, runner.input_shape
        self._runner, self._times = runner, times

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        return self.start(images, layer_maps)()

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        for _ in range(self._times - 1):
            self._runner.infer(images)
        return self._runner.start(images, layer_maps)

    def __enter__(self) -> Slower:
        return self

    def __exit__(self, *about: object) -> None:
        return None


def slept(seconds: float) -> float:
    """The seconds that were slept."""
    began_s = time.perf_counter()
    time.sleep(seconds)
    return time.perf_counter() - began_s


def scripted(ratios: list[float]) -> Ratio:
    """A ratio that measures these values, one an attempt."""
    values = iter(ratios)
    return Ratio("ratio", lambda: next(values), lambda: 1.0, 1)


@pytest.mark.alone
def test_the_same_speed_passes_and_half_as_much_again_is_worse() -> None:
    def ratio(steps: int) -> Ratio:
        return Ratio("ratio", by_processor(work(steps)), by_processor(work(1000)), 7)

    limits = {"ratio": Limit(1.0, 0.2)}
    (same,) = judge([ratio(1000)], limits)
    assert not same.is_worse
    (slower,) = judge([ratio(1500)], limits)
    assert slower.is_worse
    assert len(slower.attempts) == ATTEMPTS
    assert "WORSE" in markdown([slower])
    assert "holds" in markdown([same])


@pytest.mark.alone
def test_a_runner_that_computes_twice_and_a_stream_that_waits_are_caught(bundle: Bundle, tmp_path: Path) -> None:
    with load_runner(bundle.graph, RunnerSettings("openvino", threads=1)) as runner:
        multiply, pictures = product(), bundle.frames("held_out")[:3]

        def ratios(runner: Runner) -> list[Ratio]:
            return [replace(one, rounds=3) for one in runner_ratios(runner, multiply, tmp_path, pictures)]

        alone, stream = ratios(runner)
        limits = {one.name: Limit(measure(one), 0.35) for one in (alone, stream)}  # the widest noise there may be
        twice, _ = ratios(Slower(runner, 2))
        assert judge([twice], limits)[0].is_worse

        hold_s = 1.2 * max(stream.to() for _ in range(3))  # less is hidden by a machine that grows slow

        def waiting() -> float:
            return stream.of() + slept(hold_s)  # as a sink or a lock that holds the stream up

        assert judge([replace(stream, of=waiting)], limits)[0].is_worse


def test_one_bad_moment_is_no_regression_and_a_good_attempt_counts() -> None:
    assert not judge([scripted([3.0, 2.3, 9.0])], QUIET)[0].is_worse
    found = judge([scripted([3.0, 2.9, 2.5])], QUIET)[0]
    assert found.is_worse
    assert found.attempts == (3.0, 2.9, 2.5)
    assert not judge([scripted([3.0])], QUIET, ELSEWHERE)[0].is_worse
    same_everywhere = replace(scripted([3.0, 3.0, 3.0]), is_of_processor=False)
    assert judge([same_everywhere], QUIET, ELSEWHERE)[0].is_worse  # an unknown processor is no excuse for the stream
    assert measure(Ratio("", iter([4.0, 8.0, 30.0]).__next__, iter([1.0, 3.0, 1.0, 5.0]).__next__, 3)) == 4.0


def test_a_baseline_that_could_hide_a_regression_is_refused() -> None:
    limit = limit_of("ratio", [1.9, 2.0, 2.1, 2.0, 2.4])
    assert (limit.baseline, limit.noise) == (2.0, pytest.approx(0.3))
    assert limit_of("ratio", [2.0] * 7).noise == 0.2
    with pytest.raises(ConfigError, match="too far apart to guard anything"):
        limit_of("ratio", [1.0, 1.0, 1.5])
    with pytest.raises(ConfigError, match=r"1\.5 times slower would pass"):
        Limit(1.0, 0.5)
    with pytest.raises(ConfigError, match="no baseline for ratio"):
        judge([scripted([1.0])], {})


def test_limits_are_those_of_this_processor_or_wider_ones() -> None:
    entry = {"processor": "here", "ratios": {"ratio": {"baseline": 2.0, "noise": 0.2, "measured": [2.0]}}}
    other = {"processor": "there", "ratios": {"ratio": {"baseline": 5.0, "noise": 0.3, "measured": [5.0]}}}
    assert limits_here([entry, other], "there", 2) == ({"ratio": Limit(5.0, 0.3, (5.0,))}, 1.0)
    assert limits_here([entry, other], "elsewhere", 2) == (limits_of(entry), ELSEWHERE)
    assert limits_here([entry, other | {"cores": 2}], "there", 2)[1] == 1.0
    assert limits_here([entry, other | {"cores": 2}], "there", 64) == (limits_of(entry), ELSEWHERE)
    with pytest.raises(ConfigError, match="no baseline was measured yet"):
        limits_here([], "here", 2)


def test_the_stream_of_the_guard_decodes_and_resizes_a_camera_s_pictures(bundle: Bundle, tmp_path: Path) -> None:
    with load_runner(bundle.graph, RunnerSettings("openvino", threads=1)) as runner:
        _, stream = runner_ratios(runner, lambda: None, tmp_path, bundle.frames("held_out")[:1])
    assert not stream.is_of_processor
    assert read_size(tmp_path / "0.jpg") == (480, 640)


HANG = """
import time
from nnet_edge.benchmarks.speed.guard import capped
from nnet_edge.errors import ExportError, NnetEdgeError

def hang():
    try:
        time.sleep(30)
    except Exception as error:  # as torch's exporter does with whatever happens in it
        raise ExportError("torch cannot export the network") from error

try:
    with capped(0.05):
        hang()
except NnetEdgeError as error:
    print(error)
time.sleep(0.1)  # the alarm ended with its block
with capped(0.05):
    pass
print("went on")
"""


def test_the_guard_ends_in_time_whatever_happens() -> None:
    """In a process of its own: the alarm crashes one in which torch has exported networks before (seen with torch 2.13)."""
    said = subprocess.run([sys.executable, "-c", HANG], capture_output=True, text=True, timeout=60, check=True).stdout
    refused, went_on = said.splitlines()
    assert "not done after 0.05 s" in refused
    assert went_on == "went on"
    many = Ratio("ratio", lambda: 1.0, lambda: 1.0, 10**9)
    assert judge([many], QUIET, enough_s=time.monotonic())[0].attempts == (1.0,)


def test_the_committed_baselines_guard_every_ratio() -> None:
    every = {
        "runner / matrix product", "stream / bare runner", "import / matrix product", "export / matrix product",
        "line / bare runner", "start / matrix product", "training step / matrix product",
    }  # fmt: skip
    entries = read_baselines(BASELINES)
    for entry in entries:
        limits, _ = limits_here(entries, entry["processor"], entry.get("cores", 2))
        assert set(limits) == every
        assert entry["command"].startswith("nnet-edge bench guard --write")
    assert set(limits_of(entries[0])) == every  # others take what they lack, wider


def test_a_ratio_that_a_baseline_lacks_gets_the_limit_of_the_first_one_wider() -> None:
    first = {"processor": "here", "ratios": {"old": vars(Limit(2.0, 0.2)), "new": vars(Limit(3.0, 0.25))}}
    other = {"processor": "there", "ratios": {"old": vars(Limit(5.0, 0.3))}}
    limits, widened = limits_here([first, other], "there", 2)
    assert limits == {"old": Limit(5.0, 0.3), "new": Limit(ELSEWHERE * 3.0, 0.25)}
    assert widened == 1.0


def test_one_ratio_of_a_baseline_can_be_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "guard.json"
    monkeypatch.setattr("nnet_edge.benchmarks.speed.guard.processor_here", lambda: "here")

    def write(value: float, *only: str) -> dict[str, float]:
        ratios = [Ratio(name, lambda: value, lambda: 1.0, 1) for name in ("line", "start")]
        monkeypatch.setattr("nnet_edge.benchmarks.speed.guard.open_ratios", lambda folder, stack: ratios)
        more = [word for name in only for word in ("--only", name)]
        assert run(["bench", "guard", "--write", "--baselines", str(file), *more]) == 0
        (entry,) = read_baselines(file)
        return {name: limit.baseline for name, limit in limits_of(entry).items()}

    assert write(2.0) == {"line": 2.0, "start": 2.0}
    assert write(3.0, "start") == {"line": 2.0, "start": 3.0}


@pytest.mark.alone
def test_a_line_that_takes_more_beside_its_runner_is_caught(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with load_runner(bundle.graph, RunnerSettings("openvino", threads=1)) as runner:
        line = replace(line_ratio(runner), rounds=2)
        before = measure(line)
        image = np.zeros((1, *runner.input_shape), np.uint8)
        admit, image_s = Judge.admit, line.to()

        def slow(judge: Judge, picture: np.ndarray) -> bool:
            end_s = time.thread_time() + image_s  # as much as an image of the runner, for each captured frame
            while time.thread_time() < end_s:
                image.sum()
            return admit(judge, picture)

        monkeypatch.setattr(Judge, "admit", slow)
        assert judge([line], {line.name: Limit(before, 0.35)})[0].is_worse


@pytest.mark.parametrize("content", [None, "no json", '{"schema": "other"}', f'{{"schema": "{SCHEMA}"}}'])
def test_baselines_that_cannot_be_read(content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "guard.json"
    if content is not None:
        file.write_text(content)
    assert run(["bench", "guard", "--baselines", str(file)]) == 2
    assert "nnet-edge bench guard --write" in capsys.readouterr().err


def test_the_command_fails_when_a_ratio_is_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "guard.json"
    ratios = {"ratio": {"baseline": 2.0, "noise": 0.2, "measured": [2.0]}}
    file.write_text(json.dumps({"schema": SCHEMA, "baselines": [{"processor": "here", "ratios": ratios}]}))
    monkeypatch.setattr("nnet_edge.benchmarks.speed.guard.processor_here", lambda: "here")
    for values, code in (([2.1], 0), ([3.0, 3.0, 3.0], 1)):
        monkeypatch.setattr(
            "nnet_edge.benchmarks.speed.guard.open_ratios", lambda folder, stack, v=values: (scripted(v),)
        )
        assert run(["bench", "guard", "--baselines", str(file)]) == code
    assert "| ratio | 3.000 | 2.000 | 20 % | 2.400 | 3 | WORSE |" in capsys.readouterr().out


@pytest.mark.alone
def test_a_child_is_timed_without_this_process() -> None:
    import sys

    short, long = by_child([sys.executable, "-c", "pass"])(), by_child([sys.executable, "-c", "sum(range(10**7))"])()
    assert 0 < short < long
