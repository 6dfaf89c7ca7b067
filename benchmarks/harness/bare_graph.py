"""Graphs without tail: what a runner computes up to the layer maps, cut out of a bundle's graph or traced at another side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nnet_edge.errors import BundleError, ConfigError, MissingExtraError
from nnet_edge.imaging import SIDE
from nnet_edge.runtime.runners.base import installed_kind
from nnet_edge.runtime.runners.graph import INPUT, Contract, GraphRunner, layer_maps_of
from nnet_edge.settings.runner import RunnerSettings

if TYPE_CHECKING:
    from nnet_edge.methods.nnet.network import NNet


def cut_tail(graph: Path, out: Path) -> Path:
    """The graph at `graph` up to its layer maps, as a file of the same name in the folder `out`; cut once only.

    Raises MissingExtraError without onnx, BundleError for a graph that cannot be cut.
    """
    target = out / graph.name
    if target.exists():
        return target
    try:
        import onnx
        import onnx.utils
    except ImportError as error:
        raise MissingExtraError("the bare model is cut out with onnx: pip install 'nnet-edge[calibrate]'") from error
    model = onnx.load(graph)
    names = layer_maps_of(output.name for output in model.graph.output)
    try:
        bare = onnx.utils.Extractor(model).extract_model([INPUT], list(names))
    except ValueError as error:
        raise BundleError(
            f"{graph} has no tail that could be cut off ({error}): write it again with `export`"
        ) from error
    onnx.save(bare, target)
    return target


def trace_bare(network: NNet, side: int, out: Path) -> Path:
    """The graph of `network` for images of `side` x `side`, without tail, at `out`; verdicts are chosen at 256 only.

    Raises ConfigError for a side that the network's strides do not divide.
    """
    import onnx

    from nnet_edge.export.onnx_graph import fold_constants, suit_processors, trace

    if side < 1 or side % 32:
        raise ConfigError(f"an image side of {side} cannot be measured: give multiples of 32, the network's strides")
    onnx.save(suit_processors(fold_constants(trace(network, side))), out)
    return out


def load_bare(graph: Path, settings: RunnerSettings, side: int = SIDE) -> GraphRunner:
    """A runner of a graph without tail: only `infer_layer_maps` works. Raises what `load_runner` raises."""
    contract = Contract(side, ())
    if (installed_kind() if settings.kind == "auto" else settings.kind) == "openvino":
        from nnet_edge.runtime.runners.openvino_runner import OpenvinoRunner

        return OpenvinoRunner(graph, settings, contract)
    from nnet_edge.runtime.runners.onnx_runner import OnnxRunner

    return OnnxRunner(graph, settings, contract)
