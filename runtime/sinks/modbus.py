"""A Modbus TCP server that a PLC reads and writes; the only file that imports pymodbus.

Bits are coils and discrete inputs, numbers holding and input registers, under the same addresses; what the PLC may not write is
refused. docs/plc.md has the table. Modbus knows no passwords: whoever reaches the port may write.
"""

from __future__ import annotations

import struct
from dataclasses import asdict, dataclass, field
from typing import Any

from nnet_edge.errors import ConfigError, MissingExtraError, SinkError
from nnet_edge.runtime.sinks.station import POINTS, LoopThread, Point, Station, StationSettings, require_free
from nnet_edge.settings.registry import SINKS, SinkKind
from nnet_edge.settings.runner import require_between, require_choice

WIDTHS = {"bit": 1, "short": 1, "number": 2, "real": 2}  # addresses that a point takes
FORMATS = {"short": ">H", "number": ">I", "real": ">f"}
BY_NAME = {point.name: point for point in POINTS}
BIT_CODES = (1, 2, 5, 15)  # the functions of coils and discrete inputs; others are of registers


@dataclass(frozen=True)
class ModbusMap:
    """The first address of each point, from 0 on. Raises ConfigError where two lie on one."""

    request: int = 0  # coil: judge the next part
    acknowledge: int = 1  # coil: the answer was taken
    heartbeat: int = 8  # discrete input that changes while the line runs
    ready: int = 9  # discrete input: a request would be taken
    busy: int = 10  # discrete input: a part is being judged
    done: int = 11  # discrete input: the answer stands
    good: int = 12  # discrete input: the part is good
    reject: int = 13  # discrete input: the part is a reject
    fault: int = 14  # discrete input: the part has no verdict
    wanted_trigger: int = 0  # holding register: the number of the part that is asked for
    wanted_recipe: int = 2  # holding register: the recipe to use
    trigger: int = 16  # input register: the number of the part that is answered
    outcome: int = 18  # input register: what became of it
    score: int = 20  # input register: its score
    relative_score: int = 22  # input register: its score divided by the threshold
    answers: int = 24  # input register: answers so far
    rejects: int = 26  # input register: rejects so far
    failed: int = 28  # input register: parts without a verdict so far
    unacknowledged: int = 30  # input register: answers that were not taken in time
    recipe: int = 32  # input register: the recipe that is used
    recipe_state: int = 33  # input register: 0 used, 1 loading, 2 refused
    beats: int = 34  # input register that counts the heartbeats

    def __post_init__(self) -> None:
        taken: dict[tuple[bool, int], str] = {}
        for point, address in self.places():
            require_between(f"the Modbus address of {point.name}", address, 0, 9999 - WIDTHS[point.kind])
            for place in range(address, address + WIDTHS[point.kind]):
                other = taken.setdefault((point.kind == "bit", place), point.name)
                if other != point.name:
                    what = "coil" if point.kind == "bit" else "register"
                    raise ConfigError(
                        f"the Modbus map overlaps: {what} {place} is {other}'s and {point.name}'s; move one, [sink.map]"
                    )

    def places(self) -> list[tuple[Point, int]]:
        """Each point with its first address."""
        return [(BY_NAME[name], address) for name, address in asdict(self).items()]


@dataclass(frozen=True, kw_only=True)
class ModbusSettings(StationSettings):
    """Answers to a PLC by Modbus TCP."""

    kind = "modbus"

    host: str = "127.0.0.1"  # another one lets every machine of that network read and write
    port: int = 502  # ports below 1024 may need rights
    word_order: str = "big"  # of numbers of two registers: the high word first; "little": the low word
    map: ModbusMap = field(default_factory=ModbusMap)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("Modbus port", self.port, 1, 65_535)
        require_choice("word_order", self.word_order, ("big", "little"))


