"""Small real things that the runtime's tests share: a graph of the contract, a runner, frames, a video."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nnet_edge.anomaly_map import LAYER_MAPS
from nnet_edge.benchmarks.line.faults import ROWS_FILE, TESTS, Row
from nnet_edge.frame import Frame, Outputs, Prediction, Region
from nnet_edge.geometry import Geometry
from nnet_edge.runtime.opencv_video import open_writer

GRAPH_OUTPUTS = {**{name: ("N", 1, int(name[-2:]), int(name[-2:])) for name in LAYER_MAPS}}
TAIL_OUTPUTS = {"anomaly_map": ("N", 1, 256, 256), "image_score": ("N",)}


def import_beside(name: str) -> ModuleType:
    """The module `name` of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


host_device, host_kernels_module = import_beside("host_device"), import_beside("host_kernels")


@pytest.fixture(scope="session")
def host_kernels(made_once: Callable[..., Path]) -> Any:
    """The CUDA kernels' arithmetic on the processor; see host_kernels.py."""
    folder = made_once("host", host_kernels_module.compile_host_kernels)
    return host_kernels_module.HostKernels(folder / "kernels.so")


@pytest.fixture(scope="session")
def host_kernels_at(made_once: Callable[..., Path]) -> Callable[[Geometry], Any]:
    """The same for another geometry."""

    def compile_at(geometry: Geometry) -> Any:
        make = partial(host_kernels_module.compile_host_kernels, geometry=geometry)
        return host_kernels_module.HostKernels(made_once(f"host-{geometry.text}", make) / "kernels.so", geometry)

    return compile_at


@pytest.fixture
def gpu_parts() -> ModuleType:
    """HostDevice, BlockEngine and block_map: a GPU made of the processor; see host_device.py."""
    return host_device


def constant(name: str, values: object, kind: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(values, kind), name)


def grey_distance_graph(
    leave_out: str = "", as_double: str = "", takes: tuple[str | int, ...] = ("N", 256, 256, 3)
) -> onnx.ModelProto:
    """A graph of the contract whose layer maps are the mean distance from mid grey in blocks of 4, 8 and 16 pixels.

    `leave_out` names an output that is missing, `as_double` one that has the wrong number type, `takes` the input's shape.
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]),
        helper.make_node("Div", ["planes", "white"], ["unit"]),
        helper.make_node("Sub", ["unit", "half"], ["centred"]),
        helper.make_node("Abs", ["centred"], ["distance"]),
        helper.make_node("Conv", ["distance", "mean_of_three"], ["mean"]),  # BF16 would show here
    ]
    for side in (64, 32, 16):
        block = 256 // side
        pool = helper.make_node(
            "AveragePool", ["mean"], [f"forward_{side}"], kernel_shape=[block] * 2, strides=[block] * 2
        )
        nodes += [pool, helper.make_node("Mul", [f"forward_{side}", "half"], [f"reverse_{side}"])]
    nodes += [
        helper.make_node("Resize", ["forward_64", "", "four_times"], ["anomaly_map"], mode="nearest"),
        helper.make_node("ReduceMax", ["anomaly_map", "all_but_first"], ["image_score"], keepdims=0),
    ]
    shapes = {**GRAPH_OUTPUTS, **TAIL_OUTPUTS}
    if as_double:
        nodes.append(helper.make_node("Cast", [as_double], ["double"], to=TensorProto.DOUBLE))
        for node in nodes[:-1]:
            node.output[:] = ["single" if name == as_double else name for name in node.output]
            node.input[:] = ["single" if name == as_double else name for name in node.input]
        nodes[-1].input[:], nodes[-1].output[:] = ["single"], [as_double]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.DOUBLE if name == as_double else TensorProto.FLOAT, shape)
        for name, shape in shapes.items()
        if name != leave_out
    ]
    initializers = [
        constant("white", 255.0),
        constant("half", 0.5),
        constant("mean_of_three", np.full((1, 3, 1, 1), 1 / 3)),
        constant("four_times", [1, 1, 4, 4]),
        constant("all_but_first", [1, 2, 3], np.int64),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, takes)
    graph = helper.make_graph(nodes, "grey_distance", [images], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model


@pytest.fixture(scope="session")
def write_graph(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that writes `grey_distance_graph` with the given faults and gives its path."""

    def write(**faults: Any) -> Path:
        path = tmp_path_factory.mktemp("graph") / "graph.onnx"
        onnx.save(grey_distance_graph(**faults), path)
        return path

    return write


