"""Frames, the outputs of a runner, and predictions."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from nnet_edge.errors import NotFiniteError
from nnet_edge.geometry import Box
from nnet_edge.text import printable

if TYPE_CHECKING:  # the command line starts without NumPy
    import numpy as np


def new_session() -> str:
    """A name for a run that no other has and that sorts by time: 20261129T013058Z-3f9a1c."""
    return f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid4().hex[:6]}"


@dataclass(frozen=True, slots=True)
class Crop:
    """A rectangle of the camera's picture that is judged for itself, pixels."""

    name: str  # behind the frame's in ids
    x: int  # left edge
    y: int  # top edge
    width: int  # to the right
    height: int  # downwards


OUTCOMES = {  # of a trigger, beside a verdict
    "missed": "no frame came for it",
    "late": "its frame came after the window",
    "double": "two frames came for it, and nobody knows which one shows the part",
    "overlap": "it came while the frame of another was awaited, and nobody knows whose frame comes",
    "no_answer": "its verdict did not come",
    "not_judged": "its frame could not be judged",
    "stopped": "the line ended",
}


@dataclass(frozen=True, slots=True)
class Triggered:
    """What asked for the frame: a trigger, which gets one verdict or one named outcome."""

    number: int  # of the trigger, as its stream counts or the PLC gave it
    at_s: float  # time.monotonic() when it came
    by: str  # who triggered: "page", "camera", a sink's name
    answer_by_s: float = math.inf  # time.monotonic() until which its answer is of use


@dataclass(frozen=True, slots=True)
class Stamp:
    """What an industrial camera itself says of a frame; None: it does not say.

    A trigger can be told from the next by it, and a frame that the camera sent and nobody received leaves a gap.
    """

    block_id: int | None  # its number, which begins anew each time the camera is opened
    time_ns: int | None  # of exposure by the camera's own clock, which starts at a moment of its own


@dataclass(frozen=True, slots=True)
class Frame:
    """One captured image and when it was taken."""

    image: np.ndarray  # uint8 BGR (H, W, 3), as the camera gives it; uint16 until its stream has scaled it
    index: int  # from 0 for each stream; a gap is a dropped frame
    captured_s: float  # time.monotonic(), seconds
    stream: str = "camera-0"
    name: str | None = None  # the file that the frame was read from, made printable; None for a camera
    session: str = ""  # of this start of its camera, so that ids stay unique when the index starts again at 0
    crop: Crop | None = None  # where in the camera's picture `image` lies; None: it is the whole picture
    bits: int | None = None  # of uint16: those that the source declares as significant; None: it does not say
    in_file_s: float | None = None  # its time in the video file that it was read from; None: of no such file
    trigger: Triggered | None = None  # None: nothing triggered it
    recipe: str | None = None  # by which it is to be judged; None: its line has no recipes
    stamp: Stamp | None = None  # what the camera says of it; None: of no industrial camera

    def __post_init__(self) -> None:
        if self.name is not None:
            object.__setattr__(self, "name", printable(self.name))

    @property
    def id(self) -> str:
        """The unique name of this frame, or crop of a frame: stream/session/index[/crop]."""
        name = f"{self.stream}/{self.session}/{self.index}" if self.session else f"{self.stream}/{self.index}"
        return name if self.crop is None else f"{name}/{self.crop.name}"


@dataclass(frozen=True, slots=True)
class Outputs:
    """Outputs of a runner for a batch of N images; the caller may keep the arrays."""

    anomaly_map: np.ndarray  # float32 (N, H, W), larger is stranger
    image_score: np.ndarray  # float32 (N,), the maximum of each anomaly map
    layer_maps: Mapping[str, np.ndarray] = field(default_factory=dict)  # name -> float32 (N, 1, h, w)

    def broken(self) -> np.ndarray:
        """The numbers, int (M,), of the images with a score or a map that is NaN or infinite."""
        import numpy as np

        arrays = (self.image_score, self.anomaly_map, *self.layer_maps.values())
        finite = [np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays]
        return np.flatnonzero(~np.all(finite, axis=0))

    def fault(self) -> str:
        """How many images are broken, and which is the first, for people; empty where none is."""
        found = self.broken()
        if not len(found):
            return ""
        return (
            f"{len(found)} of {len(self.image_score)} images get a score or a map that is NaN or infinite, the first is number "
            f"{found[0] + 1} with the score {self.image_score[found[0]]:g}"
        )


class MapsOnDemand(Protocol):
    """Anomaly maps that are fetched when asked for, for example from a GPU."""

    def __getitem__(self, index: int) -> np.ndarray:
        """The map of one image, float32 (H, W), owned by the caller; costs a copy."""


