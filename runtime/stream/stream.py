"""One stream of a line: its camera, judge, model and meters, and its newest verdicts."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np

from nnet_edge.bits import StreamBits, kept_bits, table_of, to_8_bit
from nnet_edge.errors import NnetEdgeError
from nnet_edge.frame import Frame, Prediction, Triggered
from nnet_edge.geometry import PictureSizes
from nnet_edge.runtime.sources.base import Source
from nnet_edge.runtime.sources.camera import Camera
from nnet_edge.runtime.stream.buffer import FrameBuffer
from nnet_edge.runtime.stream.drift import reference_of
from nnet_edge.runtime.stream.first_frames import FirstFrames
from nnet_edge.runtime.stream.judge import Judge
from nnet_edge.runtime.stream.meters import STAGES, TRIGGER, LineMeters, StreamMeters
from nnet_edge.runtime.stream.model import Model
from nnet_edge.runtime.stream.report import StreamReport, StreamStatus
from nnet_edge.runtime.stream.stream_queue import FrameCounts
from nnet_edge.runtime.stream.triggers import TriggerCounts, Triggers
from nnet_edge.settings.changes import shown
from nnet_edge.settings.stream import Adapted, BufferSettings, LineStream

log = logging.getLogger(__name__)

LOW_TOLD = 8  # low scores in a row, from which on only powers of two are told


ANOTHER_BUNDLE = "another bundle came before it had adapted, and its threshold holds: start again with --adapt N"


def drop_reason(before: Adapted | None, now: Adapted | None) -> str:
    """Why an adapted threshold does not hold any more; empty where it does, or there was none."""
    if before is None or now is not None:
        return ""
    return (
        f"the threshold adapted {shown(asdict(before))} was another bundle's, and this one's own holds: start again with "
        "--adapt N, on good parts"
    )


def too_low_for(model: Model) -> float:
    """The relative score below which no good part of the model's bundle was seen; -inf where the bundle does not say."""
    reference = reference_of(model.manifest)
    return -math.inf if reference is None or reference.too_low is None else reference.too_low


