"""What of the GPU benchmark can be true without a GPU: the counted bytes, the machine's words, torch in the engine's place."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from nnet_edge.benchmarks.gpu import all as gpu
from nnet_edge.benchmarks.gpu import engines as gpu_engines
from nnet_edge.benchmarks.gpu import kernels as gpu_kernels
from nnet_edge.benchmarks.gpu.engines import rate
from nnet_edge.benchmarks.gpu.kernels import measure_ceilings, measure_kernels
from nnet_edge.benchmarks.harness import machine as gpu_machine
from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.benchmarks.harness.machine import describe_gpu
from nnet_edge.benchmarks.harness.roofline import count_work
from nnet_edge.errors import BundleError
from nnet_edge.gpu import GpuFacts, NoGpu

FACTS = GpuFacts("Test GPU", "8.9", "580.1", "13.0", 24000)


class Clockwork:
    """A device whose memory is the host's, which launches nothing and whose every row of work takes 2 ms."""

    def __init__(self) -> None:
        self.launched: list[tuple[str, tuple[int, int, int]]] = []
        self.kept: list[np.ndarray] = []

    def allocate(self, size: int) -> Any:
        self.kept.append(np.empty(size, np.uint8))
        memory, freed = self.kept[-1], []

        class Buffer:
            address = memory.ctypes.data

            def free(self) -> None:
                freed.append(True)

        buffer = Buffer()
        buffer.size = size
        return buffer

    def pinned(self, size: int) -> np.ndarray:
        return np.empty(size, np.uint8)

    def stream(self) -> Any:
        class Queue:
            def synchronize(self) -> None:
                pass

        return Queue()

    event = stream

    def upload(self, *arguments: object) -> None:
        pass

    download = copy = upload

    def launch(self, kernel: str, grid: tuple[int, int, int], *arguments: object) -> None:
        self.launched.append((kernel, grid))

    def time_ms(self, work: Any, queue: object) -> float:
        work()
        return 2.0


def test_bandwidths_follow_from_bytes_and_time() -> None:
    found = measure_ceilings(Clockwork(), 4_000_000)
    assert (found.copy, found.upload, found.download) == pytest.approx((4.0, 0.5, 0.5))  # 8 MB and 1 MB in 2 ms


def test_every_kernel_is_timed_and_its_bytes_are_counted() -> None:
    device = Clockwork()
    found = list(measure_kernels(device, copy=1.0, batches=(1, 2)))
    assert {(item.kernel, item.batch) for item in found} == {
        ("preprocess", 1), ("preprocess", 2), ("anomaly_map", 1), ("anomaly_map", 2)
    }  # fmt: skip
    moved = {(item.kernel, item.shape, item.batch): item.bytes_moved for item in found}
    assert moved["preprocess", "1920x1080 BGR8", 2] == 2 * (1920 * 1080 * 3 + 256 * 256 * 3)
    assert moved["preprocess", "1920x1080 NV12", 1] == 1920 * 1080 * 3 // 2 + 256 * 256 * 3
    assert moved["anomaly_map", "float32", 1] == 2 * (64**2 + 32**2 + 16**2) * 4 + 256 * 256 * 4 + 32
    assert moved["anomaly_map", "float32", 1] - moved["anomaly_map", "float16", 1] == 2 * (64**2 + 32**2 + 16**2) * 2
    for item in found:
        assert item.p50_us == pytest.approx(2000 / gpu_kernels.LAUNCHES)
        assert item.floor_us == pytest.approx(item.bytes_moved / 1e3)  # 1 GB/s is 1000 bytes a microsecond
        assert item.share_of_copy == pytest.approx(item.floor_us / item.p50_us)
    assert ("preprocess", (8, 32, 2)) in device.launched
    assert ("anomaly_map", (8, 2, 1)) in device.launched


def test_a_rate_and_its_share() -> None:
    found = rate("torch eager", "fp16", 8, "network", 0.004, 1e-4)
    assert (found.images_per_s, found.ms_per_batch, found.share_of_matrix_rate) == pytest.approx((2000, 4, 0.2))
    assert rate("torch eager", "fp16", 8, "network", 0.004, None).share_of_matrix_rate is None


class Waiting:
    """A runner, as far as the benchmark measures one; it notes what it was asked to do."""

    name, precision, max_batch, input_shape = "tensorrt", "fp16", 8, (256, 256, 3)

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def start(self, images: np.ndarray) -> Any:
        return lambda: self.asked.add("start")

    def start_frames(self, frames: Any) -> Any:
        return lambda: self.asked.add("frames")

    def compute_again(self, times: int) -> None:
        self.asked.add("with kernels")

    def network_alone(self) -> Any:
        return lambda times: self.asked.add("alone")


