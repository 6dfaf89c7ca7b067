"""Settings of one stream of a line: its camera, its buffer, its verdicts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnet_edge.errors import ConfigError
from nnet_edge.frame import Crop
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.policy import EVERY_FRAME, FRESHEST, Policy
from nnet_edge.settings.runner import require_between, require_choice, require_positive, require_seconds

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # a stream's name stands in files, topics and addresses
MOST_ADAPT = 100_000  # pictures
MOST_CROPS = 64  # of a frame: all of them lie in one batch
ANYBODY, CAMERA = "any", "camera"  # who triggers, beside the names of sinks
Polygon = tuple[tuple[float, float], ...]  # (x, y) corners in pixels of the camera's picture


@dataclass(frozen=True)
class BufferSettings:
    """How frames of one stream wait. Raises ConfigError for an invalid setting."""

    policy: Policy | None = None  # None: every-frame for files, freshest for live sources
    capacity: int | None = None  # frames; None: two batches of files, 2 of a live source: one next, one that comes in
    staleness_s: float | None = None  # a frame that is older when its turn comes is dropped; None: never
    weight: int = 1  # images that a frame puts into a batch: the line sets it to the number of its crops

    def __post_init__(self) -> None:
        if self.capacity is not None:
            require_between("capacity, frames that wait,", self.capacity, 1, 10_000)
        require_between("crops", self.weight, 1, MOST_CROPS)
        if self.staleness_s is not None:
            require_positive("seconds until a frame is stale", self.staleness_s)

    def resolved(self, is_live: bool, max_batch: int, crops: int = 0) -> BufferSettings:
        """The settings with what follows from the source and from the runner's batch."""
        policy = self.policy or (FRESHEST if is_live else EVERY_FRAME)
        capacity = self.capacity or (2 if is_live else 2 * max_batch)
        return replace(self, policy=policy, capacity=capacity, weight=max(1, crops))


@dataclass(frozen=True)
class Smoothing:
    """A part is bad when `n` of its last `m` frames are: one flickering frame rejects nothing."""

    n: int  # bad ones
    m: int  # of the newest frames

    def __post_init__(self) -> None:
        require_between("m of n-of-m", self.m, 1, 1000)
        require_between("n of n-of-m", self.n, 1, self.m)


@dataclass(frozen=True)
class Trigger:
    """A line across the camera's picture: of each part that passes, the frame in which it reaches the line is judged.

    A part is at the line while the mean grey value under it is above `level` (below, for `dark` parts).
    """

    start: tuple[int, int]  # (x, y), pixels of the camera's picture
    end: tuple[int, int]  # (x, y) of its other end
    level: float  # grey value, 0 to 255
    hysteresis: float = 8.0  # grey values by which the line must clear again before the next part is seen
    dark: bool = False  # parts are darker than what lies around them

    def __post_init__(self) -> None:
        if self.start == self.end or min(*self.start, *self.end) < 0:
            raise ConfigError(f"the trigger line {self.start} to {self.end} is invalid: give two points of the picture")
        if not (0 < self.level < 255 and 0 <= self.hysteresis < 128):
            raise ConfigError("a trigger's level lies between 0 and 255 and its hysteresis below 128")


@dataclass(frozen=True)
class TriggerSettings:
    """A stream that is triggered: each trigger gets one verdict, or one named outcome."""

    by: str = (
        ANYBODY  # who triggers: "any" (page, program, every sink that takes triggers), the name of one of them, or
    )
    # "camera": it is triggered itself, and every frame is one
    frames: str = "first"  # "first": the camera runs freely, and the first frame counts; "one": the camera is triggered
    # too, and a second frame is an error; "asked": so is it by us, see trigger_mode = "software" of a GenICam camera
    delay_ms: float = 0.0  # from the trigger until the part stands before the camera
    window_ms: float = 200.0  # behind that, in which the frame must be captured
    deadline_ms: float = 1000.0  # from the trigger to the answer
    on_lost: str = "reject"  # what a part without a verdict is answered; "nothing": the PLC's own time-out decides

    def __post_init__(self) -> None:
        if self.by not in (ANYBODY, CAMERA):
            require_name("who triggers", self.by)
        require_choice("frames of a trigger", self.frames, ("first", "one", "asked"))
        require_choice("on_lost", self.on_lost, ("reject", "nothing"))
        require_seconds("delay_ms", self.delay_ms)
        require_positive("window_ms", self.window_ms)
        require_positive("deadline_ms", self.deadline_ms)
        if self.by != CAMERA and self.delay_ms + self.window_ms > self.deadline_ms:
            raise ConfigError(
                f"a frame may come {self.delay_ms + self.window_ms:g} ms after its trigger (delay_ms + window_ms), and the "
                f"answer must after {self.deadline_ms:g}: raise deadline_ms"
            )


