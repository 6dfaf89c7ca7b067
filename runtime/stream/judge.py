"""Judges: threshold, masks, crops, trigger and smoothing of one stream turn scores into verdicts.

Settings may be changed while frames come: a frame is judged by the settings of one moment, never by half of two.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.frame import Crop, Frame, FrameOutputs, JudgedBy, Outputs, Prediction, Region, is_finite, not_finite
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.scoring import find_regions
from nnet_edge.settings.runner import require_positive
from nnet_edge.settings.stream import Adapted, Polygon, Trigger, VerdictSettings

FRACTION_BITS = 4  # corners are drawn to a sixteenth of a pixel
KEPT_SCORES = 1000  # newest scores of a stream, for charts and for trying out a threshold
HALF_COVERED = 127.5  # of 255: a point of the map counts when at least half of it does
Masks = dict[tuple[int, int], dict[str | None, np.ndarray | None]]  # height, width -> crop name -> where its map counts


def has_regions(settings: VerdictSettings) -> bool:
    """Whether a part of the picture is left out by regions or masks."""
    return bool(
        settings.regions_of_interest or settings.ignored or settings.interest_picture or settings.ignored_picture
    )


def inspected_part(
    settings: VerdictSettings, height: int, width: int, crop: Crop | None = None, geometry: Geometry = DEFAULT
) -> np.ndarray | None:
    """Where the map of a picture (or of its `crop`) counts, bool (H, W), not to be changed; None: everywhere.

    It covers the whole picture; what the fit leaves out does not count. Raises ConfigError for a mask picture of another size,
    and when nothing is left to inspect.
    """
    if not has_regions(settings) and not geometry.leaves_out:
        return None
    counts = np.full((height, width), 0 if settings.regions_of_interest or settings.interest_picture else 255, np.uint8)
    draw(counts, settings.regions_of_interest, 255)
    if settings.interest_picture is not None:
        counts |= read_mask(settings.interest_picture, height, width)
    draw(counts, settings.ignored, 0)
    if settings.ignored_picture is not None:
        counts &= ~read_mask(settings.ignored_picture, height, width)
    if crop is not None:
        counts = counts[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width]
    rows, columns, judged = geometry.judged
    rule = cv2.INTER_AREA if counts.shape[0] >= rows and counts.shape[1] >= columns else cv2.INTER_LINEAR
    inspected = np.zeros((rows, columns), bool)
    inspected[judged.inside] = cv2.resize(counts, (columns, rows), interpolation=rule)[judged.inside] > HALF_COVERED
    if not inspected.any():
        where = "the picture" if crop is None else f"the crop {crop.name}"
        raise ConfigError(f"the regions leave nothing of {where} ({width}x{height} pixels) to inspect: draw them anew")
    inspected.flags.writeable = False
    return inspected


def check_masks(settings: VerdictSettings, size: tuple[int, int] | None) -> None:
    """Read the mask pictures, and see that regions and crops fit a picture of this size (height, width).

    None: of the size of the mask pictures. Raises ConfigError.
    """
    paths = [path for path in (settings.interest_picture, settings.ignored_picture) if path is not None]
    sizes = {path: decode_mask(path).shape for path in paths}
    if len(set(sizes.values())) > 1:
        raise ConfigError(f"the masks {paths[0]} and {paths[1]} differ in size: draw both on a picture of the camera")
    if size is None and paths:
        height, width = sizes[paths[0]]
        size = height, width
    if size is not None:
        Rules(settings, 1.0, None, DEFAULT).fit(*size)


def draw(mask: np.ndarray, polygons: Sequence[Polygon], value: int) -> None:
    """Fill the polygons in `mask`, uint8 (H, W), with `value`."""
    for polygon in polygons:
        corners = np.round(np.array(polygon) * (1 << FRACTION_BITS)).astype(np.int32)
        cv2.fillPoly(mask, [corners], value, shift=FRACTION_BITS)


def read_mask(path: Path, height: int, width: int) -> np.ndarray:
    """The picture at `path` as uint8 (H, W), 255 where it is brighter than mid grey. Raises ConfigError."""
    mask = decode_mask(path)
    if mask.shape != (height, width):
        raise ConfigError(
            f"the mask {path} has {mask.shape[1]}x{mask.shape[0]} pixels and the camera gives {width}x{height}: "
            "draw it on a picture of the camera"
        )
    return np.where(mask > HALF_COVERED, np.uint8(255), np.uint8(0))


def decode_mask(path: Path) -> np.ndarray:
    """The grey picture at `path`, uint8 (H, W). Raises ConfigError."""
    from nnet_edge.image_files import read_image  # with Pillow, which a line without a mask does without

    try:
        return cv2.cvtColor(read_image(path), cv2.COLOR_RGB2GRAY)
    except DataError as error:
        raise ConfigError(f"the mask {path} cannot be used: {error}") from error


def require_inside(crops: Sequence[Crop], height: int, width: int) -> None:
    """Raise ConfigError unless each crop lies in a picture of `height` x `width`."""
    for crop in crops:
        if crop.x + crop.width > width or crop.y + crop.height > height:
            raise ConfigError(
                f"the crop {crop.name} ({crop.width}x{crop.height} at {crop.x}, {crop.y}) reaches beyond the camera's "
                f"{width}x{height} pixels: make it smaller"
            )


class TriggerLine:
    """Says in which frame a part reaches the line; one thread at a time."""

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger
        self._is_taken = False

    def is_reached(self, image: np.ndarray) -> bool:
        """Whether a part stands at the line and did not in the frame before; `image` uint8 BGR (H, W, 3) or grey.

        Raises ConfigError when the line does not lie in the picture.
        """
        trigger = self._trigger
        height, width = image.shape[:2]
        points = np.array((trigger.start, trigger.end))
        if (points[:, 0] >= width).any() or (points[:, 1] >= height).any():
            raise ConfigError(
                f"the trigger line from {trigger.start} to {trigger.end} leaves the camera's {width}x{height} pixels"
            )
        steps = int(np.abs(points[1] - points[0]).max()) + 1
        columns, rows = np.round(np.linspace(points[0], points[1], steps)).astype(int).T
        grey = float(image[rows, columns].mean())
        above = trigger.level - grey if trigger.dark else grey - trigger.level
        was_taken = self._is_taken
        self._is_taken = above > (-trigger.hysteresis if was_taken else 0)
        return self._is_taken and not was_taken


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """When a batch went through its stages, time.monotonic()."""

    started_s: float
    prepared_s: float
    inferred_s: float

    def latencies_ms(self, captured_s: float) -> dict[str, float]:
        """What each stage took for a frame of that moment which is judged now; `total` is their sum."""
        judged_s = time.monotonic()
        return {
            "queue": 1e3 * (self.started_s - captured_s),
            "resize": 1e3 * (self.prepared_s - self.started_s),
            "inference": 1e3 * (self.inferred_s - self.prepared_s),
            "verdict": 1e3 * (judged_s - self.inferred_s),
            "total": 1e3 * (judged_s - captured_s),
        }


@dataclass(frozen=True, slots=True)
class PartOutputs:
    """What a runner gave for one part of a frame: number `index` of `outputs`."""

    outputs: Outputs | FrameOutputs
    index: int

    @property
    def is_at_hand(self) -> bool:
        """Whether the map costs nothing; one on a GPU costs a copy."""
        return isinstance(self.outputs, Outputs)

    def anomaly_map(self) -> np.ndarray:
        """The map of the input, float32 (height, width)."""
        return self.outputs.anomaly_map[self.index]

    def measure(self, inspected: np.ndarray | None, geometry: Geometry = DEFAULT) -> tuple[float, np.ndarray | None]:
        """The score, and where only a part is `inspected` the map of the picture that it is the maximum of."""
        score = float(self.outputs.image_score[self.index])
        if inspected is None or not math.isfinite(score):
            return score, None
        anomaly_map = np.where(inspected, geometry.over_picture(self.anomaly_map()), np.float32(0))
        return float(anomaly_map.max()), anomaly_map


def is_of(adapted: Adapted, judged_by: JudgedBy | None) -> bool:
    """Whether the threshold was chosen for the bundle that judges."""
    return judged_by is not None and adapted.bundle_id == judged_by.bundle_id


class Rules:
    """The settings of one moment, with the masks that follow from them; immutable but for its cache of masks."""

    def __init__(
        self,
        settings: VerdictSettings,
        bundle_threshold: float,
        judged_by: JudgedBy | None,
        geometry: Geometry,
        masks: Masks | None = None,
    ) -> None:
        self.settings, self.geometry = settings, geometry
        self.bundle_threshold, self.judged_by = bundle_threshold, judged_by
        self.threshold, self.threshold_from = bundle_threshold, "bundle"
        if settings.threshold is not None:
            self.threshold, self.threshold_from = settings.threshold, "settings"
        elif settings.adapted is not None and is_of(settings.adapted, judged_by):
            self.threshold, self.threshold_from = settings.adapted.times * bundle_threshold, "adapted"
        self.pixel_threshold = settings.pixel_threshold or self.threshold
        self.masks = masks or {}

    def fit(self, height: int, width: int) -> dict[str | None, np.ndarray | None]:
        """Crop name (None: the whole picture) -> where its map counts. Raises ConfigError for what does not fit."""
        size = height, width
        if size not in self.masks:
            require_inside(self.settings.crops, height, width)
            crops = self.settings.crops or (None,)
            masks = {name_of(crop): inspected_part(self.settings, height, width, crop, self.geometry) for crop in crops}
            self.masks = {size: masks}  # a camera has one size at a time
        return self.masks[size]


class Judge:
    """Judges the frames of one stream. `admit` belongs to the capture thread, `judge` to the line's, the rest to any."""

    def __init__(
        self,
        settings: VerdictSettings,
        bundle_threshold: float,
        judged_by: JudgedBy | None = None,
        geometry: Geometry = DEFAULT,
    ) -> None:
        self._changing = threading.Lock()  # held from reading the rules to replacing them: no change undoes another
        if settings.adapted is not None and not is_of(settings.adapted, judged_by):
            settings = replace(settings, adapted=None)
        self._rules = Rules(settings, bundle_threshold, judged_by, geometry)
        self._trigger = None if settings.trigger is None else TriggerLine(settings.trigger)
        self._size: tuple[int, int] | None = None  # height and width of the newest picture
        self._above: dict[str | None, deque[bool]] = {}
        self._scores: deque[float] = deque(maxlen=KEPT_SCORES)
        self.is_adapting = False  # whether the stream collects pictures for a threshold of its own

    @property
    def threshold_from(self) -> str:
        """Where the threshold comes from: "bundle", "settings", "adapted", or "adapting", which is the bundle's."""
        return self._threshold_from(self._rules)

    def _threshold_from(self, rules: Rules) -> str:
        return "adapting" if self.is_adapting and rules.threshold_from == "bundle" else rules.threshold_from

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
        return list(self._scores)

    def admit(self, image: np.ndarray) -> bool:
        """Whether the picture, uint8 BGR (H, W, 3) or grey, is to be judged: if there is a trigger line, a part reached it.

        Raises ConfigError when settings do not fit the picture.
        """
        self._size = image.shape[0], image.shape[1]
        self._rules.fit(*self._size)
        return self._trigger is None or self._trigger.is_reached(image)

    def parts(self, frame: Frame) -> list[Frame]:
        """The frame itself, or its crops, whose images are views of it. Raises ConfigError for crops that do not fit."""
        crops = self._rules.settings.crops
        if not crops:
            return [frame]
        require_inside(crops, *frame.image.shape[:2])
        return [
            replace(frame, image=frame.image[crop.y : crop.y + crop.height, crop.x : crop.x + crop.width], crop=crop)
            for crop in crops
        ]

    def judge(
        self, frame: Frame, parts: Sequence[Frame], outputs: Sequence[PartOutputs], times: BatchTimes, wants_maps: bool
    ) -> list[Prediction]:
        """One prediction for each of `parts`, which are of `frame`.

        A map on a GPU is fetched for rejects, where a mask asks for it, and where `wants_maps`. Raises NotFiniteError for a
        score or a map that is not finite: such a frame is neither good nor bad. (The GPU's score is not finite where its map
        is not.)
        """
        rules = self._rules
        geometry, is_masked = rules.geometry, has_regions(rules.settings)
        masks = rules.fit(*frame.image.shape[:2])
        found = []
        for part, output in zip(parts, outputs, strict=True):
            inspected = masks.get(name_of(part.crop))
            score, anomaly_map = output.measure(inspected if is_masked else None, geometry)
            if not is_finite(score, output.anomaly_map() if output.is_at_hand else None):
                raise not_finite(part, score)
            is_above = score > rules.threshold
            verdict = self._smooth(part.crop, is_above, rules.settings)
            is_bad = is_above or bool(verdict)
            if anomaly_map is None and (output.is_at_hand or wants_maps or is_bad):
                anomaly_map = geometry.over_picture(output.anomaly_map())
            regions: tuple[Region, ...] = ()
            height, width = part.image.shape[:2]
            if is_bad and anomaly_map is not None:
                regions = find_regions(anomaly_map, rules.pixel_threshold, height, width, rules.settings.min_area)
            self._scores.append(score)
            found.append(
                Prediction(
                    part,
                    score,
                    rules.threshold,
                    anomaly_map,
                    regions,
                    times.latencies_ms(part.captured_s),
                    verdict,
                    inspected,
                    rules.bundle_threshold,
                    rules.judged_by,
                    self._threshold_from(rules),
                    geometry.part(height, width) if geometry.leaves_out else None,
                    is_masked,
                )
            )
        return found

    def _smooth(self, crop: Crop | None, is_above: bool, settings: VerdictSettings) -> bool | None:
        """The verdict of n of the last m frames; None without smoothing."""
        if settings.smoothing is None:
            return None
        history = self._above.setdefault(name_of(crop), deque(maxlen=settings.smoothing.m))
        history.append(is_above)
        return sum(history) >= settings.smoothing.n

    def set_threshold(self, threshold: float | None) -> float:
        """Judge by this threshold from the next frame on, None: by the bundle's; gives it. Raises ConfigError.

        A threshold that was adapted goes either way.
        """
        if threshold is not None:
            require_positive("threshold", threshold)
        with self._changing:
            return self._change(replace(self._rules.settings, threshold=threshold, adapted=None))

    def use_adapted(self, adapted: Adapted) -> float:
        """Judge by the threshold that the camera's own pictures asked for, not by one that was set, from the next frame on."""
        with self._changing:
            return self._change(replace(self._rules.settings, threshold=None, adapted=adapted))

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
            self._scores.clear()  # of other regions

    def use_settings(self, settings: VerdictSettings) -> None:
        """Judge by these settings from the next frame on; crops, trigger and smoothing are those that it was made with."""
        with self._changing:
            self._change(settings)
            self._scores.clear()

    def use_bundle(
        self, bundle_threshold: float, judged_by: JudgedBy | None = None, geometry: Geometry = DEFAULT
    ) -> float:
        """Judge by another bundle from now on; gives the threshold.

        A threshold of its own keeps its distance: 1.2 times the old bundle's becomes 1.2 times the new one's. One that was
        adapted holds for its bundle alone.
        """
        with self._changing:
            rules, settings = self._rules, self._rules.settings
            scale = bundle_threshold / rules.bundle_threshold
            if settings.adapted is not None and not is_of(settings.adapted, judged_by):
                settings = replace(settings, adapted=None)
            if settings.threshold is not None:
                settings = replace(settings, threshold=settings.threshold * scale)
            if settings.pixel_threshold is not None:
                settings = replace(settings, pixel_threshold=settings.pixel_threshold * scale)
            masks = rules.masks if geometry == rules.geometry else None  # the same regions: nothing that could fail
            self._rules = Rules(settings, bundle_threshold, judged_by, geometry, masks)
        self._scores.clear()  # of another scale
        self._above.clear()
        return self._rules.threshold

    def use_recipe(
        self, settings: VerdictSettings, bundle_threshold: float, judged_by: JudgedBy | None, geometry: Geometry
    ) -> None:
        """Judge by these settings and this bundle from now on, crops, trigger line and smoothing included."""
        if settings.adapted is not None and not is_of(settings.adapted, judged_by):
            settings = replace(settings, adapted=None)
        with self._changing:
            self._rules = Rules(settings, bundle_threshold, judged_by, geometry)
            self._trigger = None if settings.trigger is None else TriggerLine(settings.trigger)
        self._scores.clear()
        self._above.clear()

    def require_fits(self, settings: VerdictSettings, geometry: Geometry) -> None:
        """Raise ConfigError where these settings do not fit the camera's newest picture."""
        if self._size is not None:
            Rules(settings, 1.0, None, geometry).fit(*self._size)

    def require_seen(self, geometry: Geometry) -> None:
        """Raise ConfigError where a bundle of that geometry sees nothing of what is inspected."""
        self.require_fits(self._rules.settings, geometry)

    def _change(self, settings: VerdictSettings) -> float:
        """Replace the rules by ones with other settings that fit the camera; gives the threshold."""
        before = self._rules
        rules = Rules(settings, before.bundle_threshold, before.judged_by, before.geometry)
        if self._size is not None:
            rules.fit(*self._size)
        self._rules = rules
        return rules.threshold


def name_of(crop: Crop | None) -> str | None:
    """The crop's name, None for the whole picture."""
    return None if crop is None else crop.name
