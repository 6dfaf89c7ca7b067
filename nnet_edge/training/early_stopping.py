"""Early stopping: when a training ends, decided on good images alone, by how well synthetic anomalies stand out.

Students learn to follow their teacher everywhere if they are trained for long, on defects too, the shallow stages of
a small teacher first; the loss over good images does not show it. So the network is checked, every so many images, on copies
of the held-out images with synthetic anomalies: the pixel AP of their masks is its validation score. The weights that are
deployed are the latest whose score is not clearly below the best. Image scores of held-out images take no part in the choice,
and the threshold is chosen on them as before.

Seen: cookie (seed 0, constant rate, 3,000 images): score 48.1 after 604, 47.1 after 1,200, 42.6 after 2,804; pixel AP of its
real defects 55.1, 58.9, 52.9. On ball_screw the scores stay while the real AP falls, for its later images are dirtier than
any good one: no good image shows that, so the length has a limit besides (`image_steps`).
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnet_edge.anomaly_map import anomaly_map
from nnet_edge.data.painted import anomalous_copies
from nnet_edge.methods.base import Method, MethodSettings
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.folding import KnownTeacher, folded
from nnet_edge.methods.fusion_search import IMAGES, layer_maps_of
from nnet_edge.methods.network import Network
from nnet_edge.metrics import pixel_ap

COPIES = 48  # with synthetic anomalies
FIRST_CHECK = 400  # images shown; before that image scores move (tire: 72 image AUROC after 200, 76 after 400)
CLEARLY_WORSE = 0.9  # times the best score: such weights are not deployed; between seeds and checks it moves by 8 %


@dataclass
class ValidationScores:
    """The validation scores so far, the best of them, and which weights are kept."""

    best: float | None = None  # pixel AP, 0 to 1
    kept: float | None = None  # score of the weights that are kept
    kept_at: int = 0  # images shown by then
    worse_in_a_row: int = 0  # checks since that were clearly worse than the best
    checks: list[tuple[int, float]] = field(default_factory=list)  # (images shown, score)

    def add(self, shown: int, score: float) -> bool:
        """Whether the weights with this `score`, after `shown` images, are the ones to keep."""
        self.checks.append((shown, score))
        if self.best is not None and score < CLEARLY_WORSE * self.best:
            self.worse_in_a_row += 1
            return False
        self.best = score if self.best is None else max(score, self.best)
        self.kept, self.kept_at, self.worse_in_a_row = score, shown, 0
        return True

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint and the manifest, whose "marks" call the checks "looks"."""
        values = asdict(self)
        return values | {"looks": values.pop("checks")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ValidationScores:
        """What `as_dict` wrote."""
        rest = {name: value for name, value in values.items() if name != "looks"}
        return cls(**rest, checks=[(int(shown), float(score)) for shown, score in values["looks"]])


class EarlyStopping:
    """Scores the network now and then, and says which weights to keep and when to stop."""

    def __init__(self, method: Method[Any, Any], held_out: np.ndarray, settings: MethodSettings,
                 scores: ValidationScores | None = None) -> None:  # fmt: skip
        self.method, self.every, self.patience = method, settings.look_every, settings.patience
        self.scores = scores or ValidationScores()
        self._held_out = held_out[:IMAGES]
        pictures = held_out.reshape(-1, *held_out.shape[-3:])
        window = settings.input.network.window
        self._images, self._masks = anomalous_copies(pictures, COPIES, settings.seed, window=window)
        self._network: Network | None = None
        self._teacher: KnownTeacher | None = None

    def is_due(self, before: int, shown: int) -> bool:
        """Whether a check is due when the images shown went from `before` to `shown`."""
        return shown >= FIRST_CHECK and shown // self.every > before // self.every

    @property
    def should_stop(self) -> bool:
        """Whether so many checks in a row were clearly worse that the training should end."""
        return self.scores.worse_in_a_row >= self.patience

    def check(self, network: Network, weights: dict[str, Tensor], shown: int, compute: Compute) -> bool:
        """Score `weights` of `network`; True when they are the ones to keep."""
        if self._network is None or self._teacher is None:
            self._network = copy.deepcopy(network).requires_grad_(False)
            self._teacher = KnownTeacher(network.teacher)
        self._network.load_state_dict(weights)
        quick = folded(self._network)
        quick.teacher = self._teacher
        return self.scores.add(shown, self.validation_score(quick, compute))

    @torch.inference_mode()
    def validation_score(self, network: Network, compute: Compute) -> float:
        """Pixel AP of the synthetic anomalies' masks, 0 to 1, with the fusion that suits these weights."""
        fusion = self.method.settle(network, self._held_out, compute)
        layer_maps = layer_maps_of(network, self._images, compute)
        maps = anomaly_map(layer_maps, fusion, network.geometry.window)[:, 0]
        score = pixel_ap(self._masks, maps)
        assert score is not None  # every copy has an anomaly
        return score
