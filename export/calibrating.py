"""Calibration of one bundle: INT8 and FP16 graphs, each judged on every runner; the gate decides what stays FP32."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from nnet_edge import __version__
from nnet_edge.bits import kept_bits
from nnet_edge.bundle import (
    Bundle,
    add_artefact,
    graph_name,
    keep_frames,
    now,
    read_bundle,
    source_name,
    variant_name,
    without_artefact,
    without_unnamed_frames,
)
from nnet_edge.calibration.gate import Gate, GateLimits
from nnet_edge.calibration.predictions import Predictions, load_test
from nnet_edge.calibration.processor_forms import Form, to_integers, to_unsigned
from nnet_edge.calibration.qdq import plan
from nnet_edge.calibration.quantize import (
    QuantizeSettings,
    choose_frames,
    measure_activations,
    measure_spans,
    quantize,
    read_graph,
)
from nnet_edge.calibration.sensitivity import Sensitivity, measure_sensitivity
from nnet_edge.data.holding_out import with_held_out_images
from nnet_edge.data.images import Dataset, load_images
from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.export.layer_search import Choice, GraphJudge, LayerSearch
from nnet_edge.export.precision import to_half
from nnet_edge.files import sha256
from nnet_edge.kept_frames import frame_hash
from nnet_edge.known_answers import Answers, asked_frames
from nnet_edge.runtime.runners.answers import add_answers
from nnet_edge.runtime.runners.base import Runner
from nnet_edge.runtime.runners.structure import fault_of
from nnet_edge.settings.runner import CPU_RUNNER_KINDS, RunnerSettings

PRECISIONS = ("int8", "fp16")
IN_INTEGERS = "onnxruntime"  # the runner that has a form of its own of INT8 graphs (calibration/processor_forms.py)
SENSITIVITY_FRAMES = 6  # costs of blocks differ by factors; more frames change their order little

Bar = Callable[[str], AbstractContextManager[Callable[[int, int], None]]]  # title -> a bar for (done, total)


@dataclass(frozen=True)
class CalibrateSettings:
    """What to make and how. Raises ConfigError for an invalid setting."""

    precisions: tuple[str, ...] = PRECISIONS
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    frames: int = 64
    seed: int = 0
    accept: bool = False  # keep graphs that the gate refuses
    limits: GateLimits = field(default_factory=GateLimits)

    def __post_init__(self) -> None:
        unknown = [name for name in self.precisions if name not in PRECISIONS]
        if unknown or not self.precisions:
            named = ", ".join(unknown) or "none"
            raise ConfigError(f"precision {named!r} cannot be calibrated: choose {' or '.join(PRECISIONS)}, or both")


@dataclass(frozen=True)
class Variant:
    """A graph in a form that one runner takes."""

    content: bytes
    made: Mapping[str, Any]  # as that of a graph


@dataclass(frozen=True)
class Graph:
    """A finished graph and what was measured of it."""

    precision: str
    content: bytes
    gates: tuple[Gate, ...]  # the deciding runner first
    made: Mapping[str, Any]  # for the manifest: tool, method, seconds, blocks kept in FP32
    unseen: tuple[Gate, ...] = ()  # the same on the labelled images that its layers were not chosen on; decides nothing
    engine_source: bytes | None = None  # of INT8: the same graph with everything else in FP16, for TensorRT
    answers: Mapping[str, Answers] = field(default_factory=dict)  # runner -> its known answers
    variants: Mapping[str, Variant] = field(default_factory=dict)  # of the runners that take a form of their own

    @property
    def is_wanted(self) -> bool:
        """Whether some runner takes it."""
        return any(gate.accepted or gate.overridden for gate in self.gates)

    @property
    def is_common(self) -> bool:
        """Whether it was judged itself, on a runner that takes no form of its own."""
        return any(gate.runner not in self.variants for gate in self.gates)

    def measured(self, runners: Collection[str]) -> dict[str, Any]:
        """What was measured on these runners, for the record of the file that they take."""
        return {
            "gates": {gate.runner: gate.as_dict() for gate in self.gates if gate.runner in runners},
            "unseen": {gate.runner: gate.as_dict() for gate in self.unseen if gate.runner in runners},
            "answers": {name: answers.as_dict() for name, answers in self.answers.items() if name in runners},
        }


@dataclass(frozen=True)
class Made:
    """A graph that was not judged yet."""

    model: onnx.ModelProto
    facts: dict[str, Any]  # for the manifest
    unseen: np.ndarray | None = None  # rows of the test images that its layers were not chosen on
    signed: onnx.ModelProto | None = None  # of INT8: as TensorRT takes it
    variants: Mapping[str, Made] = field(default_factory=dict)  # runner -> the same in a form of its own


class GraphMaker:
    """Makes graphs of the judge's bundle on `frames`, uint8 RGB (N, H, W, 3), and has them judged."""

    def __init__(
        self, judge: GraphJudge, frames: np.ndarray, settings: CalibrateSettings, bar: Bar, say: Callable[[str], None]
    ) -> None:
        self.judge, self.frames, self.settings, self.bar, self.say = judge, frames, settings, bar, say
        graph = judge.bundle.graph
        self.model = read_graph(judge.bundle.read(graph.name), str(graph))

    @property
    def threads(self) -> int | None:
        """Of the processor, for everything that computes."""
        return self.judge.runner.threads

    def make(self, precision: str) -> Graph:
        """The graph of that precision ("int8", "fp16"), judged on every runner."""
        began = time.perf_counter()
        made = self._make_int8() if precision == "int8" else self._make_fp16()
        content = made.model.SerializeToString()
        # of INT8 as a GPU wants it: what is not INT8 in FP16, but for the FP32 region
        source = None if made.signed is None else self._to_half(made.signed).SerializeToString()
        seconds = round(time.perf_counter() - began, 1)
        more = {"frames": len(self.frames), "seed": self.settings.seed, "seconds": seconds, "when": now()}
        gates, unseen, answers = [], [], {}
        variants: dict[str, Variant] = {}
        fault = fault_of(content) or fault_of(source or content)
        for reference in self.judge.references:
            self.say(f"judging {precision} on {reference.name}")
            taken = made
            if (own := made.variants.get(reference.name)) is not None:
                variant = Variant(own.model.SerializeToString(), own.facts | more)
                predictions, gate = self._judge(variant.content, precision, reference, fault_of(variant.content))
                if gate.accepted:
                    variants[reference.name], taken = variant, own
                else:
                    self.say(
                        f"{reference.name} refuses a form of its own: {'; '.join(gate.reasons)}; judging that for all"
                    )
            if taken is made:
                predictions, gate = self._judge(content, precision, reference, fault)
            if gate.threshold is not None:
                answers[reference.name] = self.judge.answers(predictions)
            gates.append(gate if gate.threshold is None else gate.overridden_by(self.settings.accept))
            if taken.unseen is not None:
                unseen.append(self.judge.compare_rows(reference, predictions, taken.unseen))
        return Graph(precision, content, tuple(gates), made.facts | more, tuple(unseen), source, answers, variants)

    def _judge(self, content: bytes, precision: str, reference: Runner, fault: str | None) -> tuple[Predictions, Gate]:
        """What a graph says on that runner, and the verdict on it; a `fault` is one that no runner would be given it with."""
        predictions, latency_ms = self.judge.predict_all(content, precision, reference)
        gate = self.judge.compare(reference, predictions, latency_ms)
        if fault:  # which scores may hide
            gate = replace(gate, accepted=False, reasons=(*gate.reasons, fault), threshold=None)
        return predictions, gate

    def keep(self, bundle: Bundle, graph: Graph) -> Bundle:
        """`bundle` with the graph, its record and the frames that it was made with."""
        bundle, hashes = keep_frames(bundle, self.frames)
        record = {
            "precision": graph.precision,
            "source": sha256(bundle.graph),
            "made": dict(graph.made),
            "frames": hashes,
        }
        common = [gate.runner for gate in graph.gates if gate.runner not in graph.variants]
        kept = record | {"kind": "graph"} | graph.measured(common)
        bundle = add_artefact(bundle, graph_name(graph.precision), graph.content, kept)
        for item in bundle.artefacts:
            if (item.kind, item.precision) == ("variant", graph.precision):
                bundle = without_artefact(bundle, item.name)
        for runner, variant in graph.variants.items():
            kept = record | {"kind": "variant", "made": dict(variant.made)} | graph.measured([runner])
            bundle = add_artefact(bundle, variant_name(graph.precision, runner), variant.content, kept)
        if graph.engine_source is not None:
            # No CPU runner runs it; its engines are judged where they run, and asked for what the graph says
            kept = record | {"kind": "source"} | graph.measured(list(graph.answers)) | {"gates": {}, "unseen": {}}
            bundle = add_artefact(bundle, source_name(graph.precision), graph.engine_source, kept)
        return without_unnamed_frames(bundle)

    def _make_fp16(self) -> Made:
        return Made(self._to_half(self.model), {"tool": "nnet-edge", "version": __version__, "method": "casts"})

    def _to_half(self, model: onnx.ModelProto) -> onnx.ModelProto:
        with self.bar("looking for overflow in FP16") as report:
            return to_half(model, self.frames, report, self.threads)

    def _make_int8(self) -> Made:
        """The INT8 graph, each form of it with the fewest layers in FP32 for which its runner's gate holds."""
        quantizer = self.settings.quantize
        planned = plan(self.model)
        with self.bar(f"measuring ranges with {quantizer.tool}") as report:
            activations = measure_activations(planned, self.frames, quantizer, report)
        about = {
            "tool": "nnet-edge",  # inserts Q/DQ and rounds the weights, whoever measured the ranges
            "version": __version__,
            "method": quantizer.method_that_runs,
            "ranges": quantizer.origin(),
        }

        @cache
        def sensitivity() -> Sensitivity:
            few, threshold = self.frames[:SENSITIVITY_FRAMES], self.judge.bundle.threshold.value
            with self.bar("measuring what each block costs") as report:
                return measure_sensitivity(planned, activations, few, threshold, report, self.threads)

        def choose(reference: Runner, form: Form) -> Choice:
            search = LayerSearch(planned, activations, self.judge, self.say, reference, form)
            gate = self.judge.judge(search.content(()), "int8", reference=reference)
            if gate.accepted:
                return Choice()
            why = "; ".join(gate.reasons)
            self.say(f"all layers in INT8 on {reference.name}: {why}; looking for those that must stay FP32")
            return search.choose(sensitivity(), self.settings.seed)

        def finish(choice: Choice, form: Form) -> Made:
            facts = {
                "kept_in_fp32": list(choice.kept),
                "share_in_int8": 1 - planned.share(choice.kept),  # of the multiplications of what can be INT8 at all
                "map_error_by_block": {
                    name: cost if np.isfinite(cost) else None for name, cost in choice.costs.items()
                },
                "search": choice.search,
            }
            return Made(quantize(planned, activations, choice.kept, form), about | facts, choice.unseen)

        choices: list[Choice] = []  # the deciding runner's first
        variants: dict[str, Made] = {}
        for reference in self.judge.references:
            if reference.name == IN_INTEGERS:
                with self.bar(f"measuring what {reference.name} rounds besides") as report:
                    spans = measure_spans(planned, self.frames, quantizer, report)
                form = partial(to_integers, spans=spans)
                choices.append(choose(reference, form))
                variants[reference.name] = finish(choices[-1], form)
            elif not choices:
                choices.append(choose(reference, to_unsigned))
        common = finish(choices[0], to_unsigned)
        return replace(common, signed=quantize(planned, activations, choices[0].kept), variants=variants)


