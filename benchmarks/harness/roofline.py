"""What the machine can do at most: operations a second of one large matrix product, bytes a second of one large copy.

Both are measured with the libraries at hand, on as many threads as the contenders have, before the rounds and after them; a
processor that gives way to its neighbours shows in the spread. A share of the matrix rate is of the network's own
operations; fusion, blur and everything else count as nothing done. The roof of an intensity, operations a byte, is what can
be attained when every byte is copied to where it is computed: min(matrix rate, intensity x copy rate). work_count.py says
which bytes are counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nnet_edge.machine import has_module
from nnet_edge.runtime.runners.trt.library import TITLES

PRODUCT_SIDE = 1536  # large enough that the product, not the call, is measured; 9 MB a matrix in FP32
COPY_BYTES = 64 << 20  # a thread; many times the caches
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

    def share(self, operations_per_s: float, precision: str, system: str) -> float | None:
        """The share of the matrix rate; None where that rate was not measured."""
        ceiling = self.ceiling_of(system, precision)
        return None if ceiling is None else operations_per_s / (GIGA * ceiling.median)

    def share_of_roof(
        self, operations_per_s: float, fp32_intensity: float, precision: str, system: str
    ) -> float | None:
        """The share of min(matrix rate, intensity x copy rate), of operations a byte in FP32; None where one is not known."""
        device = self.device_of(system)
        matrix, copy = self.ceiling_of(system, precision), self.find(device, "copy")
        if matrix is None or copy is None:
            return None
        intensity = fp32_intensity * FP32_BYTES / BYTES[computed_in(device, precision)]
        return operations_per_s / (GIGA * min(matrix.median, intensity * copy.median))

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"torch_device": self.torch_device, "ceilings": [vars(one) for one in self.ceilings]}


def computed_in(device: str, precision: str) -> str:
    """The precision whose products a graph of `precision` is made of on the device."""
    return "fp32" if device == "processor" and precision in IN_FP32_ON_CPU else precision


def measure_roofline(threads: int) -> Roofline:
    """Every ceiling that the libraries at hand can measure, on `threads` threads."""
    found = [*processor_products(threads), copy_rate(threads)]
    has_cuda = has_module("torch") and torch_has_cuda()
    if has_cuda:
        found += gpu_ceilings()
    return Roofline(tuple(found), "gpu" if has_cuda else "processor")


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
    operations = 2 * PRODUCT_SIDE**3
    if not has_module("torch"):
        left = np.random.default_rng(0).random((PRODUCT_SIDE, PRODUCT_SIDE), np.float32)
        yield ceiling("processor", "fp32", lambda: left @ left, operations, "numpy.matmul, threads of its own choice")
        return
    import torch

    from nnet_edge.benchmarks.speed.system_torch import torch_threads

    random = torch.Generator().manual_seed(0)
    floats = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, generator=random)
    bytes_ = torch.randint(-127, 128, (PRODUCT_SIDE, PRODUCT_SIDE), dtype=torch.int8, generator=random)
    halves = floats.bfloat16()
    said = f"{PRODUCT_SIDE}x{PRODUCT_SIDE}, {threads} threads"
    with torch_threads(threads):
        yield ceiling("processor", "fp32", lambda: torch.mm(floats, floats), operations, f"torch.mm, {said}")
        yield ceiling("processor", "bf16", lambda: torch.mm(halves, halves), operations, f"torch.mm, {said}")
        yield ceiling("processor", "int8", lambda: torch._int_mm(bytes_, bytes_), operations, f"torch._int_mm, {said}")


def copy_rate(threads: int) -> Ceiling:
    """Bytes that `threads` copies at once read and write."""
    sources = [np.ones(COPY_BYTES, np.uint8) for _ in range(threads)]
    targets = [np.empty_like(source) for source in sources]
    with ThreadPoolExecutor(threads) as pool:  # NumPy lets go of Python's lock while it copies

        def copy() -> None:
            list(pool.map(np.copyto, targets, sources))

        said = f"numpy.copyto, {COPY_BYTES >> 20} MiB on each of {threads} threads, read and written"
        return ceiling("processor", "copy", copy, 2 * COPY_BYTES * threads, said)


def ceiling(device: str, what: str, work: Callable[[], object], amount: float, said: str) -> Ceiling:
    """The rate of `work`, which does `amount` operations or bytes a call, over REPEATS turns after one that warms up."""
    work()
    rates = []
    for _ in range(REPEATS):
        calls, began_ns = 0, time.perf_counter_ns()
        while (took_ns := time.perf_counter_ns() - began_ns) < SHORTEST_S * GIGA or not calls:
            work()
            calls += 1
        rates.append(calls * amount / took_ns)  # a nanosecond and 1e9 cancel
    return Ceiling(device, what, float(np.median(rates)), min(rates), max(rates), said)


def torch_has_cuda() -> bool:
    """Whether torch computes on a GPU here."""
    import torch

    return bool(torch.cuda.is_available())


def gpu_ceilings() -> Iterator[Ceiling]:
    """Matrix products and a copy on the GPU, in torch."""
    import torch

    side, size = 8192, 1 << 30
    said = f"torch.mm on the GPU, {side}x{side}"

    def waited(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(10):
                work()
            torch.cuda.synchronize()

        return run

    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        matrix = torch.randn(side, side, device="cuda").to(dtype)
        yield ceiling("gpu", name, waited(partial(torch.mm, matrix, matrix)), 10 * 2 * side**3, said)
    bytes_ = torch.randint(-127, 128, (side, side), dtype=torch.int8, device="cuda")
    yield ceiling("gpu", "int8", waited(lambda: torch._int_mm(bytes_, bytes_)), 10 * 2 * side**3, f"{said}, _int_mm")
    source = torch.ones(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    yield ceiling("gpu", "copy", waited(lambda: target.copy_(source)), 10 * 2 * size, "torch copy_ of 1 GiB on the GPU")
