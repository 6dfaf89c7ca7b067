"""Folds: every good image is judged by a model that has not learned its group, and the model that is deployed learns them all.

Cross-conformal prediction (Vovk, Annals of Mathematics and AI 74, 2015) takes the threshold from such scores. With the models
of the folds in use together (CV+: Barber, Candès, Ramdas and Tibshirani, Annals of Statistics 49, 2021) at most about twice
the rate is rejected, whatever the data, and about the rate in practice. A camera has time for one model, which is none of
theirs, so scores are brought to its scale:

- all models fuse their layer maps alike, by the mean of the folds' exponents, and divide them by their own level at each place
  to the power that most folds chose;
- a fold's scores are multiplied by the ratio of the deployed model's to its own on images that both have learned (the median);
- what is kept of each image is a factor: how much stranger it is to a model that has not learned it. Every runner and precision
  multiplies its own score of the image by it, and the threshold is the conformal quantile of the products, by groups.

What is left is that the deployed model knows more images than a fold's: a new part is no stranger to it, so it may reject fewer
than promised, and the interval begins at 0. No theorem covers a third model; tests/test_promise.py simulates it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save
from torch import Tensor

from nnet_edge.anomaly_map import Fusion, anomaly_map, image_score
from nnet_edge.data.holding_out import Folds
from nnet_edge.data.training_data import TrainingData
from nnet_edge.errors import TrainingError
from nnet_edge.files import write_atomically
from nnet_edge.geometry import Geometry
from nnet_edge.methods.base import MethodSettings
from nnet_edge.methods.compute import Compute, choose_device, choose_precision
from nnet_edge.methods.fusion_search import DECIMALS, layer_maps_of
from nnet_edge.methods.network import PLACE_FACTORS
from nnet_edge.methods.place_level import factors_of, level_of, with_factors
from nnet_edge.training.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint, write_checkpoint, write_held_out
from nnet_edge.training.loop import Progress, Trained, TrainOptions, train

COMMON = 48  # images at most that a fold's scale is measured on
WATCHED = 10  # images that the log's held-out loss is of; the last training has learned them


@dataclass(frozen=True)
class Fold:
    """What a fold's model says, as layer maps (N, 1, h, w) by name, of tiles where there are some."""

    judged: dict[str, np.ndarray]  # of the fold's images, which it has not learned
    common: dict[str, np.ndarray]  # of some that it has
    exponents: tuple[float, ...]  # of its fusion
    place_power: float  # of good parts' level at each place (place_level.py); its maps are without it
    shown: int | None  # images, when its weights were taken; None for a training of fixed length


