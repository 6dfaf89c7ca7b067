"""The graphs of a bundle in the forms that export and calibration write today, for one that was made before."""

from __future__ import annotations

from pathlib import Path

import onnx

from nnet_edge.bundle import Bundle
from nnet_edge.calibration.qdq import plan
from nnet_edge.calibration.quantize import QuantizeSettings, measure_activations, quantize, read_graph
from nnet_edge.export.surgery import suit_processors

FRAMES = 8  # of the calibration frames: speed does not depend on ranges


def renew(bundle: Bundle, precision: str, folder: Path, threads: int) -> Path | None:
    """The FP32 or INT8 graph of `bundle` made again of its FP32 graph, in `folder`; None when it has today's forms already.

    The same layers stay FP32; ranges come from a few frames, so map and score differ a little where it is INT8.
    """
    old = read_graph(bundle.graph.read_bytes(), str(bundle.graph))
    new = suit_processors(old)
    if sorted(node.op_type for node in new.graph.node) == sorted(node.op_type for node in old.graph.node):
        return None
    del new.metadata_props[:]
    new.metadata_props.extend(old.metadata_props)
    if precision == "int8":
        kept = bundle.artefact("int8").record["made"]["kept_in_fp32"]
        planned = plan(new)
        kept = [unit for unit in kept if unit in {*planned.blocks, *planned.layers}]  # the first layers always are
        frames = bundle.frames("int8")[:FRAMES]
        settings = QuantizeSettings(threads=threads)
        new = quantize(planned, measure_activations(planned, frames, settings, lambda done, total: None), kept)
    path = folder / f"renewed.{precision}.onnx"
    onnx.save(new, path)
    return path
