"""What the guard times: one matrix product, and the four things of nnet-edge that must not become slower beside it.

Everything computes on one thread. What is compared with the product is timed in processor seconds, which other programs do not
lengthen: a runner that hands over to its thread waits long on a busy machine, up to three times as seen. The stream is timed
by the clock, beside the runner by the clock, so that a lock or a sink that makes it wait counts. Its pictures are a camera's,
640x480 in JPEG, so that decoding and resizing are in it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from nnet_edge.benchmarks.harness.random_bundle import real_pictures
from nnet_edge.runtime.runners.base import Runner, load_runner
from nnet_edge.runtime.sinks import JsonLinesSettings, JsonLinesSink
from nnet_edge.runtime.sources.images import ImageFileSource
from nnet_edge.runtime.stream.running import run
from nnet_edge.settings.runner import RunnerSettings, StreamSettings

if TYPE_CHECKING:
    from nnet_edge.methods.nnet.network import NNet

PRODUCT_SIDE, PRODUCTS = 1024, 4
IMAGES = 4  # of a runner's turn
WIDTH, HEIGHT = 640, 480  # of the stream's pictures
CHILD_TIMEOUT_S = 60.0
ABOVE_ALL = 1e9  # threshold: every picture is good, so no turn searches regions
BACKBONE = "efficientnet_lite0"
IMPORTS = "import nnet_edge.cli, nnet_edge.runtime.stream, nnet_edge.runtime.openvino_runner"
Seconds = Callable[[], float]  # does the work once; how long it took


@dataclass(frozen=True)
class Ratio:
    """What is guarded: the seconds of one thing over those of another, taken in turn."""

    name: str
    of: Seconds
    to: Seconds
    rounds: int
    is_of_processor: bool = True  # False: both sides are the same work, so that it is the same on every processor


def by_clock(work: Callable[[], object]) -> Seconds:
    """Seconds of the clock."""
    return passed(time.perf_counter, work)


def by_processor(work: Callable[[], object]) -> Seconds:
    """Seconds of the processor in this process, all its threads together."""
    return passed(time.process_time, work)


def passed(now: Callable[[], float], work: Callable[[], object]) -> Seconds:
    """What passes on the clock `now` while `work` is done."""

    def timed() -> float:
        began_s = now()
        work()
        return now() - began_s

    return timed


def by_child(command: list[str]) -> Seconds:
    """Seconds of the processor in a process that runs `command`."""

    def timed() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True, timeout=CHILD_TIMEOUT_S)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return timed


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

    from nnet_edge.benchmarks.speed.system_torch import torch_threads
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
        source = ImageFileSource(paths, "folder", "guard")
        log = JsonLinesSettings(path=folder / "verdicts.jsonl", append=False, fsync_every_s=None, events=False)
        run(source, runner, [JsonLinesSink(log)], StreamSettings(ABOVE_ALL))

    bare, few = by_clock(infer(len(pictures))), by_processor(infer(IMAGES))
    few()
    stream()
    return (
        Ratio("runner / matrix product", few, by_processor(multiply), 15),
        Ratio("stream / bare runner", by_clock(stream), bare, 7, is_of_processor=False),
    )
