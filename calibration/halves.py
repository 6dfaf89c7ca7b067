"""Two halves of the labelled images: one to choose on, one that the choice did not see.

Layers that are chosen on the images that judge them look better than they are. What the other half says of the same choice
is what fresh images may be expected to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nnet_edge.calibration.predictions import TestImages
from nnet_edge.kept_frames import frame_hash

LEAST_DEFECTS = 5  # in each half: with fewer, one image moves a metric by more than the gate allows


@dataclass(frozen=True)
class Halves:
    """Rows of the test images, int, ascending."""

    seen: np.ndarray
    unseen: np.ndarray


def choose_halves(test: TestImages, held_out: np.ndarray, seed: int) -> Halves | None:
    """The halves by `seed`, each with its share of every kind; None where either would have fewer than 5 defects.

    Images that are among the `held_out` frames, uint8 RGB (N, 256, 256, 3), are seen in any case: they chose the threshold.
    """
    rng = np.random.default_rng(seed)
    known = {frame_hash(frame) for frame in held_out}
    kinds = np.array(test.kinds) if test.kinds else test.labels.astype(str)
    seen: list[int] = []
    unseen: list[int] = []
    for kind in np.unique(kinds):
        rows = [row for row in np.flatnonzero(kinds == kind) if frame_hash(test.images[row]) not in known]
        ahead = len(seen) > len(unseen)  # the odd one goes where there are fewer
        middle = (len(rows) + (not ahead)) // 2
        shuffled = rng.permutation(rows).astype(int)
        seen += shuffled[:middle].tolist()
        unseen += shuffled[middle:].tolist()
    seen += sorted(set(range(len(test.labels))) - set(seen) - set(unseen))
    halves = Halves(np.array(sorted(seen), int), np.array(sorted(unseen), int))
    defects = [int(test.labels[rows].sum()) for rows in (halves.seen, halves.unseen)]
    return halves if min(defects) >= LEAST_DEFECTS else None
