"""A line: cameras that share one model, sinks that share their verdicts, and the controls that people and pages use.

Every method of `Line` may be called from any thread, before, while and after `run_line` runs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from nnet_edge.errors import ConfigError, StreamError
from nnet_edge.events import Events
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.sinks.base import Orders, Sink
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.open import open_source_of
from nnet_edge.runtime.stream.buffer import FrameBuffer
from nnet_edge.runtime.stream.loop import Loop, Pacer
from nnet_edge.runtime.stream.meters import LineMeters
from nnet_edge.runtime.stream.model import Model, ModelPool, Swap, hears
from nnet_edge.runtime.stream.report import LineReport, StreamStatus, View
from nnet_edge.runtime.stream.stream import Stream
from nnet_edge.settings.line import LineSettings
from nnet_edge.settings.recipe import Recipe
from nnet_edge.settings.runner import require_choice
from nnet_edge.settings.stream import LineStream, Polygon, VerdictSettings

log = logging.getLogger(__name__)

SWAP_LIMIT_S = 30.0  # a batch takes no longer; what does is broken


class Line:
    """Streams, the model that judges them, and sinks; `run_line` does the work.

    `load(path)` makes a model of a bundle, for streams with one of their own and for `swap`. With `keep_open` the line
    waits for streams to be added when its sources have ended. `deadline_s` fixes how long a batch waits for more frames.
    The line enters and leaves the runners of its models. `written` are the settings with its recipes, where it has any.
    """

    def __init__(self, model: Model, sinks: Sequence[Sink] = (), load: Callable[[Path], Model] | None = None,
                 keep_open: bool = False, deadline_s: float | None = None,
                 meters: LineMeters | None = None, written: LineSettings | None = None) -> None:  # fmt: skip
        self.sinks = tuple(sinks)
        self.events, self.meters, self.buffer = Events(), meters or LineMeters(), FrameBuffer(keep_open)
        self._lock = threading.RLock()
        self._model = model
        self._streams: dict[str, Stream] = {}
        self._remembered: dict[str, Stream] = {}  # removed ones too, while the buffer remembers them
        self.models = ModelPool(self._lock, load, self._used_models)
        self._loop = Loop(self.buffer, self._streams, self.models, self.meters, self.events)
        self._loop.sinks = self.sinks
        self._pacer = Pacer(deadline_s, model.batch_s)
        self._written = written
        self.recipe = None if written is None else written.recipe  # the name of the one that judges
        self._recipes = (
            {} if written is None else {recipe.name: recipe for recipe in written.recipes}
        )  # as they were left
        self._changing_recipe = threading.Lock()
        self._is_running = False
        self._began_s = time.monotonic()
        self._ended_s: float | None = None

    # ---- streams

    def add(self, settings: LineStream, source: Source | None = None, plain: LineStream | None = None) -> None:
        """Take in a stream; its camera starts at once when the line runs, and a live one is tried until it is back.

        `plain` are its settings without the recipe's. `source` is what `open_source_of` made of the same settings, None: it is
        made here. Raises ConfigError for a name that is taken or invalid settings, SourceError for a source that is absent,
        BundleError for a bundle of its own that cannot be loaded.
        """
        source = source or open_source_of(settings.camera, settings.name)
        self.add_source(settings, source, (lambda: self._open_again(settings)) if source.is_live else None, plain)

    def _open_again(self, settings: LineStream) -> Source:
        """The source anew; where something was absent there may be a folder now, and of files every frame counts."""
        source = open_source_of(settings.camera, settings.name)
        if not source.is_live:
            with suppress(ConfigError):  # the stream was removed in this moment
                self.buffer.change(settings.name, self._stream(settings.name).buffering(is_live=False))
        return source

    def add_source(self, settings: LineStream, source: Source, reopen: Callable[[], Source] | None = None,
                   plain: LineStream | None = None) -> None:  # fmt: skip
        """Take in a stream with a source that is made already; see Camera for `reopen`."""
        name = settings.name
        if name in self._streams:
            raise ConfigError(f"there is a stream called {name!r} already: give another name, or remove it first")
        own = None if settings.bundle is None else self.models.get(settings.bundle)
        with self._lock:
            model = own or self._model
            stream = Stream(
                settings, source, model, self.buffer, self.meters, self.events.tell, self._source_ended, reopen, plain
            )
            if self.recipe is not None:
                stream.use_recipe(self.recipe, settings, model)
            self.buffer.add(name, stream.buffering(source.is_live))
            self.models.enter(model)
            self._streams[name] = self._remembered[name] = stream
            is_running = self._is_running
        for sink in self.sinks:
            sink.expect(name, source.rate_hz, source.is_live)
        self.events.tell("stream.added", name, what=source.describe(), bundle=model.name)
        stream.tell_dropped()
        if is_running:
            stream.start()

    def remove(self, name: str) -> None:
        """Take a stream out; its waiting frames are dropped as removed."""
        with self._lock:
            stream = self._stream(name)
            self.buffer.remove(name)
            del self._streams[name]
            known = self.buffer.all_counts()
            self._remembered = {name: stream for name, stream in self._remembered.items() if name in known}
        stream.camera.ask_to_stop()
        if stream.triggers is not None:
            stream.triggers.end()
        self.models.let_go(stream.model)
        if self._is_running:
            stream.camera.join()
        self.events.tell("stream.removed", name)

    def trigger(self, name: str | None = None, number: int | None = None, by: str = "program") -> int | None:
        """A trigger comes now for that stream, None: the only one that is triggered; gives its number.

        Without a `number` it is the next. Raises ConfigError for one that is refused. A stream without [stream.trigger] asks
        its camera for one picture, which has no number. Raises SourceError.
        """
        if name is None:
            with self._lock:
                names = [one.name for one in self._streams.values() if one.triggers is not None]
            if len(names) != 1:
                raise ConfigError(
                    f"a trigger names its stream where there is not just one: {', '.join(names) or 'none'}"
                )
            (name,) = names
        return self._stream(name).trigger(by, number)

    def pause(self, name: str) -> None:
        """Judge no frame of this stream until `resume`; its camera stays connected."""
        self.buffer.pause(name)
        self.events.tell("stream.paused", name)

    def resume(self, name: str) -> None:
        """End the pause."""
        self.buffer.resume(name)
        self.events.tell("stream.resumed", name)

    def set_threshold(self, name: str, value: float | None) -> float:
        """Judge by this threshold from the next frame on, None: by the bundle's; gives it. Raises ConfigError."""
        judge = self._stream(name).judge
        before = judge.threshold
        threshold = judge.set_threshold(value)
        self.events.tell("threshold.changed", name, old=before, new=threshold)
        return threshold

    def adapt(self, name: str, pictures: int, by: str = "the program") -> float:
        """Choose the threshold on the last so many pictures, good parts all, as `--adapt` does on the first; gives it.

        Raises ConfigError where they are too few for the bundle's rate, or one is far beyond the others.
        """
        return self._stream(name).first.adapt_last(pictures, by)

    def set_regions_of_interest(self, name: str, polygons: Sequence[Polygon]) -> None:
        """Inspect only inside these polygons, pixels of the camera; none: everywhere. Raises ConfigError."""
        self._stream(name).judge.set_regions(regions_of_interest=polygons)
        self.events.tell("regions.changed", name, regions_of_interest=[list(polygon) for polygon in polygons])

    def set_ignored(self, name: str, polygons: Sequence[Polygon]) -> None:
        """Leave these polygons out, pixels of the camera. Raises ConfigError."""
        self._stream(name).judge.set_regions(ignored=polygons)
        self.events.tell("regions.changed", name, ignored=[list(polygon) for polygon in polygons])

    def set_verdict(self, name: str, settings: VerdictSettings) -> None:
        """Judge by thresholds and regions of these settings from the next frame on. Raises ConfigError."""
        judge = self._stream(name).judge
        before = judge.threshold
        judge.use_settings(settings)
        self.events.tell("threshold.changed", name, old=before, new=judge.threshold)
        regions = {
            key: [list(polygon) for polygon in getattr(settings, key)] for key in ("regions_of_interest", "ignored")
        }
        self.events.tell("regions.changed", name, **regions)

    # ---- what is known

    def streams(self) -> list[StreamStatus]:
        """Each stream now, in the order in which they were added."""
        with self._lock:
            return [stream.status() for stream in self._streams.values()]

    def stream(self, name: str) -> Stream:
        """The stream of that name: its newest verdicts, meters, judge and model. Raises ConfigError for an unknown name."""
        return self._stream(name)

    def latest(self, name: str) -> Prediction | None:
        """The newest prediction of the stream, of its last crop; None before the first."""
        newest = self._stream(name).newest
        return newest[-1] if newest else None

    def latest_parts(self, name: str) -> tuple[Prediction, ...]:
        """The predictions of the newest judged frame, one a crop."""
        return self._stream(name).newest

    def latest_frame(self, name: str) -> Frame | None:
        """The newest judged frame, whole; None before the first."""
        return self._stream(name).frame

    def scores(self, name: str) -> list[float]:
        """The newest 1000 image scores of the stream, oldest first: what another threshold would have rejected."""
        return self._stream(name).judge.scores()

    def stalled_s(self) -> float | None:
        """Seconds since a batch was last finished while frames waited or were under way; None when nothing waits."""
        return self.buffer.stalled_s()

    def model(self, name: str | None = None) -> Model:
        """The model of the stream, None: of the line."""
        return self._model if name is None else self._stream(name).model

    @property
    def is_watched(self) -> bool:
        """Whether a page wants maps of good frames too."""
        return self._loop.is_watched

    @is_watched.setter
    def is_watched(self, is_watched: bool) -> None:
        self._loop.is_watched = is_watched

    def subscribe(self, callback: Callable[[Prediction], None]) -> None:
        """Call `callback` with every prediction, in the line's thread: it must not wait. Events: `line.events`."""
        with self._lock:
            self._loop.subscribers = (*self._loop.subscribers, callback)

    def unsubscribe(self, callback: Callable[[Prediction], None]) -> None:
        """Call `callback` no more; one that never subscribed is no error."""
        with self._lock:
            self._loop.subscribers = tuple(known for known in self._loop.subscribers if known != callback)

    # ---- another bundle

    def swap(self, path: Path, name: str | None = None, timeout_s: float = SWAP_LIMIT_S) -> Model:
        """Load and warm the bundle at `path` beside the old one, then judge by it, all streams or the one named.

        Returns once it judges; not a frame is lost. Raises BundleError when it cannot be loaded, ConfigError when it sees
        nothing of what a stream inspects, StreamError when its turn did not come in `timeout_s`: the old one stays.
        """
        stream = None if name is None else self._stream(name)
        new = self.models.load(path)
        try:
            for one in self._judging_as(stream):
                one.judge.require_seen(new.geometry)
        except ConfigError as error:
            with new.runner:  # the last exit releases it
                raise ConfigError(f"the bundle {path} cannot judge stream {one.name}: {error}") from error
        swap = Swap(new, lambda: self._switch(new, stream))
        self._take_turn(swap, f"bundle {path}", timeout_s)
        return new

    def _take_turn(self, swap: Swap, what: str, timeout_s: float) -> None:
        """Wait until it is swapped, between two batches where the line runs. Raises StreamError when no turn comes."""
        hears.get()("waiting for the gap between two batches")
        self.models.ask(swap)
        if not self._is_running:
            self.models.switch()
        if not self.models.is_swapped(swap, timeout_s):
            raise StreamError(
                f"the {what} waited for {timeout_s:g} s for its turn and was put back: does the runner hang?"
            )

    def _switch(self, new: Model, stream: Stream | None) -> Callable[[], object]:
        """Let the stream, None: all that judge by the line's model, judge by the new one; gives what tells of it."""
        old = self._model if stream is None else stream.model
        switched = self._judging_as(stream)
        for one in switched:
            one.use(new)
        if stream is None:
            self._model = new
        facts = {"old": old.facts(), "new": new.facts(), "streams": [one.name for one in switched]}

        def tell() -> None:
            self.events.tell("bundle.swapped", None, **facts)
            for one in switched:
                one.tell_dropped()

        return tell

    # ---- recipes

    def recipes(self) -> tuple[str, ...]:
        """Their names, in the order of the file."""
        return tuple(self._recipes)

    def ask_recipe(self, name: str, by: str = "program") -> None:
        """Begin to judge by that recipe; the event `recipe.changed` or `recipe.refused` follows.

        Raises ConfigError for one that is not there, and while another is being loaded.
        """
        require_choice("recipe", name, self.recipes() or ("none, for there is no [[recipe]]",))
        if self._changing_recipe.locked():
            raise ConfigError("another recipe is being loaded: wait until it judges")

        def work() -> None:
            try:
                self.use_recipe(name, by)
            except Exception as error:
                log.warning("the recipe %s is refused: %s", name, error)
                reason = str(error) or type(error).__name__
                self.events.tell("recipe.refused", None, recipe=name, by=by, reason=reason)

        threading.Thread(target=work, name=f"recipe {name}", daemon=True).start()

    def use_recipe(self, name: str, by: str = "program", timeout_s: float = SWAP_LIMIT_S,
                   written: Sequence[Recipe] = ()) -> None:  # fmt: skip
        """Judge by that recipe, all streams between the same two batches; returns once it judges.

        Thresholds and regions that were changed while it judged are as they were left; with `written` every recipe is as it
        stands there.

        Frames captured before are judged by the old one or dropped as `recipe`. Raises ConfigError when it is not there, sees
        nothing of what a camera shows, or another is being loaded; BundleError, SourceError; StreamError when its turn did not
        come in `timeout_s`. The old one stays then.
        """
        if not self._changing_recipe.acquire(blocking=False):
            raise ConfigError("another recipe is being loaded: wait until it judges")
        try:
            self._use_recipe(name, by, timeout_s, {recipe.name: recipe for recipe in written})
        finally:
            self._changing_recipe.release()

    def recipes_now(self) -> tuple[Recipe, ...]:
        """Every recipe as it would be used next: with what was changed while it judged."""
        with self._lock:
            return tuple(
                self._recipe_now() if name == self.recipe else recipe for name, recipe in self._recipes.items()
            )

    def _recipe_now(self) -> Recipe:
        """The recipe that judges, with the thresholds, regions and bundles of this moment."""
        assert self.recipe is not None
        known, line_path = self._recipes[self.recipe], self._model.path
        streams = [
            replace(
                known.stream(one.name), verdict=one.judge.settings,
                bundle=None if one.model is self._model else one.model.path,
            )
            for one in self._streams.values()
        ]  # fmt: skip
        return replace(known, bundle=line_path, streams=tuple(streams))

    def _use_recipe(self, name: str, by: str, timeout_s: float, anew: dict[str, Recipe]) -> None:
        require_choice("recipe", name, self.recipes() or ("none, for there is no [[recipe]]",))
        assert self._written is not None
        with self._lock:
            plain = tuple(one.plain for one in self._streams.values())
        wanted = replace(self._written, streams=plain, recipes=tuple((anew or self._recipes).values())).under(name)
        assert wanted.bundle is not None
        hears.get()("loading its bundles")
        models: dict[Path, Model] = {}
        plan, cameras = [], {}
        try:
            for path in dict.fromkeys((wanted.bundle, *wanted.own_bundles)):
                models[path] = self.models.get(path)
            for settings in wanted.streams:
                if (stream := self._streams.get(settings.name)) is None:
                    continue
                model = models[settings.bundle or wanted.bundle]
                try:
                    stream.judge.require_fits(settings.verdict, model.geometry)
                except ConfigError as error:
                    raise ConfigError(f"the recipe {name} cannot judge stream {settings.name}: {error}") from error
                if settings.camera != stream.settings.camera:
                    cameras[stream.name] = open_source_of(settings.camera, stream.name, may_be_absent=True)
                plan.append((stream, settings, model))
        except BaseException:
            for model in models.values():
                self.models.release(model)
            raise
        old, line_model = self.recipe, models[wanted.bundle]

        def switch() -> Callable[[], object]:
            if self.recipe is not None:
                self._recipes = anew or {**self._recipes, self.recipe: self._recipe_now()}
            self._model, self.recipe = line_model, name
            planned = [stream for stream, _, _ in plan]
            added = [one for one in self._streams.values() if one not in planned]  # meanwhile
            for stream, settings, model in (*plan, *((one, one.plain, line_model) for one in added)):
                stream.use_recipe(name, settings, model, stream.name in cameras)
                if stream.name in self._streams:
                    self._pause_for(name, old, stream.name)
                    self.buffer.change(stream.name, stream.buffering(stream.source.is_live))

            def tell() -> None:
                for stream, _, _ in plan:
                    stream.tell_dropped()

            return tell

        self._take_turn(Swap(line_model, switch, more=tuple(models.values())), f"recipe {name}", timeout_s)
        for stream, settings, _ in plan:
            if stream.name in cameras:
                source = cameras[stream.name]
                reopen = (lambda settings=settings: self._open_again(settings)) if source.is_live else None
                stream.use_camera(source, reopen, self._is_running)
        names = [stream.name for stream, _, _ in plan]
        self.events.tell("recipe.changed", None, recipe=name, old=old, by=by, streams=names, bundle=line_model.name)

    def _pause_for(self, name: str, old: str | None, stream: str) -> None:
        """Pause the stream where the recipe says so, and resume it where only the old one did."""
        if stream in self._recipes[name].paused:
            self.buffer.pause(stream)
        elif old is not None and stream in self._recipes[old].paused:
            self.buffer.resume(stream)

    def _judging_as(self, stream: Stream | None) -> list[Stream]:
        """That stream, None: all that judge by the line's model."""
        with self._lock:
            return [
                one for one in self._streams.values() if (one.model is self._model if stream is None else one is stream)
            ]

    def _used_models(self) -> list[Model]:
        """Those that judge a stream, or would judge the next."""
        return [self._model, *(stream.model for stream in self._streams.values())]

    # ---- running

    @contextmanager
    def running(self, stop: threading.Event | None = None) -> Iterator[None]:
        """Runners and sinks open and cameras reading, for as long as the block takes; everything ended behind it.

        Once `stop` is set nothing in the block waits for a sink.
        """
        with ExitStack() as stack:
            stack.callback(self.models.leave_all)
            self.models.enter(self._model)
            for sink in self.sinks:
                stack.enter_context(sink)
                sink.report_to(self.events.pass_on)
                if stop is not None:
                    sink.stop_with(stop)
                sink.obey(Orders(self.trigger, self.ask_recipe, self.recipes(), self.recipe))
                if sink.wants_events:
                    self.events.subscribe(sink.tell)
                    stack.callback(self.events.unsubscribe, sink.tell)
            with self._lock:
                self._is_running, self._began_s = True, time.monotonic()
                streams = list(self._streams.values())
            for stream in streams:
                stream.start()
            try:
                yield
            finally:
                self._end()
                for sink in self.sinks:
                    sink.end_soon()

    def judge(self, stop: threading.Event, view: View) -> None:
        """Judge in this thread until the sources have ended or `stop` is set; inside `running`."""
        self._loop.run(stop, view, lambda: self._model.runner.max_batch, self._pacer)

    def _end(self) -> None:
        """End buffer, cameras and swaps that still wait."""
        with self._lock:
            self._is_running, self._ended_s = False, time.monotonic()
            streams = list(self._streams.values())
        cameras = [stream.camera for stream in streams]
        self.buffer.stop()
        for camera in cameras:
            camera.ask_to_stop()
        for camera in cameras:
            with suppress(RuntimeError):  # one that was added in this moment never started
                camera.join()
        self.buffer.give_up()
        for triggers in [stream.triggers for stream in streams if stream.triggers is not None]:
            triggers.end()
        self.models.switch()

    def _source_ended(self, stream: Stream, error: BaseException | None) -> None:
        """Close the queue of a source that gives no more; in the camera's thread."""
        stream.error = error
        if self._streams.get(stream.name) is stream:
            self.buffer.close(stream.name)
            if error is None:
                self.events.tell("source.ended", stream.name)
            else:
                self.events.tell("stream.failed", stream.name, reason=str(error) or type(error).__name__)

    def errors(self) -> dict[str, BaseException]:
        """Stream -> why its source cannot go on."""
        with self._lock:
            return {name: stream.error for name, stream in self._streams.items() if stream.error is not None}

    def report(self, ended: str = "running") -> LineReport:
        """What became of every frame so far."""
        with self._lock:
            counts = self.buffer.all_counts()
            reports = {
                name: replace(stream.report(ended, counts[name]), answers=self.meters.answers(name))
                for name, stream in self._remembered.items()
                if name in counts
            }
            seconds = (self._ended_s or time.monotonic()) - self._began_s
            errors = {name: str(error) for name, error in self.errors().items()}
            return LineReport(reports, self.buffer.total(), seconds, ended, errors)

    def _stream(self, name: str) -> Stream:
        stream = self._streams.get(name)
        if stream is None:
            known = ", ".join(self._streams) or "none"
            raise ConfigError(f"there is no stream called {name!r}: there are {known}")
        return stream
