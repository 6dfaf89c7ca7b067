"""Start of a training: afresh or from a checkpoint, with the augmentation chosen and the length known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nnet_edge.errors import ConfigError
from nnet_edge.files import remove_drafts
from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.base import METHODS, MethodSettings
from nnet_edge.methods.compute import Compute
from nnet_edge.methods.network import Network, is_settled, restore_network, start_network
from nnet_edge.methods.teacher_weights import load_teacher
from nnet_edge.training.augmentation import choose_augmentation
from nnet_edge.training.checkpoint import CHECKPOINT, HELD_OUT, Checkpoint, facts_of_teacher, write_held_out
from nnet_edge.training.log import PICTURE, TrainingLog, read_log

MOST_TILES = 2000  # learned from: of more, in most trainings, some would never be shown
SMALL_SET = 100  # images; a larger set shows its variety by itself and gets no augmented copies


@dataclass(frozen=True)
class Learned:
    """What an earlier training learned: a bundle's weights, the teacher's among them, and what is known of the teacher."""

    weights: Mapping[str, Tensor]
    teacher: Mapping[str, Any]
    passes: int | None = None  # over the images, where so many are asked for
    batch: int | None = None  # images a step, where so many are asked for
    protocol: str | None = None  # that makes it small, where that is asked for


@dataclass
class Start:
    """Where a training starts."""

    settings: MethodSettings
    network: Network
    facts: dict[str, Any]  # data and teacher, for the manifest
    log: TrainingLog
    position: tuple[int, int] = (0, 0)  # epoch and step to do first
    sums: dict[str, float] = field(default_factory=dict)  # of that epoch's losses so far
    seconds: float = 0.0  # trained before


def start_afresh(images: np.ndarray, held_out: np.ndarray, settings: MethodSettings, folder: Path, compute: Compute,
                 teacher_weights: str | None, data_facts: dict[str, Any], say: Callable[[str], None],
                 learned: Learned | None = None) -> Start:  # fmt: skip
    """A training with an empty log and random students, or what was `learned`; afterwards `folder` has the held-out images."""
    if learned is None:
        teacher = load_teacher(find_backbone(settings.model.backbone), teacher_weights, settings.seed)
        network, facts = start_network(settings, teacher), facts_of_teacher(teacher)
    else:
        weights = {name: value for name, value in learned.weights.items() if not is_settled(name)}  # chosen anew
        network, facts = restore_network(settings, weights), dict(learned.teacher)
    remove_drafts(folder / HELD_OUT)
    for name in (CHECKPOINT, PICTURE):  # what an earlier training left; only now is it certain that this one starts
        (folder / name).unlink(missing_ok=True)
        remove_drafts(folder / name)
    method = METHODS.find(settings.method)
    log = TrainingLog(folder, method.losses_shown)
    log.write()
    write_held_out(folder, held_out)
    network.to(compute.device)
    position = (0, 0)
    if learned is None:
        method.prepare(network, images, compute)
        settings = settle_length(network, images, settings, compute, say)
    else:
        count = len(images) * settings.augmentation.copies
        learning_on = method.learning_on(settings, count, learned.passes, learned.batch, learned.protocol)
        if learning_on is not None:
            settings, position = learning_on, (learning_on.epochs, 0)  # its passes are those of the training before
    return Start(settings, network, {"data": data_facts, "teacher": facts}, log, position)


def settle_length(
    network: Network, images: np.ndarray, settings: MethodSettings, compute: Compute, say: Callable[[str], None]
) -> MethodSettings:
    """The settings with the augmentation chosen and the number of epochs known, as the checkpoint keeps them."""
    if settings.augmentation_copies:
        copies = settings.augmentation_copies if len(images) <= SMALL_SET else 1
        choice = choose_augmentation(network.eval(), images, copies, settings.seed, compute)
        say(choice.sentence())
        settings = replace(settings, augmentation=choice.augmentation, augmentation_copies=0)
    return settings.with_length_for(len(images) * settings.augmentation.copies)


def start_from(checkpoint: Checkpoint, folder: Path) -> Start:
    """The training that left `checkpoint` in `folder`, as it was."""
    for name in (CHECKPOINT, PICTURE):
        remove_drafts(folder / name)
    return Start(
        checkpoint.settings, restore_network(checkpoint.settings, checkpoint.network),
        {name: checkpoint.facts[name] for name in ("data", "teacher")},
        read_log(folder, METHODS.find(checkpoint.settings.method).losses_shown, checkpoint.epoch),
        (checkpoint.epoch, checkpoint.step), dict(checkpoint.facts["sums"]), float(checkpoint.facts["seconds"]),
    )  # fmt: skip


def learned_inputs(images: np.ndarray, settings: MethodSettings) -> np.ndarray:
    """What is learned of `images`, uint8 RGB (N, H, W, 3): themselves; or their tiles, of too many some that the seed draws."""
    tiles = settings.input.tiles
    if tiles is None:
        return images
    order = np.random.default_rng([settings.seed, 4]).permutation(len(images) * tiles.count)[:MOST_TILES]
    return tiles.cut(images, np.sort(order).tolist())


def learned_count(images: int, settings: MethodSettings) -> int:
    """How many inputs are learned of so many images."""
    return images if settings.input.tiles is None else min(images * settings.input.pieces, MOST_TILES)


def held_out_inputs(images: np.ndarray, settings: MethodSettings) -> np.ndarray:
    """What is measured of `images`, uint8 RGB (N, H, W, 3): themselves; or the tiles of each (N, T, h, w, 3)."""
    tiles = settings.input.tiles
    return images if tiles is None else tiles.cut(images).reshape(-1, tiles.count, tiles.height, tiles.width, 3)


def one_by_one(images: np.ndarray) -> np.ndarray:
    """The inputs in `images` (..., h, w, 3), be it of pictures or of the tiles of each: (M, h, w, 3)."""
    return images.reshape(-1, *images.shape[-3:])


def check_images(batch: int, images: int, held_out: int) -> None:
    """Raise ConfigError for a batch larger than the images to learn from, or when no image is held out."""
    if batch > images:
        raise ConfigError(
            f"a batch of {batch} is impossible with {images} images to learn from: give at most --batch {images}, or add images"
        )
    if held_out == 0:
        raise ConfigError(
            "no image is held out: the threshold is chosen on images that training never saw; hold some out"
        )
