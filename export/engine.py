"""Engine build of a graph: one strongly typed path for TensorRT 10.3 to 11.x and TensorRT-RTX.

The precision is the graph's own (FP16 by its casts, INT8 by its Q/DQ nodes), so no builder flag chooses one. The engine is cut
at the layer maps: fusion and blur belong to the CUDA kernels. Nothing in it depends on data, so a CUDA graph can capture it.
What TensorRT measured while it built lies beside the bundle, so that the next build on the same GPU is quick.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nnet_edge.bundle import now
from nnet_edge.errors import EngineBuildError
from nnet_edge.export.engine_settings import EngineSettings
from nnet_edge.files import write_atomically
from nnet_edge.geometry import DEFAULT
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.runtime.runners.graph import INPUT, geometry_beside, layer_maps_of, read_graph_bytes
from nnet_edge.runtime.runners.graph_facts import fusion_of, read_facts
from nnet_edge.runtime.runners.trt.flavours import OTHER_WAYS
from nnet_edge.runtime.runners.trt.library import (
    TensorrtLibrary,
    build_error,
    capability_named,
    collecting_log,
    load_tensorrt,
    parse_error,
)
from nnet_edge.runtime.runners.trt.record import EngineRecord, system_here

logger = logging.getLogger(__name__)

MEBIBYTE = 1 << 20
Report = Callable[[int, int], None]  # steps done, steps in all
DATA_DEPENDENT = {"CONDITION", "NON_ZERO", "NMS", "RECURRENCE", "TRIP_LIMIT", "ITERATOR", "LOOP_OUTPUT"}  # layer types
STEPS = 1000  # of a whole build, as a progress bar counts them


@dataclass(frozen=True)
class BuiltEngine:
    """An engine and its record."""

    content: bytes
    record: EngineRecord


def build_engine(
    graph: Path,
    settings: EngineSettings,
    report: Report = lambda done, total: None,
    stop: Callable[[], bool] = lambda: False,
) -> BuiltEngine:
    """The engine of the graph at `graph`; `report` gets steps done and steps in all, `stop` is asked at every step.

    Raises EngineBuildError when TensorRT cannot read the graph or build it, or when the target needs a GPU and there is
    none; MissingExtraError without the target's TensorRT, ConfigError or BundleError for a file that is no graph of
    nnet-edge, KeyboardInterrupt when `stop` said so.
    """
    fusion = fusion_of(read_facts(graph))
    library = load_tensorrt(settings.target.flavour)
    gpu = find_gpu(settings.gpu)
    if settings.target.needs_gpu and isinstance(gpu, NoGpu):
        raise EngineBuildError(
            f"--target {settings.target.name} builds on the GPU that the engine is for, and {gpu.reason}: name the cards "
            "of another machine as --target rtx:sm86,sm89, or use the CPU runners of the graph"
        )
    here = gpu if isinstance(gpu, GpuFacts) else None
    began = time.perf_counter()
    parsed = EngineNetwork(library, graph)
    content = parsed.build(settings, here, report, stop)
    seconds = time.perf_counter() - began
    target = settings.target
    record = EngineRecord(
        tool=library.flavour, version=library.version, system=system_here(), target=target.name,
        compute_capabilities=target.compute_capabilities or ((here.compute_capability,) if here else ()),
        gpu=here.name if here else None, cuda=here.cuda if here else None, driver=here.driver if here else None,
        hardware_compatibility=settings.hardware_compatibility, version_compatible=settings.version_compatible,
        batch=settings.profile.as_tuple(), workspace_mib=settings.workspace_mib, optimization=settings.optimization,
        layer_maps=parsed.layer_maps, fusion=asdict(fusion), sha256=hashlib.sha256(content).hexdigest(),
        size=len(content), seconds=round(seconds, 3), when=now(), input=parsed.input_shape[:2],
    )  # fmt: skip
    return BuiltEngine(content, record)


class EngineNetwork:
    """A parsed graph, cut at its layer maps, and the builder that makes an engine of it.

    Holds whatever TensorRT refers to, for as long as it lives itself: the log, the network that the parser writes to, the
    parser, whose weights the network points to.
    """

    def __init__(self, library: TensorrtLibrary, graph: Path) -> None:
        """Raises EngineBuildError when TensorRT cannot read the graph, or when it lacks the contract's names."""
        trt = library.trt
        self.library, self.graph = library, graph
        self.log = collecting_log(library)
        try:
            self.builder = trt.Builder(self.log)
        except Exception as error:  # pybind's own TypeError, when TensorRT returns nothing
            raise build_error(library, graph, self.log.problems or [str(error)]) from error
        self.network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        self.parser = parser = trt.OnnxParser(self.network, self.log)
        if not parser.parse(read_graph_bytes(graph)):
            raise parse_error(library, graph, [parser.get_error(index) for index in range(parser.num_errors)])
        self.layer_maps, self.input_shape = cut_tail(self.network, graph)

    def build(self, settings: EngineSettings, gpu: GpuFacts | None, report: Report, stop: Callable[[], bool]) -> bytes:
        """The engine. Raises EngineBuildError, or KeyboardInterrupt when `stop` said so."""
        trt, library = self.library.trt, self.library
        config = self.builder.create_builder_config()
        config.builder_optimization_level = settings.optimization
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector tells each layer's precision
        config.clear_flag(trt.BuilderFlag.TF32)  # its 10 bits are too few for cosines; FP32 stays FP32
        if settings.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib * MEBIBYTE)
        set_compatibility(library, config, settings)
        profile = self.builder.create_optimization_profile()
        profile.set_shape(INPUT, *((batch, *self.input_shape) for batch in settings.profile.as_tuple()))
        if config.add_optimization_profile(profile) < 0:
            raise build_error(library, self.graph, self.log.problems)
        cache = use_timing_cache(library, config, self.graph.parent, gpu)
        monitor = build_monitor(trt, report, stop)
        config.progress_monitor = monitor
        serialized = self.builder.build_serialized_network(self.network, config)
        if monitor.stopped:
            raise KeyboardInterrupt
        if serialized is None:
            raise build_error(library, self.graph, self.log.problems, settings.workspace_mib, settings.profile.largest)
        keep_timing_cache(cache, config)
        return bytes(serialized)


