"""Does TensorRT-RTX run on this GPU? Asked before anything that takes minutes, with a network of one layer.

    python -m nnet_edge.benchmarks.gpu_question

NVIDIA names the compute capabilities that it is for (`RTX_TARGETS`); whether it refuses the others, and where, is asked here:
it builds for the GPU at hand, loads what it built, computes, and the numbers are compared.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

import click
import numpy as np

from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.errors import NnetEdgeError, StreamError
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.runtime.runners.trt.device import Device
from nnet_edge.runtime.runners.trt.kernels import open_gpu
from nnet_edge.runtime.runners.trt.library import TensorrtLibrary, collecting_log, load_tensorrt, plain

NUMBERS = 64  # that the network takes
NAMES = ("numbers", "positive")  # of its input and its output


@dataclass(frozen=True)
class Answer:
    """Whether TensorRT-RTX runs on a GPU."""

    compute_capability: str
    version: str | None  # of TensorRT-RTX; None: it is not installed
    runs: bool | None  # None: it was not asked
    reason: str  # why not; "" when it runs

    def sentence(self) -> str:
        """The answer in one line."""
        answer = {True: "yes", False: "NO", None: "not asked"}[self.runs]
        why = f" ({self.reason})" if self.reason else ""
        version = f" {self.version}" if self.version else ""
        return f"does TensorRT-RTX{version} run on compute capability {self.compute_capability}: {answer}{why}"


def ask_tensorrt_rtx(gpu: GpuFacts) -> Answer:
    """The answer for the GPU at hand; whatever goes wrong is the answer, not an error."""
    try:
        library = load_tensorrt("tensorrt_rtx")
    except NnetEdgeError as error:
        return Answer(gpu.compute_capability, None, None, str(error))
    try:
        plan = build_probe(library, library.trt.ComputeCapability.CURRENT)
        device = open_gpu()
        try:
            with device.current():
                run_probe(library, plan, device)
        finally:
            device.close()
    except NnetEdgeError as error:
        return Answer(gpu.compute_capability, library.version, False, str(error))
    return Answer(gpu.compute_capability, library.version, True, "")


def build_probe(library: TensorrtLibrary, capability: Any) -> bytes:
    """An engine that sets the negative ones of NUMBERS numbers to zero. Raises StreamError when TensorRT-RTX builds none."""
    trt: Any = library.trt
    log = collecting_log(library)
    try:
        builder = trt.Builder(log)
    except Exception as error:  # pybind's own TypeError, when TensorRT returns nothing
        raise refused("start its builder", log, str(error)) from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    tensor = network.add_input(NAMES[0], trt.DataType.FLOAT, (NUMBERS,))
    tensor = network.add_activation(tensor, trt.ActivationType.RELU).get_output(0)
    tensor.name = NAMES[1]
    network.mark_output(tensor)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(capability, 0):
        raise refused("build for it", log)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise refused("build for it", log)
    return bytes(plan)


def run_probe(library: TensorrtLibrary, plan: bytes, device: Device) -> None:
    """Load the engine and compute once. Raises StreamError when TensorRT-RTX refuses or the numbers are wrong."""
    log = collecting_log(library)
    runtime = library.trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise refused("load what it built", log)
    context = engine.create_execution_context()
    if context is None:
        raise refused("make an execution context", log)
    queue = device.stream()
    host = device.pinned(4 * NUMBERS).view(np.float32)
    host[:] = np.linspace(-1, 1, NUMBERS)
    wanted = np.maximum(host, 0)
    buffers = [device.allocate(host.nbytes) for _ in NAMES]
    for name, buffer in zip(NAMES, buffers, strict=True):
        context.set_tensor_address(name, buffer.address)
    device.upload(buffers[0].address, host, queue)
    if not context.execute_async_v3(queue.handle):
        raise refused("compute", log)
    device.download(host, buffers[1].address, queue)
    queue.synchronize()
    if not np.array_equal(host, wanted):
        raise StreamError("TensorRT-RTX computes wrong numbers on it")


def refused(what: str, log: Any, otherwise: str = "it gave no reason") -> StreamError:
    """The error for what TensorRT-RTX did not do, with what it logged last."""
    return StreamError(f"it does not {what}: {plain(log.problems[-1]) if log.problems else otherwise}")


@click.command()
def command() -> None:
    """Say whether TensorRT-RTX runs on this machine's GPU: one line, then JSON on standard output."""
    gpu = find_gpu()
    if isinstance(gpu, NoGpu):
        raise StreamError(f"{gpu.reason}: the question needs one")
    answer = ask_tensorrt_rtx(gpu)
    click.echo(answer.sentence(), err=True)
    click.echo(json.dumps(asdict(answer)))


if __name__ == "__main__":
    sys.exit(run_command(command))