@dataclass(frozen=True)
class Adapted:
    """A threshold that was chosen again on good pictures of one camera; it holds for one bundle."""

    times: float  # the bundle's threshold
    bundle_id: str  # of that bundle; by any other it is not used
    pictures: int  # that it was chosen on

    def __post_init__(self) -> None:
        require_positive("adapted threshold, as times the bundle's,", self.times)
        require_between("pictures of an adapted threshold", self.pictures, 1, MOST_ADAPT)


@dataclass(frozen=True)
class VerdictSettings:
    """How scores of one stream become verdicts. Coordinates are pixels of the camera's picture."""

    threshold: float | None = None  # None: the adapted one, else the bundle's
    adapt: int | None = None  # the first so many pictures are good parts: choose the threshold again on them
    adapted: Adapted | None = None  # what came of it; kept in the state file
    pixel_threshold: float | None = None  # of regions; None: the threshold
    min_area: float = 0.0  # smallest region that is reported, pixels
    regions_of_interest: tuple[Polygon, ...] = ()  # only inside them map and score count; none: everywhere
    ignored: tuple[Polygon, ...] = ()  # inside them map and score do not count
    interest_picture: Path | None = None  # PNG of the camera's size: white counts
    ignored_picture: Path | None = None  # PNG of the camera's size: white is left out
    crops: tuple[Crop, ...] = ()  # several parts in one picture, each judged for itself; none: the whole picture
    smoothing: Smoothing | None = None  # None: each frame has its own verdict
    trigger: Trigger | None = None

    def __post_init__(self) -> None:
        for what in ("threshold", "pixel_threshold"):
            if getattr(self, what) is not None:
                require_positive(what.replace("_", " "), getattr(self, what))
        if self.adapt is not None:
            require_between("adapt, good pictures,", self.adapt, 1, MOST_ADAPT)
        if not (math.isfinite(self.min_area) and self.min_area >= 0):
            raise ConfigError(f"smallest area is {self.min_area}: it must be a finite number of pixels, 0 or more")
        for polygon in (*self.regions_of_interest, *self.ignored):
            require_polygon(polygon)
        if len(self.crops) > MOST_CROPS:
            raise ConfigError(f"{len(self.crops)} crops are too many: give {MOST_CROPS} at most, or another stream")
        names = [crop.name for crop in self.crops]
        if len(set(names)) < len(names):
            raise ConfigError(f"two crops have one name ({', '.join(names)}): their verdicts could not be told apart")
        for crop in self.crops:
            if NAME.fullmatch(crop.name) is None or min(crop.x, crop.y) < 0 or min(crop.width, crop.height) < 1:
                raise ConfigError(f"the crop {crop} is invalid: give a plain name, a corner and a size of whole pixels")


@dataclass(frozen=True)
class LineStream:
    """One stream of a line."""

    name: str  # in verdicts, on the page and in file names
    camera: CameraSettings
    buffer: BufferSettings = field(default_factory=BufferSettings, metadata={"key": "lane"})
    verdict: VerdictSettings = field(default_factory=VerdictSettings)
    bundle: Path | None = None  # None: the line's
    trigger: TriggerSettings | None = None  # None: every frame is judged

    def __post_init__(self) -> None:
        require_name("a stream", self.name)
        if self.trigger is not None and self.verdict.smoothing is not None:
            raise ConfigError(
                "smoothing is over frames of one part, and a trigger gives one frame a part: leave one out"
            )


def require_name(what: str, name: str) -> None:
    """Raise ConfigError unless `name` is a plain name, see NAME."""
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"{what} cannot be called {name!r}: use 1 to 64 letters, digits, dots, dashes, underscores")


def require_polygon(polygon: Polygon) -> None:
    """Raise ConfigError unless `polygon` has an area and finite corners."""
    if len(polygon) < 3 or not all(math.isfinite(x) and math.isfinite(y) for x, y in polygon):
        raise ConfigError(f"a region of {len(polygon)} corners is invalid: give at least three (x, y) in pixels")
    following = (*polygon[1:], polygon[0])
    if sum(x * v - u * y for (x, y), (u, v) in zip(polygon, following, strict=True)) == 0:
        raise ConfigError(f"the region {polygon} has no area: give corners that do not lie on one line")


def plain_name(text: str) -> str:
    """A valid stream name made of `text`, a folder or an address."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._")[:64] or "stream"