def cut_tail(network: Any, graph: Path) -> tuple[tuple[str, ...], tuple[int, int, int]]:
    """The layer maps that stay the network's only outputs, and the shape of one image.

    TensorRT then drops the tail that nobody asks for.

    Cut here and not in the ONNX file, because the box that builds has TensorRT and neither onnx nor graphsurgeon. Raises
    EngineBuildError when inputs or outputs are not those of nnet-edge, or when a layer's work depends on the data.
    """
    inputs = list(map(network.get_input, range(network.num_inputs)))
    outputs = {tensor.name: tensor for tensor in map(network.get_output, range(network.num_outputs))}
    layer_maps = tuple(name for name in layer_maps_of(outputs) if name in outputs)
    found = ", ".join(f"{tensor.name} {tensor.dtype.name} {tuple(tensor.shape)}" for tensor in inputs)
    geometry = geometry_beside(graph)
    sides = tuple(inputs[0].shape)[1:3] if len(inputs) == 1 and len(inputs[0].shape) == 4 else DEFAULT.size
    shape = (int(sides[0]), int(sides[1]), 3) if geometry is None else geometry.shape
    wanted = f"{INPUT} UINT8 {(-1, *shape)}"
    if found != wanted or not layer_maps:
        raise EngineBuildError(
            f"{graph} is no graph of nnet-edge: it takes {found or 'nothing'} instead of {wanted} and gives "
            f"{', '.join(outputs)}; write it again with `export`"
        )
    for name, tensor in outputs.items():
        if name not in layer_maps:
            network.unmark_output(tensor)
    kinds = {network.get_layer(index).type.name for index in range(network.num_layers)} & DATA_DEPENDENT
    if kinds:
        raise EngineBuildError(
            f"{graph} has layers whose work depends on the data ({', '.join(sorted(kinds))}), which no CUDA graph can "
            "capture: write it again with `export`"
        )
    return layer_maps, shape


