"""Model cards: what each method costs with each teacher, as the table of docs/models.md.

    python -m nnet_edge.benchmarks.speed.models --frames

Parameters and multiply-adds are those of the network that is deployed, with the settings that `train` takes; weights are
random, as they change no cost. `--frames` also exports each graph and measures it on OpenVINO, one thread and one image, all
of them in every round; graphs only, without resize and tail.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import click
import numpy as np
import onnx

from nnet_edge.benchmarks.harness.command_line import command_text, run_command, say
from nnet_edge.benchmarks.harness.machine import busy_percent, busy_warning, describe_machine
from nnet_edge.benchmarks.harness.random_bundle import BACKBONES, real_pictures
from nnet_edge.benchmarks.harness.report import markdown_table
from nnet_edge.benchmarks.harness.roofline import work_of
from nnet_edge.benchmarks.harness.rounds import Spread, ratios, run_rounds, spread
from nnet_edge.benchmarks.speed.systems import load_bare
from nnet_edge.export.onnx_graph import fold_constants, suit_processors, trace
from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.base import DEFAULT_METHOD, METHODS
from nnet_edge.methods.network import Network, start_network
from nnet_edge.methods.teacher_weights import RANDOM, load_teacher
from nnet_edge.settings.runner import RunnerSettings

PROTOCOL = "tuned"
HUB = "torchvision, terms left to you"


@dataclass(frozen=True)
class Card:
    """What one method costs with one teacher."""

    method: str
    backbone: str
    parameters: int  # deployed, the teacher's among them
    trained_parameters: int
    macs: int  # of one image
    weights: str  # whence the teacher's come, and their licence
    frames_per_s: Spread | None = None
    times_the_first: Spread | None = None  # over the first card's, round by round: a busy machine spoils it less

    def row(self) -> dict[str, str]:
        """Its cells by the heads of their columns."""
        cells = {"method": self.method, "teacher": self.backbone, "parameters, M": f"{self.parameters / 1e6:.2f}",
                 "trained, M": f"{self.trained_parameters / 1e6:.2f}", "GMACs": f"{self.macs / 1e9:.2f}"}  # fmt: skip
        if self.frames_per_s is not None and self.times_the_first is not None:
            cells |= {"frames/s, FP32": self.frames_per_s.text(1), "times the first": self.times_the_first.text(2)}
        return cells | {"teacher's weights": self.weights}


def build(method: str, backbone: str) -> Network:
    """The network of the method with this teacher, as training begins it but for random teacher weights."""
    settings = METHODS.find(method).protocols[PROTOCOL]
    settings = replace(settings, model=replace(settings.model, backbone=backbone))
    return start_network(settings, load_teacher(find_backbone(backbone), RANDOM)).eval()


def card_of(method: str, backbone: str) -> Card:
    """The card of the method with this teacher, without its speed."""
    work = work_of(build(method, backbone))
    package = find_backbone(backbone).weights_package
    weights = HUB if package is None else f"{package}, Apache-2.0"
    return Card(method, backbone, work.parameters, work.trained_parameters, work.macs, weights)


def measured(cards: Sequence[Card], rounds: int, turn_s: float, tell: Callable[[str], None] = say) -> list[Card]:
    """The cards with the frames/s of their graphs, OpenVINO FP32, one thread, one image a call."""
    images = real_pictures()[:1]
    with tempfile.TemporaryDirectory(prefix="nnet-edge-models-") as folder, ExitStack() as stack:
        work: dict[Card, Callable[[], float]] = {}
        for number, card in enumerate(cards):
            tell(f"exporting {card.method} with {card.backbone}")
            graph = Path(folder) / f"{number}.onnx"
            onnx.save(suit_processors(fold_constants(trace(build(card.method, card.backbone)))), graph)
            runner = stack.enter_context(load_bare(graph, RunnerSettings(kind="openvino", threads=1, max_batch=1)))
            runner.infer_layer_maps(images)
            work[card] = lambda infer=runner.infer_layer_maps: rate(infer, images, turn_s)  # type: ignore[misc]
        found: Mapping[Card, list[float]] = run_rounds(work, rounds, tell)
    first = found[cards[0]]
    return [
        replace(card, frames_per_s=spread(found[card]), times_the_first=ratios(found[card], first)) for card in cards
    ]


def rate(infer: Callable[[np.ndarray], object], images: np.ndarray, turn_s: float) -> float:
    """Calls a second over about `turn_s`, one at least."""
    calls, began_s = 0, time.perf_counter()
    while (taken_s := time.perf_counter() - began_s) < turn_s or not calls:
        infer(images)
        calls += 1
    return calls / taken_s


def table(cards: Iterable[Card]) -> str:
    """The cards as a Markdown table."""
    rows = [card.row() for card in cards]
    return "\n".join(markdown_table(list(rows[0]), [list(row.values()) for row in rows]))


@click.command()
@click.option("--method", "methods", multiple=True, help="Only this one; may be repeated (default: all).")
@click.option("--backbone", "backbones", type=click.Choice(BACKBONES), multiple=True, help="Likewise.")
@click.option("--frames", is_flag=True, help="Measure frames/s, too.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--turn", "turn_s", type=float, default=1.0, show_default=True, help="Seconds of a graph in a round.")
def command(methods: Sequence[str], backbones: Sequence[str], frames: bool, rounds: int, turn_s: float) -> None:
    """Print what each method costs with each teacher, a Markdown table."""
    known = sorted(METHODS.names(), key=lambda name: name != DEFAULT_METHOD)
    names = [METHODS.find(name).name for name in methods] or known
    cards = [card_of(*pair) for pair in product(names, backbones or BACKBONES)]
    if frames:
        for warning in busy_warning(busy_percent()):
            say(warning)
        cards = measured(cards, rounds, turn_s)
    click.echo(table(cards))
    click.echo(f"\n`{command_text('nnet_edge.benchmarks.speed.models')}`: " + "; ".join(describe_machine(1).values()))


if __name__ == "__main__":
    sys.exit(run_command(command))
