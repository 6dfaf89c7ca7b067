"""A graph's metadata, read without onnx, is what onnx reads; whatever is no graph is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper

from nnet_edge.anomaly_map import Fusion
from nnet_edge.bundle import Bundle
from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.runtime.runners.graph_facts import fusion_of, read_facts


def write_model(path: Path, facts: dict[str, str]) -> Path:
    model = helper.make_model(helper.make_graph([], "empty", [], []))
    helper.set_model_props(model, facts)
    onnx.save(model, path)
    return path


def test_it_reads_what_onnx_reads(bundle: Bundle) -> None:
    facts = read_facts(bundle.graph)
    known = {item.key: item.value for item in onnx.load(bundle.graph).metadata_props}
    assert {f"nnet_edge.{name}": value for name, value in facts.items()} == known
    settings = bundle.manifest["train"]["model"]
    assert fusion_of(facts).exponents == tuple(settings["scale_exponents"])
    assert fusion_of(facts).align_corners is settings["align_corners"]


def test_long_values_and_foreign_entries_are_no_trouble(tmp_path: Path) -> None:
    settings = '{"align_corners": true, "scale_exponents": [1, 0, 2], "forward_weights": [1, 1, 0]' + " " * 70_000 + "}"
    facts = {"author": "ß" * 300, "nnet_edge.system": "nnet", "nnet_edge.settings": settings}
    found = read_facts(write_model(tmp_path / "nnet.onnx", facts))
    assert found == {"system": "nnet", "settings": settings}
    assert fusion_of(found) == Fusion(True, (1, 0, 2), (1, 1, 0))


@pytest.mark.parametrize("facts", [{}, {"nnet_edge.system": "nnet"}, {"nnet_edge.settings": "{}"}, {"system": "nnet"}])
def test_a_graph_of_other_making_is_refused(facts: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="has no metadata of nnet-edge"):
        read_facts(write_model(tmp_path / "nnet.onnx", facts))


@pytest.mark.parametrize(
    "settings", ["no JSON", "{}", '{"align_corners": 1, "scale_exponents": [1], "forward_weights": [1]}']
)
def test_metadata_that_names_no_fusion_is_refused(settings: str) -> None:
    with pytest.raises(BundleError, match="does not say how its maps are fused"):
        fusion_of({"settings": settings})


@pytest.mark.parametrize(
    "content", [b"\x0f", b"\x72\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x72\x7fshort", b"\x72"]
)
def test_bytes_that_are_no_graph_are_refused(content: bytes, tmp_path: Path) -> None:
    graph = tmp_path / "nnet.onnx"
    graph.write_bytes(content)
    with pytest.raises(BundleError, match="is no ONNX graph, or was cut off"):
        read_facts(graph)
    with pytest.raises(ConfigError, match="there is no graph"):
        read_facts(tmp_path / "absent.onnx")
