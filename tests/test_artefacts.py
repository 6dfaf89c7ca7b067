"""A bundle's artefacts: added atomically, found by precision, each with a threshold of its own; kept frames."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.bundle import (
    GRAPH,
    MANIFEST,
    Artefact,
    Bundle,
    add_artefact,
    artefact_of,
    graph_name,
    keep_frames,
    precision_named,
    read_bundle,
    record_gates,
    without_artefact,
    without_unnamed_frames,
)
from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.files import sha256
from nnet_edge.kept_frames import frame_hash, read_frames, to_png, write_frames
from nnet_edge.training.checkpoint import read_held_out

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A bundle that a test may change."""
    return read_bundle(Path(shutil.copytree(bundle.path, tmp_path / "bundle")))


def record(bundle: Bundle, precision: str = "int8", kind: str = "graph", **gates: Any) -> dict[str, Any]:
    return {"kind": kind, "precision": precision, "source": sha256(bundle.graph), "made": {}, "gates": gates}


def gate(bundle: Bundle, value: float, accepted: bool = True, **more: Any) -> dict[str, Any]:
    threshold = replace(bundle.threshold, value=value).as_dict()
    return {"accepted": accepted, "reasons": [] if accepted else ["5 flips"], "threshold": threshold, **more}


def test_the_fp32_graph_is_an_artefact_with_one_threshold_for_every_runner(bundle: Bundle) -> None:
    artefact = bundle.artefact("fp32")
    assert (artefact.path, artefact.kind, artefact.name) == (bundle.graph, "graph", GRAPH)
    for runner in ("openvino", "onnxruntime", "pytorch"):
        assert artefact.threshold_for(runner) == bundle.threshold
    assert bundle.artefacts == (artefact,)


def test_an_artefact_is_added_found_and_survives_reading_again(copy: Bundle) -> None:
    added = add_artefact(copy, "nnet.int8.onnx", b"graph", record(copy, openvino=gate(copy, 0.5)))
    again = read_bundle(copy.path)
    assert again.manifest == added.manifest
    artefact = again.artefact("int8")
    assert artefact.path.read_bytes() == b"graph"
    assert again.manifest["files"]["nnet.int8.onnx"] == sha256(artefact.path)
    assert artefact.threshold_for("openvino").value == 0.5
    assert [item.name for item in again.artefacts] == [GRAPH, "nnet.int8.onnx"]
    assert "artefacts" in again.manifest
    assert copy.manifest["artefacts"] == {}, "a bundle in hand does not change"


def test_an_altered_artefact_is_refused(copy: Bundle) -> None:
    add_artefact(copy, "nnet.int8.onnx", b"graph", record(copy))
    (copy.path / "nnet.int8.onnx").write_bytes(b"other")
    with pytest.raises(BundleError, match=r"nnet\.int8\.onnx was altered"):
        read_bundle(copy.path)


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("crash_at", [1, 2, 3])
def test_a_crash_while_adding_leaves_a_valid_bundle(
    copy: Bundle, monkeypatch: pytest.MonkeyPatch, replacing: bool, crash_at: int
) -> None:
    """Every file is put in place by one rename; the one that fails is the first, the second or the third."""
    bundle = add_artefact(copy, "nnet.int8.onnx", b"old", record(copy)) if replacing else copy
    rename, renames = Path.replace, []

    def failing(path: Path, target: Path) -> Path:
        renames.append(target)
        if len(renames) == crash_at:
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", failing)
    needed = 3 if replacing else 2
    if crash_at <= needed:
        with pytest.raises(OSError, match="No space"):
            add_artefact(bundle, "nnet.int8.onnx", b"new", record(copy))
    monkeypatch.undo()
    found = read_bundle(copy.path)
    if found.manifest["artefacts"]:
        assert found.artefact("int8").path.read_bytes() == (b"old" if replacing else b"new")


def test_replacing_and_taking_away(copy: Bundle) -> None:
    once = add_artefact(copy, "nnet.int8.onnx", b"old", record(copy, openvino=gate(copy, 0.5)))
    twice = add_artefact(once, "nnet.int8.onnx", b"new", record(copy))
    assert twice.artefact("int8").path.read_bytes() == b"new"
    assert twice.manifest["artefacts"]["nnet.int8.onnx"]["gates"] == {}
    without_artefact(twice, "nnet.int8.onnx")
    assert read_bundle(copy.path).manifest == copy.manifest
    assert not (copy.path / "nnet.int8.onnx").exists()