class Stream:
    """What a line holds of one stream. `tell` and `ended` are called by the camera's threads; see Camera for `reopen`."""

    def __init__(self, settings: LineStream, source: Source, model: Model, buffer: FrameBuffer, meters: LineMeters,
                 tell: Callable[..., object], ended: Callable[[Stream, BaseException | None], None],
                 reopen: Callable[[], Source] | None, plain: LineStream | None = None) -> None:  # fmt: skip
        self.name, self.settings, self.source, self.model = settings.name, settings, source, model
        self.plain = plain or settings  # without what a recipe says
        self.recipe: str | None = None  # by which it judges
        self._of_recipe: tuple[str | None, float] = (None, -math.inf)  # that of frames captured from this moment on
        self.judge = Judge(settings.verdict, model.threshold, model.judged_by, model.geometry)
        self.meters = StreamMeters(meters)
        self._bits = StreamBits(self.name)
        self.error: BaseException | None = None
        self.newest: tuple[Prediction, ...] = ()  # of its newest judged frame, one a crop
        self.frame: Frame | None = None  # that frame, whole
        self.other_size = ""  # how its pictures differ in size from those that were learned from, once that was seen
        self.learned_sizes = PictureSizes.in_manifest(model.manifest)  # None: nothing to tell, or it was told
        self._buffer, self._tell = buffer, tell
        asked, has_line = settings.trigger, settings.verdict.trigger is not None
        self.triggers = None if asked is None else Triggers(settings.name, asked, tell, has_line)
        verdict = self.judge.settings
        wants_own = verdict.threshold is None and verdict.adapted is None
        self.first = FirstFrames(settings.name, self.judge, model, verdict.adapt if wants_own else None, tell)
        self._dropped = drop_reason(settings.verdict.adapted, verdict.adapted)
        self.too_low, self.low_in_a_row = too_low_for(model), 0
        self._meters, self._ended = meters, ended
        self.camera = self._make_camera(settings, source, reopen)

    def _make_camera(self, settings: LineStream, source: Source, reopen: Callable[[], Source] | None) -> Camera:
        name, meters = settings.name, self._meters

        def ended(error: BaseException | None) -> None:
            if self.camera is camera:  # another recipe's camera took its place
                self._ended(self, error)

        camera = Camera(
            name, source, settings.camera, put=self.put, tell=lambda kind, **facts: self._tell(kind, name, **facts),
            ended=ended, reopen=reopen, captured=lambda took_ms: meters.took(name, "capture", took_ms),
            lost=lambda cause, frames: self._buffer.lose(name, cause, frames),
        )  # fmt: skip
        return camera

    def put(self, frame: Frame) -> bool:
        """Count a captured frame and let it wait for its turn; in the capture thread. False when no more is wanted."""
        image = frame.image
        if image.dtype == np.uint16 and self.judge.settings.trigger is not None:
            image = table_of(self._bits_for(frame))[image]
        recipe, since_s = self._of_recipe
        if recipe is not None:
            frame = replace(frame, recipe=recipe)
        cause = None if self.judge.admit(image) else "untriggered"
        if frame.captured_s < since_s:
            cause = cause or "recipe"
        if self.triggers is not None and cause is None:
            frame, cause = self.triggers.admit(frame, None if frame.stamp is None else frame.stamp.block_id)
            if frame.trigger is not None and self._buffer.is_paused(self.name):
                self.triggers.fail(frame.trigger, "not_judged", "the stream is paused")
        return self._buffer.put(frame, cause)

    def start(self) -> None:
        """Begin to read, and to watch the deadlines of triggers."""
        if self.triggers is not None:
            self.triggers.start()
        self.camera.start()

    def trigger(self, by: str, number: int | None = None) -> int | None:
        """A trigger comes now; gives its number, which is the next where none is given. Raises ConfigError for a refused one.

        A stream that is not triggered asks its camera for one picture, and there is no number. Raises SourceError.
        """
        asked = self.settings.trigger
        if self.triggers is None or asked is None:
            self.camera.trigger()
            return None
        trigger = self.triggers.order(by, number)
        if asked.frames == "asked" and asked.delay_ms:
            timer = threading.Timer(1e-3 * asked.delay_ms, self._ask, (trigger,))
            timer.daemon = True
            timer.start()
        elif asked.frames == "asked":
            self._ask(trigger)
        return trigger.number

    def _ask(self, trigger: Triggered) -> None:
        """Ask the camera for the trigger's picture."""
        assert self.triggers is not None
        try:
            self.camera.trigger()
        except NnetEdgeError as error:
            self.triggers.fail(trigger, "missed", str(error))

    def fail_trigger(self, frame: Frame, outcome: str, why: str) -> None:
        """The trigger of the frame, where it has one, gets no verdict."""
        if self.triggers is not None and frame.trigger is not None:
            self.triggers.fail(frame.trigger, outcome, why)

    def scaled(self, frame: Frame) -> Frame:
        """A frame of 16 bits as one of 8, by its bits. Raises DataError when they do not hold its values."""
        return replace(frame, image=to_8_bit(frame.image, self._bits_for(frame)))

    def _bits_for(self, frame: Frame) -> int:
        """The bits of its 16-bit pictures: the user's, else the bundle's, else what its first picture shows."""
        return self._bits.of(frame.image, frame.bits, self.settings.camera.bits or kept_bits(self.model.manifest))

    def buffering(self, is_live: bool) -> BufferSettings:
        """How its frames wait."""
        return self.settings.buffer.resolved(is_live, self.model.runner.max_batch, len(self.judge.settings.crops))

    def use(self, model: Model) -> None:
        """Judge by another model from now on; `tell_dropped` tells what went with the old one."""
        before = self.judge.settings.adapted
        was_adapting, self.model = self.judge.is_adapting, model
        self.judge.use_bundle(model.threshold, model.judged_by, model.geometry)
        self._follow_model(None)
        self._dropped = ANOTHER_BUNDLE if was_adapting else drop_reason(before, self.judge.settings.adapted)

    def use_recipe(self, recipe: str, settings: LineStream, model: Model, is_camera_new: bool = False) -> None:
        """Judge by a recipe's settings and model from now on; with another camera, only once `use_camera` was called."""
        self._of_recipe = recipe, math.inf if is_camera_new else time.monotonic()
        self.recipe, self.settings = recipe, settings
        if self.triggers is not None:
            self.triggers.recipe = recipe
        self.model = model
        self.judge.use_recipe(settings.verdict, model.threshold, model.judged_by, model.geometry)
        self._follow_model(settings.verdict.adapt)
        self._dropped = drop_reason(settings.verdict.adapted, self.judge.settings.adapted)

    def use_camera(self, source: Source, reopen: Callable[[], Source] | None, is_running: bool) -> None:
        """Read another camera, that of `settings`; the old one is let go first."""
        old = self.camera
        self.camera = self._make_camera(self.settings, source, reopen)
        self.source = source
        old.ask_to_stop()
        if is_running:
            old.join()
        self._of_recipe = self.recipe, time.monotonic()
        if is_running:
            self.camera.start()

    def _follow_model(self, adapt: int | None) -> None:
        """Look at the frames to come as the first by this model."""
        model, verdict = self.model, self.judge.settings
        self.too_low, self.low_in_a_row = too_low_for(model), 0
        self.other_size, self.learned_sizes = "", PictureSizes.in_manifest(model.manifest)
        wants_own = verdict.threshold is None and verdict.adapted is None
        self.first = FirstFrames(self.name, self.judge, model, adapt if wants_own else None, self._tell)

    def tell_dropped(self) -> None:
        """Tell that what was adapted does not hold any more, once."""
        reason, self._dropped = self._dropped, ""
        if reason:
            log.warning("%s: %s", self.name, reason)
            self._tell("adapt.dropped", self.name, threshold=self.judge.threshold, reason=reason)

    def look_at_size(self, frame: Frame) -> None:
        """Tell, once, that a picture has another size or shape than those that the bundle learned from."""
        if self.learned_sizes is None:
            return
        height, width = frame.image.shape[:2]
        self.other_size = self.learned_sizes.differs(height, width, self.model.geometry)
        if self.other_size:
            self.learned_sizes = None
            log.warning("%s: %s", self.name, self.other_size)
            self._tell("picture.differs", self.name, frame=frame.id, height=height, width=width, reason=self.other_size)

    def tell_low(self, prediction: Prediction) -> None:
        """Count and tell a score lower than any good part's: its picture or its computation lost something.

        The bundle's scores are those of whole pictures, so crops and masked pictures are left out. Of many in a row the first,
        the 8th, the 16th, the 32nd are told.
        """
        if prediction.is_masked or prediction.frame.crop is not None:
            return
        relative = prediction.image_score / (prediction.bundle_threshold or prediction.threshold)
        self.meters.low += 1
        self.low_in_a_row = count = self.low_in_a_row + 1
        if count == 1 or (count >= LOW_TOLD and count & (count - 1) == 0):
            self._tell(
                "score.low", self.name, frame=prediction.id, score=prediction.image_score, relative_score=relative,
                limit=self.too_low, in_a_row=count,
                reason="lower than any good part's score: look at the camera's picture; if it is right, try another --runner",
            )  # fmt: skip

    def status(self) -> StreamStatus:
        """The stream now."""
        return StreamStatus(
            name=self.name, what=self.source.describe(), camera=self.camera.status(),
            is_paused=self._buffer.is_paused(self.name), threshold=self.judge.threshold,
            bundle_threshold=self.judge.bundle_threshold, bundle=self.model.name,
            settings=replace(self.settings, verdict=self.judge.settings), counts=self._buffer.counts(self.name),
            verdicts=self.meters.verdicts, rejected=self.meters.rejected, low=self.meters.low,
            threshold_from=self.judge.threshold_from, adapting=self.first.state, triggers=self._trigger_counts(),
        )  # fmt: skip

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of its verdicts."""
        return STAGES if self.triggers is None else (*STAGES, TRIGGER)

    def _trigger_counts(self) -> TriggerCounts | None:
        return None if self.triggers is None else self.triggers.counts()

    def report(self, ended: str, counts: FrameCounts) -> StreamReport:
        """What became of its frames so far."""
        camera = self.camera.status()
        return StreamReport(
            other_size=self.other_size, camera=camera,
            frames=self.meters.verdicts, rejected=self.meters.rejected, skipped=camera.skipped,
            seconds=self.meters.seconds, counts=counts, ended=ended, low=self.meters.low, adapting=self.first.state,
            latencies=self.meters.latencies(self.stages), triggers=self._trigger_counts(),
        )  # fmt: skip