def test_an_engine_is_measured_as_torch_is_and_as_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one `what` are rows of the same work: the network alone, for torch and for engines."""
    monkeypatch.setattr(gpu_engines, "ROUNDS", 1)
    runner = Waiting()
    found = [(row.batch, row.what) for row in gpu_engines.measure_runner(runner, (1, 8, 32))]
    kinds = ["network", "network and kernels", "end to end, 1920x1080 BGR8"]
    assert found == [(batch, what) for batch in (1, 8) for what in kinds]
    assert runner.asked == {"start", "alone", "with kernels", "frames"}


def test_operations_are_counted(bundle) -> None:
    assert 1e8 < 2 * count_work(bundle).macs < 1e11


def test_torch_in_the_engines_place_computes_the_layer_maps(bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the processor's memory; CUDA's words are taken out, nothing else."""
    network = gpu_engines.load_network(bundle)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    arrays = {name: np.zeros((2, 1, int(name[-2:]), int(name[-2:])), np.float32) for name in network.output_names}
    memory = {"images": torch.from_numpy(images)} | {name: torch.from_numpy(array) for name, array in arrays.items()}
    by_address = {tensor.data_ptr(): tensor for tensor in memory.values()}
    monkeypatch.setattr(torch, "as_tensor", lambda place, device: by_address[place.address].view(place.shape))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle: None)
    engine = gpu_engines.TorchEngine(network, 2)

    class Queue:
        handle = 0

    queue = engine.bind(2, {name: tensor.data_ptr() for name, tensor in memory.items()}, Queue())
    monkeypatch.setattr(torch, "autocast", lambda *kind, **options: nullcontext())
    queue()
    with torch.inference_mode():
        wanted = network(torch.from_numpy(images))
    for name, values in zip(network.output_names, wanted, strict=True):
        np.testing.assert_allclose(arrays[name], values.numpy(), atol=1e-6)


def test_the_machine_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_machine, "JETSON_RELEASE", tmp_path / "absent")
    monkeypatch.setattr(gpu_machine, "output", lambda command: "1800 MHz, 2520 MHz, 9501 MHz, 72.00 W, 41, 0 %, P2\n")
    words = describe_gpu(FACTS)
    assert words["gpu"] == "Test GPU, compute capability 8.9, 24000 MiB"
    assert (words["clocks.sm"], words["power.limit"], words["pstate"]) == ("1800 MHz", "72.00 W", "P2")
    monkeypatch.setattr(gpu_machine, "output", lambda command: "")
    assert describe_gpu(FACTS)["clocks and power"] == "unknown: nvidia-smi does not say"


def test_a_jetson_says_its_power_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.0\n")
    monkeypatch.setattr(gpu_machine, "JETSON_RELEASE", release)
    monkeypatch.setattr(
        gpu_machine, "output", lambda command: {"nvpmodel": "NV Power Mode: MAXN\n0\n"}.get(command[0], "")
    )
    words = describe_gpu(FACTS)
    assert words["jetson"] == "R36 (release), REVISION: 4.0"
    assert words["power mode"] == "NV Power Mode: MAXN 0"
    assert words["clocks"].startswith("unknown: run as root")


def test_programs_that_are_absent_or_fail_say_nothing() -> None:
    assert gpu_machine.output(["no-such-program"]) == ""
    assert gpu_machine.output(["false"]) == ""


@pytest.mark.parametrize(
    ("systems", "warns"),
    [
        ((), "NO NETWORK WAS MEASURED"),
        (("torch in the engine's place", "torch eager"), "NO ENGINE RAN: torch stands in"),
        (("torch eager", "onnxruntime-cuda"), "NO ENGINE OF TENSORRT RAN"),
        (("tensorrt_rtx", "torch eager"), None),
    ],
)
def test_a_report_without_an_engine_says_so(systems: tuple[str, ...], warns: str | None) -> None:
    found = gpu.missing([rate(system, "fp16", 1, "network", 0.1, None) for system in systems])
    assert (found == []) if warns is None else found[0].startswith(warns)


def test_an_engine_that_does_not_load_is_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, settings: object) -> None:
        raise BundleError(f"{path.name} was built for another GPU")

    said: list[str] = []
    monkeypatch.setattr(gpu.RepeatingRunner, "load", refuse)
    held = SimpleNamespace(artefacts=[SimpleNamespace(kind="engine", path=Path("a.engine"))])
    rates, refused = gpu.measure_engines(held, (1,), None, False, said.append)  # type: ignore[arg-type]
    assert (rates, refused) == ([], {"a.engine": "a.engine was built for another GPU"})
    assert "a.engine does not load here" in said[0]
    held.artefacts = [SimpleNamespace(kind="graph", path=Path("nnet.int8.onnx"))]
    _, refused = gpu.measure_engines(held, (1,), None, False, said.append)  # type: ignore[arg-type]
    assert "is INT8, and ONNX Runtime on CUDA" in refused["nnet.int8.onnx on CUDA"]


def test_without_a_gpu_it_is_one_line(
    bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "find_gpu", lambda: NoGpu("there is no NVIDIA driver here"))
    assert run_command(gpu.command, [str(bundle.path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: there is no NVIDIA driver here: this benchmark measures a GPU")
