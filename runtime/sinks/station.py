"""What a PLC sees of a line, whatever bus it speaks: signals, numbers, and a handshake; see handshake.py.

`POINTS` names everything once. A bus (Modbus, OPC UA, GPIO) is a `Station` that shows the points and passes on what the PLC
writes; docs/plc.md has the table, which a test compares with this one.
"""

from __future__ import annotations

import errno
import logging
import math
import socket
import threading
import time
from abc import abstractmethod
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nnet_edge.errors import NnetEdgeError, SinkError
from nnet_edge.events import Event
from nnet_edge.frame import OUTCOMES, Prediction, Triggered
from nnet_edge.lazy import LazyModule
from nnet_edge.runtime.sinks.base import Orders, Sink
from nnet_edge.runtime.sinks.handshake import Answer, Handshake
from nnet_edge.settings.runner import require_choice, require_positive
from nnet_edge.settings.sink import SinkSettings

if TYPE_CHECKING:
    import asyncio
    from concurrent import futures

    from typing_extensions import Self
else:
    asyncio, futures = LazyModule("asyncio"), LazyModule("concurrent.futures")

log = logging.getLogger(__name__)

START_LIMIT_S = 10.0  # of a server, and of its end
REFUSED = "refused"  # the outcome of a request that is no trigger
CODES = {
    "none": 0,
    "verdict": 1,
    **{name: 2 + place for place, name in enumerate(OUTCOMES)},
    REFUSED: 2 + len(OUTCOMES),
}
RECIPE_STATES = {"used": 0, "loading": 1, "refused": 2}


@dataclass(frozen=True)
class Point:
    """Something that the PLC reads, or writes."""

    name: str
    kind: str  # "bit", "short" (16 bits), "number" (32 bits), "real" (32 bits)
    text: str
    is_input: bool = False  # the PLC writes it


POINTS = (
    Point("request", "bit", "inspect a part; hold it until done", True),
    Point("acknowledge", "bit", "the answer was taken; letting request go says so too", True),
    Point("heartbeat", "bit", "changes every heartbeat_s; a line that hangs or has ended lets it stand"),
    Point("ready", "bit", "the line runs and takes triggers"),
    Point("busy", "bit", "the part that was asked for is inspected"),
    Point("done", "bit", "good or reject is the answer"),
    Point("good", "bit", "the verdict of this very part is good"),
    Point("reject", "bit", "reject this part"),
    Point("fault", "bit", "a reject without a verdict (see outcome), or an answer that was not taken in time"),
    Point("wanted_trigger", "number", "the number of the next request; 0: the line counts", True),
    Point("wanted_recipe", "short", "the recipe to use, from 1 on in the order of the file, once it is written", True),
    Point("trigger", "number", "the number of the newest answer's trigger, or of its frame where nothing triggers"),
    Point("outcome", "short", ", ".join(f"{code} {name}" for name, code in CODES.items())),
    Point("score", "real", "the score; 0 without a verdict"),
    Point("relative_score", "real", "the score over the threshold"),
    Point("answers", "number", "answers so far"),
    Point("rejects", "number", "rejects among them"),
    Point("failed", "number", "answers without a verdict among them"),
    Point("unacknowledged", "number", "answers that were not taken in time"),
    Point("recipe", "short", "the recipe that judges, from 1 on; 0: the line has none"),
    Point("recipe_state", "short", ", ".join(f"{code} {name}" for name, code in RECIPE_STATES.items())),
    Point("beats", "short", "counts the heartbeats, 65535 is followed by 0"),
)  # fmt: skip
INPUTS, OUTPUTS = (tuple(point for point in POINTS if point.is_input is is_input) for is_input in (True, False))


@dataclass(frozen=True, kw_only=True)
class StationSettings(SinkSettings):
    """What every bus to a PLC is asked."""

    stream: str | None = None  # whose parts; None: those of the only stream that is triggered, else of all
    answer_timeout_ms: float = 5000.0  # a part that is asked for and has no answer then is a reject
    ack_timeout_ms: float = 2000.0  # an answer that was asked for and is not taken then is what on_lost says
    on_lost: str = "reject"  # "hold": the answer stays until it is taken
    heartbeat_s: float = 1.0  # between two changes of the heartbeat

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("on_lost", self.on_lost, ("reject", "hold"))
        for what in ("answer_timeout_ms", "ack_timeout_ms", "heartbeat_s"):
            require_positive(what, getattr(self, what))

    @property
    def asks_for_parts(self) -> bool:
        return True

    @property
    def shown_stream(self) -> str | None:
        return self.stream