def set_compatibility(library: TensorrtLibrary, config: Any, settings: EngineSettings) -> None:
    """Tell the builder which GPUs and versions the engine is for. Raises EngineBuildError for a level it does not know."""
    trt = library.trt
    if library.is_rtx:
        named = {
            f"sm{each.replace('.', '')}": capability_named(trt, each) for each in settings.target.compute_capabilities
        }
        wanted = named or {"this GPU": trt.ComputeCapability.CURRENT}
        config.num_compute_capabilities = len(wanted)
        for index, (name, capability) in enumerate(wanted.items()):
            if not config.set_compute_capability(capability, index):
                raise EngineBuildError(f"{library.title} does not build for {name}: name other cards, or {OTHER_WAYS}")
        return
    if settings.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if settings.hardware_compatibility == "ampere_plus":
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    elif settings.hardware_compatibility == "same_compute_capability":
        if not hasattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY"):
            raise EngineBuildError(f"{library.title} has no level same_compute_capability: TensorRT 10.13 brought it")
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY


def cache_path(folder: Path, library: TensorrtLibrary, gpu: GpuFacts) -> Path:
    """timing.<flavour>-<version>-<gpu>.cache in the bundle's folder: timings of another of the three say nothing."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{gpu.name} {gpu.target}".lower()).strip("-")
    return folder / f"timing.{library.flavour}-{library.version}-{name}.cache"


def use_timing_cache(library: TensorrtLibrary, config: Any, folder: Path, gpu: GpuFacts | None) -> Path | None:
    """The file of the earlier builds' timings, which the builder's config now has.

    None for TensorRT-RTX, which measures on the machine where it runs and keeps none. TensorRT checks itself that a cache is
    from the same version and GPU; one that it refuses is begun anew.
    """
    if library.is_rtx or gpu is None:
        return None
    file = cache_path(folder, library, gpu)
    earlier = file.read_bytes() if file.is_file() else b""
    cache = config.create_timing_cache(earlier)
    if cache is None or not config.set_timing_cache(cache, False):
        logger.warning("%s is no timing cache of this GPU and version: it is begun anew", file)
        config.set_timing_cache(config.create_timing_cache(b""), False)
    return file


def keep_timing_cache(file: Path | None, config: Any) -> None:
    """Write the timings that the build ended with."""
    if file is not None:
        timings = config.get_timing_cache()
        write_atomically(file, bytes(timings.serialize()))


class Phases:
    """The phases that are running, nested, and the share of the build that is done.

    A phase of n steps inside another takes the share of one step of that other, and so on to the outermost, which is the
    build. TensorRT sometimes starts a phase in a step that is already told as done: the share never goes back.
    """

    def __init__(self) -> None:
        self._running: dict[str, tuple[int, int, str | None]] = {}  # name -> steps done, steps in all, parent
        self._build: str | None = None  # the outermost phase, the first that began
        self._share = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase began."""
        self._build = self._build or name
        self._running[name] = (0, max(steps, 1), parent if parent in self._running else None)

    def step(self, name: str, step: int) -> None:
        """Step number `step`, counted from 0, of a phase is done."""
        if name in self._running:
            _, steps, parent = self._running[name]
            self._running[name] = (min(step + 1, steps), steps, parent)

    def finish(self, name: str) -> None:
        """A phase ended."""
        self._running.pop(name, None)
        if name == self._build:
            self._share = 1.0

    def share(self) -> float:
        """The part of the build that is done, from 0 to 1; never less than before."""
        if self._running:
            self._share = max(self._share, max(self._share_of(name) for name in self._running))
        return self._share

    def _share_of(self, name: str) -> float:
        share, seen = 0.0, set()
        current: str | None = name
        while current in self._running and current not in seen:
            seen.add(current)
            done, steps, parent = self._running[current]
            share = min((done + share) / steps, 1.0)
            current = parent
        return share


def build_monitor(trt: Any, report: Callable[[int, int], None], stop: Callable[[], bool]) -> Any:
    """A monitor for `IBuilderConfig.progress_monitor` that calls `report(steps done, STEPS)` and asks `stop` at every step.

    TensorRT calls it from any of its threads and keeps no reference: the caller holds it until the build ended.
    """

    class BuildMonitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.phases = Phases()
            self.stopped = False

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self.phases.step(phase_name, step)
            report(round(STEPS * self.phases.share()), STEPS)
            self.stopped = self.stopped or stop()
            return not self.stopped  # False ends the build

        def phase_finish(self, phase_name: str) -> None:
            self.phases.finish(phase_name)
            if not self.stopped:
                report(round(STEPS * self.phases.share()), STEPS)

    return BuildMonitor()
