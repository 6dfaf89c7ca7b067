"""First pictures of a stream: whether they were made as training's were, and the threshold that they, or the last, ask for.

Only pictures that differ from the one before count: a camera gives 30 a second, and a part that lies before it is one part.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from nnet_edge.errors import ConfigError, NnetEdgeError
from nnet_edge.frame import Frame, Prediction
from nnet_edge.geometry import Geometry
from nnet_edge.image_path import FEWEST, ImagePath, advice, columns_of, in_words, measure, measure_file
from nnet_edge.imaging import to_input
from nnet_edge.scoring import Threshold, ThresholdRule, far_out, in_counts, rank_of
from nnet_edge.settings.changes import shown
from nnet_edge.settings.runner import require_between
from nnet_edge.settings.stream import Adapted, VerdictSettings

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.judge import Judge
    from nnet_edge.runtime.stream.model import Model

log = logging.getLogger(__name__)

THUMB = 32  # height and width of what pictures are told apart by
OTHER = 0.5  # grey levels, on average, by which another picture differs there; a camera's noise makes less
PICTURES = 30  # that are compared with training's; a first look is after FEWEST of them
LOOKED_AT = 2000  # frames: a scene that has not changed until then will not
MOST_RECENT = 1000  # pictures to choose a threshold on afterwards
RECENT_S = 0.1  # between two looks for the last pictures
MOST_TIMES = 2.0  # the bundle's threshold: what good pictures ask for more is another part or another picture


class Others:
    """Tells pictures that differ from the one before them, of each crop for itself."""

    def __init__(self) -> None:
        self._last: dict[str | None, np.ndarray] = {}

    def is_other(self, frame: Frame) -> bool:
        """Whether the frame's picture differs from the last that did."""
        step = max(1, min(frame.image.shape[:2]) // (8 * THUMB))
        sampled = np.ascontiguousarray(frame.image[::step, ::step])
        while min(sampled.shape[:2]) >= 4 * THUMB:  # OpenCV halves by vector instructions, and only halves
            height, width = sampled.shape[0] // 2, sampled.shape[1] // 2
            even = sampled[: 2 * height, : 2 * width]
            sampled = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
        # from floats: whole numbers would round noise up
        small = cv2.resize(sampled.astype(np.float32), (THUMB, THUMB), interpolation=cv2.INTER_AREA)
        name = None if frame.crop is None else frame.crop.name
        last = self._last.get(name)
        if last is not None and last.shape == small.shape and float(np.abs(small - last).mean()) < OTHER:
            return False
        self._last[name] = small
        return True


class PathWatch:
    """Compares the first pictures of a stream with those that the bundle's threshold was chosen on."""

    def __init__(self, learned: ImagePath | None, geometry: Geometry) -> None:
        self._learned, self._geometry = learned, geometry
        self._rows: list[dict[str, float]] = []
        self._looked_at = 0

    @property
    def is_over(self) -> bool:
        """Whether it needs no more pictures."""
        return self._learned is None or len(self._rows) >= PICTURES or self._looked_at >= LOOKED_AT

    def add(self, frames: Sequence[Frame], is_own: bool) -> dict[str, Any] | None:
        """Take notice of what is new in a frame; what a difference is told with, once.

        `is_own` says that the stream has a threshold of its own, or is about to choose one.
        """
        self._looked_at += 1
        if self._learned is None or not frames:
            return None
        before = len(self._rows)
        for frame in frames:
            image = np.empty(self._geometry.shape, np.uint8)
            to_input(frame.image, image, self._geometry)
            self._rows.append(measure(image) | measure_file(self._geometry.cropped(frame.image)))
        if not any(before < look <= len(self._rows) for look in (FEWEST, PICTURES)):
            return None
        changes = self._learned.changes(columns_of(self._rows))
        if not changes:
            return None
        pictures, learned, self._learned = len(self._rows), self._learned, None
        return {
            "pictures": pictures,
            "learned_pictures": learned.images,
            "changes": {name: round(change, 3) for name, change in changes.items()},
            "reason": f"its first {pictures} pictures were made otherwise than those that the threshold was chosen on: "
            f"{in_words(changes)}. Scores of good parts may have moved: {advice(changes)}; or train on pictures of this camera"
            + ("" if is_own else ", or choose the threshold again on good parts (--adapt N)"),
        }


@dataclass(frozen=True)
class Adapting:
    """How far a stream is with choosing its own threshold, for reports and the page."""

    state: str  # "adapting", "done" or "refused"
    seen: int  # pictures
    wanted: int
    text: str

    def as_dict(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        return {"state": self.state, "seen": self.seen, "wanted": self.wanted, "text": self.text}


class Adaptation:
    """Collects the scores of good pictures of one camera until they are enough for a threshold."""

    def __init__(self, wanted: int, model: Model) -> None:
        """Raise ConfigError when so many pictures do not support the rate of false rejects that the bundle was made for."""
        self.wanted, self._model = wanted, model
        rate, manifest = rate_of(model.manifest), dict[str, Any](model.manifest)
        self._rule = ThresholdRule(rate, margin=Threshold.from_dict(manifest["threshold"]).margin)
        self._found: list[tuple[float, str]] = []  # score and name of each
        require_enough(wanted, rate)

    @property
    def seen(self) -> int:
        """Pictures so far."""
        return len(self._found)

    def add(self, score: float, name: str) -> Adapted | None:
        """Count one picture; the threshold once they are enough. Raises ConfigError when they support none."""
        self._found.append((score, name))
        return None if self.seen < self.wanted else self._choose()

    def restart(self) -> None:
        """Begin again, after other regions."""
        self._found.clear()

    def _choose(self) -> Adapted:
        scores = np.array([score for score, _ in self._found], np.float64)
        relative = scores / self._model.threshold
        worst = int(np.argmax(relative))
        if (limit := far_out(relative)) < relative[worst]:
            raise ConfigError(
                f"{self._found[worst][1]} has a score of {relative[worst]:.2f} times the bundle's threshold, far beyond the "
                f"others (the middle one has {np.median(relative):.2f}, and up to {limit:.2f} would do): is it a defect? Start "
                "again with good parts alone"
            )
        times = self._rule.choose(scores).value / self._model.threshold
        if times > MOST_TIMES:
            raise ConfigError(
                f"they ask for {times:.2f} times the bundle's threshold, and more than {MOST_TIMES:g} times may pass defects: "
                f"train on pictures of this camera, or set threshold = {times * self._model.threshold:.6g} if you have seen "
                "that defects lie above it"
            )
        bundle_id = self._model.judged_by.bundle_id
        assert bundle_id is not None  # a model with a rate has a bundle
        return Adapted(times=float(f"{times:.7g}"), bundle_id=bundle_id, pictures=self.seen)


def rate_of(manifest: Mapping[str, Any]) -> float:
    """The share of false rejects that the bundle's threshold was chosen for. Raises ConfigError without a bundle."""
    if "threshold" not in manifest or "files" not in manifest:
        raise ConfigError("adapt needs a bundle, which says what share of good parts may be rejected: give one")
    chosen = Threshold.from_dict(manifest["threshold"])
    return chosen.expected_false_rejects if chosen.asked is None else chosen.asked


def require_enough(pictures: int, rate: float) -> None:
    """Raise ConfigError unless a threshold of that rate can be chosen on so many pictures."""
    try:
        rank_of(rate, pictures)
    except ConfigError as error:
        needed = math.ceil(1 / rate - 1 - 1e-9)
        raise ConfigError(
            f"adapt on {pictures} pictures is too few: the bundle's threshold was chosen to reject {in_counts(rate)} good "
            f"parts, which takes {needed}: give --adapt {needed} or more"
        ) from error


def parts_of(settings: VerdictSettings) -> tuple[object, ...]:
    """What of the picture is judged: scores under other values cannot be compared."""
    return (
        settings.regions_of_interest, settings.ignored, settings.interest_picture, settings.ignored_picture, settings.crops
    )  # fmt: skip


def name_of(frame: Frame) -> str:
    """The picture, for people."""
    name = frame.name or f"frame {frame.index}"
    return name if frame.crop is None else f"{name}, {frame.crop.name}"


class FirstFrames:
    """What a stream does with its first frames; `look` belongs to the line's thread, `state` to any.

    `adapt` is how many of them are good parts to choose the threshold again on, None: it is left. Raises ConfigError where they
    are too few.
    """

    def __init__(self, stream: str, judge: Judge, model: Model, adapt: int | None, tell: Callable[..., object]) -> None:
        self._stream, self._judge, self._tell = stream, judge, tell
        self._adaptation = None if adapt is None else Adaptation(adapt, model)
        self._watch = PathWatch(ImagePath.in_manifest(model.manifest), model.geometry)
        self._others = Others()
        self._under = judge.settings  # that the pictures of the adaptation were judged by
        self._ended: Adapting | None = None
        self._model = model
        self._changing = threading.Lock()
        self._recent: deque[tuple[float, str]] = deque(maxlen=MOST_RECENT)  # score and name of the newest pictures
        self._recent_of, self._next_s = parts_of(judge.settings), time.monotonic() + RECENT_S
        judge.is_adapting = adapt is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing waits for a picture any more."""
        return self._adaptation is None and self._watch.is_over

    @property
    def is_due(self) -> bool:
        """Whether to look at a frame: at each while something waits for a picture, later at ten a second."""
        return not self.is_over or time.monotonic() >= self._next_s

    @property
    def state(self) -> Adapting | None:
        """How far the adaptation is; None where none was asked for."""
        if self._adaptation is None:
            return self._ended
        seen, wanted = self._adaptation.seen, self._adaptation.wanted
        text = f"adapting: {seen} of {wanted} pictures, judged by the bundle's threshold until then"
        return Adapting("adapting", seen, wanted, text)

    def look(self, predictions: Sequence[Prediction]) -> None:
        """Take notice of a frame's verdicts."""
        with self._changing:
            self._look(predictions)

    def _look(self, predictions: Sequence[Prediction]) -> None:
        self._next_s = time.monotonic() + RECENT_S
        others = [one for one in predictions if self._others.is_other(one.frame)]
        is_own = self._adaptation is not None or self._judge.threshold_from != "bundle"
        if not self._watch.is_over and (differs := self._watch.add([one.frame for one in others], is_own)):
            log.warning("%s: %s", self._stream, differs["reason"])
            self._tell("camera.differs", self._stream, **differs)
        if (now := parts_of(self._judge.settings)) != self._recent_of:
            self._recent_of = now
            self._recent.clear()
        else:
            self._recent.extend((one.image_score, name_of(one.frame)) for one in others)
        if self._adaptation is not None:
            try:
                self._adapt(self._adaptation, others)
            except NnetEdgeError as error:
                self.refuse(str(error))

    def adapt_last(self, pictures: int, by: str) -> float:
        """Choose the threshold on the last so many pictures, which are good parts by the word of whom `by` names; gives it.

        One that was set, or an adaptation under way, gives way. Raises ConfigError as an adaptation does, and for more pictures
        than were judged since the line, the bundle or the regions changed.
        """
        require_between("adapt, good pictures,", pictures, 1, MOST_RECENT)
        with self._changing:
            adaptation = Adaptation(pictures, self._model)
            recent = list(self._recent) if parts_of(self._judge.settings) == self._recent_of else []
            if len(recent) < pictures:
                raise ConfigError(
                    f"{pictures} pictures were asked for, and {len(recent)} that differ from the one before were judged since "
                    "the line, its bundle or its regions changed: wait, or ask for fewer"
                )
            adapted = next(found for one in recent[-pictures:] if (found := adaptation.add(*one)) is not None)
            self._adaptation = adaptation
            return self._done(adapted, by)

    def _adapt(self, adaptation: Adaptation, others: Sequence[Prediction]) -> None:
        settings = self._judge.settings
        if settings.threshold is not None:
            raise ConfigError("the threshold was set meanwhile, and holds")
        if settings is not self._under:
            self._under = settings
            adaptation.restart()
            return
        for prediction in others:
            adapted = adaptation.add(prediction.image_score, name_of(prediction.frame))
            if adapted is not None:
                self._done(adapted, "--adapt")
                return

    def _done(self, adapted: Adapted, by: str) -> float:
        """Judge by it from now on, and tell; gives the threshold."""
        old, new = self._judge.threshold, self._judge.use_adapted(adapted)
        text = f"adapted {shown(asdict(adapted))}"
        self._end("done", text)
        log.info("%s: %s", self._stream, text)
        self._tell("adapt.done", self._stream, old=old, new=new, **asdict(adapted), reason=text, by=by)
        return new

    def refuse(self, why: str) -> None:
        """Adapt no more: judge by the bundle's threshold, or the one that was set. Nothing where it does not adapt."""
        if self._adaptation is None:
            return
        text = f"not adapted on {self._adaptation.seen} pictures, the threshold stays: {why}"
        self._end("refused", text)
        log.warning("%s: %s", self._stream, text)
        self._tell("adapt.refused", self._stream, threshold=self._judge.threshold, reason=text)

    def _end(self, state: str, text: str) -> None:
        assert self._adaptation is not None
        self._ended = Adapting(state, self._adaptation.seen, self._adaptation.wanted, text)
        self._adaptation, self._judge.is_adapting = None, False
