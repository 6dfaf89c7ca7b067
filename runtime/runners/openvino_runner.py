"""OpenVINO runner, the default on a processor; the only file that imports openvino.

OpenVINO chooses BF16 by itself on processors that have it, so the precision is set every time and read back. The graph is
compiled for one image, and a batch is computed image by image: with EfficientNet-Lite0 that takes 13 to 19 % less processor
time than a free batch, nothing is compiled again when the batch changes, and no score depends on other images.

A line whose batches are larger than what is computed at once is given a second graph after a while, for GROUP images: one pass
over the weights serves all of them. Time an image: of four, on two threads, 0.77 in INT8 and 0.83 to 0.94 in FP32 (hint
"latency"); of two, on one thread, 0.91 and 0.95 ("throughput"). Memory: 70 to 130 MB. It is used where it gives the numbers of
the first to the last bit, so that no score depends on other images then either.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nnet_edge.bundle import known_hash, read_known
from nnet_edge.errors import BundleError, ConfigError, StreamError, missing_library
from nnet_edge.machine import free_memory, is_throttled, usable_cores
from nnet_edge.runtime.runners.graph import (
    DEPLOYED,
    INPUT,
    TAIL,
    Contract,
    GraphRunner,
    input_shape_of,
    layer_maps_of,
    require_contract,
    require_tail_shapes,
)
from nnet_edge.runtime.runners.kept_graph import KeptGraph
from nnet_edge.runtime.runners.later import Later
from nnet_edge.runtime.runners.structure import require_structure
from nnet_edge.settings.runner import RunnerSettings

CONVERTER = "openvino.tools.ovc"  # with NumPy's ma, absl and more: a third of OpenVINO's import
try:
    if "openvino" not in sys.modules:
        sys.modules[CONVERTER] = None  # type: ignore[assignment]  # "there is no such module", which OpenVINO puts up with
    import openvino
except ImportError as error:
    raise missing_library("openvino", "cpu", error) from error
finally:
    if sys.modules.get(CONVERTER, "") is None:
        del sys.modules[CONVERTER]


def late(name: str) -> Any:
    """`openvino.convert_model` and `openvino.tools` for others in this process, imported when they are asked for."""
    if name not in ("convert_model", "tools"):
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    converter = importlib.import_module(CONVERTER)
    return converter.convert_model if name == "convert_model" else sys.modules["openvino.tools"]


vars(openvino).setdefault("__getattr__", late)

log = logging.getLogger(__name__)

# With the bytes that its weights lie in, where it was kept: OpenVINO takes no copy, nor hold of them.
Compiled = tuple[openvino.CompiledModel, openvino.Tensor | None]
DEVICE = "CPU"
GROUP = {"latency": 4, "throughput": 2}  # images a request; of "throughput" each stream has one of its own
GROUPS_ROOM = 1 << 30  # bytes that are free before it takes a tenth of them
GROUPS_AFTER = (
    100  # batches with room for such a request, while others are computed, more than batches that nothing precedes:
)
# a line that judges frame by frame, or rests between its batches, needs no more speed, and keeps its memory
PRECISION_NAMES = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's words
NUMBER_TYPES = {"u8": "uint8", "f32": "float32"}

# One Core a process, never given back: the processor's plugin of each sets a signal stack for the thread that first uses it,
# and unmaps it when the Core goes. Behind two runners that overlapped, or one that another thread closed (a swapped bundle),
# the next signal was a segmentation fault. OpenVINO 2026.4.
CORE = openvino.Core()


class Requests:
    """The requests of one compiled graph for `images` at a time, made when they are needed and used again and again."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled, self._weights = compiled
        self.ports = {name: port for port in self.compiled.outputs for name in port.names}
        self.images = int(self.compiled.input(INPUT).shape[0])
        self._idle: list[openvino.InferRequest] = []

    def start(self, images: np.ndarray, busy: dict[openvino.InferRequest, np.ndarray]) -> openvino.InferRequest:
        """A request under way for the images, which `busy` keeps alive as long as it is."""
        request = self._idle.pop() if self._idle else self.compiled.create_infer_request()
        # without OpenVINO's dispatch of names and types, which takes 0.1 ms
        request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
        busy[request] = images
        try:
            request.start_async()
        except RuntimeError:
            del busy[request]
            raise
        return request

    def give_back(self, request: openvino.InferRequest) -> None:
        """The request is done, and its outputs were read."""
        self._idle.append(request)

    def close(self) -> None:
        """Let go of requests, graph and weights, in the order in which they use each other."""
        self._idle = []
        del self.compiled
        del self._weights


