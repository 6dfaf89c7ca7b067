"""The TensorRT runner on a GPU made of the processor: same kernels, real queues, a random order of what may overlap."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.anomaly_map import PAPER_FUSION, Fusion, anomaly_map
from nnet_edge.errors import ConfigError, DataError, StreamError
from nnet_edge.frame import Frame, Prediction
from nnet_edge.geometry import SIDE, Geometry
from nnet_edge.imaging import IS_VECTORISED, pillow_bilinear, to_rgb
from nnet_edge.runtime.runners.base import FrameRunner
from nnet_edge.runtime.runners.tiled import tiled
from nnet_edge.runtime.runners.trt import engine as trt_engine
from nnet_edge.runtime.runners.trt import kernels, trt_runner
from nnet_edge.runtime.runners.trt.trt_runner import TrtRunner, batch_sizes
from nnet_edge.runtime.sinks import CallbackSink, JsonLinesSettings, JsonLinesSink
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.stream.judge import BatchTimes, Judge, PartOutputs
from nnet_edge.runtime.stream.loop import preprocess
from nnet_edge.runtime.stream.running import run
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.stream import VerdictSettings
from nnet_edge.tiles import Tiles

RTOL = 1e-5  # FP32 kernels against the reference in float64
TUNED = Fusion(False, (0.5, 1.0, 2.0), (0.5, 1.0, 0.0))


@pytest.fixture
def make(host_kernels, gpu_parts, tmp_path: Path) -> Any:
    """A function that makes a runner; its device and engine are `runner.gpu` and `runner.engine`."""

    def make_runner(
        seed: int = 0, fusion: Fusion = PAPER_FUSION, max_batch: int = 8, kernels: Any = host_kernels, **engine: Any
    ) -> TrtRunner:
        path = tmp_path / "nnet.engine"
        path.write_bytes(b"")
        device = gpu_parts.HostDevice(kernels, seed)
        block_engine = gpu_parts.BlockEngine(device, **engine)
        with device.current():
            runner = TrtRunner(
                path, RunnerSettings(max_batch=max_batch), device, block_engine, fusion, kernels.geometry
            )
        runner.gpu, runner.engine = device, runner._engine
        return runner

    return make_runner


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 256, 256, 3), np.uint8)


def test_the_tiles_of_a_bundle_are_stitched_of_the_gpus_maps(make, gpu_parts) -> None:
    tiles = Tiles(1, 3)
    canvases = np.random.default_rng(0).integers(0, 256, (2, *tiles.canvas, 3), np.uint8)
    with make(max_batch=2) as runner:
        outputs = tiled(runner, Geometry().with_tiles(tiles)).infer(canvases)
    wanted = tiles.stitch(reference(tiles.cut(canvases), gpu_parts))
    np.testing.assert_allclose(outputs.anomaly_map, wanted, rtol=RTOL)
    np.testing.assert_array_equal(outputs.image_score, outputs.anomaly_map.max(axis=(1, 2)))


def reference(images: np.ndarray, gpu_parts: Any, fusion: Fusion = PAPER_FUSION, kind: type = np.float32) -> np.ndarray:
    names = [f"{branch}_{side}" for branch in ("forward", "reverse") for side in (64, 32, 16)]
    maps = {name: gpu_parts.block_map(images, name).astype(kind) for name in names}
    return anomaly_map(maps, fusion=fusion)[:, 0]


@pytest.mark.parametrize("kind", [np.float32, np.float16])
@pytest.mark.parametrize("fusion", [PAPER_FUSION, TUNED])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_outputs_equal_the_reference(make, gpu_parts, kind: type, fusion: Fusion, count: int) -> None:
    images = noise(count)
    with make(fusion=fusion, kind=kind) as runner:
        outputs = runner.infer(images, layer_maps=True)
    wanted = reference(images, gpu_parts, fusion, kind)
    np.testing.assert_allclose(outputs.anomaly_map, wanted, rtol=RTOL)
    np.testing.assert_array_equal(outputs.image_score, outputs.anomaly_map.max(axis=(1, 2)))
    assert {name: (maps.shape, maps.dtype) for name, maps in outputs.layer_maps.items()} == {
        name: ((count, 1, int(name[-2:]), int(name[-2:])), np.float32) for name in runner.layer_maps
    }
    np.testing.assert_array_equal(
        outputs.layer_maps["reverse_32"], gpu_parts.block_map(images, "reverse_32").astype(kind).astype(np.float32)
    )


@pytest.mark.parametrize("seed", range(12))
def test_batches_that_overlap_do_not_mix(make, gpu_parts, seed: int) -> None:
    """Ten batches through three slots, waited for late and in odd order, whatever order the queues run in."""
    rng = np.random.default_rng(seed)
    batches = [noise(int(rng.integers(1, 5)), number) for number in range(10)]
    with make(seed, max_batch=4) as runner:
        waiting = [runner.start(images) for images in batches]
        order = rng.permutation(len(batches))
        found = {int(number): waiting[number]() for number in order}
    for number, images in enumerate(batches):
        np.testing.assert_allclose(found[number].anomaly_map, reference(images, gpu_parts), rtol=RTOL)


def test_frames_of_any_size_are_resized_on_the_gpu(make, gpu_parts) -> None:
    rng = np.random.default_rng(3)
    shapes = [(480, 640, 3), (100, 300), (64, 64, 1), (90, 90, 4), (480, 640, 3)]
    frames = [Frame(rng.integers(0, 256, shape, np.uint8), index, 0.0) for index, shape in enumerate(shapes)]
    frames.append(Frame(rng.integers(0, 65536, (50, 60, 3), np.uint16), 5, 0.0))
    frames.append(Frame(frames[0].image[::2, ::3], 6, 0.0))  # rows and pixels that do not touch each other
    with make() as runner:
        assert isinstance(runner, FrameRunner)
        outputs = runner.start_frames(frames)()
        wanted = reference(np.stack([pillow_bilinear(to_rgb(frame.image), SIDE, SIDE) for frame in frames]), gpu_parts)
        for index in range(len(frames)):
            np.testing.assert_allclose(outputs.anomaly_map[index], wanted[index], rtol=RTOL)
        with pytest.raises(IndexError):
            outputs.anomaly_map[len(frames)]
        with pytest.raises(DataError, match="a frame must be uint8 or uint16"):
            runner.start_frames([Frame(np.zeros((8, 8, 3), np.float32), 7, 0.0)])
    np.testing.assert_allclose(outputs.image_score, wanted.max(axis=(1, 2)), rtol=RTOL)


@pytest.mark.parametrize("fit", ["squeeze", "letterbox", "crop"])
def test_frames_get_into_other_inputs_as_on_the_processor(make, gpu_parts, host_kernels_at, fit: str) -> None:
    geometry, rng = Geometry(96, 160, fit, (120, 100)), np.random.default_rng(5)
    shapes = [(120, 100, 3), (60, 50), (96, 160, 3), (90, 91, 4)]
    frames = [Frame(rng.integers(0, 256, shape, np.uint8), index, 0.0) for index, shape in enumerate(shapes)]
    inputs = preprocess(frames, geometry)
    names = [f"{branch}_{side}" for branch in ("forward", "reverse") for side in (64, 32, 16)]
    wanted = anomaly_map({name: gpu_parts.block_map(inputs, name) for name in names}, window=geometry.window)[:, 0]
    with make(kernels=host_kernels_at(geometry)) as runner:
        assert runner.input_shape == (96, 160, 3)
        outputs = runner.start_frames(frames)()
        found = np.stack([outputs.anomaly_map[index] for index in range(len(frames))])
        given = runner.infer(inputs)  # inputs already: no fit a second time
    one_grey_level = 3 * 2.0**3 / 255 if IS_VECTORISED else 0  # of cykooz-resizer against Pillow
    np.testing.assert_allclose(found, wanted, rtol=RTOL, atol=one_grey_level)
    np.testing.assert_allclose(given.anomaly_map, wanted, rtol=RTOL)
    np.testing.assert_allclose(outputs.image_score, found.max(axis=(1, 2)))


def test_larger_frames_later_get_larger_memory(make, gpu_parts) -> None:
    with make() as runner:
        for side in (20, 700, 30, 900):
            image = cv2.resize(noise(1, side)[0], (side, side))
            outputs = runner.start_frames([Frame(image, 0, 0.0)])()
            wanted = reference(pillow_bilinear(to_rgb(image), SIDE, SIDE)[None], gpu_parts)[0]
            np.testing.assert_allclose(outputs.anomaly_map[0], wanted, rtol=RTOL)


def test_a_map_leaves_the_gpu_only_when_asked_for(make) -> None:
    frames = [Frame(image, index, 0.0) for index, image in enumerate(noise(8))]
    with make() as runner:
        before = runner.gpu.downloaded_bytes
        outputs = runner.start_frames(frames)()
        assert runner.gpu.downloaded_bytes - before == 8 * 32
        _ = outputs.anomaly_map[3]
        assert runner.gpu.downloaded_bytes - before == 8 * 32 + 256 * 256 * 4


def test_a_map_whose_place_was_given_away_is_an_error_not_another_map(make) -> None:
    frame = Frame(noise(1)[0], 41, 0.0, name="part.png")
    with make() as runner:
        outputs = runner.start_frames([frame])()
        for _ in range(3):
            runner.start_frames([frame])()
        with pytest.raises(StreamError, match=r"frame 41 \(part.png\): the anomaly map has left the GPU"):
            _ = outputs.anomaly_map[0]


def test_outputs_that_nobody_waited_for_stay_whole(make, gpu_parts) -> None:
    frames = [Frame(image, index, 0.0) for index, image in enumerate(noise(6))]
    with make() as runner:
        waiting = [runner.start_frames([frame]) for frame in frames]
        outputs = [wait() for wait in waiting]
        wanted = reference(np.stack([to_rgb(frame.image) for frame in frames]), gpu_parts)
        for position, found in enumerate(outputs):
            np.testing.assert_allclose(found.anomaly_map[0], wanted[position], rtol=RTOL)


def test_a_batch_size_is_a_context_a_slot_and_then_a_graph(make) -> None:
    with make() as runner:
        for _ in range(9):
            runner.infer(noise(3))
        assert runner.engine.bound == [4, 4, 4]  # filled up from 3, once for each slot
        assert (runner.gpu.graphs, runner.gpu.graph_launches) == (3, 6)


def test_an_engine_that_captures_by_itself_is_left_to_it(make) -> None:
    with make() as runner:
        runner.engine.can_capture = False
        for _ in range(9):
            runner.infer(noise(2))
        assert runner.gpu.graphs == 0


@pytest.mark.parametrize(
    ("ends", "sizes"),
    [((1, 8), (1, 2, 4, 8)), ((1, 1), (1,)), ((4, 6), (4, 6)), ((8, 3), (8,)), ((1, 20), (1, 2, 4, 8, 16, 20))],
)  # fmt: skip
def test_batch_sizes(ends: tuple[int, int], sizes: tuple[int, ...]) -> None:
    assert batch_sizes(*ends) == sizes


def test_a_batch_below_the_smallest_of_the_engine_is_filled_up(make, gpu_parts) -> None:
    images = noise(2)
    with make(smallest=4) as runner:
        np.testing.assert_allclose(runner.infer(images).anomaly_map, reference(images, gpu_parts), rtol=RTOL)
        assert runner.engine.bound == [4]


@pytest.mark.parametrize("call", ["upload", "launch", "download"])
def test_an_error_names_the_frames(make, call: str) -> None:
    frames = [Frame(image, index, 0.0, name=f"{index}.png") for index, image in enumerate(noise(3), start=7)]
    with make() as runner:
        runner.gpu.fails = call
        with pytest.raises(StreamError, match=rf"frames 7 to 9 \(7.png to 9.png\): CUDA could not {call}"):
            runner.start_frames(frames)
        with pytest.raises(StreamError, match="a batch of 2 images: CUDA could not"):
            runner.infer(noise(2))
        runner.gpu.fails = None


def test_a_gpu_that_broke_still_says_at_which_frame(make, caplog: pytest.LogCaptureFixture) -> None:
    """Closing fails as well then, and must not hide the first error."""
    runner = make()

    def judge() -> None:
        with runner:
            outputs = runner.start_frames([Frame(noise(1)[0], 5, 0.0, name="part.png")])
            runner.gpu.fails = "wait"
            outputs()

    with pytest.raises(StreamError, match=r"frame 5 \(part\.png\): CUDA could not wait"):
        judge()
    assert runner.gpu.is_closed
    assert caplog.text.count("closing the tensorrt runner") == 2


def test_too_many_frames_are_refused(make) -> None:
    frames = [Frame(image, index, 0.0) for index, image in enumerate(noise(3))]
    with make(max_batch=2) as runner:
        with pytest.raises(ConfigError, match=r"frames 0 to 2 .*: this runner takes 1 to 2 at a time"):
            runner.start_frames(frames)
        with pytest.raises(ConfigError, match="no frames"):
            runner.start_frames([])


def test_leaving_gives_everything_back_once(make) -> None:
    runner = make()
    frames = [Frame(noise(1)[0], 4, 0.0, name="part.png")]
    with runner, runner:
        judged = runner.start_frames(frames)()
        pending, pending_frames = runner.start(noise(1)), runner.start_frames(frames)
    assert runner.engine.is_closed
    assert runner.gpu.is_closed
    uses = (lambda: runner.infer(noise(1)), lambda: runner.start_frames([]), pending, pending_frames)
    for use in uses:
        with pytest.raises(StreamError, match="is closed: load it again"):
            use()
    assert judged.image_score.shape == (1,)
    with pytest.raises(
        StreamError, match=r"frame 4 \(part\.png\): the runner is closed: ask for scores and maps before"
    ):
        _ = judged.anomaly_map[0]


def test_nothing_pinned_outlives_the_device(make) -> None:
    runner = make()
    gpu = runner.gpu
    with runner:
        pending = runner.start_frames([Frame(noise(1)[0], 0, 0.0)])
        assert gpu.in_use > 9
    assert gpu.in_use == 0
    assert pending is not None  # an answer that nobody asked for holds nothing


def test_a_frame_that_does_not_fit_into_the_gpu_costs_that_frame_alone(make, gpu_parts) -> None:
    """Larger memory is asked for after the smaller was given back: nothing may point there any more."""
    small, large = noise(1)[0], np.zeros((2000, 3000, 3), np.uint8)
    wanted = reference(to_rgb(small)[None], gpu_parts)[0]
    with make() as runner:
        for number in range(3):  # of each slot
            runner.start_frames([Frame(small, number, 0.0)])()
        runner.gpu.memory_bytes = sum(buffer.size for buffer in runner.gpu.buffers) + large.nbytes // 2
        for number in range(3, 9):
            with pytest.raises(StreamError, match=rf"frame {number} \(large\.png\): the GPU's memory is used up"):
                runner.start_frames([Frame(large, number, 0.0, name="large.png")])
            outputs = runner.start_frames([Frame(small, number, 0.0)])()
            np.testing.assert_allclose(outputs.anomaly_map[0], wanted, rtol=RTOL)
        runner.gpu.memory_bytes = float("inf")
        assert runner.start_frames([Frame(large, 9, 0.0)])().image_score[0] == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_that_has_no_context_costs_that_batch_alone(make, gpu_parts, seed: int) -> None:
    """TensorRT has no memory for the context of a second batch size, once its upload is under way."""
    images = noise(4)
    with make(seed) as runner:
        bind, memory = runner.engine.bind, runner.gpu.memory_bytes

        def bind_small(batch: int, *rest: Any) -> Any:
            if batch > 1:
                runner.gpu.allocate(1 << 20)
            return bind(batch, *rest)

        runner.engine.bind = bind_small
        runner.infer(images[:1])
        runner.gpu.memory_bytes = sum(buffer.size for buffer in runner.gpu.buffers) + (1 << 19)
        for _ in range(4):
            with pytest.raises(StreamError, match=r"a batch of 4 images: the GPU's memory is used up .*--runner-batch"):
                runner.infer(images)
            found = runner.infer(images[:1]).anomaly_map
            np.testing.assert_allclose(found, reference(images[:1], gpu_parts), rtol=RTOL)
        runner.gpu.memory_bytes = memory
        np.testing.assert_allclose(runner.infer(images).anomaly_map, reference(images, gpu_parts), rtol=RTOL)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_runner_that_does_not_fit_into_the_gpu_leaves_nothing_there(
    make, gpu_parts, host_kernels, share: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Loading an engine ends in the middle: engine, pinned memory and device are given back, in this order."""
    needed = sum(buffer.size for buffer in make().gpu.buffers)
    device = gpu_parts.HostDevice(host_kernels)
    device.memory_bytes = share * needed
    order: list[str] = []

    class ClosingEngine(gpu_parts.BlockEngine):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(device)

        def close(self) -> None:
            assert device.in_use == 0
            order.append("engine")

    record = SimpleNamespace(tool="tensorrt", as_fusion=lambda: PAPER_FUSION)
    library = SimpleNamespace(flavour="tensorrt", version="10.3.0")
    close = device.close
    monkeypatch.setattr(device, "close", lambda: (order.append("device"), close()))
    monkeypatch.setattr(trt_runner, "read_engine", lambda path: (None, record))
    monkeypatch.setattr(trt_runner, "require_engine", lambda path, place: record)
    monkeypatch.setattr(trt_runner, "load_tensorrt", lambda tool: library)
    monkeypatch.setattr(kernels, "open_gpu", lambda cache, size, index: device)
    monkeypatch.setattr(trt_engine, "TrtEngine", ClosingEngine)
    with pytest.raises(StreamError, match="the GPU's memory is used up"):
        TrtRunner.load(tmp_path / "nnet.engine", RunnerSettings())
    assert order == ["engine", "device"]


