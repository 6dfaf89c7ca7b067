"""The kernels and the runner where they belong: on a GPU, against the references. Skipped, loudly, without one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.anomaly_map import LAYER_MAPS, PAPER_FUSION, Fusion, anomaly_map
from nnet_edge.benchmarks.gpu.kernels import require_equal
from nnet_edge.errors import StreamError
from nnet_edge.frame import Frame
from nnet_edge.geometry import DEFAULT, SIDE
from nnet_edge.gpu import NoGpu, find_gpu
from nnet_edge.imaging import pillow_bilinear, to_rgb
from nnet_edge.runtime.runners.trt.device import CudaStream
from nnet_edge.runtime.runners.trt.kernels import PycudaDevice, open_gpu
from nnet_edge.runtime.runners.trt.kernels.tables import NV12, RGB8, launch_preprocess
from nnet_edge.runtime.runners.trt.ring import Picture, Slot, picture_of
from nnet_edge.runtime.runners.trt.trt_runner import TrtRunner
from nnet_edge.settings.runner import RunnerSettings

pytestmark = pytest.mark.gpu
RTOL = 1e-5
MAP_RTOL = 1e-3  # of a point of the map; for scores parity allows 1e-4, points near 0 differ by more
TUNED = Fusion(False, (0.5, 1.0, 2.0), (0.5, 1.0, 0.0))


def by_pillow(rgb: np.ndarray) -> np.ndarray:
    """The definition that the kernel follows: uint8 RGB (256, 256, 3)."""
    return pillow_bilinear(rgb, SIDE, SIDE)


@pytest.fixture(scope="session", autouse=True)
def found_gpu() -> None:
    """A GPU, before anything else is made for it."""
    found = find_gpu()
    if isinstance(found, NoGpu):
        pytest.skip(f"NO GPU ({found.reason}): the CUDA kernels and the TensorRT runner were NOT run")


@pytest.fixture
def gpu() -> Iterator[PycudaDevice]:
    """The GPU of this machine; kernels are compiled for it."""
    device = open_gpu()
    yield device
    device.close()


class GivenMaps:
    """Obeys Engine: its layer maps are uploaded, whatever the images show."""

    smallest, largest, can_capture = 1, 8, False

    def __init__(self, device: PycudaDevice, maps: Mapping[str, np.ndarray]) -> None:
        self.device, self.maps = device, maps
        self.layer_maps = {name: values.dtype for name, values in maps.items()}

    def bind(self, batch: int, addresses: Mapping[str, int], cuda_stream: CudaStream) -> Callable[[], None]:
        pinned = {}
        for name, values in self.maps.items():
            pinned[name] = self.device.pinned(values.nbytes)
            pinned[name][:] = np.frombuffer(values.tobytes(), np.uint8)

        def queue() -> None:
            for name, memory in pinned.items():
                self.device.upload(addresses[name], memory, cuda_stream)

        return queue

    def close(self) -> None:
        pass


def resized(device: PycudaDevice, pictures: list[Picture], kernel: str = "preprocess") -> np.ndarray:
    """What the kernel makes of the pictures, uint8 RGB (N, 256, 256, 3)."""
    with device.current():
        slot = Slot(device, len(pictures), {name: np.dtype(np.float32) for name in LAYER_MAPS}, PAPER_FUSION, DEFAULT)
        queue, out = device.stream(), device.pinned(len(pictures) * 256 * 256 * 3)
        views, bulk = slot.fill(pictures)
        device.upload(slot.views.address, views, queue)
        device.upload(slot.bulk_address, bulk, queue)
        launch_preprocess(device, slot.views.address, slot.images.address, len(pictures), DEFAULT, queue, kernel)
        device.download(out, slot.images.address, queue)
        queue.synchronize()
    return out.reshape(len(pictures), 256, 256, 3).copy()


def test_preprocess_equals_pillow(gpu: PycudaDevice) -> None:
    rng = np.random.default_rng(0)
    shapes = [(1080, 1920, 3), (480, 640, 3), (256, 256, 3), (1, 700, 3), (96, 97), (511, 513, 3), (3000, 4000, 3)]
    images = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    for found, image in zip(resized(gpu, [picture_of(image, DEFAULT) for image in images]), images, strict=True):
        np.testing.assert_array_equal(found, by_pillow(to_rgb(image)))


def test_the_staged_kernel_equals_the_one_in_use() -> None:
    """The variant that benchmarks compare; copies, rows that begin anywhere, and rows too wide for it."""
    rng = np.random.default_rng(5)
    shapes = [(1080, 1920, 3), (256, 256, 3), (257, 511), (96, 97, 3), (3, 9000, 3), (2160, 3840, 3)]
    pictures = [picture_of(rng.integers(0, 256, shape, np.uint8), DEFAULT) for shape in shapes]
    pictures += [Picture(rng.integers(0, 256, (1080 * 3 // 2, 1920), np.uint8), NV12)]
    pictures += [Picture(rng.integers(0, 256, (256, 256, 3), np.uint8), RGB8)]
    device = open_gpu(kernels=("preprocess", "preprocess_staged"))
    try:
        wanted = resized(device, pictures)
        np.testing.assert_array_equal(resized(device, pictures, "preprocess_staged"), wanted)
    finally:
        device.close()


def test_preprocess_of_nv12_equals_opencv_and_pillow(gpu: PycudaDevice) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (1080 * 3 // 2, 1920), np.uint8)
    (found,) = resized(gpu, [Picture(frame, NV12)])
    assert np.abs(found.astype(int) - by_pillow(cv2.cvtColor(frame, cv2.COLOR_YUV2RGB_NV12))).max() <= 1


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("fusion", [PAPER_FUSION, TUNED])
@pytest.mark.parametrize("names", [LAYER_MAPS, LAYER_MAPS[:3]])
def test_anomaly_map_equals_the_reference(
    gpu: PycudaDevice, kind: type, fusion: Fusion, names: Any, tmp_path: Path
) -> None:
    rng = np.random.default_rng(2)
    maps = {name: (2 * rng.random((8, 1, int(name[-2:]), int(name[-2:]))) ** 4).astype(kind) for name in names}
    (tmp_path / "maps.engine").write_bytes(b"")
    with gpu.current():
        engine = GivenMaps(gpu, maps)
    runner = TrtRunner(tmp_path / "maps.engine", RunnerSettings(), gpu, engine, fusion)
    outputs = runner.infer(np.zeros((8, 256, 256, 3), np.uint8))
    np.testing.assert_allclose(outputs.anomaly_map, anomaly_map(maps, fusion=fusion)[:, 0], rtol=RTOL)
    np.testing.assert_array_equal(outputs.image_score, outputs.anomaly_map.max(axis=(1, 2)))


def test_the_wide_kernel_equals_the_one_in_use() -> None:
    """The variant that benchmarks compare."""
    device = open_gpu(kernels=("preprocess", "anomaly_map", "anomaly_map_wide"))
    try:
        with device.current():
            require_equal(device, anomaly_map=("anomaly_map", "anomaly_map_wide"))
    finally:
        device.close()


def test_a_map_that_is_no_number_has_such_a_score(gpu: PycudaDevice, tmp_path: Path) -> None:
    maps = {name: np.ones((8, 1, int(name[-2:]), int(name[-2:])), np.float32) for name in LAYER_MAPS}
    maps["forward_32"][5, 0, 3, 4] = np.nan
    (tmp_path / "maps.engine").write_bytes(b"")
    with gpu.current():
        engine = GivenMaps(gpu, maps)
    runner = TrtRunner(tmp_path / "maps.engine", RunnerSettings(), gpu, engine, PAPER_FUSION)
    scores = runner.infer(np.zeros((8, 256, 256, 3), np.uint8)).image_score
    assert np.isnan(scores).tolist() == [index == 5 for index in range(8)]


def test_more_memory_than_the_gpu_has_says_what_to_do(gpu: PycudaDevice) -> None:
    with gpu.current(), pytest.raises(StreamError, match=r"the GPU's memory is used up .* lower --runner-batch"):
        gpu.allocate(1 << 50)


@pytest.mark.usefixtures("engines_run_here")
def test_an_engine_agrees_with_the_processor(gpu: PycudaDevice, bundle, tmp_path: Path) -> None:
    """A real engine of a real bundle, built here: overlapping batches, CUDA graphs and all."""
    import shutil

    from nnet_edge.bundle import add_artefact, read_bundle
    from nnet_edge.export.engine import build_engine
    from nnet_edge.export.engine_settings import EngineSettings, Profile, parse_target
    from nnet_edge.runtime.runners.base import load_runner

    copied = read_bundle(Path(shutil.copytree(bundle.path, tmp_path / "bundle")))
    built = build_engine(copied.graph, EngineSettings(parse_target("local"), Profile(1, 4, 4)))
    source = copied.manifest["files"]["nnet.onnx"]
    record = {"kind": "engine", "precision": "fp32", "source": source, "made": built.record.as_dict(), "gates": {}}
    copied = add_artefact(copied, "nnet.fp32.local.engine", built.content, record)
    images = np.random.default_rng(4).integers(0, 256, (24, 256, 256, 3), np.uint8)
    with load_runner(copied.graph) as reference:
        wanted = np.concatenate([reference.infer(images[start : start + 4]).anomaly_map for start in range(0, 24, 4)])
    with load_runner(copied.path / "nnet.fp32.local.engine") as runner:
        for _ in range(3):  # plain, captured, from the graph
            waiting = [runner.start(images[start : start + 4]) for start in range(0, 24, 4)]
            found = np.concatenate([wait().anomaly_map for wait in waiting])
            np.testing.assert_allclose(found, wanted, rtol=MAP_RTOL)
        outputs = runner.start_frames([Frame(images[0][..., ::-1], 0, 0.0)])()
        np.testing.assert_allclose(outputs.anomaly_map[0], wanted[0], rtol=MAP_RTOL)


@pytest.mark.parametrize("largest", [1, 4])
def test_onnx_runtime_on_cuda_agrees_with_the_processor(bundle, largest: int) -> None:
    """A real bundle's graph between the kernels: overlapping batches, a CUDA graph for each slot and batch size."""
    from nnet_edge.errors import NnetEdgeError
    from nnet_edge.runtime.runners.base import load_runner
    from nnet_edge.runtime.runners.cuda_parts import require_cuda_parts

    try:
        require_cuda_parts()
    except NnetEdgeError as error:
        pytest.skip(f"THIS MACHINE CANNOT ({error}): --runner cuda was NOT run")
    images = np.random.default_rng(4).integers(0, 256, (24, 256, 256, 3), np.uint8)
    starts = range(0, 24, largest)
    with load_runner(bundle.graph) as reference:
        wanted = np.concatenate([reference.infer(images[start : start + 4]).anomaly_map for start in range(0, 24, 4)])
    with load_runner(bundle.graph, RunnerSettings("cuda", max_batch=largest)) as runner:
        for _ in range(3):
            waiting = [runner.start(images[start : start + largest]) for start in starts]
            found = np.concatenate([wait().anomaly_map for wait in waiting])
            np.testing.assert_allclose(found, wanted, rtol=MAP_RTOL)
