"""Graphs of other precisions for one bundle, each judged on every runner; the gate says how many blocks stay FP32."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx

from nnet_edge import __version__
from nnet_edge.artefacts import graph_name, source_name
from nnet_edge.bundle import Bundle, add_artefact, add_frames, now
from nnet_edge.calibration.gate import Answers, Gate, GateLimits, TestImages, ask, compare, time_both
from nnet_edge.calibration.placement import Plan, plan
from nnet_edge.calibration.quantize import QuantizeSettings, measure_activations, quantize, read_graph
from nnet_edge.calibration.ranges import Activations
from nnet_edge.calibration.sensitivity import fewest_kept, measure_sensitivity
from nnet_edge.config import RunnerSettings
from nnet_edge.errors import ConfigError
from nnet_edge.export.precision import to_half
from nnet_edge.files import sha256
from nnet_edge.runtime.runner import Runner, load_runner

PRECISIONS = ("int8", "fp16")
SENSITIVITY_FRAMES = 6  # costs of blocks differ by factors; more frames change their order little
PACKAGES = {"onnxruntime": "onnxruntime", "modelopt": "nvidia-modelopt"}  # tool -> what brings it

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]  # title -> a bar for (done, total)


@dataclass(frozen=True)
class CalibrateSettings:
    """What to make and how. Raises ConfigError for what cannot be meant."""

    precisions: tuple[str, ...] = PRECISIONS
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    frames: int = 64
    seed: int = 0
    accept: bool = False  # take graphs that the gate refuses
    limits: GateLimits = field(default_factory=GateLimits)

    def __post_init__(self) -> None:
        unknown = [name for name in self.precisions if name not in PRECISIONS]
        if unknown or not self.precisions:
            named = ", ".join(unknown) or "none"
            raise ConfigError(f"precision {named!r} cannot be calibrated: choose {' or '.join(PRECISIONS)}, or both")


@dataclass(frozen=True)
class Graph:
    """A finished graph and what was measured of it."""

    precision: str
    content: bytes
    gates: tuple[Gate, ...]  # the deciding runner first
    made: Mapping[str, Any]  # for the manifest: tool, method, seconds, blocks kept in FP32
    engine_source: bytes | None = None  # of INT8: the same graph with everything else in FP16, for TensorRT

    @property
    def is_wanted(self) -> bool:
        """Whether some runner takes it."""
        return any(gate.accepted or gate.overridden for gate in self.gates)


class Bench:
    """Makes and judges graphs of `bundle`. A context manager; `kinds` are the runners, the first one decides."""

    def __init__(
        self,
        bundle: Bundle,
        frames: np.ndarray,
        test: TestImages | None,
        kinds: Sequence[str],
        runner: RunnerSettings,
        settings: CalibrateSettings,
        bar: Bar,
        say: Callable[[str], None],
    ) -> None:
        self.bundle, self.frames, self.test, self.kinds = bundle, frames, test, kinds
        self.runner, self.settings, self.bar, self.say = runner, settings, bar, say
        self.held_out = bundle.frames("held_out")
        self.model = read_graph(bundle.graph.read_bytes(), str(bundle.graph))
        self._expected: dict[str, Answers] = {}  # runner -> of FP32, asked once
        self._stack = ExitStack()

    def __enter__(self) -> Bench:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="nnet-edge-calibrate-")))
        graph = self.bundle.graph
        self.references: list[Runner] = [
            self._stack.enter_context(load_runner(graph, replace(self.runner, kind=kind))) for kind in self.kinds
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def make(self, precision: str) -> Graph:
        """The graph of that precision ("int8", "fp16"), judged on every runner."""
        began = time.perf_counter()
        model, made = self._make_int8() if precision == "int8" else self._make_fp16()
        content = model.SerializeToString()
        source = self._with_fp16_rest(model) if precision == "int8" else None
        made |= {"seconds": round(time.perf_counter() - began, 1), "when": now()}
        gates = []
        for reference in self.references:
            self.say(f"judging {precision} on {reference.name}")
            with self._load(content, precision, reference.name) as candidate:
                answers = ask(candidate, self.held_out, self.test, self._false_rejects)
                latency_ms = time_both(reference, candidate, self.held_out)
            gate = compare(self._expected_of(reference), answers, self.test, self.settings.limits, latency_ms)
            gates.append(gate if gate.accepted else replace(gate, overridden=self.settings.accept))
        return Graph(precision, content, tuple(gates), made, source)

    def keep(self, bundle: Bundle, graph: Graph) -> Bundle:
        """`bundle` with the graph, its record and the frames that it was made with."""
        bundle = add_frames(bundle, "calibration", self.frames, seed=self.settings.seed)
        record = {
            "kind": "graph",
            "precision": graph.precision,
            "source": sha256(bundle.graph),
            "made": dict(graph.made),
            "gates": {gate.runner: gate.as_dict() for gate in graph.gates},
        }
        bundle = add_artefact(bundle, graph_name(graph.precision), graph.content, record)
        if graph.engine_source is not None:
            record |= {"kind": "source", "gates": {}}  # no CPU runner runs it; its engines are judged where they run
            bundle = add_artefact(bundle, source_name(graph.precision), graph.engine_source, record)
        return bundle

    @property
    def _false_rejects(self) -> float | None:
        return self.bundle.threshold.asked

    def _load(self, content: bytes, precision: str, kind: str) -> Runner:
        file = self._folder / graph_name(precision)
        file.write_bytes(content)
        return load_runner(file, replace(self.runner, kind=kind))

    def _make_fp16(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        with self.bar("looking for overflow in FP16") as report:
            half = to_half(self.model, self.frames, report, self.runner.threads)
        return half, {"tool": "nnet-edge", "version": __version__, "method": "casts", "frames": len(self.frames)}

    def _with_fp16_rest(self, model: onnx.ModelProto) -> bytes:
        """The INT8 graph as a GPU wants it: what is not INT8 in FP16, but for the island."""
        with self.bar("looking for overflow in FP16") as report:
            return to_half(model, self.frames, report, self.runner.threads).SerializeToString()

    def _make_int8(self) -> tuple[onnx.ModelProto, dict[str, Any]]:
        """The INT8 graph with the fewest layers in FP32 for which the deciding runner's gate holds."""
        quantizer = self.settings.quantize
        planned = plan(self.model)
        with self.bar(f"measuring ranges with {quantizer.tool}") as report:
            activations = measure_activations(planned, self.frames, quantizer, report)
        gate = self._judge_quickly(quantize(planned, activations))
        kept: tuple[str, ...] = ()
        costs: Mapping[str, float] = {}
        if not gate.accepted:
            self.say(f"all layers in INT8: {'; '.join(gate.reasons)}; looking for those that must stay FP32")
            kept, costs = self._choose_kept(planned, activations)
        made = {
            "tool": quantizer.tool,
            "version": metadata.version(PACKAGES[quantizer.tool]),
            "method": quantizer.method,
            "frames": len(self.frames),
            "seed": self.settings.seed,
            "kept_in_fp32": list(kept),
            "share_in_int8": 1 - planned.share(kept),  # of the multiplications of what can be INT8 at all
            "map_error_by_block": dict(costs),
        }
        return quantize(planned, activations, kept), made

    def _choose_kept(self, planned: Plan, activations: Activations) -> tuple[tuple[str, ...], Mapping[str, float]]:
        """The blocks and layers to leave in FP32, and what each block costs in map error."""
        few, threshold = self.frames[:SENSITIVITY_FRAMES], self.bundle.threshold.value
        with self.bar("measuring what each block costs") as report:
            sensitivity = measure_sensitivity(planned, activations, few, threshold, report, self.runner.threads)

        def judge_kept(kept: tuple[str, ...]) -> Gate:
            gate = self._judge_quickly(quantize(planned, activations, kept))
            count = f"{len(planned.layers_in(kept))} of {len(planned.layers)}"
            self.say(f"{count} layers in FP32: {'; '.join(gate.reasons) or 'the gate holds'}")
            return gate

        found = fewest_kept(sensitivity.order, judge_kept, lambda gate: gate.accepted)
        if not found.holds:
            self.say("no choice of layers satisfies the gate: what follows has all of them in INT8")
            return (), sensitivity.blocks
        return found.kept, sensitivity.blocks

    def _judge_quickly(self, model: onnx.ModelProto) -> Gate:
        """The deciding runner's verdict without timing."""
        reference = self.references[0]
        expected = self._expected_of(reference)
        with self._load(model.SerializeToString(), "int8", reference.name) as candidate:
            answers = ask(candidate, self.held_out, self.test, self._false_rejects)
        return compare(expected, answers, self.test, self.settings.limits)

    def _expected_of(self, reference: Runner) -> Answers:
        """What FP32 says on that runner."""
        if reference.name not in self._expected:
            self.say(f"asking FP32 on {reference.name}")
            self._expected[reference.name] = ask(reference, self.held_out, self.test, self._false_rejects)
        return self._expected[reference.name]
