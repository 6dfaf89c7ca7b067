"""The methods that anomalib brings: how long each learns by its own settings, on which features, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nnet_edge.errors import ConfigError

SAME_BACKBONE = "efficientnet_lite0"  # the teacher of all of N-Net's measurements, with the same ImageNet weights
ALL_TAPS = ("blocks.1", "blocks.2", "blocks.4")  # timm's names for strides 4, 8 and 16 of tf_efficientnet_lite0
DEEP_TAPS = ALL_TAPS[1:]
RANDOM = "random"
# A coreset keeps a small tensor between every two of 23 MB; glibc's heap then grows by 23 MB a step (seen: 20 GB on 100
# images). Above a fixed threshold every block is a mapping of its own, which goes back when it is freed. Trainings by gradients
# are half as slow again with it (STFPM on cookie: 61 against 40 s for 3 epochs), so they go without.
BLOCKS_GO_BACK = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)}


@dataclass(frozen=True)
class Method:
    """One method of anomalib."""

    name: str  # on the command line
    title: str  # in tables
    own_backbone: str  # what anomalib gives it
    layers: tuple[str, ...] = ()  # taps of SAME_BACKBONE; none: it cannot take it
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
    method.name: method
    for method in (
        Method("padim", "PaDiM", "resnet18", ALL_TAPS),
        Method("patchcore", "PatchCore", "wide_resnet50_2", DEEP_TAPS, variables=BLOCKS_GO_BACK),
        Method("stfpm", "STFPM", "resnet18", ALL_TAPS, 100),
        Method("reverse_distillation", "Reverse Distillation", "wide_resnet50_2", ALL_TAPS, 200),
        Method("supersimplenet", "SuperSimpleNet", "wide_resnet50_2.tv_in1k", DEEP_TAPS, 300),
        Method("fastflow", "FastFlow", "resnet18", epochs=500,
               lacks="it takes four backbones only, and their ImageNet weights are not on this machine"),
        Method("efficient_ad", "EfficientAD-S", "PDN-S", epochs=1000, steps=70_000, batch=1,
               lacks="its teacher's weights and ImageNette are downloads"),
        Method("efficient_ad_m", "EfficientAD-M", "PDN-M", epochs=1000, steps=70_000, batch=1,
               lacks="its teacher's weights and ImageNette are downloads"),
        Method("dinomaly", "Dinomaly", "vit_base_patch14_reg4_dinov2", epochs=1000, steps=5000, batch=16, side=392,
               lacks="DINOv2's weights are a download"),
    )
}  # fmt: skip


def find_methods(names: tuple[str, ...]) -> list[Method]:
    """The methods of these names, all for none. Raises ConfigError that lists the known ones."""
    if unknown := [name for name in names if name not in METHODS]:
        raise ConfigError(f"unknown method {unknown[0]!r}: choose of {', '.join(METHODS)}")
    return [METHODS[name] for name in names or METHODS]
