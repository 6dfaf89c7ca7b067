"""Choice of method and backbone on good parts: each candidate is trained briefly and judged without a single real defect.

What is judged: how well synthetic anomalies, painted on held-out good parts, stand out (pixel AP of their masks, AUROC of the
image scores of painted against clean parts), how far the scores of good parts spread, and what an image costs here. The merit
is the mean of the first two; among candidates that are as good as the best but for noise the default method wins, else the
cheapest. Seen (tire, seed 1): RBD, 1 point of merit behind N-Net and half its cost, finds whole defective pictures with 58 in
place of 79 of image AUROC.

A method whose losses are told where synthetic anomalies are cannot be judged so. Seen (cookie, seed 111): DMDD finds painted
masks with a pixel AP of 66 and real defects with 27, BiKD 28 and 40, RBD 24 and 37.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.anomaly_map import anomaly_map, image_score
from nnet_edge.data.painted import anomalous_copies
from nnet_edge.methods.base import DEFAULT_METHOD, METHODS, MethodSettings
from nnet_edge.methods.compute import Compute, choose_device, choose_precision
from nnet_edge.methods.fusion_search import layer_maps_of
from nnet_edge.methods.network import Network
from nnet_edge.metrics import area_under_roc, pixel_ap
from nnet_edge.training.checkpoint import read_checkpoint
from nnet_edge.training.loop import Progress, TrainOptions, train
from nnet_edge.training.start import held_out_inputs, one_by_one

BRIEF = 0.5  # of a candidate's own length
COPIES = 48  # painted, of held-out images
AS_GOOD = 0.02  # of merit: two seeds of one candidate differ by as much
TIMED, ROUNDS = 4, 5  # images of a pass, passes


@dataclass(frozen=True)
class Candidate:
    """A method on a backbone, judged after a brief training."""

    method: str
    backbone: str
    pixel_ap: float  # of the painted masks, 0 to 1
    image_auroc: float  # of painted against clean held-out images, 0 to 1
    spread: float  # deviation of the logarithm of the clean images' scores
    image_ms: float  # of an image in PyTorch here, median
    seconds: float  # that training and judging took

    @property
    def merit(self) -> float:
        """What the choice goes by, 0 to 1; larger is better."""
        return (self.pixel_ap + self.image_auroc) / 2

    def row(self) -> tuple[str, ...]:
        """Method, backbone, merit, pixel AP, image AUROC, spread, milliseconds, seconds, as text."""
        shares = (f"{100 * value:.1f}" for value in (self.merit, self.pixel_ap, self.image_auroc))
        return (
            self.method,
            self.backbone,
            *shares,
            f"{self.spread:.2f}",
            f"{self.image_ms:.0f}",
            f"{self.seconds:.0f}",
        )


HEADINGS = ("method", "backbone", "merit", "pixel AP", "image AUROC", "spread", "ms an image", "s")


@dataclass(frozen=True)
class Choice:
    """All candidates, and which of them is trained in full."""

    candidates: tuple[Candidate, ...]

    @property
    def winner(self) -> Candidate:
        """Of those that are as good as the best the default method, else the cheapest."""
        best = max(one.merit for one in self.candidates)
        as_good = [one for one in self.candidates if one.merit >= best - AS_GOOD]
        return min(as_good, key=lambda one: (one.method != DEFAULT_METHOD, one.image_ms))

    def table(self) -> str:
        """The candidates, best first, in columns; the winner is marked."""
        ordered = sorted(self.candidates, key=lambda one: -one.merit)
        rows = [HEADINGS, *(one.row() for one in ordered)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([lines[0], *(line + (" <- chosen" if one == self.winner else "")
                                     for one, line in zip(ordered, lines[1:], strict=True))])  # fmt: skip

    def sentence(self) -> str:
        """The choice and its reason in one line."""
        won, best = self.winner, max(self.candidates, key=lambda one: one.merit)
        reason = (
            "the highest merit"
            if won == best
            else f"within {100 * AS_GOOD:.0f} points of {best.method}'s merit, and "
            + ("the default" if won.method == DEFAULT_METHOD != best.method else "cheaper")
        )
        return (
            f"chosen on good parts: {won.method} with {won.backbone}, {reason} (synthetic anomalies on held-out parts)"
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {
            "method": self.winner.method,
            "backbone": self.winner.backbone,
            "candidates": [asdict(one) | {"merit": one.merit} for one in self.candidates],
        }


def choose(
    images: np.ndarray,
    held_out: np.ndarray,
    candidates: Sequence[MethodSettings],
    folder: Path,
    options: TrainOptions,
    report: Callable[[Progress], None] = lambda progress: None,
    stopping: Callable[[], AbstractContextManager[Callable[[], bool]]] = lambda: nullcontext(lambda: False),
    say: Callable[[str], None] = lambda line: None,
) -> Choice | None:
    """Train each of `candidates` briefly in `folder`, which is removed again, and judge it; None when `stopping` says stop.

    Images are uint8 RGB (N, H, W, 3); real defects take no part. Raises what `train` raises.
    """
    judged = []
    try:
        for number, settings in enumerate(candidates, 1):
            title = METHODS.find(settings.method).title
            say(f"candidate {number} of {len(candidates)}: {title} with {settings.model.backbone}, briefly")
            began = time.perf_counter()
            place = folder / f"{settings.method}-{settings.model.backbone}"
            trained = train(images, held_out, briefly(settings), place, options, report=report, stopping=stopping)
            if not trained.finished:
                return None
            judged.append(judge(place, one_by_one(held_out_inputs(held_out, settings)), settings.seed, options, began))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Choice(tuple(judged))


def briefly(settings: MethodSettings) -> MethodSettings:
    """The settings with a part of their length, which is then fixed."""
    if settings.image_steps:
        return replace(settings, image_steps=max(1, round(BRIEF * settings.image_steps)), look_every=0)
    return replace(settings, epochs=max(1, round(BRIEF * settings.epochs)), look_every=0)


def judge(training: Path, held_out: np.ndarray, seed: int, options: TrainOptions, began: float) -> Candidate:
    """The candidate that the folder `training` holds, by painted copies of the held-out images."""
    checkpoint = read_checkpoint(training)
    network = checkpoint.build_network()
    device = choose_device(options.device)
    compute = Compute(device, choose_precision(options.precision, device))
    network.to(device)
    painted, masks = anomalous_copies(held_out, COPIES, seed, window=network.geometry.window)
    maps, clean_maps = (
        anomaly_map(layer_maps_of(network, some, compute), network.map_fusion, network.geometry.window)[:, 0]
        for some in (painted, held_out)
    )
    clean, strange = image_score(clean_maps), image_score(maps)
    found, ranked = pixel_ap(masks, maps), area_under_roc(clean, strange)
    assert found is not None  # every copy has an anomaly
    assert ranked is not None
    spread = float(np.log(np.maximum(clean, np.finfo(np.float32).tiny)).std())
    image_ms = time_of(network, held_out[:TIMED], compute)
    seconds = time.perf_counter() - began
    return Candidate(
        checkpoint.settings.method, checkpoint.settings.model.backbone, found, ranked, spread, image_ms, seconds
    )


def time_of(network: Network, images: np.ndarray, compute: Compute) -> float:
    """Milliseconds of an image, the median of a few passes."""
    passes = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        layer_maps_of(network, images, compute)
        passes.append(1000 * (time.perf_counter() - began) / len(images))
    return float(np.median(passes))
