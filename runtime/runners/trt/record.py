"""Records of engines in the manifest, and the checks that an engine fits this machine before it is loaded.

An engine is native code for one flavour and version of TensorRT, one kind of GPU and one operating system; elsewhere it
crashes or, worse, gives wrong verdicts. So an engine is loaded only from its bundle, whose manifest says how it was built.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from nnet_edge.anomaly_map import Fusion
from nnet_edge.bundle import MANIFEST, Artefact, Bundle, artefact_of, graph_name, read_manifest, source_name
from nnet_edge.errors import BundleError, ConfigError, NnetEdgeError
from nnet_edge.files import sha256
from nnet_edge.geometry import DEFAULT, Geometry
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.runtime.runners.trt.flavours import answer_of, flavours_on, refusal
from nnet_edge.runtime.runners.trt.library import TITLES, load_tensorrt, parse_version

COMPATIBILITY = ("none", "ampere_plus", "same_compute_capability")  # TensorRT's hardware compatibility levels
AMPERE = (8, 0)


@dataclass(frozen=True)
class Place:
    """Where an engine is to run."""

    flavour: str  # "tensorrt" or "tensorrt_rtx"
    version: str  # of that library
    system: str  # "Linux x86_64"
    compute_capability: str  # of the GPU, "8.9"


@dataclass(frozen=True)
class EngineRecord:
    """How an engine was built; the `made` of its entry in the manifest."""

    tool: str  # the flavour
    version: str  # of the flavour
    system: str
    target: str  # as `build-engine --target` was told
    compute_capabilities: tuple[str, ...]  # that the engine holds code for
    gpu: str | None  # that it was built on, None for one built without
    cuda: str | None  # the newest CUDA that the driver knew at build
    driver: str | None
    hardware_compatibility: str  # one of COMPATIBILITY
    version_compatible: bool
    batch: tuple[int, int, int]  # smallest, best and largest
    workspace_mib: int | None  # None: the builder's own limit
    optimization: int  # 0 to 5
    layer_maps: tuple[str, ...]  # that it gives
    fusion: Mapping[str, Any]  # how they are fused: the fields of anomaly_map.Fusion
    sha256: str
    size: int  # bytes
    seconds: float  # that the build took
    when: str
    input: tuple[int, int] = DEFAULT.size  # height and width; an engine of before is of 256x256

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def as_fusion(self) -> Fusion:
        """How the engine's layer maps become one map."""
        return Fusion.from_dict(self.fusion)


def system_here() -> str:
    """Operating system and processor family, as records write them."""
    return f"{platform.system()} {platform.machine()}"


def read_engine(engine: Path) -> tuple[Artefact, EngineRecord]:
    """The artefact and the record of the engine at `engine`, from the manifest of the bundle that it lies in.

    Raises ConfigError for a path that is no file, BundleError for an engine whose folder is no bundle or whose bundle does
    not know it, and for an entry that says too little.
    """
    if not engine.is_file():
        raise ConfigError(f"there is no engine at {engine}: build one with nnet-edge build-engine BUNDLE")
    if not (engine.parent / MANIFEST).is_file():
        raise BundleError(
            f"{engine} lies outside of its bundle, and an engine is never loaded without its manifest entry: "
            "copy the whole bundle, or build it here with nnet-edge build-engine BUNDLE"
        )
    manifest = read_manifest(engine.parent)
    record = manifest.get("artefacts", {}).get(engine.name)
    if record is None or record.get("kind") != "engine":
        raise BundleError(
            f"the manifest of {engine.parent} has no entry for the engine {engine.name}, so nothing says how it was built: "
            f"build it with nnet-edge build-engine {engine.parent}"
        )
    artefact = artefact_of(engine, record)
    return artefact, record_of(artefact)


def record_of(artefact: Artefact) -> EngineRecord:
    """The record of an engine artefact. Raises BundleError for one that says too little."""
    made = dict(artefact.record["made"])
    known = {field.name: field.default for field in fields(EngineRecord)}
    missing = sorted(name for name, default in known.items() if default is MISSING and name not in made)
    if missing:
        lacks = f"the manifest's entry of {artefact.path} lacks {', '.join(missing)}"
        raise BundleError(f"{lacks}: build it again with {rebuild_command(artefact)}")
    values: dict[str, Any] = {name: _as_tuple(made.get(name, default)) for name, default in known.items()}
    return EngineRecord(**values)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def require_engine(engine: Path, place: Place) -> EngineRecord:
    """The record of the engine at `engine`, checked for `place`; TensorRT has not read it yet.

    Raises what `read_engine` raises, and BundleError that names every value that differs and the command that rebuilds.
    """
    artefact, record = read_engine(engine)
    faults = [*file_faults(artefact, record), *place_faults(record, place)]
    if faults:
        why, command = "; ".join(faults), rebuild_command(artefact)
        raise BundleError(f"{engine} cannot be loaded here: {why}. Build it again here with {command}")
    return record


