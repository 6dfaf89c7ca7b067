"""--runner cuda: the same I/O binding on the processor's memory, and one sentence for whatever a machine lacks.

Nothing here runs on a GPU: ONNX Runtime computes on the processor, between the kernels of the GPU made of the processor.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from nnet_edge.anomaly_map import PAPER_FUSION
from nnet_edge.bundle import Bundle, add_artefact, read_bundle
from nnet_edge.errors import BundleError, ConfigError, MissingExtraError, StreamError
from nnet_edge.export.precision import to_half
from nnet_edge.frame import Frame
from nnet_edge.gpu import GpuFacts, NoGpu
from nnet_edge.runtime.runners.base import load_runner, words_of
from nnet_edge.runtime.runners.trt import cuda_engine
from nnet_edge.runtime.runners.trt.cuda_engine import CudaEngine, Provider, load_cuda_runner, require_cuda, why_not
from nnet_edge.runtime.runners.trt.device import OutOfMemoryError
from nnet_edge.runtime.runners.trt.trt_runner import TrtRunner
from nnet_edge.runtime.sinks import JsonLinesSettings, JsonLinesSink
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.stream.running import run
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.stream import VerdictSettings

ON_THE_HOST = Provider("CPUExecutionProvider", "cpu")
L4 = GpuFacts("NVIDIA L4", "8.9", "580.65.06", "13.0", 24_000)
RTOL = 1e-5


class HostEngine(CudaEngine):
    """What CUDA would queue in its stream waits in the host's."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments, provider=ON_THE_HOST)

    def bind(self, batch: int, addresses: Any, cuda_stream: Any) -> Callable[[], None]:
        infer = super().bind(batch, addresses, cuda_stream)
        return lambda: cuda_stream.put(infer)


@pytest.fixture
def make(host_kernels: Any, gpu_parts: Any) -> Callable[..., TrtRunner]:
    """A function that makes a runner of a graph on the GPU made of the processor; its device is `runner.gpu`."""

    def make_runner(graph: Path, max_batch: int = 8) -> TrtRunner:
        device = gpu_parts.HostDevice(host_kernels)
        with device.current():
            stream = device.stream()
            engine = HostEngine(graph, stream)
            runner = TrtRunner(graph, RunnerSettings(max_batch=max_batch), device, engine, PAPER_FUSION, compute=stream)
        runner.gpu = device
        return runner

    return make_runner


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 256, 256, 3), np.uint8)


def test_layer_maps_are_those_of_the_graph_whatever_the_batch(make: Any, graph: Path) -> None:
    with load_runner(graph, RunnerSettings("onnxruntime", threads=1)) as reference, make(graph) as runner:
        for count in (1, 3, 8, 3):
            wanted = reference.infer(noise(count, count), layer_maps=True).layer_maps
            found = runner.infer(noise(count, count), layer_maps=True).layer_maps
            assert found.keys() == wanted.keys()
            for name, maps in wanted.items():
                np.testing.assert_allclose(found[name], maps, rtol=RTOL)


def test_batches_overlap_and_32_bytes_a_frame_come_back(make: Any, graph: Path) -> None:
    frames = [Frame(image, index, 0.0) for index, image in enumerate(noise(4))]
    with make(graph, max_batch=4) as runner:
        before = runner.gpu.downloaded_bytes
        scores = [runner.start_frames(frames)().image_score for _ in range(4)]
        assert runner.gpu.downloaded_bytes - before == 4 * 4 * 32
        waiting = [runner.start_frames(frames) for _ in range(5)]
        scores += [wait().image_score for wait in waiting]
        assert runner.gpu.graphs == 0  # ONNX Runtime captures by itself
    for each in scores[1:]:
        np.testing.assert_array_equal(each, scores[0])


class Session:
    """A session that keeps what it was made with and what it ran."""

    providers: tuple[str, ...] = ("CUDAExecutionProvider", "CPUExecutionProvider")
    refuses: str | None = None
    made: list[dict[str, str]]
    runs: list[Any]

    def __init__(self, content: bytes, options: Any, providers: Any) -> None:
        ((self.name, chosen),) = providers
        type(self).made.append(dict(chosen))
        if self.refuses and chosen.get("enable_cuda_graph"):
            raise RuntimeError(self.refuses)
        names = [f"{branch}_{side}" for branch in ("forward", "reverse") for side in (64, 32, 16)]
        self.ports = [SimpleNamespace(name=name, type="tensor(float)") for name in names]

    def get_providers(self) -> tuple[str, ...]:
        return self.providers

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="images", type="tensor(uint8)")]

    def get_outputs(self) -> list[Any]:
        return self.ports

    def io_binding(self) -> Any:
        bound: list[tuple[Any, ...]] = []
        return SimpleNamespace(
            bound=bound, bind_input=lambda *it: bound.append(it), bind_output=lambda *it: bound.append(it)
        )

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        if self.refuses:
            raise RuntimeError(self.refuses)
        type(self).runs.append((binding, options))


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    found = type("FreshSession", (Session,), {"made": [], "runs": []})
    monkeypatch.setattr(cuda_engine.onnxruntime, "InferenceSession", found)
    return found


