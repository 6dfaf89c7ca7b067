"""A camera that repeats one picture is told and unready; a machine without time is no camera's fault, and no file's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from nnet_edge.frame import Frame
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.camera import Camera
from nnet_edge.runtime.sources.overload import Overload, waited_for_cpu_s
from nnet_edge.runtime.sources.still import StillPicture
from nnet_edge.settings.camera import CameraSettings


class Scripted(Source):
    """Gives each of the pictures behind its pause."""

    def __init__(self, *script: tuple[float, int], is_live: bool = True, hold: threading.Event | None = None) -> None:
        super().__init__("scripted")
        self._script, self.is_live, self._hold = script, is_live, hold

    def __iter__(self) -> Iterator[Frame]:
        for index, (pause_s, value) in enumerate(self._script):
            time.sleep(pause_s)
            picture = np.zeros((40, 40, 3), np.uint8)
            picture[23, 31] = value  # between those that are compared first
            yield Frame(picture, index, time.monotonic())
        if self._hold is not None:
            self._hold.wait(10)

    def describe(self) -> str:
        return "a scripted camera"


class LateWatchdog(threading.Event):
    """Looks a second later than it meant to, as on a machine that has no time."""

    def wait(self, timeout: float | None = None) -> bool:
        return super().wait(None if timeout is None else timeout + 1.0)


class Watched:
    """A camera, and what it said."""

    def __init__(self, source: Source, **settings: float) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []
        self.frames: list[Frame] = []
        self.ends: list[BaseException | None] = []
        self.camera = Camera(
            "left", source, CameraSettings("scripted", **settings), self._put,
            lambda kind, **facts: self.told.append((kind, facts)), self.ends.append,
        )  # fmt: skip

    def _put(self, frame: Frame) -> bool:
        self.frames.append(frame)
        return True

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told if kind not in ("source.connecting", "source.live")]

    def wait_for(self, condition: Callable[[], object]) -> None:
        end_s = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < end_s, self.told
            time.sleep(0.01)

    def run(self) -> None:
        self.camera.start()
        self.wait_for(lambda: self.ends)
        self.camera.ask_to_stop()
        self.camera.join()


def test_a_picture_that_does_not_change_is_an_event_and_moves_again(
    caplog: pytest.LogCaptureFixture, note_fault: Callable[..., None]
) -> None:
    hold = threading.Event()
    script = [(0.05, 1)] * 8, [(0.05, 2), (0.05, 3)]
    watched = Watched(Scripted(*script[0], hold=hold), frozen_s=0.2)
    watched.camera.start()
    watched.wait_for(lambda: watched.kinds() == ["source.frozen"])
    status = watched.camera.status()
    assert status.state == "live"
    assert status.frozen_s is not None
    assert status.frozen_s >= 0.2
    assert "has not changed by one pixel for 0." in caplog.text
    hold.set()
    watched.camera.ask_to_stop()
    watched.camera.join()
    moving = Watched(Scripted(*script[0], *script[1]), frozen_s=0.2)
    moving.run()
    assert moving.kinds() == ["source.frozen", "source.moving"]
    assert moving.camera.status().frozen_s is None
    note_fault("picture frozen", 10, len(moving.frames), {}, "told after frozen_s, unready until it changes")


@pytest.mark.parametrize(("is_live", "frozen_s", "value"), [(False, 0.05, 1), (True, 0.0, 1), (True, 0.05, None)])
def test_files_changing_pictures_and_who_does_not_ask_are_left_alone(
    is_live: bool, frozen_s: float, value: int | None
) -> None:
    script = [(0.03, number if value is None else value) for number in range(6)]
    watched = Watched(Scripted(*script, is_live=is_live), frozen_s=frozen_s)
    watched.run()
    assert watched.kinds() == []
    assert len(watched.frames) == 6


def test_equal_pictures_are_counted_from_the_first_of_them() -> None:
    still, picture = StillPicture(), np.zeros((40, 40, 3), np.uint8)
    other = picture.copy()
    other[1, 1] = 1
    found = [
        still.seconds(image, now_s) for now_s, image in enumerate((picture, picture.copy(), other, other, picture[:20]))
    ]
    assert found == [0, 1, 0, 1, 0]


def test_a_watchdog_that_is_late_says_that_the_machine_is_overloaded(
    caplog: pytest.LogCaptureFixture, note_fault: Callable[..., None]
) -> None:
    watched = Watched(Scripted((0.0, 1), (1.6, 2)), stall_s=0.5)
    watched.camera.wake = LateWatchdog()
    watched.run()
    assert watched.kinds() == ["machine.overloaded"]
    assert len(watched.frames) == 2
    assert watched.ends == [None]
    assert "this machine is overloaded" in caplog.text
    assert watched.told[-1][1]["late_s"] > 0.5
    note_fault("machine overloaded", 2, len(watched.frames), {}, "told; the camera is not given up")


def test_only_a_silence_of_its_own_counts() -> None:
    overload = Overload(None)
    time.sleep(0.3)
    began_s = time.monotonic()
    assert overload.excused_s(began_s, 0.05) < 0.1  # late, but before it began
    time.sleep(0.3)
    assert 0.2 < overload.excused_s(began_s, 0.05) <= time.monotonic() - began_s
    assert overload.excused_s(time.monotonic(), 0.05) < 0.1
    assert overload.excused_s(None, 0.05) == 0  # a frame is at work
    assert waited_for_cpu_s(threading.get_native_id()) >= 0
    assert waited_for_cpu_s(None) == 0


def test_a_file_that_gives_nothing_for_a_while_is_waited_for() -> None:
    watched = Watched(Scripted((0.0, 1), (0.9, 2), (0.0, 3), is_live=False), stall_s=0.3)
    watched.camera.start()
    watched.wait_for(lambda: watched.camera.status().state == "stalled")
    watched.wait_for(lambda: watched.ends)
    assert [frame.index for frame in watched.frames] == [0, 1, 2]
    assert watched.kinds() == ["source.stalled"]
    assert watched.ends == [None]
    assert watched.camera.status().state == "ended"
