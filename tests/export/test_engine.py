"""Engines that TensorRT-RTX really builds, without a GPU: of small graphs, of N-Net, and of graphs that it refuses."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from nnet_edge.anomaly_map import LAYER_MAPS, Fusion
from nnet_edge.bundle import Bundle
from nnet_edge.errors import BundleError, ConfigError, EngineBuildError
from nnet_edge.export import engine
from nnet_edge.export.engine import STEPS, BuiltEngine, EngineNetwork, build_engine
from nnet_edge.export.engine_settings import EngineSettings, Profile, parse_target
from nnet_edge.gpu import GpuFacts, find_gpu
from nnet_edge.runtime.runners.trt.library import load_tensorrt
from nnet_edge.runtime.runners.trt.record import system_here

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
WriteGraph = Callable[..., Path]
ALL_CARDS = "rtx:sm75,sm86,sm89,sm120"
MAGIC = b"vtrt"  # an engine of TensorRT-RTX begins with it


def build(graph: Path, target: str = "rtx:sm86", **settings: object) -> BuiltEngine:
    return build_engine(graph, EngineSettings(parse_target(target), **settings))  # type: ignore[arg-type]


def test_a_small_graph_becomes_an_engine_with_its_record(write_graph: WriteGraph, tmp_path: Path) -> None:
    built = build(write_graph(tmp_path / "nnet.onnx"), "rtx:sm89,sm86", profile=Profile(1, 2, 4), optimization=2)
    record = built.record
    assert built.content.startswith(MAGIC)
    assert record.sha256 == hashlib.sha256(built.content).hexdigest()
    assert record.size == len(built.content)
    assert (record.tool, record.version) == ("tensorrt_rtx", load_tensorrt("tensorrt_rtx").version)
    assert (record.target, record.compute_capabilities) == ("rtx:sm86,sm89", ("8.6", "8.9"))
    assert (record.batch, record.optimization, record.system) == ((1, 2, 4), 2, system_here())
    assert record.layer_maps == LAYER_MAPS
    assert record.as_fusion() == Fusion(False, (0.1, 0.1, 1.0), (1.0, 1.0, 0.5))
    assert 0 < record.seconds < 60


def test_the_network_is_cut_at_the_layer_maps(bundle: Bundle) -> None:
    network = EngineNetwork(load_tensorrt("tensorrt_rtx"), bundle.graph).network
    assert tuple(network.get_output(index).name for index in range(network.num_outputs)) == LAYER_MAPS
    assert [tuple(network.get_output(index).shape)[1:] for index in range(3)] == [(1, 64, 64), (1, 32, 32), (1, 16, 16)]


def test_progress_goes_up_to_the_end(bundle: Bundle) -> None:
    seen: list[tuple[int, int]] = []
    build_engine(bundle.graph, EngineSettings(parse_target("rtx:sm86")), lambda done, total: seen.append((done, total)))
    steps = [done for done, _ in seen]
    assert {total for _, total in seen} == {STEPS}
    assert steps == sorted(steps)
    assert steps[-1] == STEPS
    assert len(set(steps)) > 20


def test_a_build_can_be_stopped(bundle: Bundle) -> None:
    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        build_engine(
            bundle.graph,
            EngineSettings(parse_target("rtx:sm86")),
            lambda done, _: seen.append(done),
            lambda: len(seen) > 5,
        )
    assert len(seen) == 6


def test_n_net_is_built_for_all_cards(bundle: Bundle) -> None:
    built = build(bundle.graph, ALL_CARDS)
    assert built.content.startswith(MAGIC)
    assert built.record.compute_capabilities == ("7.5", "8.6", "8.9", "12.0")
    assert built.record.as_fusion().exponents == tuple(bundle.manifest["train"]["model"]["scale_exponents"])


def test_too_little_workspace_says_so(bundle: Bundle) -> None:
    with pytest.raises(EngineBuildError, match=r"--workspace 64 MiB is too little for batches up to 32: give more"):
        build(bundle.graph, "rtx:sm89", workspace_mib=64)


@pytest.mark.skipif(isinstance(find_gpu(), GpuFacts), reason="this machine has a GPU")
def test_a_local_engine_needs_a_gpu(write_graph: WriteGraph, tmp_path: Path) -> None:
    with pytest.raises(EngineBuildError, match=r"--target local builds on the GPU .* name the cards .* CPU runners"):
        build(write_graph(tmp_path / "nnet.onnx"), "local")


def test_work_that_depends_on_the_data_is_refused(
    write_graph: WriteGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grey = helper.make_tensor_value_info("either", TensorProto.FLOAT, ["batch", 1, 256, 256])
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(kind, ["grey"], ["either"])], name, [], [grey])
        for name, kind in (("then", "Relu"), ("else", "Neg"))
    }
    question = [
        helper.make_node("ReduceMax", ["grey"], ["largest"], "largest", keepdims=0),
        helper.make_node("Cast", ["largest"], ["is_bright"], "is_bright", to=TensorProto.BOOL),
        helper.make_node("If", ["is_bright"], ["chosen"], "choose", **branches),
    ]
    graph = write_graph(tmp_path / "nnet.onnx", extra=question)
    with pytest.raises(BundleError, match=r"the node choose \(If\) is no operator"):
        build(graph)
    monkeypatch.setattr(engine, "read_graph_bytes", Path.read_bytes)  # a graph that only TensorRT looks at
    with pytest.raises(EngineBuildError, match=r"depends on the data \(CONDITION\), which no CUDA graph can capture"):
        build(graph)


def test_a_graph_with_other_inputs_is_refused(write_graph: WriteGraph, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "nnet.onnx", number_type=TensorProto.FLOAT)
    with pytest.raises(EngineBuildError, match=r"takes images FLOAT .* instead of images UINT8"):
        build(graph)


def test_a_graph_without_metadata_is_refused(write_graph: WriteGraph, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"has no metadata of nnet-edge.*give a graph that"):
        build(write_graph(tmp_path / "nnet.onnx", facts={}))


def test_a_graph_that_is_absent_or_cut_off_is_refused(write_graph: WriteGraph, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no graph"):
        build(tmp_path / "nnet.onnx")
    graph = write_graph(tmp_path / "nnet.onnx")
    graph.write_bytes(graph.read_bytes()[:200])
    with pytest.raises(BundleError, match="was cut off"):
        build(graph)
