"""Base class of the runners of an ONNX graph, the graph's contract, and the checks of files and images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnet_edge.anomaly_map import SCALES, is_layer_map, split_name
from nnet_edge.bundle import MANIFEST, precision_named, read_known, read_manifest
from nnet_edge.errors import BundleError, ConfigError, StreamError
from nnet_edge.frame import Outputs
from nnet_edge.geometry import MULTIPLE, Geometry
from nnet_edge.runtime.runners.structure import require_structure
from nnet_edge.settings.runner import RunnerSettings

if TYPE_CHECKING:
    from typing_extensions import Self

INPUT = "images"  # uint8 RGB (N, height, width, 3)
TAIL = ("anomaly_map", "image_score")  # float32 (N, 1, height, width) and (N,)


@dataclass(frozen=True)
class Contract:
    """Outputs of a graph beside its layer maps. Only benchmarks ask for no tail."""

    tail: tuple[str, ...] = TAIL


DEPLOYED = Contract()


class GraphRunner(ABC):
    """A compiled ONNX graph; `infer` gives maps and scores. Ready when constructed, released when the last `with` is left.

    One thread at a time may call `infer`. The constructor raises ConfigError for settings that the library or the processor
    cannot meet, BundleError for a file that is no graph of nnet-edge.
    """

    name: str  # of the library
    version: str  # of the library
    layer_maps: tuple[str, ...]  # that the graph gives, branch by branch
    input_shape: tuple[int, int, int]  # (height, width, channels) of one image
    device = "the processor"

    def __init__(self, graph: Path, settings: RunnerSettings, contract: Contract = DEPLOYED) -> None:
        if not graph.is_file():
            raise ConfigError(f"there is no graph at {graph}: give a bundle or a .onnx file that `export` wrote")
        self.graph = graph
        self._tail = contract.tail
        self.precision = precision_named(graph) or settings.precision
        self.max_batch = settings.max_batch
        self._entered = 0
        self._released = False

    def __enter__(self) -> Self:
        self._require_open()
        self._entered += 1
        return self

    def __exit__(self, *error: object) -> None:
        self._entered -= 1
        if self._entered == 0 and not self._released:
            self._released = True
            self._release()

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        """Maps and scores of `images`, uint8 RGB (N, height, width, 3) 1 <= N <= max_batch; the layer maps if asked.

        The caller may keep the arrays. Raises ConfigError for images of another shape, type or number, StreamError when
        the library fails.
        """
        return self.start(images, layer_maps)()

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        """`infer` in two steps, see Runner; errors of the library may come in either."""
        if not self._tail:
            raise ConfigError(f"{self.graph} has no tail, so it gives no anomaly map: ask for its layer maps alone")
        collect = self._checked_start(images, (*TAIL, *self.layer_maps) if layer_maps else TAIL)

        def outputs() -> Outputs:
            self._require_open()
            arrays = collect()
            require_tail_shapes(self.graph, {name: arrays[name].shape for name in TAIL}, self.input_shape)
            maps = {name: arrays[name] for name in self.layer_maps} if layer_maps else {}
            return Outputs(arrays["anomaly_map"][:, 0], arrays["image_score"], maps)

        return outputs

    def infer_layer_maps(self, images: np.ndarray) -> Mapping[str, np.ndarray]:
        """Only the layer maps of `images`, float32 (N, 1, h, w) by name. Raises what `infer` raises."""
        return self._checked_start(images, self.layer_maps)()

    def _checked_start(self, images: np.ndarray, wanted: Sequence[str]) -> Callable[[], Mapping[str, np.ndarray]]:
        self._require_open()
        check_images(images, self.max_batch, self.input_shape)
        return self._start(np.ascontiguousarray(images), wanted)

    @abstractmethod
    def _start(self, images: np.ndarray, wanted: Sequence[str]) -> Callable[[], Mapping[str, np.ndarray]]:
        """Begin to compute; the returned function waits and gives the wanted outputs by name, in arrays of their own."""

    @abstractmethod
    def _release(self) -> None:
        """Give the library's memory and threads back."""

    def _require_open(self) -> None:
        if self._released:
            raise StreamError(f"the {self.name} runner of {self.graph} is closed: load it again")


def read_graph_bytes(graph: Path) -> bytes:
    """The graph, read once, as a runner may be given it. Raises BundleError when it was altered, or is malformed."""
    content = read_known(graph)
    require_structure(content, str(graph))
    return content


