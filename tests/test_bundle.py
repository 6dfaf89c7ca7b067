"""A bundle is whole, unaltered and of this schema, or it is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.bundle import GRAPH, MANIFEST, WEIGHTS, Bundle, read_bundle, record_metrics, writing_bundle
from nnet_edge.errors import BundleError
from nnet_edge.files import sha256, write_atomically


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle that a test may spoil."""
    return Path(shutil.copytree(bundle.path, tmp_path / "bundle"))


def change(folder: Path, alter: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    alter(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_the_manifest_says_what_the_box_must_know(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest["schema"] == 2
    assert manifest["system"] == "nnet"
    assert manifest["backbone"] == "efficientnet_lite0"
    assert manifest["input"]["layout"] == "NHWC"
    assert manifest["data"]["learned"] == 14
    assert manifest["data"]["held_out"] == 10
    assert len(manifest["data"]["fingerprint"]) == 64
    assert manifest["made_on"]["libraries"]["openvino"]
    assert manifest["threshold"]["meaning"]
    frames = {f"frames/{name}.png" for name in manifest["frames"]["held_out"]}
    assert set(manifest["files"]) == {GRAPH, WEIGHTS, *frames}
    assert {manifest["files"][GRAPH], manifest["files"][WEIGHTS]} == {sha256(bundle.graph), sha256(bundle.weights)}
    assert [parity["runner"] for parity in manifest["parity"]] == ["onnxruntime", "openvino"]
    assert not bundle.warnings


def test_nothing_in_it_is_pickled(bundle: Bundle) -> None:
    files = [path for path in bundle.path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".onnx", ".safetensors", ".png"}


def test_a_random_teacher_is_said_aloud(copy: Path) -> None:
    change(copy, lambda manifest: manifest["teacher"].update(is_random=True))
    assert "RANDOM" in read_bundle(copy).warnings[0]


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
def test_an_altered_file_is_named(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        read_bundle(copy)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        read_bundle(copy)


def test_another_schema_is_refused(copy: Path) -> None:
    change(copy, lambda manifest: manifest.update(schema=99))
    with pytest.raises(BundleError, match=r"schema 99, nnet-edge \S+ reads schema 2"):
        read_bundle(copy)


@pytest.mark.parametrize(
    ("alter", "words"),
    [
        (lambda manifest: manifest.pop("threshold"), "threshold"),
        (lambda manifest: manifest["threshold"].update(value="much"), "threshold"),
        (lambda manifest: manifest["threshold"].update(value=-1), "positive"),
        (lambda manifest: manifest.pop("teacher"), "teacher"),
        (lambda manifest: manifest.pop("files"), "not complete"),
        (lambda manifest: manifest["files"].pop(GRAPH), "not complete"),
    ],
)
def test_an_incomplete_manifest_is_refused(copy: Path, alter: Callable[[dict[str, Any]], object], words: str) -> None:
    change(copy, alter)
    with pytest.raises(BundleError, match=words):
        read_bundle(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"\xff\xfe"])
def test_a_manifest_that_is_no_json_object_is_refused(copy: Path, content: bytes) -> None:
    (copy / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError):
        read_bundle(copy)


def test_what_is_no_bundle_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        read_bundle(tmp_path / "nowhere")
    with pytest.raises(BundleError, match="holds no manifest"):
        read_bundle(tmp_path)


def test_metrics_are_kept_and_the_hashes_stay_right(copy: Path) -> None:
    record_metrics(read_bundle(copy), {"image_auroc": 0.5})
    assert read_bundle(copy).manifest["metrics"] == {"image_auroc": 0.5}


def test_a_bundle_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with writing_bundle(tmp_path / "bundle") as draft:
            (draft.path / GRAPH).write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_bundle(copy: Path) -> None:
    before = read_bundle(copy).manifest

    def fail() -> None:
        with writing_bundle(copy, replace=True):
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert read_bundle(copy).manifest == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["file"]
