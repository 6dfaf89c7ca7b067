"""Training folder: checkpoint, held-out images and log, from which a training resumes and a bundle is made.

checkpoint.safetensors  weights, optimiser state and position; written atomically, safe to load (nothing pickled)
held_out.safetensors    the good images that training never saw, uint8 RGB (N, H, W, 3)
log.csv, losses.png     the losses of each epoch
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from nnet_edge.errors import TrainingError
from nnet_edge.files import write_atomically
from nnet_edge.methods.base import DEFAULT_METHOD, MethodSettings, find_method
from nnet_edge.methods.network import Network, restore_network
from nnet_edge.methods.teacher_weights import Teacher

CHECKPOINT = "checkpoint.safetensors"
HELD_OUT = "held_out.safetensors"
PARTS = ("network", "averaged", "best", "optimiser")  # of a Checkpoint, that are tensors
FORMAT = "nnet-edge checkpoint 2"


@dataclass(frozen=True)
class Checkpoint:
    """A training at rest."""

    settings: MethodSettings
    network: dict[str, Tensor]  # the weights as the optimiser left them
    averaged: dict[str, Tensor]  # their EMA; empty when none is kept
    optimiser: dict[str, Tensor]
    facts: dict[str, Any]  # epoch and step reached, teacher, data: what the manifest needs
    best: dict[str, Tensor] = field(default_factory=dict)  # those that early stopping keeps; empty: none yet

    @property
    def epoch(self) -> int:
        """The epoch to go on with, from 0."""
        return int(self.facts["epoch"])

    @property
    def step(self) -> int:
        """The step of that epoch to go on with, from 0."""
        return int(self.facts["step"])

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return bool(self.facts["finished"])

    @property
    def deployed(self) -> dict[str, Tensor]:
        """The weights to deploy: the best, else their EMA, else those that the optimiser left."""
        return self.best or self.averaged or self.network

    def build_network(self) -> Network:
        """The network with the weights to deploy, in evaluation mode."""
        return restore_network(self.settings, self.deployed)


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Put `checkpoint` into the training folder, atomically; gives its path."""
    tensors: dict[str, Tensor] = {}
    for part in PARTS:
        values: dict[str, Tensor] = getattr(checkpoint, part)
        tensors |= {f"{part}/{name}": value.detach().cpu().contiguous() for name, value in values.items()}
    settings = checkpoint.settings
    facts = json.dumps({"system": settings.method, "settings": settings.as_dict(), "facts": checkpoint.facts})
    path = folder / CHECKPOINT
    write_atomically(path, save_tensors(tensors, {"format": FORMAT, "nnet_edge": facts}))
    return path


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint of the training folder, or at that path. Raises TrainingError when there is none to read."""
    path = folder / CHECKPOINT if folder.is_dir() else folder
    if not path.is_file():
        raise TrainingError(f"there is no checkpoint at {path}: give the folder that train wrote, or train first")
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = load_tensors(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise TrainingError(f"{path} is no readable checkpoint ({error}): train again") from error
    if metadata.get("format") != FORMAT:
        raise TrainingError(f"{path} is no checkpoint of this version of nnet-edge: train again")
    known = json.loads(metadata["nnet_edge"])
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for name, value in tensors.items():
        part, rest = name.split("/", 1)
        parts[part][rest] = value
    method = find_method(known.get("system", DEFAULT_METHOD), str(path))
    return Checkpoint(method.settings.from_dict(known["settings"]), facts=known["facts"], **parts)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: '<parameter number>.<name>'."""
    state = optimiser.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value) for number, values in state.items() for name, value in values.items()
    }


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimiser_tensors` gave."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    for parameter, values in optimiser.state.items():
        for name, value in values.items():
            if value.shape == parameter.shape:  # in the parameter's memory format, channels_last for one: faster
                values[name] = torch.empty_like(parameter).copy_(value)


def write_held_out(folder: Path, images: np.ndarray) -> None:
    """Keep the held-out images, uint8 RGB (N, H, W, 3), in the training folder."""
    write_atomically(folder / HELD_OUT, save_tensors({"images": torch.from_numpy(np.ascontiguousarray(images))}))


def read_held_out(folder: Path) -> np.ndarray:
    """The held-out images of the training folder. Raises TrainingError when they are missing."""
    path = folder / HELD_OUT
    try:
        return load_tensors(path.read_bytes())["images"].numpy()
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise TrainingError(f"{path} is missing or damaged ({error}): the threshold needs it; train again") from error


def facts_of_teacher(teacher: Teacher) -> dict[str, Any]:
    """What the manifest says of the teacher."""
    return {"origin": teacher.origin, "is_random": teacher.is_random}