class Station(Sink):
    """Shows the newest answer to a PLC, and lets it trigger. A bus implements `open`, `close` and, where it must, `show`."""

    wants_maps = wants_pixels = False
    wants_events = True

    def __init__(self, settings: StationSettings) -> None:
        self._settings = settings
        self.only_stream = settings.stream
        self._changed = threading.Condition()
        self._handshake = Handshake(1e-3 * settings.ack_timeout_ms, 1e-3 * settings.answer_timeout_ms, settings.on_lost)
        self._orders: Orders | None = None  # None: the line does not run
        self._inputs: dict[str, float] = {point.name: 0 for point in INPUTS}
        self._answer: Answer | None = None  # the newest, shown or not
        self._newest: Triggered | None = None  # whose part was answered last
        self._answers = self._rejects = self._failed = self._beats = 0
        self._recipe, self._recipe_state = 0, "used"
        self._is_ended = False
        self._beat_thread: threading.Thread | None = None

    @abstractmethod
    def open(self) -> None:
        """Begin to serve the PLC. Raises SinkError."""

    @abstractmethod
    def close(self) -> None:
        """Serve it no more."""

    def show(self, values: dict[str, float]) -> None:
        """The points have these values now; with the lock held. A bus that is asked for them each time needs it not."""

    def __enter__(self) -> Self:
        self.open()
        self._is_ended = False
        self._beat_thread = threading.Thread(
            target=self._beat, name=f"heartbeat of {self._settings.label}", daemon=True
        )
        self._beat_thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        with self._changed:
            self._is_ended, self._orders = True, None
            self._show()
            self._changed.notify_all()
        if self._beat_thread is not None:
            self._beat_thread.join(1.0)
        self.close()

    def obey(self, orders: Orders) -> None:
        with self._changed:
            self._orders = orders
            self._recipe = number_of(orders.recipe, orders.recipes)
            self._show()

    @property
    def own_counts(self) -> dict[str, int]:
        names = ("unacknowledged", "unanswered", "abandoned")
        return {name: count for name in names if (count := getattr(self._handshake, name))}

    # ---- from the line

    def write(self, prediction: Prediction) -> None:
        trigger = prediction.frame.trigger
        if trigger is not None and trigger is self._newest:
            return  # another crop of a part that is answered
        self._newest = trigger
        number, is_late = prediction.frame.index, False
        if trigger is not None:
            number, is_late = trigger.number, time.monotonic() > trigger.answer_by_s
        self._give(Answer(
            number, prediction.is_reject or is_late, "no_answer" if is_late else "verdict", prediction.image_score,
            prediction.relative_score,
        ))  # fmt: skip

    def tell(self, event: Event) -> None:
        facts = event.facts
        if event.kind == "trigger.failed" and self.only_stream in (None, event.stream):
            if facts["answer"] == "reject":
                self._give(Answer(int(str(facts["trigger"])), True, str(facts["outcome"])))
        elif event.kind in ("recipe.changed", "recipe.refused"):
            with self._changed:
                self._recipe_state = "used" if event.kind == "recipe.changed" else "refused"
                if self._orders is not None and event.kind == "recipe.changed":
                    self._recipe = number_of(str(facts["recipe"]), self._orders.recipes)
                self._show()

    def _give(self, answer: Answer) -> None:
        with self._changed:
            self._handshake.give(answer, time.monotonic())
            self._answer = answer
            self._answers += 1
            self._rejects += answer.is_reject
            self._failed += answer.outcome != "verdict"
            self._show()
            self._changed.notify_all()

    # ---- from the PLC

    def take(self, **inputs: float) -> None:
        """The PLC wrote these inputs. Does what they ask for."""
        with self._changed:
            before = dict(self._inputs)
            self._inputs.update(inputs)
            now_s = time.monotonic()
            if self._handshake.signals(bool(self._inputs["request"]), bool(self._inputs["acknowledge"]), now_s):
                self._trigger(now_s)
            if "wanted_recipe" in inputs and (self._inputs["wanted_recipe"] or before["wanted_recipe"]):
                self._use_recipe(int(self._inputs["wanted_recipe"]))
            self._show()
            self._changed.notify_all()

    def _trigger(self, now_s: float) -> None:
        try:
            if self._orders is None:
                raise SinkError("the line does not run")
            wanted = int(self._inputs["wanted_trigger"]) or None
            number = self._orders.trigger(self.only_stream, wanted, self._settings.label)
            if number is None:
                raise SinkError("its stream is not triggered: write [stream.trigger]")
        except NnetEdgeError as error:
            log.warning("the request of %s is refused: %s", self._settings.label, error)
            self._handshake.refuse(REFUSED, now_s)
            self._answer = self._handshake.answer
        else:
            self._handshake.begin(number, now_s)

    def _use_recipe(self, number: int) -> None:
        try:
            if self._orders is None:
                raise SinkError("the line does not run")
            if not 1 <= number <= len(self._orders.recipes):
                raise SinkError(f"there is no recipe number {number}: there are {len(self._orders.recipes)}")
            self.use_recipe(self._orders.recipes[number - 1])
        except NnetEdgeError as error:
            log.warning("%s: the recipe stays: %s", self._settings.label, error)
            self._recipe_state = "refused"

    def use_recipe(self, name: str) -> None:
        """Ask for that recipe. Raises NnetEdgeError for one that is refused."""
        if self._orders is None:
            raise SinkError("the line does not run")
        self._recipe_state = "loading"
        try:
            self._orders.use_recipe(name, self._settings.label)
        except NnetEdgeError:
            self._recipe_state = "refused"
            raise

    # ---- what is shown

    def values(self) -> dict[str, float]:
        """Every point now."""
        with self._changed:
            answer = self._answer
            return {
                **self._inputs,
                "heartbeat": self._beats % 2,
                "ready": self._orders is not None,
                **asdict(self._handshake.lamps),
                "trigger": 0 if answer is None else answer.number,
                "outcome": CODES["none" if answer is None else answer.outcome],
                "score": 0.0 if answer is None else answer.score,
                "relative_score": 0.0 if answer is None else answer.relative_score,
                "answers": self._answers,
                "rejects": self._rejects,
                "failed": self._failed,
                "unacknowledged": self._handshake.unacknowledged,
                "recipe": self._recipe,
                "recipe_state": RECIPE_STATES[self._recipe_state],
                "beats": self._beats,
            }

    @property
    def recipe_name(self) -> str:
        """The name of the recipe that judges; empty: none."""
        with self._changed:
            return "" if self._orders is None or not self._recipe else self._orders.recipes[self._recipe - 1]

    def _show(self) -> None:
        self.show(self.values())

    def _beat(self) -> None:
        """Change the heartbeat, and do what is due in the handshake."""
        next_s = time.monotonic() + self._settings.heartbeat_s
        with self._changed:
            while not self._is_ended:
                now_s = time.monotonic()
                lost = self._handshake.unacknowledged
                has_changed = self._handshake.tick(now_s)
                if self._handshake.unacknowledged > lost:
                    log.warning(
                        "%s: nobody took the answer of part %s in time", self._settings.label, self._handshake.number
                    )
                if now_s >= next_s:
                    next_s = max(next_s + self._settings.heartbeat_s, now_s)
                    if self._orders is not None:
                        self._beats, has_changed = (self._beats + 1) % 2**16, True
                if has_changed:
                    self._answer = self._handshake.answer or self._answer
                    try:
                        self._show()
                    except SinkError as error:  # the next answer says so too
                        log.warning("%s", error)
                due_s = min(next_s, self._handshake.due_s or math.inf)
                self._changed.wait(max(0.0, due_s - time.monotonic()))


