"""Review of a history: what the parts that people labelled say of a bundle's threshold and of masks; a training set of them.

Nothing is changed by it: it proposes, with the price of each proposal as counts.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from nnet_edge.errors import ConfigError, DataError
from nnet_edge.evaluation.sweep import Costs, Step
from nnet_edge.files import write_atomically
from nnet_edge.runtime.history.queries import History, Kept, Window
from nnet_edge.scoring import MARGIN
from nnet_edge.text import safe_cell

BAD = ("true_defect", "missed")  # labels of parts with a defect; the others are good
HALF = 32_767  # of the 65535 that stand for twice the threshold in a map's picture
FIRED_TWICE = 2  # good parts that must fire at a place before it is worth a mask
PAD = 3  # points of the map that a mask reaches beyond what fired
FALSE_REJECTS_SHOWN = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)


@dataclass(frozen=True)
class Review:
    """The labelled parts of one bundle, and the others as far as they are known."""

    good: tuple[Kept, ...]  # false alarms, and accepted parts that somebody confirmed
    bad: tuple[Kept, ...]  # true defects and missed ones
    accepted: tuple[float, ...]  # scores of parts that were accepted and nobody labelled, ascending: most likely good
    unlabelled_rejects: int  # neither good nor bad is known of them
    other_bundles: int  # labelled parts that another bundle judged: their scores mean something else
    threshold: float  # of the newest labelled part

    def step_at(self, threshold: float) -> Step:
        """What that threshold would have cost."""
        wrong = sum(part.score > threshold for part in self.good)
        wrong += len(self.accepted) - bisect_right(self.accepted, threshold)
        return Step(
            threshold, threshold / self.threshold, wrong, sum(part.score <= threshold for part in self.bad), None
        )

    def steps(self) -> list[Step]:
        """A step for each way to part the labelled scores, ascending."""
        values = sorted({part.score for part in (*self.good, *self.bad) if part.score > 0})
        cuts = [math.sqrt(low * high) for low, high in pairwise(values) if high > low * (1 + 2 * MARGIN)]
        return [self.step_at(cut) for cut in (values[0] * (1 - MARGIN), *cuts, values[-1] * (1 + MARGIN))]

    def cheapest(self, costs: Costs) -> Step | None:
        """The step of the lowest cost, of equals the nearest to the present threshold; None unless both kinds are there."""
        if not (self.good and self.bad):
            return None
        steps = (self.step_at(self.threshold), *self.steps())
        return min(steps, key=lambda one: (one.cost(costs), abs(math.log(one.relative))))


@dataclass(frozen=True)
class Mask:
    """Rectangles of a camera's picture where good parts fire and no labelled defect does."""

    stream: str
    crop: str | None
    boxes: tuple[tuple[int, int, int, int], ...]  # x, y, width, height, pixels of the camera's picture
    avoided: int  # false alarms that would have been accepted
    of: int  # false alarms with a map
    defects: int  # labelled defects with a map: all of them stay rejected
    share: float  # of the picture

    @property
    def polygons(self) -> list[list[list[int]]]:
        """As `verdict.ignored` of a [[stream]] has them."""
        return [[[x, y], [x + w, y], [x + w, y + h], [x, y + h]] for x, y, w, h in self.boxes]


def collect(history: History, bundle_id: str | None, window: Window) -> Review:
    """The labelled parts of that bundle. Raises ConfigError where there are none."""
    labelled = list(history.verdicts(window, "labelled"))
    mine = [part for part in labelled if part.bundle_id == bundle_id]
    if not mine:
        others = f"; {len(labelled)} were judged by other bundles" if labelled else ""
        raise ConfigError(
            f"{history.path} has no labelled part of this bundle in that time{others}: label parts on the page"
        )
    accepted, rejects = history.unlabelled_scores(window, bundle_id)
    good, bad = ([part for part in mine if (part.labels[-1].label in BAD) == is_bad] for is_bad in (False, True))
    return Review(
        tuple(good), tuple(bad), tuple(accepted), rejects, len(labelled) - len(mine), mine[-1].threshold
    )  # fmt: skip