@dataclass(frozen=True)
class FoldTrainings:
    """The trainings of the folds, and then the one of all images; `folder` is there until that has ended."""

    data: TrainingData
    settings: MethodSettings
    folder: Path
    options: TrainOptions
    report: Callable[[Progress], None]
    stopping: Callable[[], AbstractContextManager[Callable[[], bool]]]
    say: Callable[[str], None]

    @property
    def folds(self) -> Folds:
        assert self.data.folds is not None
        return self.data.folds

    def run(self, training: Path, facts: dict[str, Any], resume: bool) -> Trained:
        """Train in folds, then on all images into the folder `training`; go on with what is there where `resume` says so.

        Raises what `train` raises.
        """
        count = self.folds.count
        if not resume:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            (training / CHECKPOINT).unlink(missing_ok=True)
            precision = choose_precision(self.options.precision, choose_device(self.options.device))
            plan = {"data": facts, "precision": precision, "epoch": 0, "step": 0, "finished": False}
            write_checkpoint(self.folder, Checkpoint(self.settings, {}, {}, {}, plan))
        else:
            facts = read_checkpoint(self.folder).facts["data"]
        self.say(f"{count} folds: {count + 1} trainings instead of one, so about {count + 1} times its time")
        found, began, done = [], time.perf_counter(), 0
        for number in range(count):
            if not self._result(number).exists():
                trained = self._train_fold(number)
                if trained is not None:
                    return trained
                done += 1
                minutes = (time.perf_counter() - began) / 60
                self.say(
                    f"fold {number + 1} of {count} is done; about {minutes / done * (count - number):.1f} min more"
                )
            found.append(read_fold(self._result(number)))
        return self._train_all(training, facts, found)

    def _result(self, number: int) -> Path:
        return self.folder / f"{number + 1}.safetensors"

    def _rows(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a fold: the rows that it learns, those that it judges, and those learned ones that its scale is measured on."""
        fold_of, judged = self.folds.fold_of, self.folds.judged
        others = judged[fold_of[judged] != number]
        some = others[np.unique(np.linspace(0, len(others) - 1, COMMON).astype(int))]
        return np.flatnonzero(fold_of != number), judged[fold_of[judged] == number], some

    def _train_fold(self, number: int) -> Trained | None:
        """Train and judge a fold; what `train` gave where it was stopped, else None."""
        learned, judged, common = self._rows(number)
        place = self.folder / str(number + 1)
        known = read_checkpoint(place) if (place / CHECKPOINT).exists() else None
        batch = min(self.settings.batch, self.settings.input.pieces * len(learned))
        settings = replace(self.settings, batch=batch, global_gain=1.0)  # each fold's own would have its own scale
        images = self.data.learned
        self.say(
            f"fold {number + 1} of {self.folds.count}: {len(learned)} images to learn from, {len(judged)} to judge"
        )
        options = replace(self.options, on_row=lambda row: None)  # the curves are those of the last training
        trained = train(images[learned], images[judged], settings, place, options, {}, known, self.report,
                        self.stopping, lambda line: None)  # fmt: skip
        if not trained.finished:
            return trained
        checkpoint = read_checkpoint(place)
        fusion = checkpoint.build_network().map_fusion
        shown = None if trained.validation is None else trained.validation.kept_at
        maps = {"judged": self._maps(checkpoint, images[judged]), "common": self._maps(checkpoint, images[common])}
        tensors = {f"{part}/{name}": value for part, named in maps.items() for name, value in named.items()}
        power = (checkpoint.facts.get("place_level") or {}).get("power", 0.0)
        about = {"fold": json.dumps({"exponents": fusion.exponents, "place_power": power, "shown": shown})}
        write_atomically(self._result(number), save(tensors, about))
        shutil.rmtree(place)
        return None

    def _maps(self, checkpoint: Checkpoint, images: np.ndarray) -> dict[str, np.ndarray]:
        """The layer maps of a training's network, without a place level, for uint8 RGB images (N, H, W, 3), or their tiles."""
        compute, network = Compute(choose_device(self.options.device), "fp32"), checkpoint.build_network()
        network.place_factors = None
        return layer_maps_of(network.to(compute.device), self.settings.input.cut(images), compute)

    def _train_all(self, training: Path, facts: dict[str, Any], found: list[Fold]) -> Trained:
        """Train on all images, as long as the folds did, and keep the factors."""
        images, judged = self.data.learned, self.folds.judged
        settings = replace(self.settings, look_every=0, place_powers=(), global_gain=1.0)  # the folds have chosen
        shown = [fold.shown for fold in found if fold.shown]
        if shown and settings.image_steps:
            settings = replace(settings, image_steps=round(float(np.median(shown))))
        known = read_checkpoint(training) if (training / CHECKPOINT).exists() else None
        self.say(f"all {len(images)} images")
        trained = train(images, images[judged[:WATCHED]], settings, training, self.options, facts, known, self.report,
                        self.stopping, lambda line: None)  # fmt: skip
        if not trained.finished:
            return trained
        checkpoint = read_checkpoint(training)
        exponents = tuple(np.mean([fold.exponents for fold in found], axis=0).round(DECIMALS).tolist())
        fusion = replace(checkpoint.build_network().map_fusion, exponents=exponents)
        powers = [fold.place_power for fold in found]
        power = max(sorted(set(powers)), key=powers.count)
        maps = self._maps(checkpoint, images[judged])
        level = factors_of(level_of(maps, fusion), power, fusion) if power else None
        deployed = scores_of(maps, fusion, level, self.settings.input)
        factors = self._factors(found, fusion, power, deployed)
        write_held_out(training, images[judged])
        if exponents != checkpoint.build_network().map_fusion.exponents:
            checkpoint = replace(checkpoint, settings=checkpoint.settings.with_fusion(fusion))
        checkpoint = replace(
            checkpoint, network=levelled(checkpoint.network, level), averaged=levelled(checkpoint.averaged, level),
            best=levelled(checkpoint.best, level),
        )  # fmt: skip
        facts = checkpoint.facts | {"data": checkpoint.facts["data"] | {"factors": factors.tolist()}}
        if self.settings.place_powers:
            facts["place_level"] = {"power": power, "of_folds": powers}
        write_checkpoint(training, replace(checkpoint, facts=facts))
        shutil.rmtree(self.folder)
        self.say(
            f"a good image is {np.median(factors):.2f} times as strange to a model that has not learned it (the middle one, by "
            f"{self.folds.count} folds); all fuse by the exponents {', '.join(f'{value:g}' for value in exponents)}"
        )
        return trained

    def _factors(self, found: list[Fold], fusion: Fusion, power: float, deployed: np.ndarray) -> np.ndarray:
        """The factor of each judged image, by its fold's score and the `deployed` model's, float64 (H,)."""
        place_of = {int(row): place for place, row in enumerate(self.folds.judged)}
        factors = np.empty(len(deployed))
        for number, fold in enumerate(found):
            _, judged, common = self._rows(number)
            here, shared = ([place_of[int(row)] for row in rows] for rows in (judged, common))
            level = factors_of(level_of(fold.common, fusion), power, fusion) if power else None
            unseen, seen = (scores_of(maps, fusion, level, self.settings.input) for maps in (fold.judged, fold.common))
            factors[here] = unseen * scale_between(seen, deployed[shared]) / deployed[here]
        if not (np.isfinite(factors).all() and factors.min() > 0):
            raise TrainingError(
                "a model of the folds sees nothing in good images, or gives NaN: train again, more carefully"
            )
        return factors


def levelled(weights: dict[str, Tensor], level: np.ndarray | None) -> dict[str, Tensor]:
    """The weights with that place level, None: without one; no weights stay none."""
    others = {name: value for name, value in weights.items() if name != PLACE_FACTORS}
    return others | ({PLACE_FACTORS: torch.tensor(level)} if others and level is not None else {})


def scores_of(maps: dict[str, np.ndarray], fusion: Fusion, level: np.ndarray | None, geometry: Geometry) -> np.ndarray:
    """The image scores (N,) by layer maps, of tiles where the geometry has some, and the place level; float64."""
    maps = maps if level is None else with_factors(maps, level)
    whole = geometry.stitch(anomaly_map(maps, fusion, geometry.network.window)[:, 0])
    return np.asarray(image_score(whole), np.float64)


def scale_between(scores: np.ndarray, others: np.ndarray) -> float:
    """How many times larger `others` are than `scores`, of the same images (N,): the median ratio."""
    tiny = np.finfo(np.float32).tiny
    return float(np.median(np.maximum(others, tiny) / np.maximum(scores, tiny)))


def read_fold(path: Path) -> Fold:
    """The result that a fold left. Raises TrainingError for a damaged one."""
    try:
        with safe_open(path, "np") as file:
            about = json.loads(file.metadata()["fold"])
        parts: dict[str, dict[str, np.ndarray]] = {"judged": {}, "common": {}}
        for name, value in load_file(path).items():
            part, _, layer = name.partition("/")
            parts[part][layer] = value
        return Fold(parts["judged"], parts["common"], tuple(about["exponents"]), about["place_power"], about["shown"])
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise TrainingError(f"{path} cannot be read ({error}): remove it and go on with --resume") from error
