"""A bundle, a precision and a runner in; the loaded runner and the threshold to judge with out."""

from __future__ import annotations

from importlib.util import find_spec

from nnet_edge.artefacts import Artefact
from nnet_edge.bundle import Bundle
from nnet_edge.config import RunnerSettings
from nnet_edge.errors import MissingExtraError
from nnet_edge.runtime.runner import Runner, installed_kind, load_runner

GRAPH_OF = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8"}  # precision asked for -> that of the graph


def open_graph(bundle: Bundle, settings: RunnerSettings, precision: str = "fp32") -> tuple[Runner, float]:
    """The runner of the bundle's artefact of that precision, and the threshold that was chosen with both.

    It is the graph, for TensorRT the engine that fits this machine. Raises BundleError when there is none, or when its gate
    refused it or never saw this runner.
    """
    artefact = choose_artefact(bundle, settings, precision)
    runner = load_runner(artefact.path, settings)
    return runner, artefact.threshold_for(runner.name).value


def choose_artefact(bundle: Bundle, settings: RunnerSettings, precision: str) -> Artefact:
    """The engine that fits this machine for TensorRT, else the graph, of that precision."""
    if settings.kind == "tensorrt":
        from nnet_edge.runtime.engine_record import engine_here

        return engine_here(bundle, precision)
    return bundle.artefact(GRAPH_OF[precision])


def choose_runnable(bundle: Bundle, settings: RunnerSettings, precision: str) -> tuple[Artefact, str, float]:
    """The artefact, the runner's name and the threshold that `open_graph` would take; nothing is loaded.

    Raises BundleError as it does, MissingExtraError when the runner's library is not installed.
    """
    kind = installed_kind() if settings.kind == "auto" else settings.kind
    if kind != "tensorrt" and find_spec(kind) is None:
        raise MissingExtraError(f"{kind} is not installed: pip install 'nnet-edge[cpu]'")
    artefact = choose_artefact(bundle, settings, precision)
    return artefact, kind, artefact.threshold_for(kind).value
