"""When a training ends, decided on good images alone: when damage painted onto held-out ones stands out clearly worse.

N-Net's students learn to follow the teacher everywhere if they are trained for long, on defects too, the shallow stages of
a small teacher first; the loss over good images does not show it. So the network looks, every so many images, at damaged
copies of the held-out images, and the pixel AP of their masks is its mark. The weights that are deployed are the latest
whose mark is not clearly below the best. Good scores of held-out images take no part in the choice, and the threshold is
chosen on them as before.

Seen: cookie (seed 0, constant rate, 3,000 images): mark 48.1 after 604, 47.1 after 1,200, 42.6 after 2,804; pixel AP of its
real defects 55.1, 58.9, 52.9. On ball_screw the marks stay while the real AP falls, for its later images are dirtier than
any good one: no good image shows that, so the length has a limit besides (`image_steps`).
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnet_edge.anomaly_map import anomaly_map
from nnet_edge.data.synthetic import damaged_copies
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.nnet.network import NNet
from nnet_edge.metrics import pixel_ap
from nnet_edge.training.fusion_search import IMAGES, choose_exponents, layer_maps_of

COPIES = 48  # damaged images looked at
FIRST_LOOK = (
    400  # images shown; before that image scores are not settled (tire: 72 image AUROC after 200, 76 after 400)
)
CLEARLY_WORSE = (
    0.9  # times the best mark: below it the weights are not deployed; between seeds and looks marks differ by 8 %
)


@dataclass
class Marks:
    """The marks so far, the best of them, and which weights are kept."""

    best: float | None = None  # pixel AP, 0 to 1
    kept: float | None = None  # mark of the weights that are kept
    kept_at: int = 0  # images shown by then
    worse_in_a_row: int = 0  # looks since that were clearly worse than the best
    looks: list[tuple[int, float]] = field(default_factory=list)  # (images shown, mark)

    def add(self, shown: int, mark: float) -> bool:
        """Whether the weights with this `mark`, after `shown` images, are the ones to keep."""
        self.looks.append((shown, mark))
        if self.best is not None and mark < CLEARLY_WORSE * self.best:
            self.worse_in_a_row += 1
            return False
        self.best = mark if self.best is None else max(mark, self.best)
        self.kept, self.kept_at, self.worse_in_a_row = mark, shown, 0
        return True

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint and the manifest."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Marks:
        """What `as_dict` wrote."""
        return cls(**{**values, "looks": [(int(shown), float(mark)) for shown, mark in values["looks"]]})


class Watch:
    """Looks at damaged copies now and then, keeps the best weights, and says when it is enough."""

    def __init__(self, held_out: np.ndarray, every: int, patience: int, seed: int, marks: Marks | None = None) -> None:
        self.every, self.patience = every, patience
        self.marks = marks or Marks()
        self._held_out = held_out[:IMAGES]
        self._images, self._masks = damaged_copies(held_out, COPIES, seed)
        self._network: NNet | None = None

    def is_due(self, before: int, shown: int) -> bool:
        """Whether a look is due when the images shown went from `before` to `shown`."""
        return shown >= FIRST_LOOK and shown // self.every > before // self.every

    @property
    def is_enough(self) -> bool:
        """Whether so many looks in a row were clearly worse that the training should end."""
        return self.marks.worse_in_a_row >= self.patience

    def look(self, network: NNet, weights: dict[str, Tensor], shown: int, compute: Compute) -> bool:
        """Mark `weights` of `network`; True when they are the ones to keep."""
        if self._network is None:
            self._network = copy.deepcopy(network).requires_grad_(False)
        self._network.load_state_dict(weights)
        return self.marks.add(shown, self.mark(self._network.eval(), compute))

    @torch.inference_mode()
    def mark(self, network: NNet, compute: Compute) -> float:
        """Pixel AP of the damaged copies' masks, 0 to 1, with the exponents that suit these weights."""
        exponents = choose_exponents(network, self._held_out, compute)
        fusion = replace(network.settings.fusion, exponents=exponents)
        maps = anomaly_map(layer_maps_of(network, self._images, compute), fusion=fusion)[:, 0]
        mark = pixel_ap(self._masks, maps)
        assert mark is not None  # every copy has damaged pixels
        return mark
