"""How many images a second each engine judges, bare and with uploads, beside torch eager and torch.compile in FP16.

Where no engine of the bundle loads on this GPU, torch takes the engine's place between the same kernels, and the report says
so: uploads, kernels, streams and downloads are then real, the network is torch's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nnet_edge.benchmarks.gpu.repeating import RepeatingRunner
from nnet_edge.benchmarks.harness.rounds import repeated, took
from nnet_edge.bundle import Bundle
from nnet_edge.evaluation.artefact import load_network
from nnet_edge.frame import Frame
from nnet_edge.runtime.runners.trt.device import CudaStream
from nnet_edge.runtime.runners.trt.kernels import PycudaDevice
from nnet_edge.settings.runner import RunnerSettings

BATCHES = (1, 8, 32)
ROUNDS, CALLS, WARM_UPS = 9, 20, 5
FLIGHTS = 3  # batches under way in an end-to-end measurement
STAND_IN = "torch in the engine's place"


@dataclass(frozen=True)
class Rate:
    """One candidate at one batch."""

    system: str  # "tensorrt", "torch eager", ...
    precision: str
    batch: int
    what: str  # "network" (images lie on the GPU), "network and kernels", "end to end, ..." (upload to score)
    images_per_s: float
    ms_per_batch: float  # median
    share_of_matrix_rate: float | None  # of the measured FP16 rate; None where the operations were not counted


def rate(system: str, precision: str, batch: int, what: str, seconds: float, work: float | None) -> Rate:
    """A Rate of `seconds` a batch; `work` is the share of the matrix rate that one image a second makes."""
    images_per_s = batch / seconds
    share = None if work is None else work * images_per_s
    return Rate(system, precision, batch, what, images_per_s, 1e3 * seconds, share)


def measure_runner(
    runner: RepeatingRunner, batches: tuple[int, ...] = BATCHES, work: float | None = None
) -> Iterator[Rate]:
    """The runner's network alone (what torch's rows are), with the kernels around it, and end to end with frames of 1920x1080
    in pageable memory, three under way.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(batches), *runner.input_shape), np.uint8)
    frames = [Frame(rng.integers(0, 256, (1080, 1920, 3), np.uint8), index, 0.0) for index in range(max(batches))]
    for batch in (size for size in batches if size <= runner.max_batch):
        runner.start(images[:batch])()
        works: dict[str, Callable[[], None]] = {
            "network": partial(runner.network_alone(), CALLS),
            "network and kernels": partial(runner.compute_again, CALLS),
            "end to end, 1920x1080 BGR8": partial(overlapping, runner, frames[:batch], CALLS),
        }
        for what, work_of_calls in works.items():
            yield rate(runner.name, runner.precision, batch, what, median_s(work_of_calls, ROUNDS) / CALLS, work)


def overlapping(runner: RepeatingRunner, frames: list[Frame], batches: int) -> None:
    """Judge the same frames `batches` times, FLIGHTS batches under way."""
    under_way: list[Callable[[], object]] = []
    for _ in range(batches):
        under_way.append(runner.start_frames(frames))
        if len(under_way) == FLIGHTS:
            under_way.pop(0)()
    for wait in under_way:
        wait()


def measure_torch(bundle: Bundle, batches: tuple[int, ...] = BATCHES, work: float | None = None) -> Iterator[Rate]:
    """torch eager and torch.compile of the same weights, FP16 by autocast, images on the GPU, layer maps as the answer."""
    import torch

    from nnet_edge.methods.compute import compiled

    network = load_network(bundle).eval().cuda()
    with torch.inference_mode(), torch.autocast("cuda", torch.float16):
        replayed = torch.compile(network, mode="reduce-overhead")
        systems = {"torch eager": network, "torch.compile": compiled(network), "torch.compile, CUDA graphs": replayed}
        for system, model in systems.items():
            for batch in batches:
                images = torch.randint(0, 256, (batch, *network.geometry.shape), dtype=torch.uint8, device="cuda")

                def calls() -> None:
                    for _ in range(CALLS):
                        model(images)  # noqa: B023
                    torch.cuda.synchronize()

                yield rate(system, "fp16", batch, "network", median_s(calls, ROUNDS) / CALLS, work)


def median_s(work: Callable[[], None], rounds: int) -> float:
    """The median of the seconds that `work` takes, after WARM_UPS."""
    return repeated(lambda: took(work).clock_s, rounds, WARM_UPS).median


def torch_runner(bundle: Bundle, device: PycudaDevice, max_batch: int) -> RepeatingRunner:
    """The TensorRT runner with torch in the engine's place; it owns `device`."""
    network = load_network(bundle)
    settings, engine = RunnerSettings(max_batch=max_batch), TorchEngine(network, max_batch)
    runner = RepeatingRunner(bundle.graph, settings, device, engine, network.settings.fusion, network.geometry)
    runner.name, runner.precision = STAND_IN, "fp16"
    return runner


@dataclass(frozen=True)
class DeviceTensor:
    """Memory of somebody else, as torch takes it."""

    address: int
    shape: tuple[int, ...]
    kind: str

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {"shape": self.shape, "typestr": self.kind, "data": (self.address, False), "version": 3, "strides": None}


class TorchEngine:
    """Obeys Engine with torch on the runner's memory and stream: the stand-in where TensorRT does not run."""

    smallest = 1
    can_capture = False

    def __init__(self, network: Any, largest: int) -> None:
        self.largest = largest
        self._network = network.eval().cuda()
        self.layer_maps: Mapping[str, np.dtype] = {name: np.dtype(np.float32) for name in network.output_names}

    def bind(self, batch: int, addresses: Mapping[str, int], cuda_stream: CudaStream) -> Callable[[], None]:
        """What queues one inference."""
        import torch

        def tensor(name: str, shape: tuple[int, ...], kind: str) -> torch.Tensor:
            return torch.as_tensor(DeviceTensor(addresses[name], shape, kind), device="cuda")

        height, width, _ = shape = self._network.geometry.shape
        images = tensor("images", (batch, *shape), "|u1")
        strides = self._network.settings.map_strides
        outputs = [
            tensor(name, (batch, 1, height // strides[name], width // strides[name]), "<f4") for name in self.layer_maps
        ]
        stream = torch.cuda.ExternalStream(cuda_stream.handle)

        def queue() -> None:
            with torch.cuda.stream(stream), torch.inference_mode(), torch.autocast("cuda", torch.float16):
                for output, found in zip(outputs, self._network(images), strict=True):
                    output.copy_(found)

        return queue

    def close(self) -> None:
        """torch frees what it holds itself."""
