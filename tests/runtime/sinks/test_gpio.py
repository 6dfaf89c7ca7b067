"""GPIO: the real library for Python on a chip that the test makes below it, for kernels without gpio-sim."""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.frame import Prediction, Triggered
from nnet_edge.runtime.sinks.base import Orders
from nnet_edge.runtime.sinks.queued import serve

gpiod = pytest.importorskip("gpiod", reason="gpiod is not installed")

from nnet_edge.runtime.sinks.gpio import GpioSettings  # noqa: E402

ON, OFF = gpiod.line.Value.ACTIVE, gpiod.line.Value.INACTIVE
LINES = {"request": 1, "acknowledge": 2, "edge": 3, "ready": 4, "busy": 5, "done": 6, "good": 7, "reject": 8}


class DoubleChip:
    """Stands for the compiled part of the library, which talks to the kernel: `_ext.Chip` and the `_ext.Request` it gives."""

    def __init__(self) -> None:
        self.levels = dict.fromkeys(range(32), OFF)
        self.written: list[dict[int, Any]] = []
        self.consumer = ""
        self.is_released = False
        self.fault: OSError | None = None
        self._events: deque[Any] = deque()
        self.chip_name, self.offsets = "double", list(LINES.values())
        self.fd, self._wake = os.pipe()

    def __call__(self, path: str) -> DoubleChip:
        if not path.endswith("gpiochip0"):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self

    def get_info(self) -> Any:
        return SimpleNamespace(num_lines=32)

    def get_line_name(self, offset: int) -> None:
        return None

    def request_lines(self, config: Any, consumer: str, buffer: int | None) -> DoubleChip:
        self.consumer = consumer
        return self

    def close(self) -> None:
        pass

    def get_values(self, offsets: list[int], values: list[Any]) -> None:
        values[:] = [self.levels[offset] for offset in offsets]

    def set_values(self, values: dict[int, Any]) -> None:
        if self.fault is not None:
            raise self.fault
        self.levels.update(values)
        self.written.append(dict(values))

    def read_edge_events(self, most: int | None) -> list[Any]:
        os.read(self.fd, 1)
        return [self._events.popleft()]

    def release(self) -> None:
        self.is_released = True

    def set(self, name: str, is_on: bool) -> None:
        """An edge from outside."""
        line, kinds = LINES[name], gpiod.EdgeEvent.Type
        self.levels[line] = ON if is_on else OFF
        kind = kinds.RISING_EDGE if is_on else kinds.FALLING_EDGE
        self._events.append(gpiod.EdgeEvent(kind.value, time.monotonic_ns(), line, 0, 0))
        os.write(self._wake, b"x")

    def lamps(self, *names: str) -> list[bool]:
        return [self.levels[LINES[name]] == ON for name in names]


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> DoubleChip:
    double = DoubleChip()
    monkeypatch.setattr(gpiod.chip._ext, "Chip", double)
    return double


def answer_of(prediction: Prediction, number: int, is_good: bool) -> Prediction:
    now_s = time.monotonic()
    frame = replace(prediction.frame, trigger=Triggered(number, now_s, "gpio", now_s + 5))
    return replace(prediction, frame=frame, part_verdict=not is_good)


def test_a_plc_on_wires(
    chip: DoubleChip, make_prediction: Callable[..., Prediction], until: Callable[..., None]
) -> None:
    orders: list[tuple[Any, ...]] = []
    numbers = iter(range(10, 100))

    def trigger(*asked: Any) -> int:
        orders.append(asked)
        return next(numbers)

    with serve(GpioSettings(name="wires", chip=Path("/dev/gpiochip0"), ack_timeout_ms=60_000, **LINES)) as sink:  # type: ignore[arg-type]
        assert chip.consumer == "nnet-edge wires"
        sink.obey(Orders(trigger, lambda name, by: None))
        assert chip.lamps("ready", "busy", "done", "good", "reject") == [True, False, False, False, False]
        chip.set("request", True)
        until(lambda: chip.lamps("busy") == [True])
        assert orders == [(None, None, "wires")]
        sink.write(answer_of(make_prediction(0, is_good=True), 10, True))
        until(lambda: chip.lamps("done") == [True])
        assert chip.lamps("busy", "good", "reject") == [False, True, False]
        assert len(set(chip.written[-1])) == 5  # all at once: done never comes before its answer
        for name, is_on in (("acknowledge", True), ("request", False), ("acknowledge", False), ("request", True)):
            chip.set(name, is_on)
        until(lambda: chip.lamps("busy") == [True])  # no signal was lost, though they came at once
        sink.write(answer_of(make_prediction(1), 11, False))
        until(lambda: chip.lamps("done", "good", "reject") == [True, False, True])
        chip.set("request", False)
        until(lambda: chip.lamps("done", "reject") == [False, False])
        chip.set("edge", True)  # a light barrier
        chip.set("edge", False)
        until(lambda: len(orders) == 3)
        sink.write(answer_of(make_prediction(2, is_good=True), 12, True))
        until(lambda: chip.lamps("done", "good") == [True, True])
    assert chip.lamps("ready", "done", "good", "reject") == [False] * 4  # the line has ended
    assert chip.is_released


def test_a_chip_that_fails_is_counted_and_told(
    chip: DoubleChip, make_prediction: Callable[..., Prediction], until: Callable[..., None]
) -> None:
    sink = serve(GpioSettings(chip=Path("/dev/gpiochip0"), good=7, reject=8))
    with sink:
        sink.obey(Orders(lambda *asked: 1, lambda name, by: None))
        chip.fault = OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        sink.write(answer_of(make_prediction(0), 1, False))
        until(lambda: sink.counts().dropped == {"failed": 1})
        chip.fault = None
        sink.write(answer_of(make_prediction(1), 2, False))
        until(lambda: sink.counts().delivered == 1)
        assert chip.lamps("good", "reject") == [False, True]


def test_lines_that_cannot_be_used_are_one_sentence(chip: DoubleChip) -> None:
    with pytest.raises(ConfigError, match="GPIO map overlaps: line 7 is good's and reject's"):
        GpioSettings(good=7, reject=7)
    with pytest.raises(ConfigError, match="no GPIO line is wired"):
        GpioSettings()
    with pytest.raises(SinkError, match=r"lines \[7\] of /dev/gpiochip9 cannot be used: No such file or directory"):
        serve(GpioSettings(chip=Path("/dev/gpiochip9"), good=7)).__enter__()
    with pytest.raises(SinkError, match="cannot be used: line offset"):
        serve(GpioSettings(chip=Path("/dev/gpiochip0"), good=99)).__enter__()
