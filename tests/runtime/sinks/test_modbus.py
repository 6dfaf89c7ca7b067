"""A Modbus server that a real client reads, writes and shakes hands with."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction, Triggered
from nnet_edge.runtime.sinks.base import Orders
from nnet_edge.runtime.sinks.queued import QueuedSink, serve
from nnet_edge.settings.registry import SINKS
from nnet_edge.settings.sink import SinkSettings

client_module = pytest.importorskip("pymodbus.client", reason="pymodbus is not installed")

from nnet_edge.runtime.sinks.modbus import ModbusMap, ModbusSettings  # noqa: E402
from nnet_edge.runtime.sinks.station import CODES  # noqa: E402

MAP = ModbusMap()


class Plc:
    """A real client."""

    def __init__(self, port: int) -> None:
        self._client = client_module.ModbusTcpClient("127.0.0.1", port=port, timeout=2)
        assert self._client.connect()

    def bit(self, name: str) -> bool:
        return bool(self._client.read_coils(getattr(MAP, name), count=1).bits[0])

    def bits(self, *names: str) -> list[bool]:
        return [self.bit(name) for name in names]

    def number(self, name: str, kind: str = ">I") -> float:
        count = struct.calcsize(kind) // 2
        words = self._client.read_input_registers(getattr(MAP, name), count=count).registers
        return struct.unpack(kind, struct.pack(f">{count}H", *words))[0]  # type: ignore[no-any-return]

    def set(self, name: str, is_on: bool) -> None:
        assert not self._client.write_coil(getattr(MAP, name), is_on).isError()

    def write(self, name: str, *words: int) -> Any:
        return self._client.write_registers(getattr(MAP, name), list(words))

    def write_coil(self, address: int) -> Any:
        return self._client.write_coil(address, True)

    def both_tables(self) -> list[tuple[Any, Any]]:
        """What coils and discrete inputs, then holding and input registers say, the heartbeat and its count left out."""
        client, bits, words = self._client, {"address": MAP.ready, "count": 6}, {"address": 0, "count": MAP.beats}
        return [
            (client.read_coils(**bits).bits, client.read_discrete_inputs(**bits).bits),
            (client.read_holding_registers(**words).registers, client.read_input_registers(**words).registers),
        ]

    def close(self) -> None:
        self._client.close()


class Station:
    """A served sink, what it ordered, and its client."""

    def __init__(self, port: int, **settings: Any) -> None:
        self.settings = ModbusSettings(port=port, **({"heartbeat_s": 0.05} | settings))
        self.sink = serve(self.settings)
        self.orders: list[tuple[Any, ...]] = []
        self.refusal: ConfigError | None = None

    def __enter__(self) -> Station:
        self.sink.__enter__()
        self.sink.obey(Orders(self._trigger, lambda name, by: self.orders.append((name, by)), ("m8", "m10"), "m8"))
        self.plc = Plc(self.settings.port)
        return self

    def __exit__(self, *about: object) -> None:
        self.plc.close()
        self.sink.__exit__(None, None, None)

    def _trigger(self, stream: str | None, number: int | None, by: str) -> int:
        if self.refusal is not None:
            raise self.refusal
        self.orders.append((stream, number, by))
        return number or 41


@pytest.fixture
def station(free_port: Callable[[], int]) -> Iterator[Station]:
    with Station(free_port()) as station:
        yield station


@pytest.fixture
def answer(make_prediction: Callable[..., Prediction]) -> Callable[..., Prediction]:
    """A function that gives the verdict of a trigger."""

    def make(number: int, is_good: bool = True, ago_s: float = 0.0) -> Prediction:
        at_s = time.monotonic() - ago_s
        found = make_prediction(0, is_good)
        return replace(
            found,
            frame=replace(found.frame, trigger=Triggered(number, at_s, "plc", at_s + 1)),
            part_verdict=not is_good,
        )

    return make


def test_a_plc_asks_for_a_part_and_takes_its_answer(
    station: Station, answer: Callable[..., Prediction], until: Callable[..., None]
) -> None:
    plc = station.plc
    assert plc.bits("ready", "busy", "done", "good", "reject", "fault") == [True, False, False, False, False, False]
    plc.write("wanted_trigger", 1, 5)  # 65541
    plc.set("request", True)
    assert station.orders == [(None, 65541, "modbus")]
    assert plc.bits("busy", "done") == [True, False]
    station.sink.write(answer(65540))  # another part's
    station.sink.write(answer(65541, is_good=False))
    until(lambda: plc.bit("done"))
    assert plc.bits("busy", "good", "reject", "fault") == [False, False, True, False]
    assert (plc.number("trigger"), plc.number("outcome", ">H"), plc.number("score", ">f")) == (
        65541,
        CODES["verdict"],
        3.0,
    )
    assert plc.number("relative_score", ">f") == 1.5
    assert all(one == other for one, other in plc.both_tables())
    plc.set("acknowledge", True)
    assert plc.bits("done", "good", "reject") == [False] * 3
    plc.set("request", False)
    plc.set("acknowledge", False)
    plc.set("request", True)
    station.sink.write(answer(65541))
    until(lambda: plc.bit("done"))
    assert plc.bits("good", "reject") == [True, False]
    assert (plc.number("answers"), plc.number("rejects"), plc.number("failed")) == (3, 1, 0)


def test_what_has_no_verdict_is_a_reject_that_says_why(
    station: Station, answer: Callable[..., Prediction], until: Callable[..., None]
) -> None:
    plc = station.plc
    plc.set("request", True)
    facts = {"trigger": 41, "outcome": "missed", "answer": "reject"}
    station.sink.tell(Event("trigger.failed", "a", facts=facts))
    until(lambda: plc.bit("done"))
    assert (plc.bits("good", "reject", "fault"), plc.number("outcome", ">H")) == ([False, True, True], CODES["missed"])
    plc.set("request", False)
    plc.set("request", True)
    station.sink.write(answer(41, ago_s=2))  # the sink was slow: too late to be good
    until(lambda: plc.bit("done"))
    assert (plc.bits("good", "reject"), plc.number("outcome", ">H")) == ([False, True], CODES["no_answer"])
    plc.set("request", False)
    plc.set("request", True)
    station.sink.tell(
        Event("trigger.failed", "a", facts=facts | {"answer": "nothing"})
    )  # the PLC's own time-out decides
    time.sleep(0.05)
    assert plc.bits("busy", "done") == [True, False]
    plc.set("request", False)
    station.refusal = ConfigError("no")
    plc.set("request", True)
    assert (plc.bits("done", "reject", "fault"), plc.number("outcome", ">H")) == ([True] * 3, CODES["refused"])


@pytest.mark.parametrize(
    ("on_lost", "lamps"), [("reject", [False, False, True, True]), ("hold", [True, True, False, False])]
)
def test_a_plc_that_is_away_costs_the_line_nothing(
    free_port: Callable[[], int],
    answer: Callable[..., Prediction],
    until: Callable[..., None],
    on_lost: str,
    lamps: list[bool],
) -> None:
    with Station(free_port(), ack_timeout_ms=50, on_lost=on_lost) as station:
        station.plc.set("request", True)
        station.plc.close()  # the PLC is gone before it is answered
        longest_s = 0.0
        for number in range(41, 141):  # and the line goes on: one part in 10 ms
            began_s = time.monotonic()
            station.sink.write(answer(number))
            longest_s = max(longest_s, time.monotonic() - began_s)
            time.sleep(0.01)
        assert longest_s < 0.2
        station.plc = Plc(station.settings.port)
        assert station.plc.bits("done", "good", "reject", "fault") == lamps
        assert station.plc.number("unacknowledged") == 1
        assert isinstance(station.sink, QueuedSink)
        assert station.sink.counts().is_balanced
        assert station.sink.counts().own == {"unacknowledged": 1}
        station.plc.set("request", False)
        station.plc.set("request", True)
        assert station.plc.bits("busy", "reject") == [True, False]


def test_the_heartbeat_stops_with_the_line(station: Station, until: Callable[..., None]) -> None:
    first = station.plc.number("beats", ">H")
    until(lambda: station.plc.number("beats", ">H") > first)
    seen = {station.plc.bit("heartbeat") for _ in range(40) if not time.sleep(0.01)}  # type: ignore[func-returns-value]
    assert seen == {True, False}


def test_recipes_by_number(station: Station, until: Callable[..., None]) -> None:
    plc = station.plc
    assert plc.number("recipe", ">H") == 1
    assert not plc.write("wanted_recipe", 2).isError()
    assert station.orders == [("m10", "modbus")]
    assert plc.number("recipe_state", ">H") == 1
    station.sink.tell(Event("recipe.changed", facts={"recipe": "m10"}))
    until(lambda: plc.number("recipe", ">H") == 2)
    assert plc.number("recipe_state", ">H") == 0
    plc.write("wanted_recipe", 3)
    assert (plc.number("recipe_state", ">H"), plc.number("recipe", ">H")) == (2, 2)


def test_what_the_plc_may_not_write_is_refused(station: Station) -> None:
    plc = station.plc
    for address in (MAP.good, MAP.done, 5, 400):
        assert plc.write_coil(address).isError()
    for name in ("score", "answers", "trigger"):
        assert plc.write(name, 1, 1).isError()
    assert plc.write("wanted_trigger", 1).isError()  # half of it
    assert plc.write("wanted_trigger", 1, 2, 1).isError() is False  # and the recipe behind it
    assert station.orders == [("m8", "modbus")]


def test_the_low_word_may_come_first(free_port: Callable[[], int]) -> None:
    with Station(free_port(), word_order="little") as station:
        station.plc.write("wanted_trigger", 5, 1)
        station.plc.set("request", True)
        assert station.orders == [(None, 65541, "modbus")]


def test_a_map_that_overlaps_and_a_port_that_is_taken_are_one_sentence(free_port: Callable[[], int]) -> None:
    with pytest.raises(ConfigError, match=r"coil 12 is good's and reject's; move one"):
        ModbusMap(reject=12)
    with pytest.raises(ConfigError, match=r"register 17 is trigger's and outcome's; move one"):
        ModbusMap(outcome=17)
    with pytest.raises(ConfigError, match=r"line.toml: map: the Modbus map overlaps"):
        SinkSettings.from_table({"kind": "modbus", "map": {"done": 9}}, "line.toml", Path())
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        began = threading.active_count()
        with pytest.raises(
            SinkError, match=f"Modbus cannot be served on 127.0.0.1:{port} .Address already in use.: give another"
        ):
            serve(ModbusSettings(port=port)).__enter__()
        assert threading.active_count() == began
    with Station(port):  # it is free again
        pass


def test_the_table_of_the_document_is_the_code_s() -> None:
    document = (Path(__file__).parents[3] / "docs/plc.md").read_text()
    for point, address in MAP.places():
        where = f"bit {address}" if point.kind == "bit" else f"register {address}"
        way = "writes" if point.is_input else "reads"
        assert f"| `{point.name}` | {point.kind} | {way} | {point.text} | {where} |" in document


def test_it_is_a_sink_like_others() -> None:
    assert SINKS.find("modbus").needs == {"pymodbus": "modbus"}
    with pytest.raises(ConfigError, match="cannot be made to deliver"):
        serve(ModbusSettings(port=1502, must_deliver=Path("spool")))