def shown(review: Review, proposed: Step) -> list[tuple[Step, str]]:
    """A few steps for people, ascending, with marks: of some numbers of false rejects each the one with the fewest misses."""
    now = review.step_at(review.threshold)
    chosen = {now: "now", proposed: "now, cheapest" if proposed == now else "cheapest"}
    for most in FALSE_REJECTS_SHOWN:
        fitting = [step for step in review.steps() if step.false_rejects <= most]
        if fitting:
            best = min(fitting, key=lambda step: (step.misses, step.false_rejects, -step.threshold))
            if (best.false_rejects, best.misses) not in [(step.false_rejects, step.misses) for step in chosen]:
                chosen[best] = ""
    return sorted(chosen.items(), key=lambda item: item[0].threshold)


def review_facts(review: Review, masks: Sequence[Mask], costs: Costs) -> dict[str, object]:
    """The review for programs."""
    proposed = review.cheapest(costs)
    return {
        "threshold": review.threshold, "good": len(review.good), "defects": len(review.bad),
        "accepted": len(review.accepted), "unlabelled_rejects": review.unlabelled_rejects,
        "other_bundles": review.other_bundles, "now": asdict(review.step_at(review.threshold)),
        "proposal": None if proposed is None else asdict(proposed) | {"cost": proposed.cost(costs)},
        "masks": [asdict(mask) | {"polygons": mask.polygons} for mask in masks],
    }  # fmt: skip


def review_lines(review: Review, masks: Sequence[Mask], costs: Costs) -> Iterator[str]:
    """The review for a terminal."""
    alarms = sum(part.is_anomalous for part in review.good)
    missed = sum(not part.is_anomalous for part in review.bad)
    yield (
        f"labelled parts of this bundle: {len(review.good)} good ({alarms} of them false alarms), "
        f"{len(review.bad)} with a defect ({missed} of them missed); "
        f"{len(review.accepted)} accepted parts without a label count as good"
    )
    if review.unlabelled_rejects:
        yield f"{review.unlabelled_rejects} rejects have no label: nothing is known of them, and they count as nothing"
    if review.other_bundles:
        yield f"{review.other_bundles} labelled parts were judged by another bundle and are left out"
    proposed = review.cheapest(costs)
    if proposed is None:
        absent = "defect" if review.good else "false alarm"
        yield f"threshold: no proposal without a labelled {absent}"
    else:
        yield f"threshold    false rejects of {len(review.good) + len(review.accepted)}, missed of {len(review.bad)}"
        for step, mark in shown(review, proposed):
            line = f"  {step.relative:8.3f}  {step.false_rejects:16d}  {step.misses:9d}"
            yield line + (f"   <- {mark}" if mark else "")
        yield proposal(review, proposed, costs)
    for mask in masks:
        where = mask.stream if mask.crop is None else f"{mask.stream}, crop {mask.crop}"
        yield (
            f"mask for {where}: would have avoided {mask.avoided} of {mask.of} false alarms and lost none of "
            f"{mask.defects} labelled defects; {mask.share:.1%} of the picture is no longer inspected. Under its [[stream]]:"
        )
        yield f"  verdict.ignored = {mask.polygons}"
    if not masks:
        yield "masks: no place fires on two good parts and on no labelled defect"


def proposal(review: Review, step: Step, costs: Costs) -> str:
    """The cheapest threshold in a sentence."""
    now = review.step_at(review.threshold)
    prices = f"where a miss costs {costs.miss:g} and a false reject {costs.false_reject:g}"
    if step == now:
        return f"{prices}, no threshold is cheaper on these parts than the present one: {now.cost(costs):g}"
    return (
        f"{prices}, --threshold {step.threshold:.6g} is the cheapest on these parts: {step.misses} misses instead of "
        f"{now.misses}, {step.false_rejects} false rejects instead of {now.false_rejects}; "
        "it was chosen by them, so it flatters itself"
    )


# ---- masks


def propose_masks(history: History, review: Review) -> list[Mask]:
    """Of each camera the mask over what fires on two good parts or more and on no labelled defect, where it helps."""
    cameras = dict.fromkeys((part.stream, part.crop) for part in review.good)
    found = (propose_mask(history, review, *camera) for camera in cameras)
    return [mask for mask in found if mask is not None]