@pytest.mark.parametrize("wants_maps", [True, False])
def test_a_stream_on_the_gpu(make, tmp_path: Path, wants_maps: bool) -> None:
    """The walk itself: frames of the synthetic source, verdicts and maps as on the processor, maps only when asked for."""
    seen: list[Prediction] = []
    sink = CallbackSink(seen.append)
    sink.wants_maps = wants_maps
    settings = VerdictSettings(threshold=1e9)
    runner = make(max_batch=2)
    before = runner.gpu.downloaded_bytes
    report = run(
        open_source("synthetic:7"),
        runner,
        [sink, JsonLinesSink(JsonLinesSettings(path=tmp_path / "verdicts.jsonl", events=False))],
        settings,
    )
    assert report.frames == len(seen) == 7
    assert all((prediction.anomaly_map is not None) is wants_maps for prediction in seen)
    assert (runner.gpu.downloaded_bytes - before < 7 * 256 * 256) is not wants_maps
    assert len((tmp_path / "verdicts.jsonl").read_text().splitlines()) == 7


def test_an_anomalous_frame_has_its_map_and_regions_anyway(make) -> None:
    image = np.zeros((512, 512, 3), np.uint8)
    image[128:256, 256:384] = 255
    seen: list[Prediction] = []
    sink = CallbackSink(seen.append)
    sink.wants_maps = False
    runner = make()
    frame = Frame(image, 0, time.monotonic())
    with runner:
        score = float(runner.start_frames([frame])().image_score[0])
        judge = Judge(VerdictSettings(), score / 2)
        parts = [PartOutputs(runner.start_frames([frame])(), 0)]
        (prediction,) = judge.judge(frame, [frame], parts, BatchTimes(0.0, 0.0, 0.0), wants_maps=False)
    assert prediction.is_anomalous
    (region,) = prediction.regions
    assert region.x < 320 < region.x + region.width
    assert region.y < 192 < region.y + region.height