class ModbusSink(Station):
    """Serves the points; see the top of this file."""

    name = "modbus"

    def __init__(self, settings: ModbusSettings) -> None:
        super().__init__(settings)
        self._modbus = settings
        try:
            import pymodbus.server
        except ImportError as error:
            raise MissingExtraError("pymodbus is not installed: pip install 'nnet-edge[modbus]'") from error
        self._server_class = pymodbus.server.ModbusTcpServer
        self._loop: LoopThread | None = None
        self._server: Any = None

    def open(self) -> None:
        place = (self._modbus.host, self._modbus.port)
        require_free("Modbus", *place)
        self._loop = LoopThread(f"server of {self._modbus.label}")
        try:
            self._server = self._loop.run(self._listen(place))
        except (OSError, RuntimeError, TimeoutError) as error:
            self._loop.close()
            raise SinkError(f"Modbus cannot be served on {place[0]}:{place[1]}: {error}") from error

    async def _listen(self, place: tuple[str, int]) -> Any:
        from pymodbus.simulator import DataType, SimData, SimDevice

        ends = [
            max(
                address + WIDTHS[point.kind]
                for point, address in self._modbus.map.places()
                if (point.kind == "bit") is bits
            )
            for bits in (True, False)
        ]
        bits, words = (
            [SimData(0, count=ends[number], values=value, datatype=kind)]
            for number, (value, kind) in enumerate(((False, DataType.BITS), (0, DataType.REGISTERS)))
        )
        device = SimDevice(0, simdata=(bits, bits, words, words), action=self._act)
        server = self._server_class(device, address=place)
        await server.serve_forever(background=True)
        return server

    def close(self) -> None:
        if self._loop is not None:
            if self._server is not None:
                self._loop.run(self._stop(self._server))
            self._loop.close()
        self._loop = self._server = None

    async def _stop(self, server: Any) -> None:
        """Close every connection, those included that are being accepted: asyncio forgets these when it listens no more."""
        import asyncio

        await asyncio.sleep(0.02)
        await server.shutdown()

    async def _act(
        self, code: int, start: int, address: int, count: int, registers: list[int], written: list[Any] | None
    ) -> Any:
        """Take what the PLC writes, or bring the registers of its block up to date; an error where it may not write."""
        is_bits = code in BIT_CODES
        if written is not None:
            inputs = self._inputs_of(is_bits, address, written)
            if inputs is None:
                from pymodbus.constants import ExcCodes

                return ExcCodes.ILLEGAL_ADDRESS
            self.take(**inputs)
        registers[:] = self._bits(len(registers)) if is_bits else self._words(len(registers))
        return None

    def _inputs_of(self, is_bits: bool, address: int, written: list[Any]) -> dict[str, float] | None:
        """The inputs that lie where the PLC writes; None where something else lies there, or half of one."""
        found: dict[str, float] = {}
        covered = 0
        for point, place in self._modbus.map.places():
            offset = place - address
            if (point.kind == "bit") is is_bits and point.is_input and 0 <= offset <= len(written) - WIDTHS[point.kind]:
                words = written[offset : offset + WIDTHS[point.kind]]
                found[point.name] = bool(words[0]) if is_bits else self._value(point.kind, words)
                covered += len(words)
        return found if covered == len(written) else None

    def _bits(self, count: int) -> list[int]:
        """The bits as registers of 16, the lowest first."""
        values, words = self.values(), [0] * count
        for point, address in self._modbus.map.places():
            if point.kind == "bit" and values[point.name]:
                words[address // 16] |= 1 << address % 16
        return words

    def _words(self, count: int) -> list[int]:
        values, words = self.values(), [0] * count
        for point, address in self._modbus.map.places():
            if point.kind != "bit":
                packed = struct.pack(FORMATS[point.kind], fitting(point.kind, values[point.name]))
                found = struct.unpack(f">{len(packed) // 2}H", packed)
                words[address : address + len(found)] = found if self._modbus.word_order == "big" else found[::-1]
        return words

    def _value(self, kind: str, words: list[int]) -> float:
        ordered = words if self._modbus.word_order == "big" else words[::-1]
        (value,) = struct.unpack(FORMATS[kind], struct.pack(f">{len(ordered)}H", *ordered))
        return float(value)


def fitting(kind: str, value: float) -> float:
    """The value as the kind holds it: whole numbers begin anew behind the largest."""
    return value if kind == "real" else int(value) % (2**16 if kind == "short" else 2**32)


SINKS.register(SinkKind("modbus", ModbusSettings, ModbusSink, needs={"pymodbus": "modbus"}))
