"""Several images a request of OpenVINO, once a busy line has had room for them often enough."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.errors import BundleError
from nnet_edge.runtime.runners import openvino_runner
from nnet_edge.runtime.runners.later import Later
from nnet_edge.runtime.runners.openvino_runner import OpenvinoRunner
from nnet_edge.settings.runner import RunnerSettings

SETTINGS = RunnerSettings(kind="openvino", threads=1, hint="throughput")
HINTS = pytest.mark.parametrize("hint", ["latency", "throughput"])


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (7, 256, 256, 3), np.uint8)


def in_a_hurry(runner: OpenvinoRunner, images: np.ndarray) -> None:
    """Compute the images while the same are being computed."""
    for collect in (runner.start(images), runner.start(images)):
        collect()


def opened(runner: OpenvinoRunner) -> None:
    """Wait until the runner's second graph was opened, or could not be."""
    assert runner._groups is not None
    thread = runner._groups._thread
    assert thread is not None
    thread.join(60)
    assert not thread.is_alive()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second graph is opened at the first batch with room for it, beside another."""
    monkeypatch.setattr(openvino_runner, "GROUPS_AFTER", 1)


@HINTS
@pytest.mark.usefixtures("soon")
def test_groups_give_each_image_its_own_numbers(graph: Path, images: np.ndarray, hint: str) -> None:
    size = openvino_runner.GROUP[hint]
    with OpenvinoRunner(graph, replace(SETTINGS, hint=hint)) as runner:
        alone = [runner.infer(image[np.newaxis], layer_maps=True) for image in images]
        in_a_hurry(runner, images)
        opened(runner)
        for count in range(1, len(images) + 1):
            found = runner.infer(images[:count], layer_maps=True)
            assert runner._grouped(count)[1] == count // size * size
            np.testing.assert_array_equal(found.image_score, [one.image_score[0] for one in alone[:count]])
            for place, one in enumerate(alone[:count]):
                np.testing.assert_array_equal(found.anomaly_map[place], one.anomaly_map[0])
                for name, maps in found.layer_maps.items():
                    np.testing.assert_array_equal(maps[place], one.layer_maps[name][0])
        first, second = runner.start(images), runner.start(images[::-1].copy())
        np.testing.assert_array_equal(second().image_score[::-1], first().image_score)
        assert runner._busy == {}


def test_no_stream_is_left_without_a_request(graph: Path) -> None:
    with OpenvinoRunner(graph, SETTINGS) as runner:
        found = {}
        for at_once, group in ((1, 4), (1, 2), (2, 2), (4, 2)):
            runner.at_once, runner._group = at_once, group
            found[at_once, group] = [runner._worth(count) for count in range(1, 9)]
    assert found == {
        (1, 4): [0, 0, 0, 4, 4, 4, 4, 8],
        (1, 2): [0, 2, 2, 4, 4, 6, 6, 8],
        (2, 2): [0, 0, 2, 4, 4, 6, 6, 8],
        (4, 2): [0, 0, 0, 0, 2, 4, 6, 8],
    }


@pytest.mark.usefixtures("soon")
def test_a_line_that_rests_between_its_batches_opens_none(graph: Path, images: np.ndarray) -> None:
    with OpenvinoRunner(graph, SETTINGS) as runner:
        assert runner._groups is not None
        for _ in range(3):
            runner.infer(images)
        assert runner._groups._thread is None
        in_a_hurry(runner, images)
        opened(runner)
        assert runner._grouped(len(images))[1] == 6  # what is there serves every batch


def test_a_line_that_judges_frame_by_frame_opens_none(graph: Path, images: np.ndarray) -> None:
    with OpenvinoRunner(graph, SETTINGS) as runner:
        for _ in range(3):
            runner.infer(images[:1])
        runner.infer(images)
        assert runner._groups is not None
        assert runner._groups._thread is None
    with OpenvinoRunner(graph, RunnerSettings(kind="openvino", threads=1, max_batch=3)) as runner:
        assert runner._groups is None  # there is never room for four


@pytest.mark.usefixtures("soon")
def test_other_numbers_are_never_used(
    graph: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = openvino_runner.numbers

    def off(requests: openvino_runner.Requests, pictures: np.ndarray) -> dict[str, np.ndarray]:
        found = given(requests, pictures)
        if requests.images > 1:
            found["image_score"][1] = np.nextafter(found["image_score"][1], np.float32(2))
        return found

    monkeypatch.setattr(openvino_runner, "numbers", off)
    with caplog.at_level(logging.INFO), OpenvinoRunner(graph, SETTINGS) as runner:
        in_a_hurry(runner, images)
        opened(runner)
        assert runner._grouped(len(images)) == (None, 0)
        runner.infer(images)
    assert "give other numbers than one" in caplog.text


@pytest.mark.usefixtures("soon")
def test_without_room_in_memory_it_stays_one(
    graph: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino_runner, "free_memory", lambda: (1 << 30) - 1)
    with caplog.at_level(logging.INFO), OpenvinoRunner(graph, SETTINGS) as runner:
        in_a_hurry(runner, images)
        opened(runner)
        assert runner._grouped(len(images)) == (None, 0)
    assert "less than 1024 MiB" in caplog.text


@pytest.mark.usefixtures("soon")
def test_what_cannot_be_opened_costs_nothing_but_a_line_in_the_log(
    graph: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object) -> None:
        raise BundleError("it was altered")

    with OpenvinoRunner(graph, SETTINGS) as runner:
        expected = runner.infer(images[:1]).image_score
        monkeypatch.setattr(openvino_runner, "read_graph", refuse)
        in_a_hurry(runner, images)
        opened(runner)
        np.testing.assert_array_equal(runner.infer(images).image_score[:1], expected)
    assert "the line goes on without" in caplog.text


@pytest.mark.usefixtures("soon")
def test_a_runner_that_closes_waits_for_what_is_being_opened(
    graph: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, compile_graph = threading.Event(), openvino_runner.compile_graph
    runner = OpenvinoRunner(graph, SETTINGS)
    monkeypatch.setattr(
        openvino_runner, "compile_graph", lambda *arguments: (may_go_on.wait(20), compile_graph(*arguments))[1]
    )
    with runner:
        in_a_hurry(runner, images)
        threading.Timer(0.3, may_go_on.set).start()
    assert may_go_on.is_set()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("opening")]


def test_later_opens_once_and_not_after_its_end() -> None:
    opens: list[int] = []
    later = Later("a thing", lambda: opens.append(1) or "thing", 3)
    assert [later.get() for _ in range(2)] == [None, None]
    assert not opens
    later.get()
    assert later.close() == "thing"
    assert [later.get() for _ in range(5)] == [None] * 5
    assert opens == [1]
    seldom = Later("a third", lambda: opens.append(3) or "thing", 3)
    assert [seldom.get(is_wanted) for is_wanted in (True, True, False, False, False, True, True)] == [None] * 7
    seldom.get()
    assert seldom.close() == "thing"
    assert opens == [1, 3]
    never = Later("another", lambda: opens.append(2) or "thing", 1)
    assert never.close() is None
    assert never.get() is None
    assert opens == [1, 3]