@dataclass(frozen=True, slots=True)
class FrameOutputs:
    """Outputs of a runner that takes frames of any size: scores now, maps when asked for."""

    image_score: np.ndarray  # float32 (N,)
    anomaly_map: MapsOnDemand  # ask before the runner needs their place for a later batch


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part (8 neighbours) of the anomaly map above the threshold, in pixels of the frame."""

    x: int  # left edge
    y: int  # top edge
    width: int
    height: int
    area: float  # pixels of the frame
    peak: float  # largest value of the anomaly map inside, same scale as the image score


GOOD, REJECT = "GOOD", "REJECT"  # a verdict for people
UNTAUGHT = "untaught"  # in place of a bundle, and of its runner: a line that has none yet rejects every part
INFINITY_BITS = 0x7F800000  # of float32


def is_finite(image_score: float, anomaly_map: np.ndarray | None) -> bool:
    """Whether a score and its map (H, W), where it is at hand, are finite; takes 4 us.

    NaN lies above no threshold and minus infinity below all of them: either would read as a good part.
    """
    import numpy as np  # which whoever has a map has loaded

    if anomaly_map is None or not math.isfinite(image_score):
        return math.isfinite(image_score)
    if anomaly_map.dtype == np.float32 and anomaly_map.size and anomaly_map.view(np.uint32).max() < INFINITY_BITS:
        return True  # as whole numbers infinity, NaN and what is negative are larger
    return bool(np.isfinite(anomaly_map).all())


def not_finite(frame: Frame, image_score: float) -> NotFiniteError:
    """The error that names a frame whose score or map is not finite."""
    what = f"the score {image_score}"
    if math.isfinite(image_score):
        what = f"the score {image_score:.6g} and an anomaly map that is NaN or infinite in places"
    name = f" ({frame.name})" if frame.name else ""
    return NotFiniteError(
        f"frame {frame.index}{name} has {what}, so it has no verdict: the graph is broken, or what computes it; "
        "try another --runner, or export the bundle again"
    )


@dataclass(frozen=True, slots=True)
class JudgedBy:
    """What gave a prediction its score."""

    bundle: str  # its name
    bundle_id: str | None  # of its graph, see Bundle.id; None: a runner without a bundle
    precision: str
    runner: str
    preview: bool = False  # of a training that had not ended


@dataclass(frozen=True, slots=True)
class Prediction:
    """A frame's score, map and verdict. Raises NotFiniteError for a score or a map that is NaN or infinite."""

    frame: Frame
    image_score: float
    threshold: float  # image score above which a frame is anomalous
    anomaly_map: np.ndarray | None  # float32 (H, W), of the whole picture; None for a good frame unless a sink asked
    regions: tuple[Region, ...] = ()
    latencies_ms: Mapping[str, float] = field(default_factory=dict)  # stage -> milliseconds
    verdict: bool | None = None  # of the frames up to this one (n of m); None: of this frame alone
    inspected: np.ndarray | None = None  # bool (H, W), where the map counts; None: everywhere. Not to be changed
    bundle_threshold: float | None = None  # that training chose, whatever the stream judges by; None: the same
    judged_by: JudgedBy | None = None  # None: it is not known
    threshold_from: str = "bundle"  # or "settings", "adapted"; "adapting": the bundle's, while the camera adapts
    judged: Box | None = None  # the part of the picture that the bundle's fit judges; None: all of it
    is_masked: bool = False  # whether regions or masks leave a part of the picture out of map and score
    part_verdict: bool | None = None  # whether any crop of a triggered frame is anomalous; None: of no trigger

    def __post_init__(self) -> None:
        if not is_finite(self.image_score, self.anomaly_map):
            raise not_finite(self.frame, self.image_score)

    def without_pixels(self) -> Prediction:
        """The same without image and map, which take memory; the image is empty, uint8 (0, 0, 3)."""
        import numpy as np

        return replace(self, frame=replace(self.frame, image=np.empty((0, 0, 3), np.uint8)), anomaly_map=None)

    @property
    def id(self) -> str:
        """The id of its frame; a prediction that is delivered twice has the same id."""
        return self.frame.id

    @property
    def is_above(self) -> bool:
        """Whether the image score lies above the threshold."""
        return self.image_score > self.threshold

    @property
    def is_anomalous(self) -> bool:
        """The verdict of n of m frames where the stream asks for one, else whether the score is above the threshold."""
        return self.is_above if self.verdict is None else self.verdict

    @property
    def is_reject(self) -> bool:
        """Whether its part is to be rejected: the verdict over all crops of a triggered frame, else its own."""
        return self.is_anomalous if self.part_verdict is None else self.part_verdict

    @property
    def word(self) -> str:
        """The verdict as people read it everywhere: GOOD or REJECT. Programs read `is_anomalous`."""
        return REJECT if self.is_anomalous else GOOD

    @property
    def is_untaught(self) -> bool:
        """Whether no bundle gave it: its line is not taught yet."""
        return self.judged_by is not None and self.judged_by.runner == UNTAUGHT

    @property
    def relative_score(self) -> float:
        """Score divided by threshold."""
        return self.image_score / self.threshold