STREAM: Any = SimpleNamespace(handle=4711)
ADDRESSES = {"images": 256} | {
    f"{branch}_{side}": 512 + side for branch in ("forward", "reverse") for side in (64, 32, 16)
}


def test_the_runners_stream_and_memory_are_used(session: type[Session], graph: Path) -> None:
    engine = CudaEngine(graph, STREAM, index=1)
    assert session.made == [
        {"use_tf32": "0", "enable_cuda_graph": "1", "device_id": "1", "user_compute_stream": "4711"}
    ]
    queues = [engine.bind(batch, ADDRESSES, STREAM) for batch in (1, 8)]
    (first, options), *_ = session.runs
    assert first.bound[0] == ("images", "cuda", 1, np.uint8, (1, 256, 256, 3), 256)
    assert ("forward_16", "cuda", 1, np.float32, (1, 1, 16, 16), 528) in first.bound
    assert len(session.runs) == 4  # twice each: the second is captured
    assert options.get_run_config_entry("disable_synchronize_execution_providers") == "1"
    queues[1]()
    identities = [options.get_run_config_entry("gpu_graph_id") for _, options in session.runs]
    assert identities == ["1", "1", "2", "2", "2"]  # a CUDA graph for each slot and batch size


def test_a_graph_that_cannot_be_captured_runs_without(
    session: type[Session], graph: Path, caplog: pytest.LogCaptureFixture
) -> None:
    session.refuses = "This session cannot use the graph capture feature as requested by the user"
    CudaEngine(graph, STREAM)
    assert [made.get("enable_cuda_graph") for made in session.made] == ["1", None]
    assert "no CUDA graph of" in caplog.text


def test_a_session_that_fell_back_to_the_processor_is_refused(session: type[Session], graph: Path) -> None:
    session.providers = ("CPUExecutionProvider",)
    with pytest.raises(StreamError, match=r"does not compute on GPU 0: lib.*: cannot open shared object file"):
        CudaEngine(graph, STREAM)


@pytest.mark.parametrize(
    ("said", "kind", "says"),
    [
        (
            "Failed to allocate memory for requested buffer of size 123",
            OutOfMemoryError,
            "compute a batch of 2 with .* lower",
        ),
        (
            "CUDNN failure 9: CUDNN_STATUS_EXECUTION_FAILED",
            StreamError,
            "CUDAExecutionProvider: CUDNN failure 9: .*; start",
        ),
    ],
)
def test_an_error_says_what_was_tried(
    said: str, kind: type[StreamError], says: str, session: type[Session], graph: Path
) -> None:
    engine = CudaEngine(graph, STREAM)
    session.refuses = said
    with pytest.raises(StreamError, match=says) as caught:
        engine.bind(2, ADDRESSES, STREAM)
    assert type(caught.value) is kind


def test_what_keeps_cuda_from_loading_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = cuda_engine.ctypes.CDLL

    def without_cudnn(name: str) -> Any:
        return None if "providers_cuda" in name else found(name)  # there is none here

    assert "libonnxruntime_providers_cuda.so: cannot open" in why_not()
    monkeypatch.setattr(cuda_engine.ctypes, "CDLL", without_cudnn)
    assert "libcudnn.so.9: cannot open" in (said := why_not())
    assert "pip install 'nnet-edge[cuda]' brings CUDA and cuDNN" in said
    monkeypatch.setattr(cuda_engine.ctypes, "CDLL", lambda name: None)
    assert "this GPU or its driver is none that it knows" in why_not()


