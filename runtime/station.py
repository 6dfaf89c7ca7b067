"""What stands behind one camera: its threshold, masks, crops and smoothing turn scores into verdicts.

Settings may be changed while frames come: a frame is judged by the settings of one moment, never by half of two.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from nnet_edge.frame import Crop, Frame, FrameOutputs, Outputs, Prediction, Region
from nnet_edge.runtime.masks import TriggerLine, inspected_part, require_inside
from nnet_edge.runtime.processing import predict
from nnet_edge.scoring import find_regions
from nnet_edge.stream_settings import Polygon, VerdictSettings, require_positive

KEPT_SCORES = 1000  # newest scores of a stream, for charts and for trying out a threshold


Masks = dict[tuple[int, int], dict[str | None, np.ndarray | None]]  # height, width -> crop name -> where its map counts


class Rules:
    """The settings of one moment, with the masks that follow from them; immutable but for its cache of masks."""

    def __init__(self, settings: VerdictSettings, bundle_threshold: float, masks: Masks | None = None) -> None:
        self.settings = settings
        self.bundle_threshold = bundle_threshold
        self.threshold = settings.threshold if settings.threshold is not None else bundle_threshold
        self.pixel_threshold = settings.pixel_threshold or self.threshold
        self.masks = masks or {}

    def fit(self, height: int, width: int) -> dict[str | None, np.ndarray | None]:
        """Crop name (None: the whole picture) -> where its map counts. Raises ConfigError for what does not fit."""
        size = height, width
        if size not in self.masks:
            require_inside(self.settings.crops, height, width)
            crops = self.settings.crops or (None,)
            masks = {name_of(crop): inspected_part(self.settings, height, width, crop) for crop in crops}
            self.masks = {size: masks}  # a camera has one size at a time
        return self.masks[size]


class Station:
    """Judges the frames of one stream. `admit` belongs to the capture thread, `judge` to the line's, the rest to any."""

    def __init__(self, settings: VerdictSettings, bundle_threshold: float) -> None:
        self._lock = threading.Lock()  # of the scores
        self._changing = threading.Lock()  # held from reading the rules to replacing them: no change undoes another
        self._rules = Rules(settings, bundle_threshold)
        self._trigger = None if settings.trigger is None else TriggerLine(settings.trigger)
        self._size: tuple[int, int] | None = None  # height and width of the newest picture
        self._above: dict[str | None, deque[bool]] = {}
        self._scores: deque[float] = deque(maxlen=KEPT_SCORES)

    @property
    def threshold(self) -> float:
        """The image score above which a frame is anomalous."""
        return self._rules.threshold

    @property
    def bundle_threshold(self) -> float:
        """The threshold of the bundle that judges."""
        return self._rules.bundle_threshold

    @property
    def settings(self) -> VerdictSettings:
        """The settings that hold now."""
        return self._rules.settings

    def scores(self) -> list[float]:
        """The newest image scores, oldest first."""
        with self._lock:
            return list(self._scores)

    def admit(self, frame: Frame) -> bool:
        """Whether the frame is to be judged: it is the one in which a part reached the trigger line, if there is one.

        Raises ConfigError when settings do not fit the camera's picture.
        """
        self._size = frame.image.shape[0], frame.image.shape[1]
        self._rules.fit(*self._size)
        return self._trigger is None or self._trigger.is_reached(frame.image)

    def parts(self, frame: Frame) -> list[Frame]:
        """The frame itself, or its crops, whose images are views of it. Raises ConfigError for crops that do not fit."""
        crops = self._rules.settings.crops
        require_inside(crops, *frame.image.shape[:2])
        return [
            replace(frame, image=frame.image[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width], crop=crop)
            for crop in crops
        ] or [frame]

    def judge(
        self, whole: Frame, parts: Sequence[Frame], outputs: Outputs | FrameOutputs, first: int, wants_maps: bool
    ) -> list[Prediction]:
        """One prediction for each of `parts`, whose outputs begin at number `first`; `whole` is the frame they are of.

        A map on a GPU is fetched for rejects, where a mask asks for it, and where `wants_maps`. Raises StreamError for a
        score that is no finite number.
        """
        rules = self._rules
        masks = rules.fit(*whole.image.shape[:2])
        return [
            self._judge_one(part, outputs, first + number, rules, masks.get(name_of(part.crop)), wants_maps)
            for number, part in enumerate(parts)
        ]

    def _judge_one(
        self,
        part: Frame,
        outputs: Outputs | FrameOutputs,
        number: int,
        rules: Rules,
        inspected: np.ndarray | None,
        wants_maps: bool,
    ) -> Prediction:
        score = float(outputs.image_score[number])
        anomaly_map: np.ndarray | None = None
        if inspected is not None and np.isfinite(score):
            anomaly_map = np.where(inspected, outputs.anomaly_map[number], np.float32(0))
            score = float(anomaly_map.max())
        prediction = predict(part, score, rules.threshold)
        verdict = self._smooth(part, prediction.is_above, rules.settings)
        if anomaly_map is None and (isinstance(outputs, Outputs) or wants_maps or prediction.is_above or verdict):
            anomaly_map = outputs.anomaly_map[number]
        regions: tuple[Region, ...] = ()
        if anomaly_map is not None and (prediction.is_above or verdict):
            size = part.image.shape[0], part.image.shape[1]
            regions = find_regions(anomaly_map, rules.pixel_threshold, *size, rules.settings.min_area)
        with self._lock:
            self._scores.append(score)
        return replace(
            prediction,
            anomaly_map=anomaly_map,
            regions=regions,
            verdict=verdict,
            inspected=inspected,
            bundle_threshold=rules.bundle_threshold,
        )

    def _smooth(self, part: Frame, is_above: bool, settings: VerdictSettings) -> bool | None:
        """The verdict of n of the last m frames; None without smoothing."""
        if settings.smoothing is None:
            return None
        history = self._above.setdefault(name_of(part.crop), deque(maxlen=settings.smoothing.m))
        history.append(is_above)
        return sum(history) >= settings.smoothing.n

    def set_threshold(self, threshold: float | None) -> float:
        """Judge by this threshold from the next frame on, None: by the bundle's; gives it. Raises ConfigError."""
        if threshold is not None:
            require_positive("threshold", threshold)
        with self._changing:
            return self._change(replace(self._rules.settings, threshold=threshold))

    def set_regions(
        self, regions_of_interest: Sequence[Polygon] | None = None, ignored: Sequence[Polygon] | None = None
    ) -> None:
        """Inspect other regions from the next frame on; None leaves them, () takes them away, and a mask picture too.

        Beside polygons, a mask picture stays. Raises ConfigError when nothing would be left to inspect; then the old ones
        stay.
        """
        with self._changing:
            settings = self._rules.settings
            if regions_of_interest is not None:
                polygons = tuple(tuple(polygon) for polygon in regions_of_interest)
                settings = replace(settings, regions_of_interest=polygons)
                settings = settings if polygons else replace(settings, interest_picture=None)
            if ignored is not None:
                settings = replace(settings, ignored=tuple(tuple(polygon) for polygon in ignored))
                settings = settings if ignored else replace(settings, ignored_picture=None)
            self._change(settings)
            with self._lock:
                self._scores.clear()  # of other regions

    def use_bundle(self, bundle_threshold: float) -> float:
        """Judge by another bundle from now on; gives the threshold.

        A threshold of its own keeps its distance: 1.2 times the old bundle's becomes 1.2 times the new one's.
        """
        with self._changing:
            rules, settings = self._rules, self._rules.settings
            scale = bundle_threshold / rules.bundle_threshold
            if settings.threshold is not None:
                settings = replace(settings, threshold=settings.threshold * scale)
            if settings.pixel_threshold is not None:
                settings = replace(settings, pixel_threshold=settings.pixel_threshold * scale)
            self._rules = Rules(settings, bundle_threshold, rules.masks)  # the same regions: nothing that could fail
        with self._lock:
            self._scores.clear()  # of another scale
        self._above.clear()
        return self._rules.threshold

    def _change(self, settings: VerdictSettings) -> float:
        """Replace the rules by ones with other settings that fit the camera; gives the threshold."""
        rules = Rules(settings, self._rules.bundle_threshold)
        if self._size is not None:
            rules.fit(*self._size)
        self._rules = rules
        return rules.threshold


def name_of(crop: Crop | None) -> str | None:
    """The crop's name, None for the whole picture."""
    return None if crop is None else crop.name
