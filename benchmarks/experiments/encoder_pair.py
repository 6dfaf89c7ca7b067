"""Whether teacher and forward student are quicker as one network of twice the channels than one after the other.

Both read the same image and have the same layers, so they can be computed together: every convolution with twice the groups,
the teacher's channels first. The numbers stay the same, which the command checks; weights are random, which costs no less.

    python -m nnet_edge.benchmarks.encoder_pair --threads 1
"""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import numpy as np
import onnx
import torch
from torch import Tensor, nn

from nnet_edge.benchmarks.experiments.inference_choices import Question, Way, ask
from nnet_edge.benchmarks.harness.command_line import command_text, run_command, say_if_busy
from nnet_edge.benchmarks.harness.machine import describe_machine, torch_threads
from nnet_edge.benchmarks.harness.report import table_text
from nnet_edge.errors import ConfigError
from nnet_edge.export.onnx_graph import OPSET, quiet
from nnet_edge.imaging import SIDE
from nnet_edge.methods.backbone import BACKBONES, Encoder, build_encoder, find_backbone
from nnet_edge.runtime.runners.graph import INPUT
from nnet_edge.settings.runner import RunnerSettings

ATOL = 1e-4  # feature maps of random weights reach a few units


class Pair(nn.Module):
    """Two encoders of one architecture, one after the other, on normalised images (N, 3, H, W)."""

    def __init__(self, teacher: Encoder, student: Encoder) -> None:
        super().__init__()
        self.teacher, self.student = teacher, student

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Three feature maps (N, 2C, h, w): the teacher's channels, then the student's."""
        both = zip(self.teacher(images), self.student(images), strict=True)
        return tuple(torch.cat(features, dim=1) for features in both)


class Grouped(nn.Module):
    """The same as one encoder whose convolutions have twice the groups."""

    def __init__(self, teacher: Encoder, student: Encoder) -> None:
        super().__init__()
        self.both = copy.deepcopy(teacher)
        for one, other in zip(self.both.modules(), student.modules(), strict=True):
            if isinstance(one, nn.Conv2d):
                for name in ("in_channels", "out_channels", "groups"):
                    setattr(one, name, 2 * getattr(one, name))
            elif isinstance(one, nn.BatchNorm2d):
                one.num_features *= 2
            if isinstance(one, nn.Conv2d | nn.BatchNorm2d):
                for name, value in one.state_dict().items():
                    if value.ndim:  # all but the number of batches
                        joined = torch.cat((value, other.state_dict()[name]))
                        is_weight = name in dict(one.named_parameters(recurse=False))
                        setattr(one, name, nn.Parameter(joined) if is_weight else joined)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As `Pair` gives them."""
        return tuple(self.both(torch.cat((images, images), dim=1)))


class FromBytes(nn.Module):
    """A network behind what a camera gives: uint8 RGB (N, 256, 256, 3) in, normalised images to it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Its feature maps."""
        return tuple(self.network(((images.float() - 127.5) / 127.5).permute(0, 3, 1, 2)))


def build_candidates(backbone: str) -> dict[str, FromBytes]:
    """One after the other, and grouped; random weights, evaluation mode. Raises ConfigError when the two differ."""
    torch.manual_seed(0)
    teacher, student = (build_encoder(find_backbone(backbone)) for _ in range(2))
    networks = {"one after the other": Pair(teacher, student), "one grouped network": Grouped(teacher, student)}
    built = {name: FromBytes(network).eval() for name, network in networks.items()}
    image = torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8)
    with torch.inference_mode():
        for one, other in zip(*(network(image) for network in built.values()), strict=True):
            if not torch.allclose(one, other, atol=ATOL):
                raise ConfigError(f"{backbone} gives other features when it is grouped: it cannot be compared")
    return built


def to_onnx(network: nn.Module, path: Path) -> Path:
    """The network as a graph for one image."""
    example = torch.zeros(1, SIDE, SIDE, 3, dtype=torch.uint8)
    with quiet():
        program = torch.onnx.export(network, (example,), dynamo=True, opset_version=OPSET, input_names=[INPUT],
                                    output_names=["64", "32", "16"], verbose=False)  # fmt: skip
    assert program is not None  # dynamo=True always gives a program
    onnx.save(program.model_proto, path)
    return path


@torch.inference_mode()
def compute(network: nn.Module, images: np.ndarray) -> object:
    """The network on images (N, 256, 256, 3) in eager torch."""
    return network(torch.from_numpy(images))


def in_torch(network: nn.Module) -> Callable[[np.ndarray], object]:
    """Computes in FP32, channels_last as a training has it."""
    return partial(compute, copy.deepcopy(network).to(memory_format=torch.channels_last))  # type: ignore[call-overload]


@click.command()
@click.option("--backbone", type=click.Choice(sorted(BACKBONES)), default="efficientnet_lite0", show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Both are measured in each.")
def command(backbone: str, threads: int, rounds: int) -> None:
    """Compare teacher and forward student as one grouped network with the two one after the other."""
    say_if_busy()
    built, settings = build_candidates(backbone), RunnerSettings("openvino", threads=threads)
    images = np.random.default_rng(0).integers(0, 256, (8, SIDE, SIDE, 3), np.uint8)
    with tempfile.TemporaryDirectory(prefix="nnet-edge-pair-") as folder, torch_threads(threads):
        graphs = {name: to_onnx(network, Path(folder) / f"{number}.onnx")
                  for number, (name, network) in enumerate(built.items())}  # fmt: skip
        questions = [
            Question("OpenVINO FP32", 1, {name: Way(graph, settings) for name, graph in graphs.items()}),
            Question("torch eager FP32", 1, {name: in_torch(network) for name, network in built.items()}),
            Question("torch eager FP32", 8, {name: in_torch(network) for name, network in built.items()}),
        ]
        rows = [[question.what, question.images, f"{row.clock:.2f}", f"{row.processor:.2f}"]
                for question in questions for row in ask(question, images, rounds)]  # fmt: skip
    click.echo(command_text("nnet_edge.benchmarks.encoder_pair"))
    click.echo(f"{describe_machine(threads)['processor']}; {backbone}, random weights\n")
    click.echo(table_text(["where", "images", "time, grouped / one after the other", "processor time"], rows))


if __name__ == "__main__":
    sys.exit(run_command(command))