class OpenvinoRunner(GraphRunner):
    """A graph compiled by OpenVINO for the processor; for the hint "throughput" several images are under way at once."""

    name = "openvino"

    def __init__(self, graph: Path, settings: RunnerSettings, contract: Contract = DEPLOYED) -> None:
        super().__init__(graph, settings, contract)
        self.version = openvino.__version__.split("-")[0]
        require_precision(settings.precision)
        self._single = Requests(open_compiled(graph, settings, contract))
        compiled = self._single.compiled
        self.input_shape = shape_of(graph, compiled, contract)
        shapes = {name: tuple(port.shape) for port in compiled.outputs for name in port.names if name in TAIL}
        require_tail_shapes(graph, shapes, self.input_shape)
        self._shapes = {name: tuple(port.shape)[1:] for name, port in self._single.ports.items()}
        self.layer_maps = layer_maps_of(self._shapes)
        self.at_once = int(compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))
        self._busy: dict[openvino.InferRequest, np.ndarray] = {}  # with the images, which must live as long
        self._group = GROUP[settings.hint]
        self._groups: Later[Requests] | None = None
        if self._worth(settings.max_batch):
            what = f"a graph for {self._group} images"
            self._groups = Later(what, partial(self._open_groups, settings, contract), GROUPS_AFTER)

    def _start(self, images: np.ndarray, wanted: Sequence[str]) -> Callable[[], Mapping[str, np.ndarray]]:
        """Start a request for each image, or each group: OpenVINO's streams never wait for Python."""
        if not images.flags.writeable:  # OpenVINO shares no memory that is read-only
            images = images.copy()
        started: list[tuple[Requests, openvino.InferRequest, int]] = []  # with the place of its first image
        group, grouped = self._grouped(len(images))
        try:
            for start in [*range(0, grouped, self._group), *range(grouped, len(images))]:
                requests = group if group is not None and start < grouped else self._single
                part = images[start : start + requests.images]
                started.append((requests, requests.start(part, self._busy), start))
        except RuntimeError as error:
            self._give_up([request for _, request, _ in started])
            raise StreamError(f"OpenVINO could not compute {len(images)} images: {reason(error)}") from error

        def collect() -> Mapping[str, np.ndarray]:
            outputs = {name: np.empty((len(images), *self._shapes[name]), np.float32) for name in wanted}
            try:
                for requests, request, start in started:
                    request.wait()
                    for name, array in outputs.items():
                        array[start : start + requests.images] = request.get_tensor(requests.ports[name]).data
                    del self._busy[request]
                    requests.give_back(request)
            except RuntimeError as error:
                self._give_up([request for _, request, _ in started])
                raise StreamError(f"OpenVINO could not compute {len(images)} images: {reason(error)}") from error
            return outputs

        return collect

    def _grouped(self, images: int) -> tuple[Requests | None, int]:
        """The requests for several images, and how many of so many images they take."""
        if self._groups is None or not (worth := self._worth(images)):
            return None, 0
        found = self._groups.get(is_wanted=bool(self._busy))
        return found, 0 if found is None else worth

    def _worth(self, images: int) -> int:
        """How many of so many images are computed in groups, were there such requests: no stream is left without one."""
        most = (images - self.at_once) // (self._group - 1)  # each takes the place of so many other requests
        return self._group * max(0, min(images // self._group, most))

    def _open_groups(self, settings: RunnerSettings, contract: Contract) -> Requests | None:
        """The graph for several images; None without room, and where its numbers are not those of one's to the last bit."""
        if free_memory() < GROUPS_ROOM:
            log.info("less than %d MiB of memory are free: it stays one image a request", GROUPS_ROOM >> 20)
            return None
        requests = Requests(open_compiled(self.graph, settings, contract, images=self._group))
        pictures = np.random.default_rng(0).integers(0, 256, (self._group, *self.input_shape), np.uint8)
        found, alone = numbers(requests, pictures), [numbers(self._single, picture[np.newaxis]) for picture in pictures]
        if all(np.array_equal(found[name], np.concatenate([one[name] for one in alone])) for name in found):
            log.info("%d images a request from here on, where so many wait", self._group)
            return requests
        log.info("%d images a request give other numbers than one on this processor: it stays one", self._group)
        requests.close()
        return None

    def _give_up(self, requests: Sequence[openvino.InferRequest]) -> None:
        """Wait for the requests that are running, and release their images; none of them is used again."""
        for request in requests:
            if request in self._busy:
                with contextlib.suppress(RuntimeError):  # its outputs are not needed
                    request.wait()
                del self._busy[request]

    def _release(self) -> None:
        group = None if self._groups is None else self._groups.close()
        self._give_up(list(self._busy))
        for requests in (group, self._single):
            if requests is not None:
                requests.close()


def numbers(requests: Requests, images: np.ndarray) -> dict[str, np.ndarray]:
    """All outputs for the images, by a request of its own."""
    request = requests.compiled.create_infer_request()
    request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
    request.infer()
    return {name: request.get_tensor(port).data.copy() for name, port in requests.ports.items()}


def require_precision(precision: str) -> None:
    """Raise ConfigError unless this processor computes in `precision`."""
    if precision == "bf16" and "BF16" not in CORE.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise ConfigError("this processor has no BF16 arithmetic: choose the precision fp32")


def options_of(settings: RunnerSettings) -> dict[str, str | int]:
    """What OpenVINO is told."""
    precision = PRECISION_NAMES[settings.precision]
    options: dict[str, str | int] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": settings.hint.upper()}
    if settings.threads is not None or is_throttled():
        options["INFERENCE_NUM_THREADS"] = settings.threads or usable_cores()
    return options


def open_compiled(graph: Path, settings: RunnerSettings, contract: Contract = DEPLOYED, images: int = 1) -> Compiled:
    """The graph for so many `images`, compiled now or kept from an earlier time, where settings name a folder for that.

    Raises BundleError when OpenVINO cannot read or compile it or the contract is broken, ConfigError for a cache folder that
    cannot be used, and where it computes in another precision.
    """
    options, content, kept = options_of(settings), b"", None
    if settings.kept_in is not None:
        graph_hash = known_hash(graph)
        if graph_hash is None:
            content = read_known(graph)
            graph_hash = hashlib.sha256(content).hexdigest()
        known = options if images == 1 else options | {"images": images}
        kept = KeptGraph(settings.kept_in, graph_hash, openvino.get_version(), known)
        if (found := import_kept(kept, options)) is not None:
            return found
    with contextlib.nullcontext() if kept is None else kept.locked():
        if kept is not None and (found := import_kept(kept, options)) is not None:  # others have compiled it meanwhile
            return found
        content = content or read_known(graph)
        require_structure(content, str(graph))
        model = read_graph(graph, content, contract, images)
        del content  # OpenVINO has its own copy, and needs the room while it compiles
        compiled = compile_graph(model, graph, options)
        if kept is not None:
            kept.write(compiled.export_model().getvalue())
    return compiled, None


def import_kept(kept: KeptGraph, options: Mapping[str, str | int]) -> Compiled | None:
    """The kept graph, which was checked before it was compiled; None where none is kept, or OpenVINO cannot use it."""
    if (blob := kept.read()) is None:
        return None
    weights = openvino.Tensor(blob, shared_memory=True)
    try:
        return CORE.import_model(weights, DEVICE, dict(options)), weights
    except RuntimeError as error:
        log.warning("OpenVINO cannot use %s and compiles the graph anew: %s", kept.file, reason(error))
        kept.discard()
        return None


def shape_of(graph: Path, compiled: openvino.CompiledModel, contract: Contract) -> tuple[int, int, int]:
    """(height, width, channels) of an image. Raises BundleError when the contract is broken."""
    require_contract(graph, port_types(compiled.inputs), port_types(compiled.outputs), contract)
    return input_shape_of(graph, [None, *compiled.input(INPUT).shape[1:]])


def read_graph(graph: Path, content: bytes, contract: Contract = DEPLOYED, images: int = 1) -> openvino.Model:
    """The `content` of the file `graph` as OpenVINO reads it, for so many `images`.

    Raises BundleError when it cannot or the contract is broken.
    """
    try:
        model = CORE.read_model(content)
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot read {graph}: {reason(error)}; write it again with `export`") from error
    require_contract(graph, port_types(model.inputs), port_types(model.outputs), contract)
    sizes = model.input(INPUT).partial_shape
    shape = input_shape_of(graph, [None if size.is_dynamic else size.get_length() for size in sizes])
    model.reshape({INPUT: [images, *shape]})
    return model


def save_ir(graph: bytes, path: Path) -> None:
    """Write an ONNX graph as OpenVINO's IR, `path` and .bin beside it: all weights in FP32, any number of images."""
    openvino.save_model(CORE.read_model(graph), path, compress_to_fp16=False)


def compile_graph(model: openvino.Model, graph: Path, options: Mapping[str, str | int]) -> openvino.CompiledModel:
    """The graph compiled. Raises BundleError where OpenVINO cannot, ConfigError for another precision than was asked for."""
    try:
        compiled = CORE.compile_model(model, DEVICE, dict(options))
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot compile {graph}: {reason(error)}") from error
    asked, chosen = options["INFERENCE_PRECISION_HINT"], compiled.get_property("INFERENCE_PRECISION_HINT")
    if chosen.get_type_name() != asked:
        raise ConfigError(
            f"OpenVINO computes in {chosen.get_type_name()} on this processor, not in the {asked} that was asked for"
        )
    return compiled


def port_types(ports: Sequence[Any]) -> dict[str, str]:
    """The name of each input or output -> its number type, "uint8" or "float32", others by OpenVINO's own word."""
    types = {}
    for port in ports:
        number_type = port.element_type.get_type_name()
        types.update(dict.fromkeys(port.names, NUMBER_TYPES.get(number_type, number_type)))
    return types


def reason(error: Exception) -> str:
    """The last line of OpenVINO's message that is not empty; its source files come first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
