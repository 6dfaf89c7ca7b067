"""The methods that anomalib brings: how long each learns by its own settings, on which features, and what it needs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnet_edge.errors import ConfigError

SAME_BACKBONE = "efficientnet_lite0"  # the teacher of all of N-Net's measurements, with the same ImageNet weights
RANDOM = "random"
# Why PatchCore's environment holds MALLOC_MMAP_THRESHOLD_: a coreset keeps a small tensor between every two of 23 MB; glibc's
# heap then grows by 23 MB a step (seen: 20 GB on 100 images). Above a fixed threshold every block is a mapping of its own, that
# goes back when freed. Trainings by gradients are half as slow again with it (STFPM on cookie: 61 against 40 s for 3
# epochs), so they go without.


@dataclass(frozen=True)
class Method:
    """One method of anomalib."""

    name: str  # on the command line
    title: str  # in tables
    own_backbone: str  # what anomalib gives it
    class_name: str  # in anomalib.models
    layers: tuple[str, ...] = ()  # taps of SAME_BACKBONE, timm's names for strides 4, 8, 16; none: it cannot take it
    epochs: int = 1  # anomalib's own (examples/configs/model of its repository); 1: it looks at every image once
    steps: int = -1  # as Lightning counts; -1: the epochs decide
    batch: int = 32  # of anomalib's data modules
    side: int = 256  # height and width that it works at
    variables: Mapping[str, str] = field(default_factory=dict)  # of the environment that it learns in
    lacks: str = ""  # what a trained one needs beyond images and the same backbone's weights

    @property
    def takes_same_backbone(self) -> bool:
        """Whether it can be trained with N-Net's teacher."""
        return bool(self.layers)

    @property
    def is_iterative(self) -> bool:
        """Whether it is trained by gradients, so that a time limit can cut it short."""
        return self.epochs > 1


METHODS = {
    known["name"]: Method(**known | {"layers": tuple(known.get("layers", ()))})
    for known in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
}


def find_methods(names: tuple[str, ...]) -> list[Method]:
    """The methods of these names, all for none. Raises ConfigError that lists the known ones."""
    if unknown := [name for name in names if name not in METHODS]:
        raise ConfigError(f"unknown method {unknown[0]!r}: choose of {', '.join(METHODS)}")
    return [METHODS[name] for name in names or METHODS]