def number_of(recipe: str | None, recipes: tuple[str, ...]) -> int:
    """The recipe as a PLC knows it, from 1 on; 0: none."""
    return 0 if recipe not in recipes else 1 + recipes.index(str(recipe))


def require_free(what: str, host: str, port: int) -> None:
    """Raise SinkError, which says why, unless a server may listen there; libraries only say that it may not."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, number) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        advice = "give another port, or end what listens there"
        if error.errno == errno.EACCES:
            advice = "ports below 1024 need root or CAP_NET_BIND_SERVICE: give another"
        raise SinkError(f"{what} cannot be served on {host}:{port} ({error.strerror}): {advice}") from error


class LoopThread:
    """An asyncio loop in a thread of its own, for servers that want one."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any], limit_s: float = START_LIMIT_S) -> Any:
        """What `work` gives. Raises what it raises, and TimeoutError."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(limit_s)
        except futures.TimeoutError as error:  # which Python 3.10 does not call TimeoutError
            raise TimeoutError(f"no answer within {limit_s:g} s") from error

    def soon(self, work: Coroutine[Any, Any, Any]) -> None:
        """Begin `work`, and wait for nothing; what it raises is logged."""

        def look(done: futures.Future[Any]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                log.error("%s broke: %r", self._thread.name, error)

        asyncio.run_coroutine_threadsafe(work, self._loop).add_done_callback(look)

    def close(self) -> None:
        """End the loop and what still runs in it."""

        async def cancel() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for _ in range(3):
                await asyncio.sleep(0)  # connections that were closed give back their sockets in the next rounds

        self.run(cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_LIMIT_S)
        self._loop.close()
