"""N-Net in every precision, as `calibrate` writes it, becomes an engine for every kind of RTX card, without a GPU.

What the engines answer cannot be told here; that the parser takes the graphs and the builder finds kernels, can.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from torch import nn

from nnet_edge.bundle import Bundle
from nnet_edge.calibration.qdq import plan
from nnet_edge.calibration.quantize import QuantizeSettings, measure_activations, quantize, read_graph
from nnet_edge.export.engine import build_engine
from nnet_edge.export.engine_settings import EngineSettings, Profile, parse_target
from nnet_edge.export.onnx_graph import export_onnx, facts_of
from nnet_edge.export.precision import to_half
from nnet_edge.geometry import Geometry
from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.network import Network
from nnet_edge.methods.nnet.network import build_nnet
from nnet_edge.methods.nnet.settings import ModelSettings
from nnet_edge.methods.teacher_weights import RANDOM, load_teacher

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
ALL_CARDS = "rtx:sm75,sm86,sm89,sm120"
THREADS = 1


def int8(model: onnx.ModelProto, frames: np.ndarray) -> onnx.ModelProto:
    found = plan(model)
    activations = measure_activations(
        found, frames, QuantizeSettings(method="max", threads=THREADS), lambda done, total: None
    )
    return quantize(found, activations)


def fp16(model: onnx.ModelProto, frames: np.ndarray) -> onnx.ModelProto:
    return to_half(model, frames, threads=THREADS)


MAKERS: dict[str, Callable[[onnx.ModelProto, np.ndarray], onnx.ModelProto]] = {
    "fp32": lambda model, frames: model,
    "fp16": fp16,
    "int8": int8,
    "int8 in fp16": lambda model, frames: fp16(int8(model, frames), frames),
}


def engine_size(model: onnx.ModelProto, folder: Path, target: str) -> int:
    """Bytes of the engine that is built of `model`."""
    graph = folder / "nnet.onnx"
    onnx.save(model, graph)
    settings = EngineSettings(parse_target(target), Profile(1, 8, 8))
    built = build_engine(graph, settings)
    assert built.record.compute_capabilities == settings.target.compute_capabilities
    assert len(built.content) == built.record.size
    return built.record.size


def test_efficientnet_lite0_is_built_for_every_card_in_every_precision(bundle: Bundle, tmp_path: Path) -> None:
    model = read_graph(bundle.graph.read_bytes(), bundle.graph.name)
    frames = bundle.frames("held_out")[:4]
    sizes = {name: engine_size(make(model, frames), tmp_path, ALL_CARDS) for name, make in MAKERS.items()}
    assert sizes["fp16"] < 0.8 * sizes["fp32"]  # half of the weights, and as much code
    assert max(sizes["int8"], sizes["int8 in fp16"]) < sizes["fp32"]  # with small weights the code is what counts


@pytest.mark.parametrize("target", ["rtx:sm75", "rtx:sm120"])
def test_a_single_card_needs_no_other(target: str, bundle: Bundle, tmp_path: Path) -> None:
    model = read_graph(bundle.graph.read_bytes(), bundle.graph.name)
    alone = engine_size(int8(model, bundle.frames("held_out")[:2]), tmp_path, target)
    assert alone > 5e6


def leave_out_repeats(network: Network) -> Network:
    """The network with the first two of each row of residual blocks: those behind them are the second once more."""
    for stage in list(network.modules()):
        if isinstance(stage, nn.Sequential) and len(stage) > 2 and len({type(block) for block in stage}) == 1:
            same = [{name: value.shape for name, value in block.state_dict().items()} for block in list(stage)[1:]]
            assert all(shapes == same[0] for shapes in same)
            del stage[2:]
    return network


@pytest.mark.slow
def test_wide_resnet_is_built_for_all_cards_in_every_precision(tmp_path: Path) -> None:
    backbone = "wide_resnet50_2"
    settings = ModelSettings(backbone=backbone)
    network = leave_out_repeats(build_nnet(settings, load_teacher(find_backbone(backbone), RANDOM), seed=0))
    network = network.at(Geometry(64, 64))  # the engine is as large for any size
    model = export_onnx(network, facts_of(network))
    frames = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    deployed = ("fp32", "fp16", "int8 in fp16")  # what `engine_source` gives for each precision of a calibrated bundle
    sizes = {name: engine_size(MAKERS[name](model, frames), tmp_path, ALL_CARDS) for name in deployed}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    assert sizes["int8 in fp16"] < 0.7 * sizes["fp16"]
