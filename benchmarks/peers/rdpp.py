"""The paper's claim that N-Net has fewer parameters than RD++ and is faster (its Figure 4), put to the test.

No kept package has RD++, so its inference is rebuilt from what is known of it (specification, sections 0 and 12): RD4AD's
teacher, bottleneck as executed and decoder with WideResNet-50-2, and a projection a scale of four 3x3 convolutions with
InstanceNorm and LeakyReLU. Its weights are random: what is true of it is its size and its speed, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from nnet_edge.benchmarks.speed_report import Spread, spread
from nnet_edge.benchmarks.system_torch import torch_threads
from nnet_edge.imaging import SIDE

if TYPE_CHECKING:
    from torch import Tensor, nn

BACKBONE = "wide_resnet50_2"
WARM_UP_CALLS = 2
MS_PER_S, NS_PER_MS = 1e3, 1e6


@dataclass(frozen=True)
class Counted:
    """A network's size, work and measured speed (torch eager, batch 1, FP32)."""

    name: str
    parameters: int
    macs: int
    frames_per_s: Spread | None  # None: counted only

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def build_networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """RD4AD, RD++ and N-Net (the paper's settings), WideResNet-50-2, random weights, up to their maps; each with its input."""
    import torch

    from nnet_edge.model.backbone import build_encoder, find_backbone
    from nnet_edge.model.nnet import NNet
    from nnet_edge.protocol import PAPER

    nnet = NNet(replace(PAPER.model, backbone=BACKBONE), build_encoder(find_backbone(BACKBONE)))
    image = torch.rand(1, 3, SIDE, SIDE)
    pixels = torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8)
    return {"RD4AD": (distiller(False), image), "RD++": (distiller(True), image), "N-Net": (nnet, pixels)}


def distiller(with_projections: bool) -> nn.Module:
    """Reverse distillation up to the decoder's three feature maps, with RD++'s projections or without."""
    from torch import nn

    from nnet_edge.model.backbone import build_encoder, find_backbone
    from nnet_edge.model.parts import Decoder, FeatureFusion

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


def measure_claim(threads: int, rounds: int, say: Callable[[str], None] = lambda line: None) -> list[Counted]:
    """Size and work of the three, and their speed in turns when `rounds` is above 0."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    networks = {name: (network.eval(), image) for name, (network, image) in build_networks().items()}
    macs: dict[str, int] = {}
    rates: dict[str, list[float]] = {name: [] for name in networks}
    with torch.inference_mode(), torch_threads(threads):
        for name, (network, image) in networks.items():
            with FlopCounterMode(display=False) as counter:
                network(image)
            macs[name] = counter.get_total_flops() // 2
        for number in range(rounds + WARM_UP_CALLS if rounds else 0):
            for name, (network, image) in networks.items():
                began_ns = time.perf_counter_ns()
                network(image)
                took_ms = (time.perf_counter_ns() - began_ns) / NS_PER_MS
                if number >= WARM_UP_CALLS:
                    rates[name].append(MS_PER_S / took_ms)
            say(f"RD++ against N-Net: round {number + 1} of {rounds + WARM_UP_CALLS}")
    return [
        Counted(name, sum(value.numel() for value in network.parameters()), macs[name],
                spread(rates[name]) if rounds else None)
        for name, (network, _) in networks.items()
    ]  # fmt: skip


def verdict(found: list[Counted]) -> str:
    """The claim's outcome in one sentence."""
    by_name = {one.name: one for one in found}
    ours, theirs = by_name["N-Net"], by_name["RD++"]
    size, work = ours.parameters / theirs.parameters, ours.macs / theirs.macs
    text = (
        f"The paper's claim of fewer parameters than RD++ {'holds' if size < 1 else 'does not hold'}: N-Net executes "
        f"{ours.parameters / 1e6:.1f} M against {theirs.parameters / 1e6:.1f} M ({size:.2f} times) and "
        f"{ours.macs / 1e9:.1f} GMACs against {theirs.macs / 1e9:.1f} ({work:.2f} times)"
    )
    if ours.frames_per_s and theirs.frames_per_s:
        ratio = ours.frames_per_s.median / theirs.frames_per_s.median
        text += (
            f"; its claim of more speed {'holds' if ratio > 1 else 'does not hold'} here: {ours.frames_per_s.text(2)} "
            f"frames/s against {theirs.frames_per_s.text(2)} ({ratio:.2f} times; torch eager, FP32, batch 1)"
        )
    return text + "."
