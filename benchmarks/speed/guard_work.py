"""What the guard times: one matrix product, and the four things of nnet-edge that must not become slower beside it.

Everything computes on one thread. What is compared with the product is timed in processor seconds, which other programs do not
lengthen: a runner that hands over to its thread waits long on a busy machine, up to three times as seen. The stream is timed
by the clock, beside the runner by the clock, so that a lock or a sink that makes it wait counts. Its pictures are a camera's,
640x480 in JPEG, so that decoding and resizing are in it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from nnet_edge.benchmarks.harness.machine import torch_threads
from nnet_edge.benchmarks.harness.random_bundle import real_pictures
from nnet_edge.benchmarks.harness.rounds import child_took, took
from nnet_edge.benchmarks.harness.streams import ABOVE_ALL, HEIGHT, WIDTH, file_source, judge_all, log_of
from nnet_edge.runtime.runners.base import Runner, load_runner
from nnet_edge.settings.runner import RunnerSettings

if TYPE_CHECKING:
    from nnet_edge.methods.nnet.network import NNet

PRODUCT_SIDE, PRODUCTS = 1024, 4
IMAGES = 4  # of a runner's round
BACKBONE = "efficientnet_lite0"
IMPORTS = "import nnet_edge.cli, nnet_edge.runtime.stream.line, nnet_edge.runtime.runners.openvino_runner"
Seconds = Callable[[], float]  # does the work once; how long it took


@dataclass(frozen=True)
class Ratio:
    """What is guarded: the seconds of one thing over those of another."""

    name: str
    of: Seconds
    to: Seconds
    rounds: int
    is_of_processor: bool = True  # False: both sides are the same work, so that it is the same on every processor


def by_clock(work: Callable[[], object]) -> Seconds:
    """Seconds of the clock."""
    return lambda: took(work).clock_s


def by_processor(work: Callable[[], object]) -> Seconds:
    """Seconds of the processor in this process, all its threads together."""
    return lambda: took(work).processor_s


def by_child(command: list[str]) -> Seconds:
    """Seconds of the processor in a process that runs `command`."""
    return lambda: child_took(command).processor_s


def product() -> Callable[[], None]:
    """The reference: a few FP32 products of 1024x1024 in torch, on its one thread."""
    import torch

    matrix = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, generator=torch.Generator().manual_seed(0))

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(matrix, matrix)

    return multiply


def random_network() -> NNet:
    """N-Net with the smallest backbone and random weights: as fast as a trained one."""
    from nnet_edge.methods.backbone import find_backbone
    from nnet_edge.methods.nnet.network import build_nnet
    from nnet_edge.methods.nnet.settings import ModelSettings
    from nnet_edge.methods.teacher_weights import RANDOM, load_teacher

    return build_nnet(ModelSettings(backbone=BACKBONE), load_teacher(find_backbone(BACKBONE), RANDOM), 0)


def open_ratios(folder: Path, stack: ExitStack) -> tuple[Ratio, ...]:
    """The guarded ratios, ready to be measured until `stack` is closed; graph and pictures lie in `folder`."""
    import onnx

    from nnet_edge.export.onnx_graph import export_onnx, facts_of

    stack.enter_context(torch_threads(1))
    network = random_network()
    facts = facts_of(network)
    graph = folder / "nnet.onnx"
    onnx.save(export_onnx(network, facts), graph)
    runner = stack.enter_context(load_runner(graph, RunnerSettings("openvino", threads=1)))
    multiply = product()
    imports = by_child([sys.executable, "-c", IMPORTS])
    imports()  # once, so that files are in the memory and compiled
    return (
        *runner_ratios(runner, multiply, folder, real_pictures()),
        Ratio("import / matrix product", imports, by_processor(multiply), 5),
        Ratio("export / matrix product", by_processor(lambda: export_onnx(network, facts)), by_processor(multiply), 1),
    )


def runner_ratios(
    runner: Runner, multiply: Callable[[], object], folder: Path, pictures: np.ndarray
) -> tuple[Ratio, Ratio]:
    """The runner against the product, and the stream of picture files against the bare runner on as many images."""
    paths = [folder / f"{number}.jpg" for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        cv2.imwrite(str(path), cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))

    def infer(images: int) -> Callable[[], None]:
        def work() -> None:
            for image in pictures[:images]:
                runner.infer(image[np.newaxis])

        return work

    def stream() -> None:
        judge_all(file_source(paths, "guard"), runner, [log_of(folder / "verdicts.jsonl")], ABOVE_ALL)

    bare, few = by_clock(infer(len(pictures))), by_processor(infer(IMAGES))
    few()
    stream()
    return (
        Ratio("runner / matrix product", few, by_processor(multiply), 15),
        Ratio("stream / bare runner", by_clock(stream), bare, 7, is_of_processor=False),
    )