def propose_mask(history: History, review: Review, stream: str, crop: str | None) -> Mask | None:
    """The mask of one camera; None where there is none that would avoid a false alarm."""
    good, bad = (
        [(part, read) for part in parts if (part.stream, part.crop) == (stream, crop) and part.is_anomalous
         and (read := read_map(history, part)) is not None] for parts in (review.good, review.bad)
    )  # fmt: skip
    if len(good) < FIRED_TWICE:
        return None
    shape, size, corner = good[-1][1].shape, good[-1][0].size, good[-1][0].corner
    good = [pair for pair in good if pair[1].shape == shape and pair[0].size == size]
    bad = [pair for pair in bad if pair[1].shape == shape and pair[0].size == size]
    assert size is not None  # a reject's picture was seen
    often = np.sum([anomaly_map > HALF for _, anomaly_map in good], axis=0) >= FIRED_TWICE
    defects = np.zeros(shape, bool)
    for _, anomaly_map in bad:
        defects |= anomaly_map > HALF
    hidden, boxes = np.zeros(shape, bool), []
    count, _, stats, _ = cv2.connectedComponentsWithStats(often.astype(np.uint8))
    for left, top, width, height, _ in stats[1:count]:
        box = (slice(max(0, top - PAD), top + height + PAD), slice(max(0, left - PAD), left + width + PAD))
        if not defects[box].any():  # never where a defect was
            hidden[box] = True
            boxes.append(box)
    avoided = sum(int(anomaly_map[~hidden].max(initial=0)) <= HALF for _, anomaly_map in good)
    if not avoided or hidden.all():
        return None
    scale_x, scale_y = size[1] / shape[1], size[0] / shape[0]
    rectangles = []
    for rows, columns in boxes:
        x, y = math.floor(columns.start * scale_x), math.floor(rows.start * scale_y)
        right, low = (
            min(shape[n], part.stop) * scale for n, part, scale in ((1, columns, scale_x), (0, rows, scale_y))
        )
        rectangles.append((corner[0] + x, corner[1] + y, math.ceil(right) - x, math.ceil(low) - y))
    return Mask(stream, crop, tuple(rectangles), avoided, len(good), len(bad), float(hidden.mean()))


def read_map(history: History, part: Kept) -> np.ndarray | None:
    """The anomaly map's picture, uint16 (H, W); None where the history has none."""
    data = history.picture(part.id, "map")
    found = None if data is None else cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return found if found is not None and found.dtype == np.uint16 and found.ndim == 2 else None


# ---- a training set


def export_parts(history: History, review: Review, folder: Path) -> tuple[int, int, int]:
    """Write the labelled parts as a plain folder: good/, bad/KIND/ and labels.csv; gives good, bad, and those without picture.

    Raises ConfigError for a folder that holds something, DataError where it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--export {folder} holds something already: give a new folder")
    rows, written, absent = [], [0, 0], 0
    for is_bad, parts in enumerate((review.good, review.bad)):
        for part in parts:
            label = part.labels[-1]
            data = history.picture(part.id, "original") or history.picture(part.id, "accepted")
            if data is None:
                absent += 1
                continue
            place = f"bad/{folder_name(label.defect or 'defect')}" if is_bad else "good"
            name = f"{place}/{part.stream}-{part.id:08d}.png"
            try:
                write_atomically(folder / name, data)
            except OSError as error:
                raise DataError(f"cannot write {folder / name}: {error.strerror or error}") from error
            written[is_bad] += 1
            rows.append(
                (name, part.time, part.stream, part.crop, label.label, label.defect, label.who, f"{part.score:.9g}")
            )
    head = ("file", "time", "stream", "crop", "label", "defect", "who", "score")
    if rows:
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([head, *([safe_cell(value) for value in row] for row in rows)])
    return written[0], written[1], absent


def folder_name(text: str) -> str:
    """The kind of a defect as the name of a folder."""
    found = "".join(letter if letter.isalnum() or letter in " -_" else "_" for letter in text).strip()
    return found or "defect"