@pytest.mark.parametrize("name", [GRAPH, MANIFEST, "", "..", "a/b.onnx", "../out.onnx"])
def test_an_artefact_lies_in_the_bundle_and_replaces_nothing_else(copy: Bundle, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be called"):
        add_artefact(copy, name, b"graph", record(copy))
    assert read_bundle(copy.path).manifest == copy.manifest


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda fields: fields.pop("gates"), "lacks gates"),
        (lambda fields: fields.update(kind="plan"), "kind 'plan'"),
        (lambda fields: fields.update(precision="int4"), "precision 'int4'"),
    ],
)
def test_a_record_that_says_too_little_is_refused(copy: Bundle, alter: Change, words: str) -> None:
    fields = record(copy)
    alter(fields)
    with pytest.raises(BundleError, match=words):
        add_artefact(copy, "nnet.int8.onnx", b"graph", fields)
    assert not (copy.path / "nnet.int8.onnx").exists()


def test_a_precision_that_is_not_there_names_the_command(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"holds no int8 graph: .* nnet-edge calibrate \S+ DATA --precision int8"):
        bundle.artefact("int8")
    with pytest.raises(BundleError, match=r"holds no fp16 engine: .* nnet-edge build-engine \S+ --precision fp16"):
        bundle.artefact("fp16", "engine")


def test_engines_of_one_precision_are_told_apart_by_name(copy: Bundle) -> None:
    bundle = copy
    for target in ("local", "rtx"):
        bundle = add_artefact(bundle, f"nnet.fp16.{target}.engine", b"e", record(copy, "fp16", "engine"))
    with pytest.raises(BundleError, match=r"2 fp16 engines \(nnet\.fp16\.local\.engine, nnet\.fp16\.rtx\.engine\)"):
        bundle.artefact("fp16", "engine")
    assert len(bundle.artefacts) == 3


def test_a_runner_without_a_gate_or_refused_by_it_has_no_threshold(copy: Bundle) -> None:
    gates = {
        "openvino": gate(copy, 0.5, accepted=False),
        "onnxruntime": gate(copy, 0.6, accepted=False, overridden=True),
    }
    artefact = add_artefact(copy, "nnet.int8.onnx", b"graph", record(copy, **gates)).artefact("int8")
    with pytest.raises(BundleError, match=r"not on tensorrt, .* nnet-edge calibrate \S+ DATA --precision int8"):
        artefact.threshold_for("tensorrt")
    with pytest.raises(BundleError, match=r"refused on openvino \(5 flips\): .* --accept"):
        artefact.threshold_for("openvino")
    assert artefact.threshold_for("onnxruntime").value == 0.6


def test_gates_are_added_to_those_that_are_there(copy: Bundle) -> None:
    bundle = add_artefact(copy, "nnet.int8.onnx", b"graph", record(copy, openvino=gate(copy, 0.5)))
    record_gates(bundle, "nnet.int8.onnx", {"tensorrt": gate(copy, 0.7)})
    artefact = read_bundle(copy.path).artefact("int8")
    assert [artefact.threshold_for(runner).value for runner in ("openvino", "tensorrt")] == [0.5, 0.7]
    with pytest.raises(BundleError, match=r"has no artefact nnet\.fp16\.onnx"):
        record_gates(bundle, "nnet.fp16.onnx", {})


def test_names_and_precisions_belong_together() -> None:
    assert [graph_name(precision) for precision in ("fp32", "fp16")] == [GRAPH, "nnet.fp16.onnx"]
    assert precision_named(Path("nnet.int8.onnx")) == "int8"
    assert precision_named(Path("nnet.onnx")) is None
    assert precision_named(Path("my.graph.onnx")) is None


def test_an_artefact_from_an_incomplete_record_is_no_artefact(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="lacks kind and lacks precision"):
        artefact_of(tmp_path / "x.onnx", {"source": "", "made": {}, "gates": {}})
    assert isinstance(artefact_of(tmp_path / "x.onnx", record_of_nothing()), Artefact)


def record_of_nothing() -> dict[str, Any]:
    return {"kind": "graph", "precision": "fp16", "source": "", "made": {}, "gates": {}}


def test_the_held_out_frames_are_in_the_bundle(bundle: Bundle, trained_run: Path) -> None:
    held_out = read_held_out(trained_run / "training")
    assert np.array_equal(bundle.frames("held_out"), held_out)
    for name, frame in zip(bundle.manifest["frames"]["held_out"], held_out, strict=True):
        assert name == frame_hash(frame)
        assert np.array_equal(cv2.imread(str(bundle.path / "frames" / f"{name}.png"))[..., ::-1], frame)