def check_images(images: np.ndarray, max_batch: int, shape: tuple[int, int, int]) -> None:
    """Raise ConfigError unless `images` is uint8 (N, *shape) with N from 1 to `max_batch`."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape:
        raise ConfigError(
            f"a runner takes uint8 RGB (N, {shape[0]}, {shape[1]}, 3), not {images.dtype} {tuple(images.shape)}: "
            "resize with nnet_edge.imaging.resize"
        )
    if not 1 <= len(images) <= max_batch:
        raise ConfigError(f"a batch of {len(images)} images does not fit this runner: it takes 1 to {max_batch}")


def layer_maps_of(outputs: Iterable[str]) -> tuple[str, ...]:
    """The layer maps that a graph with these outputs must have, branch by branch: of a branch one, or one of each scale."""
    branches: dict[str, list[int]] = {}
    for name in filter(is_layer_map, outputs):
        branch, scale = split_name(name)
        branches.setdefault(branch, []).append(scale)
    return tuple(
        f"{branch}_{scale}"
        for branch in sorted(branches)
        for scale in (SCALES if len(branches[branch]) > 1 else branches[branch])
    )


def require_contract(
    graph: Path, inputs: Mapping[str, str], outputs: Mapping[str, str], contract: Contract = DEPLOYED
) -> None:
    """Raise BundleError unless the graph's names and number types (name -> "uint8" or "float32") are the contract's."""
    wanted_inputs = {INPUT: "uint8"}
    layer_maps = layer_maps_of(outputs)
    wanted_outputs = dict.fromkeys((*layer_maps, *contract.tail), "float32")
    faults = [] if layer_maps else ["gives no layer map"]
    faults += [f"has the unknown input {name}" for name in inputs if name not in wanted_inputs]
    for kind, wanted, found in (("input", wanted_inputs, inputs), ("output", wanted_outputs, outputs)):
        faults += [f"lacks the {kind} {name}" for name in wanted if name not in found]
        faults += [
            f"has the {kind} {name} as {found[name]} instead of {number_type}"
            for name, number_type in wanted.items()
            if name in found and found[name] != number_type
        ]
    if faults:
        raise BundleError(f"{graph} is no graph of nnet-edge: it {', '.join(faults)}; write it again with `export`")


def require_tail_shapes(graph: Path, shapes: Mapping[str, Sequence[int]], input_shape: tuple[int, int, int]) -> None:
    """Raise BundleError unless the tail gives a map of the input's size and a score an image."""
    expected: dict[str, tuple[int, ...]] = {"anomaly_map": (1, *input_shape[:2]), "image_score": ()}
    for name, shape in shapes.items():
        if not shape or tuple(shape[1:]) != expected[name]:
            raise BundleError(
                f"{graph} gives {name} of shape {tuple(shape)} and not ({', '.join(map(str, ('N', *expected[name])))}): "
                "write it again with `export`"
            )


def input_shape_of(graph: Path, shape: Sequence[object]) -> tuple[int, int, int]:
    """(height, width, channels) by `shape`, that of the graph's input, whatever stands for N.

    Raises BundleError for a shape that no input has, without a free N, and where the graph's bundle says another one.
    """
    is_free = not isinstance(shape[0], int) if shape else False
    found = tuple(side for side in shape[1:] if isinstance(side, int))
    if not is_free or len(shape) != 4 or len(found) != 3 or found[2] != 3 or any(side % MULTIPLE for side in found[:2]):
        raise BundleError(
            f"{graph} takes images of shape {tuple(shape)} and not (N, height, width, 3) with a free N, height and width "
            f"multiples of {MULTIPLE}: write it again with `export`"
        )
    said = geometry_beside(graph)
    if said is not None and found != said.shape:
        raise BundleError(
            f"{graph} takes images of {found[0]}x{found[1]} pixels and its bundle's manifest says {said.text}: copy the whole "
            "bundle again, or export it again"
        )
    return found[0], found[1], 3


def geometry_beside(file: Path) -> Geometry | None:
    """The geometry of the network of the bundle that the file lies in; None where it lies in none. Raises BundleError."""
    if not (file.parent / MANIFEST).is_file():
        return None
    return Geometry.in_manifest(read_manifest(file.parent)).network
