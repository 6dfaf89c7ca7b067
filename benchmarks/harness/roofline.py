"""What the machine can do at most, and what one image costs whatever computes it.

The machine: operations a second of one large matrix product, bytes a second of one large copy. Both are measured with the
libraries at hand, on as many threads as the candidates have, before the rounds and after them; a processor that gives way to
its neighbours shows in the spread. A share of the matrix rate is of the network's own operations; fusion, blur and everything
else count as nothing done. The roof of an intensity, operations a byte, is what can be attained when every byte is copied to
where it is computed: min(matrix rate, intensity x copy rate).

An image: parameters, multiply-adds, and what the layers read and write. Multiply-adds are those of convolutions and matrix
products as torch.utils.flop_counter counts them, of the network up to the layer maps; the teacher, both students and the
memory are in it. The tail is not: it is 2 million multiply-adds of small products. The traffic is what the same operations
read and write in FP32 when each takes its operands from memory once and nothing is fused: less than that is possible, and is
what caches and fusing are for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nnet_edge.benchmarks.harness.machine import torch_has_cuda, torch_threads
from nnet_edge.benchmarks.harness.rounds import repeated
from nnet_edge.bundle import Bundle
from nnet_edge.machine import has_module
from nnet_edge.runtime.runners.trt.library import TITLES

if TYPE_CHECKING:
    from nnet_edge.methods.network import Network

PRODUCT_SIDE = 1536  # large enough that the product, not the call, is measured; 9 MB a matrix in FP32
COPY_BYTES = 64 << 20  # a thread; many times the caches
GPU_SIDE, GPU_COPY_BYTES, GPU_CALLS = 8192, 1 << 30, 10  # calls in a row are waited for once
REPEATS, SHORTEST_S = 5, 0.1  # of each, and each at least so long
GIGA = 1e9
FP32_BYTES, BYTES = 4, {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}
IN_FP32_ON_CPU = ("fp16",)  # CPU runners widen the numbers of that graph before they multiply


@dataclass(frozen=True)
class Ceiling:
    """A rate that was measured, its median and range."""

    device: str  # "processor" or "gpu"
    what: str  # a precision, or "copy"
    median: float  # 1e9 operations a second; 1e9 bytes a second read and written for "copy"
    smallest: float
    largest: float
    measured_with: str


@dataclass(frozen=True)
class Roofline:
    """The ceilings of this machine."""

    ceilings: tuple[Ceiling, ...]
    torch_device: str  # where torch computes: "processor" or "gpu"

    def find(self, device: str, what: str) -> Ceiling | None:
        """The ceiling of that name, None where no library at hand measures it."""
        return next((one for one in self.ceilings if (one.device, one.what) == (device, what)), None)

    def device_of(self, system: str) -> str:
        """Where a system computes."""
        return "gpu" if system in TITLES else self.torch_device if system.startswith("torch") else "processor"

    def ceiling_of(self, system: str, precision: str) -> Ceiling | None:
        """The matrix rate that a system and precision are held against."""
        device = self.device_of(system)
        return self.find(device, computed_in(device, precision))

    def share(
        self, operations_per_s: float, precision: str, system: str, fp32_intensity: float | None = None
    ) -> float | None:
        """The share of the matrix rate; with operations a byte in FP32, of min(matrix rate, intensity x copy rate).

        None where a rate that it needs was not measured.
        """
        device = self.device_of(system)
        matrix, copy = self.ceiling_of(system, precision), self.find(device, "copy")
        if matrix is None or (copy is None and fp32_intensity is not None):
            return None
        roof = matrix.median
        if copy is not None and fp32_intensity is not None:
            intensity = fp32_intensity * FP32_BYTES / BYTES[computed_in(device, precision)]
            roof = min(roof, intensity * copy.median)
        return operations_per_s / (GIGA * roof)


def computed_in(device: str, precision: str) -> str:
    """The precision whose products a graph of `precision` is made of on the device."""
    return "fp32" if device == "processor" and precision in IN_FP32_ON_CPU else precision


def measure_roofline(threads: int) -> Roofline:
    """Every ceiling that the libraries at hand can measure, on `threads` threads."""
    found = [*processor_products(threads), copy_rate(threads)]
    if not torch_has_cuda():
        return Roofline(tuple(found), "processor")
    return Roofline((*found, *gpu_ceilings()), "gpu")


def merged(before: Roofline, after: Roofline) -> Roofline:
    """One roofline of two measurements: the faster medians, over the range of both; a ceiling is what was reached."""
    ceilings = []
    for first, second in zip(before.ceilings, after.ceilings, strict=True):
        low, high = min(first.smallest, second.smallest), max(first.largest, second.largest)
        median = max(first.median, second.median)
        ceilings.append(Ceiling(first.device, first.what, median, low, high, first.measured_with))
    return Roofline(tuple(ceilings), before.torch_device)


def processor_products(threads: int) -> Iterator[Ceiling]:
    """Matrix products on the processor: torch's, or NumPy's in FP32 where torch is not installed."""
    if has_module("torch"):
        with torch_threads(threads):
            for precision in ("fp32", "bf16", "int8"):
                yield torch_product("processor", precision, PRODUCT_SIDE, f"{threads} threads")
        return
    left = np.random.default_rng(0).random((PRODUCT_SIDE, PRODUCT_SIDE), np.float32)
    said = "numpy.matmul, threads of its own choice"
    yield ceiling("processor", "fp32", lambda: left @ left, 2 * PRODUCT_SIDE**3, said)


def gpu_product(precision: str) -> Ceiling:
    """A matrix product on the GPU, in torch."""
    return torch_product("gpu", precision, GPU_SIDE, "on the GPU")


def gpu_ceilings() -> Iterator[Ceiling]:
    """Matrix products and a copy on the GPU, in torch."""
    import torch

    yield from map(gpu_product, ("fp32", "bf16", "fp16", "int8"))
    source = torch.ones(GPU_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    said = f"torch copy_ of {GPU_COPY_BYTES >> 30} GiB on the GPU"
    yield ceiling("gpu", "copy", waited(lambda: target.copy_(source)), GPU_CALLS * 2 * GPU_COPY_BYTES, said)


def torch_product(device: str, precision: str, side: int, said: str) -> Ceiling:
    """The rate of a square product of random numbers."""
    import torch

    kind, shape = {"gpu": "cuda", "processor": "cpu"}[device], (side, side)
    random = torch.Generator(kind).manual_seed(0)
    if precision == "int8":
        bytes_ = torch.randint(-127, 128, shape, dtype=torch.int8, generator=random, device=kind)
        work, name = partial(torch._int_mm, bytes_, bytes_), "torch._int_mm"
    else:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        floats = torch.randn(shape, generator=random, device=kind).to(dtype)
        work, name = partial(torch.mm, floats, floats), "torch.mm"
    calls = GPU_CALLS if device == "gpu" else 1
    return ceiling(device, precision, waited(work) if device == "gpu" else work, calls * 2 * side**3,
                   f"{name}, {side}x{side}, {said}")  # fmt: skip


def waited(work: Callable[[], object]) -> Callable[[], None]:
    """GPU_CALLS of `work` in a row, and their end."""
    import torch

    def run() -> None:
        for _ in range(GPU_CALLS):
            work()
        torch.cuda.synchronize()

    return run


def copy_rate(threads: int) -> Ceiling:
    """Bytes that `threads` copies at once read and write."""
    sources = [np.ones(COPY_BYTES, np.uint8) for _ in range(threads)]
    targets = [np.empty_like(source) for source in sources]
    said = f"numpy.copyto, {COPY_BYTES >> 20} MiB on each of {threads} threads, read and written"
    with ThreadPoolExecutor(threads) as pool:  # NumPy lets go of Python's lock while it copies
        return ceiling(
            "processor", "copy", lambda: list(pool.map(np.copyto, targets, sources)), 2 * COPY_BYTES * threads, said
        )


def ceiling(device: str, what: str, work: Callable[[], object], amount: float, said: str) -> Ceiling:
    """The rate of `work`, which does `amount` operations or bytes a call, after a call that warms up."""

    def rate() -> float:
        calls, began_ns = 0, time.perf_counter_ns()
        while (took_ns := time.perf_counter_ns() - began_ns) < SHORTEST_S * GIGA or not calls:
            work()
            calls += 1
        return calls * amount / took_ns  # a nanosecond and 1e9 cancel

    work()
    found = repeated(rate, REPEATS, warm_ups=0)
    return Ceiling(device, what, found.median, found.smallest, found.largest, said)


COUNTED_BY = "torch.utils.flop_counter"
COUNTED = ("convolution", "mm", "addmm", "bmm", "baddbmm")  # of torch's operators


@dataclass(frozen=True)
class Work:
    """One image of the bundle's size through N-Net."""

    parameters: int  # all that inference needs: teacher, students, projections, memory, fusion
    trained_parameters: int  # without the teacher
    macs: int  # multiply-adds; an operation count is twice that
    traffic_bytes: int  # of the counted operators, FP32, nothing fused, no cache
    counted_by: str = COUNTED_BY

    def __str__(self) -> str:
        return (
            f"{self.parameters / 1e6:.2f} M parameters ({self.trained_parameters / 1e6:.2f} M trained), "
            f"{self.macs / 1e9:.2f} GMACs and {self.traffic_bytes / 1e6:.0f} MB of traffic in FP32 an image "
            f"({self.intensity_at(1):.0f} operations a byte), counted by {self.counted_by}"
        )

    def intensity_at(self, batch: int) -> float:
        """Operations for each byte of that traffic, FP32, when a batch reads the weights once."""
        spared = FP32_BYTES * self.parameters * (1 - 1 / batch)
        return 2 * self.macs / (self.traffic_bytes - spared)


def count_work(bundle: Bundle) -> Work:
    """The work of the bundle's network. Raises MissingExtraError without torch."""
    from nnet_edge.evaluation.artefact import load_network

    return work_of(load_network(bundle))


def work_of(network: Network) -> Work:
    """The work of one image through `network`."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = network.eval()
    images = torch.zeros(1, *network.geometry.shape, dtype=torch.uint8)
    traffic = traffic_counter()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, traffic:
        network(images)
    return Work(
        parameters=sum(value.numel() for value in network.parameters()),
        trained_parameters=sum(value.numel() for value in network.trained_parameters()),
        macs=counter.get_total_flops() // 2,
        traffic_bytes=traffic.total,
    )


def traffic_counter() -> Any:
    """A context manager whose `total` are the bytes that convolutions and matrix products of its block read and write."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Traffic(TorchDispatchMode):
        total = 0

        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found = operator(*args, **(kwargs or {}))
            if operator.overloadpacket.__name__ in COUNTED:
                shapes = [value.shape for value in (*args, found) if hasattr(value, "shape")]
                self.total += FP32_BYTES * sum(math.prod(shape) for shape in shapes)
            return found

    return Traffic()
