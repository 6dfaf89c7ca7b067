"""Signals to and from a PLC on wires, by libgpiod; the only file that imports gpiod."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, MissingExtraError, NnetEdgeError, SinkError
from nnet_edge.runtime.sinks.station import INPUTS, OUTPUTS, Station, StationSettings
from nnet_edge.settings.registry import SINKS, SinkKind
from nnet_edge.settings.runner import require_between, require_choice, require_seconds

log = logging.getLogger(__name__)

LOOK_S = 0.2  # how often the thread that waits for edges looks whether it should end
EDGE = "edge"
BIASES = {"as-is": "AS_IS", "pull-up": "PULL_UP", "pull-down": "PULL_DOWN", "none": "DISABLED"}
WIRED_IN = (*(point.name for point in INPUTS if point.kind == "bit"), EDGE)
WIRED_OUT = tuple(point.name for point in OUTPUTS if point.kind == "bit")


@dataclass(frozen=True, kw_only=True)
class GpioSettings(StationSettings):
    """Answers to a PLC on wires: the offset of the line of each signal that is wired."""

    kind = "gpio"

    chip: Path = Path("/dev/gpiochip0")  # the GPIO chip
    edge: int | None = None  # a light barrier: each time it goes on is a trigger, and nobody takes the answer
    request: int | None = None  # line of the input: judge the next part
    acknowledge: int | None = None  # line of the input: the answer was taken
    heartbeat: int | None = None  # line of the output that changes while the line runs
    ready: int | None = None  # line of the output: a request would be taken
    busy: int | None = None  # line of the output: a part is being judged
    done: int | None = None  # line of the output: the answer stands
    good: int | None = None  # line of the output: the part is good
    reject: int | None = None  # line of the output: the part is a reject
    fault: int | None = None  # line of the output: the part has no verdict
    active_low: bool = False  # a signal is on while its line is at 0 V
    bias: str = "as-is"  # of inputs: pull-up, pull-down, none
    debounce_ms: float = 0.0  # an input that is shorter is none

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("bias", self.bias, tuple(BIASES))
        require_seconds("debounce_ms", self.debounce_ms)
        if not self.wired():
            raise ConfigError(f"no GPIO line is wired: give the offset of one of {', '.join((*WIRED_IN, *WIRED_OUT))}")
        taken: dict[int, str] = {}
        for name, line in self.wired().items():
            require_between(f"the GPIO line of {name}", line, 0, 1023)
            if line in taken:
                raise ConfigError(f"the GPIO map overlaps: line {line} is {taken[line]}'s and {name}'s; move one")
            taken[line] = name

    def wired(self) -> dict[str, int]:
        """Signal -> offset of its line."""
        return {name: line for name in (*WIRED_IN, *WIRED_OUT) if (line := getattr(self, name)) is not None}


class GpioSink(Station):
    """Sets the lines of outputs, and follows the edges of inputs."""

    name = "gpio"

    def __init__(self, settings: GpioSettings) -> None:
        super().__init__(settings)
        self._gpio = settings
        try:
            import gpiod
        except ImportError as error:
            raise MissingExtraError("gpiod is not installed: pip install 'nnet-edge[gpio]'") from error
        self._gpiod = gpiod
        wired = settings.wired()
        self._inputs_at = {line: name for name, line in wired.items() if name in WIRED_IN}
        self._outputs_at = {name: line for name, line in wired.items() if name in WIRED_OUT}
        self._request: Any = None  # gpiod.LineRequest
        self._set: dict[int, Any] = {}
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        gpiod, settings = self._gpiod, self._gpio
        line = gpiod.line
        takes = gpiod.LineSettings(
            direction=line.Direction.INPUT, edge_detection=line.Edge.BOTH, bias=line.Bias[BIASES[settings.bias]],
            active_low=settings.active_low, debounce_period=timedelta(milliseconds=settings.debounce_ms),
        )  # fmt: skip
        gives = gpiod.LineSettings(direction=line.Direction.OUTPUT, active_low=settings.active_low)
        config = dict.fromkeys(self._inputs_at, takes) | dict.fromkeys(self._outputs_at.values(), gives)
        try:
            self._request = gpiod.request_lines(str(settings.chip), config, f"nnet-edge {settings.label}"[:31])
            self._set = {}
            self._read_levels()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise SinkError(
                f"the GPIO lines {sorted(config)} of {settings.chip} cannot be used: {reason}; gpioinfo shows who has them"
            ) from error
        self._is_closing.clear()
        if self._inputs_at:
            self._thread = threading.Thread(target=self._follow, name=f"edges of {settings.label}", daemon=True)
            self._thread.start()

    def close(self) -> None:
        self._is_closing.set()
        if self._thread is not None:
            self._thread.join(1.0 + LOOK_S)
        request, self._request, self._thread = self._request, None, None
        if request is not None:
            off = self._gpiod.line.Value.INACTIVE
            try:
                if self._outputs_at:
                    request.set_values(dict.fromkeys(self._outputs_at.values(), off))
            except OSError as error:
                raise SinkError(
                    f"the GPIO lines of {self._gpio.chip} could not be set off: {error.strerror}"
                ) from error
            finally:
                request.release()

    def show(self, values: dict[str, float]) -> None:
        if self._request is None:
            return
        levels = self._gpiod.line.Value
        wanted = {line: levels.ACTIVE if values[name] else levels.INACTIVE for name, line in self._outputs_at.items()}
        if wanted != self._set:
            try:
                self._request.set_values(wanted)  # all at once
            except OSError as error:
                raise SinkError(f"the GPIO lines of {self._gpio.chip} cannot be set: {error.strerror}") from error
            self._set = wanted

    def _read_levels(self) -> None:
        """Begin with the inputs as they are: one that is on already is no edge."""
        if self._inputs_at:
            lines = list(self._inputs_at)
            on = self._gpiod.line.Value.ACTIVE
            found = {
                self._inputs_at[line]: value == on
                for line, value in zip(lines, self._request.get_values(lines), strict=True)
            }
            self._handshake.signals(found.get("request", False), found.get("acknowledge", False), 0.0)
            self._inputs.update({name: is_on for name, is_on in found.items() if name != EDGE})

    def _follow(self) -> None:
        """Take edges as they come, each by itself, until the sink closes."""
        rising = self._gpiod.EdgeEvent.Type.RISING_EDGE
        while not self._is_closing.is_set():
            try:
                if not self._request.wait_edge_events(LOOK_S):
                    continue
                with self._changed:
                    events = self._request.read_edge_events()
                for event in events:
                    name, is_on = self._inputs_at[event.line_offset], event.event_type is rising
                    if name != EDGE:
                        self.take(**{name: is_on})
                    elif is_on:
                        self._trigger_at_edge()
            except (OSError, SinkError) as error:
                log.warning("%s: an edge was not taken: %s", self._gpio.label, error)
                self._is_closing.wait(LOOK_S)

    def _trigger_at_edge(self) -> None:
        try:
            if self._orders is None:
                raise SinkError("the line does not run")
            self._orders.trigger(self.only_stream, None, self._gpio.label)
        except NnetEdgeError as error:
            log.warning("an edge of %s triggers nothing: %s", self._gpio.label, error)


SINKS.register(SinkKind("gpio", GpioSettings, GpioSink, needs={"gpiod": "gpio"}))