def file_faults(artefact: Artefact, record: EngineRecord) -> list[str]:
    """What is wrong with the engine's file or with its source graph; empty when nothing is."""
    if not artefact.path.is_file():
        return ["the file is not there"]
    size = artefact.path.stat().st_size
    if size != record.size:
        return [f"the file has {size} bytes and had {record.size} when it was built (it was cut off or replaced)"]
    if sha256(artefact.path) != record.sha256:
        return ["the file was altered after it was built (its SHA-256 differs)"]
    manifest = read_manifest(artefact.path.parent)
    files, geometry = manifest.get("files", {}), Geometry.in_manifest(manifest).network
    if record.input != geometry.size:
        height, width = record.input
        return [f"it takes images of {height}x{width} pixels and the bundle's are {geometry.text}"]
    source = source_name(artefact.precision)
    graph = source if source in files else graph_name(artefact.precision)
    if files.get(graph) != artefact.record["source"]:
        return [f"it was built from another {graph} than the one in the bundle (their SHA-256 differ)"]
    return []


def place_faults(record: EngineRecord, place: Place) -> list[str]:
    """Every value in which the machine differs from what the engine was built for; empty when it fits."""
    if record.tool != place.flavour:
        return [f"it was built by {TITLES[record.tool]} and this is {TITLES[place.flavour]}"]
    faults = []
    if not version_fits(record, place.version):
        faults.append(f"it was built by {TITLES[record.tool]} {record.version} and this is {place.version}")
    if record.system != place.system:
        faults.append(f"it was built for {record.system} and this is {place.system}")
    if not capability_fits(record, place.compute_capability):
        built_for = ", ".join(record.compute_capabilities)
        plus = " and above" if record.hardware_compatibility == "ampere_plus" else ""
        here = place.compute_capability
        faults.append(f"it was built for compute capability {built_for}{plus} and this GPU has {here}")
    return faults


def faults_here(record: EngineRecord, index: int = 0) -> list[str]:
    """Why this machine's GPU of that index cannot run an engine with that record; empty when it can. Loads no engine."""
    gpu = find_gpu(index)
    if isinstance(gpu, NoGpu):
        return [gpu.reason]
    try:
        library = load_tensorrt(record.tool)
    except NnetEdgeError as error:
        return [str(error)]
    faults = place_faults(record, Place(library.flavour, library.version, system_here(), gpu.compute_capability))
    if not faults and (answer := answer_of(record.tool, gpu)).runs is False:
        faults = [answer.sentence()]
    return faults


def faults_of(artefact: Artefact, index: int = 0) -> list[str]:
    """Why this machine cannot load that engine: its entry, its file or the machine itself; empty when it can."""
    try:
        record = record_of(artefact)
    except BundleError as error:
        return [str(error)]
    return [*file_faults(artefact, record), *faults_here(record, index)]


def engine_here(bundle: Bundle, precision: str | None = None, index: int = 0) -> Artefact:
    """The engine of that precision that fits this machine, the newest of several; without a precision the one that
    `build-engine` found best, or the only one.

    Raises BundleError that says of each why it does not fit, or which of several may be meant, with the command that helps.
    """
    engines = [item for item in bundle.artefacts if item.kind == "engine" and precision in (None, item.precision)]
    faults = {item.name: faults_of(item, index) for item in engines}
    fitting = [item for item in engines if not faults[item.name]]
    if not fitting:
        gpu = find_gpu(index)
        if isinstance(gpu, GpuFacts) and (refused := refusal(flavours_on(gpu))):
            raise BundleError(f"no engine of {bundle.path} can run on {gpu.name}: {refused}")
        why = "".join(f"; {name}: {', '.join(reasons)}" for name, reasons in faults.items())
        kind, option = (f"{precision} engine", f" --precision {precision}") if precision else ("engine", "")
        raise BundleError(
            f"{bundle.path} holds no {kind} for this machine{why}: build one here with "
            f"nnet-edge build-engine {bundle.path}{option}, or use a CPU runner of the graph"
        )
    if precision is None:
        fitting = [item for item in fitting if "best" in item.record] or fitting
        found = list(dict.fromkeys(item.precision for item in fitting if "best" not in item.record))
        if len(found) > 1:
            raise BundleError(
                f"{bundle.path} holds engines of {' and '.join(found)} for this machine, and build-engine compared none of "
                f"them: say --precision, or let nnet-edge build-engine {bundle.path} find the best"
            )
    return max(fitting, key=lambda item: str(item.record["made"]["when"]))


def version_fits(record: EngineRecord, version: str) -> bool:
    """Whether that version of the library loads the engine: the same one, or a later one of the same major if so built."""
    built, here = parse_version(record.version), parse_version(version)
    if record.version_compatible:
        return built[:1] == here[:1] and here >= built
    return built == here


def capability_fits(record: EngineRecord, compute_capability: str) -> bool:
    """Whether the engine holds code for a GPU of that compute capability."""
    if record.hardware_compatibility == "ampere_plus":
        return parse_version(compute_capability) >= AMPERE
    return compute_capability in record.compute_capabilities


def rebuild_command(artefact: Artefact) -> str:
    """What to type on the machine where the engine is to run."""
    return f"nnet-edge build-engine {artefact.path.parent} --precision {artefact.precision} --target local"