def test_what_a_machine_lacks_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = cuda_engine.onnxruntime
    monkeypatch.setattr(
        cuda_engine, "find_gpu", lambda index: NoGpu(f"there is no GPU {index}: the NVIDIA driver lists 1")
    )
    with pytest.raises(StreamError, match=r"there is no GPU 3: .* lists 1: use a CPU runner"):
        require_cuda(3)
    monkeypatch.setattr(cuda_engine, "find_gpu", lambda index: L4)
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(
        MissingExtraError, match=r"on the processor alone: pip uninstall onnxruntime, then pip install 'nn"
    ):
        require_cuda()
    monkeypatch.setattr(runtime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(runtime, "cuda_version", "14.1", raising=False)
    with pytest.raises(
        StreamError, match=r"needs CUDA 14 and the driver 580\.65\.06 knows CUDA 13\.0: update the driver"
    ):
        require_cuda()
    monkeypatch.setattr(runtime, "cuda_version", "13.0", raising=False)
    monkeypatch.setattr(runtime, "preload_dlls", lambda: print("Failed to load libcublas.so.13"), raising=False)  # noqa: T201
    assert require_cuda() == L4


def test_what_it_prints_stays_off_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    test_what_a_machine_lacks_is_one_sentence(monkeypatch)
    assert capsys.readouterr().out == ""


@pytest.fixture
def small(second_run: Path) -> Bundle:
    """A real bundle of 64x64 pixels."""
    return read_bundle(second_run / "run/bundle")


@pytest.fixture
def on_the_host(small: Bundle, gpu_parts: Any, host_kernels_at: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices that were opened: a GPU made of the processor in the GPU's place."""
    opened: list[Any] = []

    def open_gpu(cache: Path | None, size: tuple[int, int], index: int) -> Any:
        assert size == small.geometry.size
        opened.append(gpu_parts.HostDevice(host_kernels_at(small.geometry.network)))
        return opened[-1]

    monkeypatch.setattr(cuda_engine, "open_gpu", open_gpu)
    monkeypatch.setattr(cuda_engine, "require_cuda", lambda index: L4)
    monkeypatch.setattr(cuda_engine, "CudaEngine", HostEngine)
    return opened


def test_a_bundle_judges_as_on_the_processor(small: Bundle, on_the_host: list[Any]) -> None:
    images = small.frames("held_out")[:3]
    settings = RunnerSettings("cuda", max_batch=4)
    with (
        load_runner(small.graph, RunnerSettings("onnxruntime", threads=1)) as reference,
        load_runner(small.graph, settings) as runner,
    ):
        assert (runner.name, runner.precision) == ("onnxruntime-cuda", "fp32")
        assert words_of(runner) == "onnxruntime-cuda (fp32)"  # the device is called "the processor" here
        np.testing.assert_allclose(runner.infer(images).image_score, reference.infer(images).image_score, rtol=1e-4)
    assert on_the_host[0].is_closed


def test_a_graph_outside_of_a_bundle_has_the_size_of_its_input(
    small: Bundle, on_the_host: list[Any], tmp_path: Path
) -> None:
    alone = Path(shutil.copy(small.graph, tmp_path / "nnet.onnx"))
    with load_runner(alone, RunnerSettings("cuda", max_batch=1)) as runner:
        assert runner.input_shape == (64, 64, 3)


def test_an_fp16_graph_is_computed(small: Bundle, on_the_host: list[Any], tmp_path: Path) -> None:
    copied = read_bundle(Path(shutil.copytree(small.path, tmp_path / "bundle")))
    images = copied.frames("held_out")[:2]
    content = to_half(onnx.load(copied.graph), images, threads=1).SerializeToString()
    source = copied.manifest["files"]["nnet.onnx"]
    entry = {"kind": "graph", "precision": "fp16", "source": source, "made": {}, "gates": {}}
    add_artefact(copied, "nnet.fp16.onnx", content, entry)
    found = []
    for name in ("nnet.onnx", "nnet.fp16.onnx"):
        with load_runner(copied.path / name, RunnerSettings("cuda", max_batch=2)) as runner:
            found.append(runner.infer(images).image_score)
    assert runner.precision == "fp16"
    np.testing.assert_allclose(found[1], found[0], rtol=0.05)
    assert not np.array_equal(found[1], found[0])


def test_int8_and_bf16_are_refused(small: Bundle, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"nnet\.int8\.onnx is INT8, and ONNX Runtime on CUDA computes .* --precision fp16"
    ):
        load_cuda_runner(tmp_path / "nnet.int8.onnx", RunnerSettings("cuda"))
    with pytest.raises(ConfigError, match="bf16 is for the processor"):
        load_cuda_runner(small.graph, RunnerSettings("cuda", "bf16"))


def test_a_damaged_graph_is_never_given_to_it(graph: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "nnet.onnx"
    damaged.write_bytes(graph.read_bytes()[:-40])
    with pytest.raises(BundleError, match="a runner cannot read"):
        CudaEngine(damaged, STREAM)


def test_a_gpu_that_is_lost_ends_the_stream_and_keeps_what_was_judged(
    make: Any, graph: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every frame without a verdict is named, the line ends with the GPU's error, the verdicts before are on disk."""
    runner = make(graph, max_batch=1)
    start, begun = runner.start_frames, []

    def start_frames(frames: Any) -> Any:
        begun.append(frames)
        if len(begun) == 5:
            runner.gpu.fails = "launch"
        return start(frames)

    runner.start_frames = start_frames
    sink = JsonLinesSink(JsonLinesSettings(path=tmp_path / "verdicts.jsonl", events=False))
    lost = r"frames in a row could not be judged, the last one: frame \d+ \(synthetic\): CUDA could not launch"
    with pytest.raises(StreamError, match=lost):
        run(open_source("synthetic:60"), runner, [sink], VerdictSettings(threshold=1e9))
    lines = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text().splitlines()]
    assert [line["id"].rpartition("/")[2] for line in lines] == [*map(str, range(len(lines)))]
    assert len(lines) == 4
    assert "/4 has no verdict: frame 4 (synthetic): CUDA could not launch" in caplog.text
    assert runner.gpu.is_closed
