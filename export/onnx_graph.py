"""Export of a network to the one ONNX graph: uint8 RGB (N, 256, 256, 3) to layer maps, anomaly map and image score.

torch's dynamo exporter writes the network (opset 18, dynamic batch, batch norms folded), `surgery.py` adds the tail.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict

import onnx
import torch

from nnet_edge import __version__
from nnet_edge.errors import ExportError
from nnet_edge.export.surgery import add_tail, fold_constants, suit_processors
from nnet_edge.imaging import SIDE
from nnet_edge.methods.network import Network

OPSET = 18
INPUT = "images"
EXAMPLE_BATCH = 2  # with 1 the exporter pins the dimension
LARGEST_PROTOBUF = 2**31 - 1  # bytes


def export_onnx(network: Network, facts: dict[str, str]) -> onnx.ModelProto:
    """The graph of `network` with `facts` (system, backbone, ...) as its metadata.

    Raises ExportError when the exporter refuses, the result is not valid ONNX or it is too large for one file.
    """
    model = suit_processors(fold_constants(trace(network)))
    model = add_tail(model, SIDE, network.map_fusion)
    if model.ByteSize() > LARGEST_PROTOBUF:
        raise ExportError("the graph is larger than 2 GiB, too large for one ONNX file: choose a smaller backbone")
    del model.metadata_props[:]
    model.producer_name, model.doc_string = "nnet-edge", ""
    onnx.helper.set_model_props(model, {f"nnet_edge.{name}": value for name, value in sorted(facts.items())})
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return model


def trace(network: Network, side: int = SIDE) -> onnx.ModelProto:
    """The network as torch's exporter writes it for images of `side` x `side`: layer maps out, no tail."""
    images = torch.zeros(EXAMPLE_BATCH, side, side, 3, dtype=torch.uint8)
    network = network.eval().cpu().float()
    try:
        with torch.no_grad(), quiet():
            program = torch.onnx.export(
                network,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                input_names=[INPUT],
                output_names=list(network.output_names),
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ExportError(f"torch cannot export the network: {str(error).splitlines()[0]}") from error
    assert program is not None  # dynamo=True always gives a program
    return program.model_proto


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporter's own progress lines and deprecation warnings off the user's terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def facts_of(network: Network) -> dict[str, str]:
    """What the graph says of itself: system, backbone, input and the settings of the model."""
    return {
        "version": __version__,
        "system": network.method,
        "backbone": network.settings.backbone,
        "input": f"uint8 RGB NHWC {SIDE}x{SIDE}, Pillow bilinear with antialias, aspect ratio not kept",
        "settings": json.dumps(asdict(network.settings), sort_keys=True),
    }
