"""Everything that can be measured on a GPU, in one run: whether TensorRT-RTX runs, ceilings, kernels, engines, torch beside
them; one JSON file.

    python -m nnet_edge.benchmarks.gpu BUNDLE --json benchmarks/results/gpu.json

`make gpu` makes the bundle and its engines first, and runs the tests that need a GPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from nnet_edge.benchmarks.gpu.engines import BATCHES, STAND_IN, Rate, measure_runner, measure_torch, torch_runner
from nnet_edge.benchmarks.gpu.kernels import Ceilings, KernelTime, measure_ceilings, measure_kernels
from nnet_edge.benchmarks.gpu.repeating import RepeatingRunner
from nnet_edge.benchmarks.harness.command_line import command_text, run_command
from nnet_edge.benchmarks.harness.command_line import say as say_on_stderr
from nnet_edge.benchmarks.harness.machine import describe_machine, torch_has_cuda
from nnet_edge.benchmarks.harness.report import write_json
from nnet_edge.benchmarks.harness.roofline import GIGA, count_work, gpu_product
from nnet_edge.benchmarks.harness.rounds import Say, quiet
from nnet_edge.bundle import Bundle, now, read_bundle, versions
from nnet_edge.errors import NnetEdgeError, StreamError
from nnet_edge.geometry import Geometry
from nnet_edge.gpu import NoGpu, find_gpu
from nnet_edge.runtime.runners.trt.flavours import flavours_on
from nnet_edge.runtime.runners.trt.kernels import open_gpu
from nnet_edge.settings.runner import RunnerSettings

TERA = 1e12


def measure_gpu(
    path: Path, batches: tuple[int, ...] = BATCHES, with_torch: bool = True, say: Say = quiet
) -> dict[str, Any]:
    """The whole report as plain values.

    Raises StreamError without a GPU, BundleError for a bundle that cannot be read, MissingExtraError without pycuda or nvcc.
    An engine that does not load is part of the report, with the reason.
    """
    gpu = find_gpu()
    if isinstance(gpu, NoGpu):
        raise StreamError(f"{gpu.reason}: this benchmark measures a GPU; nnet-edge bench speed measures the processor")
    bundle = read_bundle(path)
    machine = describe_machine(None)
    say(", ".join(f"{name}: {value}" for name, value in machine.items()))
    answers = flavours_on(gpu)
    for answer in answers:
        say(answer.sentence())
    ceilings, kernels = measure_device(bundle.geometry, batches, say)
    can_torch = with_torch and torch_has_cuda()
    product = GIGA * gpu_product("fp16").median if can_torch else None
    work = 2 * count_work(bundle).macs / product if product else None
    rates, refused = measure_engines(bundle, batches, work, can_torch, say)
    if can_torch:
        rates += told(measure_torch(bundle, batches, work), say)
    return {
        "command": command_text("nnet_edge.benchmarks.gpu"),
        "when": now(),
        "machine": machine,
        "tensorrt_rtx_runs_here": next((asdict(one) for one in answers if one.flavour == "tensorrt_rtx"), None),
        "tensorrt_runs_here": next((asdict(one) for one in answers if one.flavour == "tensorrt"), None),
        "bundle": {"name": bundle.name, "backbone": bundle.manifest["backbone"]},
        "warnings": [*bundle.warnings, *missing(rates)],
        "versions": versions(),
        "ceilings_gb_per_s": asdict(ceilings),
        "matrix_rate_tflop_per_s": None if product is None else product / TERA,
        "kernels": [asdict(kernel) for kernel in kernels],
        "rates": [asdict(rate) for rate in rates],
        "engines_that_did_not_load": refused,
    }


def measure_device(geometry: Geometry, batches: tuple[int, ...], say: Say) -> tuple[Ceilings, list[KernelTime]]:
    """Bandwidths and kernels of the GPU, for inputs of that geometry."""
    device = open_gpu(size=geometry.size)
    try:
        with device.current():
            ceilings = measure_ceilings(device)
            say(f"copy {ceilings.copy:.0f} GB/s, upload {ceilings.upload:.1f}, download {ceilings.download:.1f}")
            kernels = []
            for kernel in measure_kernels(device, ceilings.copy, batches, geometry):
                took = f"{kernel.p50_us:.1f} us, floor {kernel.floor_us:.1f} us"
                say(f"{kernel.kernel} {kernel.shape} x{kernel.batch}: {took}")
                kernels.append(kernel)
    finally:
        device.close()
    return ceilings, kernels


def measure_engines(
    bundle: Bundle, batches: tuple[int, ...], work: float | None, can_torch: bool, say: Say
) -> tuple[list[Rate], dict[str, str]]:
    """The rates of every engine and graph of the bundle that loads on this GPU, and why the others do not; torch stands in
    for none at all.
    """
    rates: list[Rate] = []
    refused: dict[str, str] = {}
    settings = RunnerSettings(max_batch=max(batches))
    engines, graphs = ([item.path for item in bundle.artefacts if item.kind == kind] for kind in ("engine", "graph"))
    loads: list[tuple[str, Callable[[], RepeatingRunner]]] = [
        *((path.name, partial(RepeatingRunner.load, path, settings)) for path in engines),
        *((f"{path.name} on CUDA", partial(load_on_cuda, path, settings)) for path in graphs),
    ]
    for name, load in loads:
        try:
            runner = load()
        except NnetEdgeError as error:
            refused[name] = str(error)
            say(f"{name} does not load here: {error}")
            continue
        with runner:
            rates += told(measure_runner(runner, batches, work), say)
    if not rates and can_torch:
        say("no engine of the bundle runs here: TORCH STANDS IN for the engine, the kernels are real")
        with torch_runner(bundle, open_gpu(size=bundle.geometry.size), max(batches)) as runner:
            rates += told(measure_runner(runner, batches, work), say)
    return rates, refused


def load_on_cuda(graph: Path, settings: RunnerSettings) -> RepeatingRunner:
    """ONNX Runtime's runner of the graph on CUDA. Raises what `load_cuda_runner` raises, and MissingExtraError."""
    from nnet_edge.runtime.runners.trt.cuda_engine import load_cuda_runner

    return load_cuda_runner(graph, settings, RepeatingRunner)


def missing(rates: list[Rate]) -> list[str]:
    """What a reader must not take the rates for."""
    systems = {rate.system for rate in rates}
    if not rates:
        return ["NO NETWORK WAS MEASURED: no engine of the bundle loads here and torch has no CUDA"]
    if STAND_IN in systems:
        return ["NO ENGINE RAN: torch stands in for it between the same kernels"]
    return [] if systems & {"tensorrt", "tensorrt_rtx"} else ["NO ENGINE OF TENSORRT RAN"]


def told(rates: Iterable[Rate], say: Say) -> Iterator[Rate]:
    """The same rates, a line for each as it comes."""
    for rate in rates:
        say(f"{rate.system} {rate.precision} x{rate.batch} ({rate.what}): {rate.images_per_s:.0f} images/s")
        yield rate


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--batch", "batches", type=int, multiple=True, default=BATCHES, show_default=True)
@click.option("--no-torch", is_flag=True, help="Leave torch and the matrix rate out.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the report here.")
def command(bundle: Path, batches: tuple[int, ...], no_torch: bool, json_path: Path | None) -> None:
    """Measure kernels and engines of BUNDLE on this machine's GPU: JSON on standard output."""
    report = measure_gpu(bundle, batches, not no_torch, say_on_stderr)
    click.echo(json.dumps(report, indent=2, allow_nan=False))
    if json_path is not None:
        write_json(json_path, report)


if __name__ == "__main__":
    sys.exit(run_command(command))