@pytest.fixture(scope="session")
def graph(write_graph: Callable[..., Path]) -> Path:
    """A graph of the contract: the image score is the largest mean distance from mid grey in a block of 4 pixels."""
    return write_graph()


class BrightnessRunner:
    """Obeys Runner: the map is the mean of red, green and blue over 255, the score its maximum."""

    name, precision, max_batch, input_shape = "brightness", "fp32", 8, (256, 256, 3)

    def __init__(self, infer_s: float = 0.0) -> None:
        self.infer_s = infer_s
        self.batches: list[int] = []
        self.entered = self.exited = 0

    def __enter__(self) -> BrightnessRunner:
        self.entered += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.exited += 1

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        time.sleep(self.infer_s)
        self.batches.append(len(images))
        anomaly_map = images.mean(axis=3, dtype=np.float32) / 255
        return Outputs(anomaly_map, anomaly_map.max(axis=(1, 2)))

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        return lambda: self.infer(images, layer_maps)


@pytest.fixture
def make_runner() -> type[BrightnessRunner]:
    """A runner's class: a bright pixel scores 1, black 0; `infer_s` is what a batch takes."""
    return BrightnessRunner


@pytest.fixture
def square_image() -> np.ndarray:
    """Black with a white square: rows 96 to 127, columns 192 to 255 of uint8 BGR (256, 512, 3)."""
    image = np.zeros((256, 512, 3), np.uint8)
    image[96:128, 192:256] = 255
    return image


@pytest.fixture
def make_frame(square_image: np.ndarray) -> Callable[..., Frame]:
    """A function that gives a frame with the white square, or black with `is_good`."""

    def make(index: int = 0, is_good: bool = False, name: str | None = None) -> Frame:
        image = np.zeros_like(square_image) if is_good else square_image
        return Frame(image, index, time.monotonic(), "test", name)

    return make


@pytest.fixture
def write_video(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a small video whose frame number i has the brightness 10 * i, and gives its path."""

    def write(frames: int, name: str = "clip.mp4", rate_hz: float = 20.0) -> Path:
        path = tmp_path / name
        writer = open_writer(
            str(path), "mp4v", rate_hz, 48, 64
        )  # which tells FFmpeg to be quiet, before it is asked first
        assert writer.isOpened()
        for index in range(frames):
            writer.write(np.full((48, 64, 3), 10 * index % 250, np.uint8))
        writer.release()
        return path

    return write


@pytest.fixture
def make_prediction(make_frame: Callable[..., Frame]) -> Callable[..., Prediction]:
    """A function that gives a prediction of a frame with one region, or of a good frame."""

    def make(index: int = 0, is_good: bool = False, name: str | None = None, **facts: Any) -> Prediction:
        frame = replace(make_frame(index, is_good, name), **facts)
        anomaly_map = np.zeros((256, 256), np.float32)
        regions: tuple[Region, ...] = ()
        if not is_good:
            anomaly_map[96:128, 96:128] = 3.0
            regions = (Region(192, 96, 64, 32, 2048.0, 3.0),)
        return Prediction(frame, float(anomaly_map.max()), 2.0, anomaly_map, regions, {"infer": 12.3456, "total": 20.0})

    return make


@pytest.fixture
def files_up_to() -> Callable[[int], AbstractContextManager[None]]:
    """A small disk: a function that lets no file of this process grow beyond so many bytes while a block runs.

    Lifted again inside the test: pytest writes its own output, which may be a long file, before fixtures are torn down.
    """
    resource = pytest.importorskip("resource", reason="no file size limit on this system")

    @contextmanager
    def limited(limit_bytes: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture
def note_fault() -> Callable[..., None]:
    """A function that says what a fault cost; kept where `nnet_edge.benchmarks.faults` asks for it, and in any case nothing
    may be unaccounted for.
    """

    def note(fault: str, captured: int, judged: int, dropped: Any, recovered: str, counted: str = "frames") -> None:
        assert fault in TESTS
        row = Row(fault, counted, captured, judged, dict(dropped), recovered)
        assert row.lost == 0
        if path := os.environ.get(ROWS_FILE):
            with open(path, "a", encoding="utf-8") as rows:
                rows.write(json.dumps(asdict(row)) + "\n")

    return note
