"""What a bundle can be run from: the FP32 graph, graphs of another precision, engines; each with its own threshold.

The manifest's `artefacts` maps a file name to its record:

    kind        "graph", "engine", or "source": an INT8 graph with everything else in FP16, which engines are built of
    precision   "fp32", "fp16" or "int8"
    source      SHA-256 of the graph that it was made from
    made        tool, version, method, seconds, when, ...
    frames      hashes of the frames that a graph was calibrated on
    gates       runner name -> what was measured there against FP32, the verdict, and the threshold chosen again
    unseen      the same on the labelled images that a graph's layers were not chosen on; decides nothing

`nnet.onnx` itself needs no record: it is what every other artefact is measured against.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnet_edge.errors import BundleError
from nnet_edge.scoring import Threshold

KINDS = ("graph", "source", "engine")
PRECISIONS = ("fp32", "fp16", "int8")
FIELDS = ("kind", "precision", "source", "made", "gates")  # that every record has
VERBS = {"graph": "calibrate", "source": "calibrate", "engine": "build-engine"}  # kind -> the verb that makes one


@dataclass(frozen=True)
class Artefact:
    """One file of a bundle that a runner can load."""

    path: Path
    kind: str
    precision: str
    record: Mapping[str, Any]  # as the manifest has it
    fp32_threshold: Threshold | None = None  # of nnet.onnx only, whose threshold holds on every runner

    @property
    def name(self) -> str:
        """The file's name in the bundle."""
        return self.path.name

    def threshold_for(self, runner: str) -> Threshold:
        """The threshold that was chosen with this artefact on that runner.

        Raises BundleError, naming the command that measures it, when none was, or when the gate refused it there.
        """
        if self.fp32_threshold is not None:
            return self.fp32_threshold
        gate = self.record["gates"].get(runner)
        data = "" if self.kind == "engine" else " DATA"
        again = f"nnet-edge {VERBS[self.kind]} {self.path.parent}{data} --precision {self.precision}"
        if gate is None:
            known = ", ".join(self.record["gates"]) or "no runner"
            raise BundleError(
                f"{self.path} was measured on {known} and not on {runner}, so it has no threshold there: "
                f"run {again} where {runner} is installed"
            )
        if not (gate["accepted"] or gate.get("overridden")):
            raise BundleError(
                f"{self.path} was refused on {runner} ({'; '.join(gate['reasons'])}): use another precision, or run "
                f"{again} --accept to use it all the same"
            )
        return Threshold.from_dict(gate["threshold"])


def artefact_of(path: Path, record: Mapping[str, Any]) -> Artefact:
    """The artefact at `path` with that record. Raises BundleError for a record that says too little."""
    faults = [f"lacks {name}" for name in FIELDS if name not in record]
    faults += [
        f"has the {name} {record[name]!r}"
        for name, known in (("kind", KINDS), ("precision", PRECISIONS))
        if name in record and record[name] not in known
    ]
    if faults:
        raise BundleError(f"the manifest's record of {path} {' and '.join(faults)}: make that file again")
    return Artefact(path, record["kind"], record["precision"], record)


def graph_name(precision: str) -> str:
    """The file name of the graph of a precision, as nnet.int8.onnx."""
    return "nnet.onnx" if precision == "fp32" else f"nnet.{precision}.onnx"


def source_name(precision: str) -> str:
    """The file name of the graph that engines of a precision are built of, where it is another than the runners'."""
    return f"nnet.{precision}.source.onnx"


def precision_named(graph: Path) -> str | None:
    """The precision that a graph's file name states, None for nnet.onnx and for names of other making."""
    word = Path(graph.stem).suffix.removeprefix(".")
    return word if word in PRECISIONS else None
