"""A manifest names hashed files of its own folder, and what is run is what was hashed; a small bundle of before stands in."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.bundle import GRAPH, MANIFEST, WEIGHTS, read_bundle, writing_bundle
from nnet_edge.errors import BundleError
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.settings.runner import RunnerSettings


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A bundle that a test may spoil."""
    return Path(shutil.copytree(Path(__file__).parent / "data/from_0_1/bundle", tmp_path / "bundle"))


def change(folder: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    alter(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def graph_record(**more: Any) -> dict[str, Any]:
    return {"kind": "graph", "precision": "int8", "source": "", "made": {}, "gates": {}} | more


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda one: one["files"].update({"../outside": "0" * 64}), "'../outside', which is no hashed file of the bundle"),
        (lambda one: one["files"].update({"/etc/hostname": "0" * 64}), "'/etc/hostname', which is no hashed file"),
        (lambda one: one["files"].update({"frames/../../x": "0" * 64}), "which is no hashed file"),
        (lambda one: one["files"].update({"./x": "0" * 64}), "which is no hashed file"),
        (lambda one: one["files"].update({WEIGHTS: "soon"}), "which is no hashed file"),
        (lambda one: one["files"].pop("nnet.int8.onnx"), "'nnet.int8.onnx' without a hash"),
        (lambda one: one["artefacts"].update({"../n.onnx": graph_record()}), "'../n.onnx' without a hash"),
        (lambda one: one["artefacts"].update({GRAPH: graph_record(kind="engine")}), "without a hash, or it lies elsewhere"),
        (lambda one: one["artefacts"].update({GRAPH: graph_record()}), "without a hash, or it lies elsewhere"),
        (lambda one: one.update(artefacts=[GRAPH]), "artefacts that are no table"),
        (lambda one: one.update(variants=[GRAPH]), "artefacts that are no table"),
        (lambda one: one.update(variants={"../n.onnx": graph_record()}), "'../n.onnx' without a hash"),
        (lambda one: one["frames"].update(held_out=["../../x"]), "the frame '../../x', which is no hash"),
    ],
)  # fmt: skip
def test_a_manifest_names_hashed_files_of_the_bundle_alone(
    copy: Path, alter: Callable[[dict[str, Any]], object], words: str
) -> None:
    change(copy, alter)
    with pytest.raises(BundleError, match=re.escape(words)):
        read_bundle(copy).frames("held_out")


def test_no_kind_of_a_record_switches_the_check_of_a_graph_off(copy: Path) -> None:
    (copy / "nnet.int8.onnx").write_bytes(b"graph")

    def name_it(manifest: dict[str, Any]) -> None:
        manifest["files"]["nnet.int8.onnx"] = "0" * 64
        manifest["artefacts"]["nnet.int8.onnx"] = graph_record(kind="engine")

    change(copy, name_it)
    with pytest.raises(BundleError, match=r"'nnet\.int8\.onnx' of another kind than its name says"):
        read_bundle(copy)


def test_a_runner_is_given_the_very_bytes_that_were_hashed(copy: Path) -> None:
    """A graph that changes between the check of the bundle and its loading is refused."""
    bundle = read_bundle(copy)
    content = bytearray((copy / GRAPH).read_bytes())
    assert bundle.read(GRAPH) == content
    content[-1] ^= 1
    (copy / GRAPH).write_bytes(content)
    for kind in ("openvino", "onnxruntime"):
        with pytest.raises(BundleError, match=f"{GRAPH} was altered"):
            load_runner(bundle.graph, RunnerSettings(kind=kind))
    with pytest.raises(BundleError, match=f"{GRAPH} was altered"):
        bundle.read(GRAPH)
    shutil.copy(copy / GRAPH, copy / "other.onnx")
    with pytest.raises(BundleError, match=r"other\.onnx has no hash in its bundle's manifest"):
        load_runner(copy / "other.onnx")


def test_what_cannot_be_read_does_not_take_the_place_of_a_good_bundle(copy: Path) -> None:
    before = read_bundle(copy).manifest

    def fail(**parts: Any) -> None:
        with writing_bundle(copy, replace=True) as draft:
            shutil.copy(copy / GRAPH, draft.path)
            draft.manifest |= {
                name: before[name] for name in ("threshold", "teacher", "data", "train", "frames")
            } | parts

    for parts in ({"teacher": {}}, {"threshold": {"value": 1}}, {"data": {"name": math.nan}}):
        with pytest.raises(BundleError):
            fail(**parts)
        assert read_bundle(copy).manifest == before
        assert [path.name for path in copy.parent.iterdir()] == [copy.name]


@pytest.mark.parametrize("digits", [21, 400, 5000])
def test_an_integer_that_no_float_holds_is_refused_in_words(copy: Path, digits: int) -> None:
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text.replace("{", '{"odd": ' + "9" * digits + ", ", 1))
    with pytest.raises(BundleError, match=f"an integer of {digits} digits"):
        read_bundle(copy)