def calibrate_bundle(path: Path, dataset: Dataset, runner: RunnerSettings, settings: CalibrateSettings, skip_bad: bool,
                     bar: Bar, say: Callable[[str], None], bits: int | None = None) -> list[Graph]:  # fmt: skip
    """Make the graphs that `settings` name for the bundle at `path`; those that some runner takes are in it afterwards.

    Raises CalibrationError for too few frames, DataError for images that cannot be read, ConfigError for a runner that
    computes no graph.
    """
    bundle = read_bundle(path)
    for warning in bundle.warnings:
        say(warning)
    kinds, bits = runner_kinds(runner.kind), bits or kept_bits(bundle.manifest)
    if not asked_frames(bundle):
        say(f"{path} is of before known answers: those of its FP32 graph are added")
        bundle = add_answers(bundle, kinds)
    with bar("reading images") as report:
        images = load_images(dataset.train, skip_bad, report, bits, bundle.geometry).images
    # by folds all images are learned
    judged = () if bundle.threshold.folds > 1 else tuple(bundle.manifest["frames"]["held_out"])
    if bundle.geometry.tiles is not None:  # representative are tiles, whatever their place
        images = bundle.geometry.cut(images[[frame_hash(image) not in judged for image in images]])
    frames = choose_frames(images, settings.frames, settings.seed, judged)
    if len(frames) < settings.frames:
        asked = f"{settings.frames} were asked for"
        say(f"note: calibrating on the {len(frames)} good images that were not held out; {asked}")
    labelled = with_held_out_images(dataset, bundle.manifest["data"])
    test = load_test(labelled, skip_bad, bits, bundle.geometry)
    graphs = []
    with GraphJudge(bundle, test, kinds, runner, settings.limits, say) as judge:
        maker = GraphMaker(judge, frames, settings, bar, say)
        for precision in settings.precisions:
            graph = maker.make(precision)
            if graph.is_wanted:
                bundle = maker.keep(bundle, graph)
            graphs.append(graph)
    return graphs


def runner_kinds(kind: str) -> list[str]:
    """The runners to judge on: the one that was asked for, or every one of the processor that is installed."""
    if kind in CPU_RUNNER_KINDS:
        return [kind]
    if kind == "cuda":
        raise ConfigError(
            "calibrate judges on the processor: take another --runner, and nnet-edge build-engine BUNDLE --measure judges the "
            "FP16 graph on CUDA"
        )
    if kind != "auto":
        raise ConfigError(f"{kind} computes engines, not graphs: build-engine judges those; choose another --runner")
    kinds = [name for name in CPU_RUNNER_KINDS if find_spec(name) is not None]
    if not kinds:
        raise MissingExtraError("neither openvino nor onnxruntime is installed: pip install 'nnet-edge[cpu]'")
    return kinds
