"""The paper's claim that N-Net has fewer parameters than RD++ and is faster (its Figure 4), put to the test.

No kept package has RD++, so its inference is rebuilt from what is known of it (specification, sections 0 and 12): RD4AD's
teacher, bottleneck as executed and decoder with WideResNet-50-2, and a projection a scale of four 3x3 convolutions with
InstanceNorm and LeakyReLU. Its weights are random: what is true of it is its size and its speed, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nnet_edge.benchmarks.harness.machine import torch_threads
from nnet_edge.benchmarks.harness.rounds import Say, Spread, quiet, ratios, run_rounds, spread, took
from nnet_edge.geometry import SIDE

if TYPE_CHECKING:
    from torch import Tensor, nn

BACKBONE = "wide_resnet50_2"
CALLS = 2  # of a round, after one that is not counted


@dataclass(frozen=True)
class Counted:
    """A network's size, work and measured speed (torch eager, batch 1, FP32)."""

    name: str
    parameters: int
    macs: int
    rounds: tuple[float, ...] = ()  # frames a second of each; none: counted only

    @property
    def frames_per_s(self) -> Spread | None:
        """Over the rounds; None where it was counted only."""
        return spread(self.rounds) if self.rounds else None

    def times(self, other: Counted) -> Spread | None:
        """How many times the frames a second of `other`, each ratio of one round; None where one was counted only."""
        return ratios(self.rounds, other.rounds) if self.rounds else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"frames_per_s": None if self.frames_per_s is None else asdict(self.frames_per_s)}


def build_networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """RD4AD, RD++ and N-Net (the paper's settings), WideResNet-50-2, random weights, up to their maps; each with its input."""
    import torch

    from nnet_edge.methods.backbone import build_encoder, find_backbone
    from nnet_edge.methods.base import DEFAULT_METHOD, METHODS

    method = METHODS.find(DEFAULT_METHOD)
    model = replace(method.protocols["paper"].model, backbone=BACKBONE)
    nnet = method.build(model, build_encoder(find_backbone(BACKBONE)))
    image = torch.rand(1, 3, SIDE, SIDE)
    pixels = torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8)
    return {"RD4AD": (distiller(False), image), "RD++": (distiller(True), image), "N-Net": (nnet, pixels)}


def distiller(with_projections: bool) -> nn.Module:
    """Reverse distillation up to the decoder's three feature maps, with RD++'s projections or without."""
    from torch import nn

    from nnet_edge.methods.backbone import build_encoder, find_backbone
    from nnet_edge.methods.blocks import Decoder, FeatureFusion

    backbone = find_backbone(BACKBONE)

    class Distiller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = build_encoder(backbone)
            self.projections = nn.ModuleList(projection(c) for c in backbone.channels if with_projections)
            self.bottleneck = FeatureFusion(backbone, use_ffc=False)
            self.decoder = Decoder(backbone, ends_in_relu=True)

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features = self.teacher(images)
            used = features
            if self.projections:
                used = tuple(p(f) for p, f in zip(self.projections, features, strict=True))
            decoded = self.decoder(self.bottleneck(used), used[2])
            return tuple(1 - nn.functional.cosine_similarity(f, d) for f, d in zip(features, decoded, strict=True))

    return Distiller()


def projection(channels: int) -> nn.Sequential:
    """RD++'s projection of one scale: C -> C/2 -> C/4 -> C/2 -> C."""
    from torch import nn

    widths = (channels, channels // 2, channels // 4, channels // 2, channels)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.InstanceNorm2d(outputs), nn.LeakyReLU()]
    return nn.Sequential(*layers)


@lru_cache(maxsize=1)
def count_claim() -> tuple[Counted, ...]:
    """Size and work of the three, by tensors without contents: it takes seconds and no memory to speak of."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode

    found = []
    with FakeTensorMode(), torch.inference_mode():
        for name, (network, image) in build_networks().items():
            with FlopCounterMode(display=False) as counter:
                network.eval()(image)
            parameters = sum(value.numel() for value in network.parameters())
            found.append(Counted(name, parameters, counter.get_total_flops() // 2))
    return tuple(found)


def time_claim(counted: Sequence[Counted], threads: int, rounds: int, say: Say = quiet) -> tuple[Counted, ...]:
    """The same with their speed, in the same rounds."""
    import torch

    measures = {
        name: partial(frames_per_s, network.eval(), image) for name, (network, image) in build_networks().items()
    }
    with torch.inference_mode(), torch_threads(threads):
        rates = run_rounds(measures, rounds, lambda line: say(f"RD++ against N-Net: {line}"))
    return tuple(replace(one, rounds=tuple(rates[one.name])) for one in counted)


def frames_per_s(network: nn.Module, image: Tensor) -> float:
    """The rate of one round."""
    network(image)  # not counted: the others' weights are in the caches
    return 1 / took(lambda: network(image), CALLS).clock_s


def verdict(found: Sequence[Counted]) -> str:
    """The claim's outcome in one sentence; speed is decided only where all rounds say the same."""
    by_name = {one.name: one for one in found}
    ours, theirs = by_name["N-Net"], by_name["RD++"]
    size, work = ours.parameters / theirs.parameters, ours.macs / theirs.macs
    text = (
        f"The paper's claim of fewer parameters than RD++ {'holds' if size < 1 else 'does not hold'}: N-Net executes "
        f"{ours.parameters / 1e6:.1f} M against {theirs.parameters / 1e6:.1f} M ({size:.2f} times) and "
        f"{ours.macs / 1e9:.1f} GMACs against {theirs.macs / 1e9:.1f} ({work:.2f} times)"
    )
    ratio, our_rate, their_rate = ours.times(theirs), ours.frames_per_s, theirs.frames_per_s
    if ratio and our_rate and their_rate:
        holds = "holds" if ratio.smallest > 1 else "does not hold" if ratio.largest < 1 else "is not decided"
        text += (
            f"; its claim of more speed {holds} here: {our_rate.text(2)} frames/s against {their_rate.text(2)}, "
            f"{ratio.text(2)} times within {len(ours.rounds)} rounds (torch eager, FP32, batch 1)"
        )
    return text + "."