def test_each_graph_has_its_own_calibration_frames(copy: Bundle) -> None:
    with pytest.raises(BundleError, match="holds no int8 graph"):
        copy.frames("int8")
    held_out = copy.frames("held_out")
    frames = np.random.default_rng(0).integers(0, 256, (5, 256, 256, 3), np.uint8)
    for precision, own in (("int8", frames[:3]), ("fp16", frames[2:])):
        copy, hashes = keep_frames(copy, own)
        record = record_of_nothing() | {"precision": precision, "frames": hashes}
        copy = add_artefact(copy, f"nnet.{precision}.onnx", b"graph", record)
    again = read_bundle(copy.path)
    assert np.array_equal(again.frames("int8"), frames[:3])
    assert np.array_equal(again.frames("fp16"), frames[2:])
    assert np.array_equal(again.frames("held_out"), held_out)


def test_frames_of_a_replaced_graph_go_with_it(copy: Bundle) -> None:
    held_out = copy.frames("held_out")
    frames = np.random.default_rng(2).integers(0, 256, (5, 256, 256, 3), np.uint8)
    for own in (frames[:3], frames[2:]):
        copy, hashes = keep_frames(copy, own)
        record = record_of_nothing() | {"precision": "int8", "frames": hashes}
        copy = without_unnamed_frames(add_artefact(copy, "nnet.int8.onnx", b"graph", record))
    again = read_bundle(copy.path)
    assert np.array_equal(again.frames("int8"), frames[2:])
    assert np.array_equal(again.frames("held_out"), held_out)
    kept = {frame_hash(frame) for frame in (*held_out, *frames[2:])}
    assert {path.stem for path in (copy.path / "frames").iterdir()} == kept
    assert {Path(name).stem for name in copy.manifest["files"] if name.startswith("frames/")} == kept


def test_a_bundle_that_named_only_the_last_frames_is_still_read(copy: Bundle) -> None:
    frames = np.random.default_rng(1).integers(0, 256, (3, 256, 256, 3), np.uint8)
    copy, hashes = keep_frames(copy, frames)
    copy = add_artefact(copy, "nnet.fp16.onnx", b"graph", record_of_nothing())
    with pytest.raises(BundleError, match="keeps no frames of its fp16 graph: run nnet-edge calibrate"):
        copy.frames("fp16")
    manifest = copy.manifest | {"frames": {**copy.manifest["frames"], "calibration": hashes, "seed": 7}}
    (copy.path / "manifest.json").write_text(json.dumps(manifest))
    assert np.array_equal(read_bundle(copy.path).frames("fp16"), frames)


def test_a_frame_that_was_changed_or_lost_is_noticed(tmp_path: Path) -> None:
    frames = np.zeros((2, 256, 256, 3), np.uint8)
    frames[1] = 200
    names = write_frames(tmp_path, frames)
    first, second = (tmp_path / "frames" / f"{name}.png" for name in names)
    first.write_bytes(second.read_bytes())
    with pytest.raises(BundleError, match="does not show what its name says"):
        read_frames(tmp_path, names)
    for damaged in (second.read_bytes()[:-40], b"", b"no PNG at all, but long enough", to_png(frames[0][:128])):
        first.write_bytes(damaged)  # one of another size is not decoded
        with pytest.raises(BundleError, match="does not show what its name says"):
            read_frames(tmp_path, names)
    first.unlink()
    with pytest.raises(BundleError, match="copy the whole bundle again"):
        read_frames(tmp_path, names)


def test_equal_frames_are_kept_once(tmp_path: Path) -> None:
    frames = np.full((3, 256, 256, 3), 9, np.uint8)
    names = write_frames(tmp_path, frames)
    assert len(names) == 3
    assert len(list((tmp_path / "frames").iterdir())) == 1
    assert np.array_equal(read_frames(tmp_path, names), frames)


@pytest.mark.parametrize(("shape", "kind"), [((2, 60, 64, 3), np.uint8), ((2, 256, 256, 3), np.float32)])
def test_frames_of_another_kind_are_refused(tmp_path: Path, shape: tuple[int, ...], kind: type) -> None:
    with pytest.raises(ConfigError, match="frames are kept as uint8 RGB"):
        write_frames(tmp_path, np.zeros(shape, kind))


def test_a_bundle_without_frames_or_artefacts_in_its_manifest_is_not_complete(copy: Bundle) -> None:
    for part in ("frames", "artefacts"):
        manifest = json.loads((copy.path / MANIFEST).read_text())
        del manifest[part]
        (copy.path / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match=f"lacks '{part}'"):
            read_bundle(copy.path)
        (copy.path / MANIFEST).write_text(json.dumps(copy.manifest))
