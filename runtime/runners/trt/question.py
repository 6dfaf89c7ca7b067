"""Does this TensorRT run on this GPU? Asked before anything that takes minutes, with a network of one layer.

    python -m nnet_edge.runtime.runners.trt.question tensorrt_rtx 0

NVIDIA names the compute capabilities that TensorRT-RTX is for; whether it refuses the others, and where, is asked here: it
builds for the GPU at hand, loads what it built, computes, and the numbers are compared. `flavours.py` keeps the answers.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

import numpy as np

from nnet_edge.errors import NnetEdgeError, StreamError
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.runtime.runners.trt.device import Device, OutOfMemoryError
from nnet_edge.runtime.runners.trt.flavours import Answer
from nnet_edge.runtime.runners.trt.kernels import open_gpu
from nnet_edge.runtime.runners.trt.library import (
    TensorrtLibrary,
    capability_named,
    collecting_log,
    load_tensorrt,
    telling,
)

NUMBERS = 64  # that the network takes
NAMES = ("numbers", "positive")  # of its input and its output


class RefusedError(StreamError):
    """TensorRT says itself that it does not do it on this GPU."""


def ask(flavour: str, gpu: GpuFacts) -> Answer:
    """The answer for the GPU; whatever goes wrong is the answer, not an error."""
    here = gpu.compute_capability
    try:
        library = load_tensorrt(flavour)
    except NnetEdgeError as error:
        return Answer(here, None, None, str(error), flavour)
    try:
        plan = build_probe(library, gpu.compute_capability)
    except NnetEdgeError as error:
        return Answer(here, library.version, False, str(error), flavour)
    try:
        device = open_gpu(index=gpu.index, kernels=())
    except NnetEdgeError as error:  # no pycuda, or a GPU that is full
        return Answer(here, library.version, None, str(error), flavour)
    try:
        with device.current():
            run_probe(library, plan, device)
    except OutOfMemoryError as error:
        return Answer(here, library.version, None, str(error), flavour)
    except NnetEdgeError as error:
        return Answer(here, library.version, False, str(error), flavour, not isinstance(error, RefusedError))
    finally:
        device.close()
    return Answer(here, library.version, True, "", flavour)


def build_probe(library: TensorrtLibrary, compute_capability: str) -> bytes:
    """An engine that sets the negative ones of NUMBERS numbers to zero. Raises RefusedError when TensorRT builds none.

    TensorRT-RTX is told the compute capability: of some it says at once that it does not support them, and a build for the
    GPU at hand would go on to an engine that it does not load.
    """
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
    if library.is_rtx:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(capability_named(trt, compute_capability), 0):
            raise refused("build for it", log)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise refused("build for it", log)
    return bytes(plan)


def require_loads(library: TensorrtLibrary, plan: bytes, log: Any | None = None) -> tuple[Any, Any]:
    """The runtime and the engine of that plan, loaded. Raises RefusedError when TensorRT refuses its own engine."""
    log = log or collecting_log(library)
    runtime = library.trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise refused("load what it built", log)
    return runtime, engine


def run_probe(library: TensorrtLibrary, plan: bytes, device: Device) -> None:
    """Load the engine and compute once. Raises RefusedError when TensorRT refuses, StreamError when the numbers are wrong."""
    log = collecting_log(library)
    _runtime, engine = require_loads(library, plan, log)
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
        raise StreamError("it computes wrong numbers on it")


def refused(what: str, log: Any, otherwise: str = "it gave no reason") -> RefusedError:
    """The error for what TensorRT did not do, with what it logged last."""
    said = telling(log.problems)  # that there is no driver is left out where something else was said
    return RefusedError(f"it does not {what}: {said[-1] if said else otherwise}")


def main(flavour: str, index: str) -> None:
    """Print the answer as JSON, the last line of standard output."""
    gpu = find_gpu(int(index))
    if isinstance(gpu, NoGpu):
        raise SystemExit(gpu.reason)
    sys.stdout.write(f"\n{json.dumps(asdict(ask(flavour, gpu)))}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
