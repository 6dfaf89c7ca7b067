"""A bundle, a precision and a runner in; the loaded runner and the threshold to judge with out."""

from __future__ import annotations

from importlib.util import find_spec

from nnet_edge.artefacts import Artefact
from nnet_edge.bundle import Bundle
from nnet_edge.config import RunnerSettings
from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.runtime.runner import Runner, installed_kind, load_runner

GRAPH_OF = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8"}  # precision asked for -> that of the graph


def open_graph(bundle: Bundle, settings: RunnerSettings, precision: str | None = None) -> tuple[Runner, float]:
    """The runner of the bundle's artefact of that precision, and the threshold that was chosen with both.

    It is the graph, for TensorRT the engine that fits this machine. Without a precision it is the FP32 graph, or the engine
    that `build-engine` found best here. Raises BundleError when there is none, or when its gate refused it or never saw
    this runner; what `load_runner` raises.
    """
    artefact, _, threshold = choose_runnable(bundle, settings, precision)
    return load_runner(artefact.path, settings), threshold


def choose_artefact(bundle: Bundle, settings: RunnerSettings, precision: str | None) -> Artefact:
    """The engine that fits this machine for TensorRT, else the graph, of that precision; see `open_graph` for None."""
    if settings.kind != "tensorrt":
        return bundle.artefact(GRAPH_OF[precision or "fp32"])
    if precision == "bf16":
        raise ConfigError(
            "engines are of fp32, fp16 or int8, and bf16 is for the processor: choose another --precision"
        )
    from nnet_edge.runtime.engine_record import engine_here

    return engine_here(bundle, precision)


def choose_runnable(bundle: Bundle, settings: RunnerSettings, precision: str | None) -> tuple[Artefact, str, float]:
    """The artefact, the runner's name and the threshold that `open_graph` would take; nothing is loaded.

    Raises BundleError as it does, MissingExtraError when the runner's library is not installed.
    """
    kind = installed_kind() if settings.kind == "auto" else settings.kind
    if kind != "tensorrt" and find_spec(kind) is None:
        raise MissingExtraError(f"{kind} is not installed: pip install 'nnet-edge[cpu]'")
    artefact = choose_artefact(bundle, settings, precision)
    name = str(artefact.record["made"]["tool"]) if artefact.kind == "engine" else kind
    return artefact, name, artefact.threshold_for(name).value
