"""A whole line with its PLC, a real client: trigger, answer, recipe, and a PLC that is away while parts go on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.frame import Frame
from nnet_edge.runtime.sinks import serve
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.stream.line import Line
from nnet_edge.runtime.stream.meters import LineMeters
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.report import LineReport
from nnet_edge.runtime.stream.running import observer_of, run_line
from nnet_edge.settings.line import line_settings

client_module = pytest.importorskip("pymodbus.client", reason="pymodbus is not installed")
REQUEST, DONE, GOOD, REJECT, FAULT, WANTED, RECIPE = 0, 11, 12, 13, 14, 0, 32


class AskedCamera(Source):
    """Gives the next of `values` as a grey picture when it is asked; None: the picture is lost on the way."""

    is_live = True

    def __init__(self, values: list[int | None]) -> None:
        super().__init__("asked")
        self._values, self._asked = iter(values), threading.Semaphore(0)

    def trigger(self) -> None:
        self._asked.release()

    def __iter__(self) -> Iterator[Frame]:
        index = 0
        while not self._interrupted.is_set():
            if not self._asked.acquire(timeout=0.05):
                continue
            value = next(self._values)
            if value is not None:
                yield Frame(np.full((32, 32, 3), value, np.uint8), index, time.monotonic())
            index += 1

    def describe(self) -> str:
        return "asked"


def test_a_line_with_its_plc(make_runner: Callable[..., Any], free_port: Callable[[], int], tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "verdicts.jsonl"
    trigger = {"by": "plc", "frames": "asked", "window_ms": 150, "deadline_ms": 300}
    settings = line_settings({
        "bundle": "small", "web": {},
        "stream": [{"name": "left", "camera": {"address": "synthetic"}, "trigger": trigger}],
        "recipe": [{"name": "m8"}, {"name": "m10", "bundle": "large"}],
        "sink": [{"kind": "modbus", "name": "plc", "port": port, "ack_timeout_ms": 100},
                 {"kind": "json-lines", "path": str(log)}],
    }, "line.toml", Path("/line"))  # fmt: skip
    thresholds = {"small": 0.4, "large": 0.7}

    def load(path: Path) -> Model:
        return Model(path.name, path, make_runner(), thresholds[path.name])

    assert settings.bundle is not None
    meters = LineMeters()
    sinks = [serve(sink, observer_of(sink.label, meters)) for sink in settings.sinks]
    line = Line(load(settings.bundle), sinks, load, True, meters=meters, written=settings)
    camera = AskedCamera([0, 255, None, 128, 128, 0])
    line.add_source(settings.streams[0], camera)
    stop, reports = threading.Event(), list[LineReport]()
    thread = threading.Thread(target=lambda: reports.append(run_line(line, stop)))
    thread.start()

    def connect() -> Any:
        client = client_module.ModbusTcpClient("127.0.0.1", port=port, timeout=2)
        end_s = time.monotonic() + 10
        while not client.connect():
            assert time.monotonic() < end_s
            time.sleep(0.05)
        return client

    def until(is_so: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 10
        while not is_so():
            assert time.monotonic() < end_s
            time.sleep(0.002)

    plc = connect()

    def ask(number: int) -> list[bool]:
        """Good, reject and fault of the next part."""
        plc.write_registers(WANTED, [0, number])
        plc.write_coil(REQUEST, True)
        until(lambda: bool(plc.read_coils(DONE, count=1).bits[0]))
        lamps = list(plc.read_coils(GOOD, count=3).bits[:3])
        plc.write_coil(REQUEST, False)
        return lamps

    until(lambda: line.streams()[0].camera.state in ("live", "connecting"))
    time.sleep(0.1)
    try:
        assert ask(11) == [True, False, False]
        assert ask(12) == [False, True, False]
        assert ask(13) == [False, True, True]  # the picture is lost
        assert ask(14) == [False, True, False]  # grey is bad by m8
        plc.write_register(WANTED + 2, 2)
        until(lambda: plc.read_input_registers(RECIPE, count=1).registers == [2])
        assert ask(15) == [True, False, False]  # and good by m10
        plc.write_coil(REQUEST, True)
        plc.close()  # the PLC is away while its part is judged
        until(lambda: line.streams()[0].triggers.verdicts == 5)  # type: ignore[union-attr]
        time.sleep(0.3)
        plc = connect()
        assert list(plc.read_coils(DONE, count=4).bits[:4]) == [False, False, True, True]  # what on_lost says
    finally:
        plc.close()
        stop.set()
        thread.join(10)
    counts = reports[0].streams["left"].triggers
    assert counts is not None
    assert counts.as_dict() == {"triggers": 6, "verdicts": 5, "open": 0, "outcomes": {"missed": 1}}
    assert reports[0].streams["left"].answers["plc"].count == 5
    lines = [json.loads(text) for text in log.read_text().splitlines()]
    assert [(one["trigger"], one["part"], one["recipe"], one["bundle"]) for one in lines] == [
        (11, "good", "m8", "small"), (12, "anomalous", "m8", "small"), (14, "anomalous", "m8", "small"),
        (15, "good", "m10", "large"), (15, "good", "m10", "large")]  # fmt: skip
    told = [json.loads(text) for text in log.with_suffix(".events.jsonl").read_text().splitlines()]
    assert [one["facts"]["trigger"] for one in told if one["event"] == "trigger.failed"] == [13]
