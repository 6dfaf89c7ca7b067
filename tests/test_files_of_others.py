"""Files of others: nothing of theirs is replaced, written through a link, or trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from nnet_edge import files
from nnet_edge.bundle import MANIFEST, foreign_to_bundle, writing_bundle
from nnet_edge.cli.demo.run import MADE, foreign_to_demo
from nnet_edge.errors import ConfigError
from nnet_edge.files import new_draft, require_private, require_writable, user_cache, writing_folder
from nnet_edge.frame import Frame, Prediction
from nnet_edge.runtime.runners.kept_graph import writable_folder
from nnet_edge.runtime.runners.trt.kernels import nvcc
from nnet_edge.runtime.sinks.rejects import RejectsSettings, RejectsSink, write_atomically
from nnet_edge.runtime.sinks.video import VideoSettings, VideoSink

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT ROOT: a file of another owner was NOT made")
STRANGER = 54_321


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_a_folder_is_replaced_only_when_it_may_be(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").touch()

    def fill(refusal: files.Refusal | None) -> None:
        with writing_folder(out, refusal) as draft:
            (draft / "new").touch()

    with pytest.raises(ConfigError, match="--force"):
        fill(None)
    with pytest.raises(ConfigError, match="out holds letters, and is not replaced: choose another --out"):
        fill(lambda folder: "holds letters")
    assert names(tmp_path) == ["out", "out/old"]
    fill(lambda folder: None)
    assert names(tmp_path) == ["out", "out/new"]


def test_what_came_into_the_folder_meanwhile_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def fill() -> None:
        with writing_folder(out, lambda folder: "holds a letter" if (folder / "letter").exists() else None):
            out.mkdir()
            (out / "letter").touch()

    with pytest.raises(ConfigError, match="holds a letter"):
        fill()
    assert names(tmp_path) == ["out", "out/letter"]


def test_an_empty_folder_is_filled_and_a_file_or_a_link_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with writing_folder(tmp_path / "empty", lambda folder: "is full") as draft:
        (draft / "new").touch()
    assert names(tmp_path / "empty") == ["new"]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link"):
        with pytest.raises(ConfigError, match="is no folder"), writing_folder(tmp_path / name, lambda folder: None):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def a_bundle(path: Path) -> Path:
    path.mkdir()
    (path / "nnet.onnx").write_bytes(b"graph")
    (path / ".nnet.onnx.ab12").write_bytes(b"a draft that a kill left")
    (path / "timing.rtx-1.7-gpu.cache").write_bytes(b"timings")
    (path / MANIFEST).write_text(json.dumps({"schema": 1, "artefacts": {}, "files": {"nnet.onnx": "altered since"}}))
    return path


@pytest.mark.parametrize(
    ("foreign", "says"),
    [("notes.txt", "holds notes.txt, which is no part of its bundle"),
     ("frames/holiday.jpg", "holds frames/holiday.jpg"),
     (None, "is no bundle: it holds no manifest.json of one")],
)  # fmt: skip
def test_force_replaces_a_bundle_and_nothing_else(foreign: str | None, says: str, tmp_path: Path) -> None:
    out = a_bundle(tmp_path / "bundle")
    with writing_folder(out, foreign_to_bundle) as draft:
        (draft / "new").touch()
    assert names(out) == ["new"]
    out = a_bundle(tmp_path / "other")
    if foreign is None:
        (out / MANIFEST).write_text("{}")
    else:
        (out / foreign).parent.mkdir(exist_ok=True)
        (out / foreign).write_text("mine")
    before = names(out)
    with pytest.raises(ConfigError, match=says), writing_bundle(out, replace=True):
        pass
    assert names(out) == before


def test_force_replaces_a_demo_and_nothing_else(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    (demo / "rejects").mkdir(parents=True)
    a_bundle(demo / "bundle")
    (demo / "rejects/000001.jpg").touch()
    assert "is not what a demo left" in str(foreign_to_demo(demo))
    (demo / MADE).write_text(json.dumps([MADE, "rejects/000001.jpg"]))
    assert foreign_to_demo(demo) is None
    (demo / "rejects/holiday.jpg").touch()
    assert foreign_to_demo(demo) == "holds rejects/holiday.jpg, which no demo made"
    (demo / "rejects/holiday.jpg").rename(demo / "bundle/holiday.jpg")
    assert "holds holiday.jpg, which is no part of its bundle" in str(foreign_to_demo(demo))


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    path = tmp_path / "precious"
    path.write_text("a stranger's")
    return path


def rejects(folder: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    frame = Frame(picture, 1, 0.0)
    with RejectsSink(RejectsSettings(folder=folder, pictures=("original",), by_stream=False)) as sink:
        sink.write(Prediction(frame, 2.0, 1.0, np.zeros((256, 256), np.float32)))


def video(folder: Path) -> None:
    frame = Frame(np.zeros((64, 64, 3), np.uint8), 1, 0.0)
    with VideoSink(VideoSettings(path=folder / "line.avi", by_stream=False)) as sink:
        sink.write(Prediction(frame, 2.0, 1.0, np.zeros((256, 256), np.float32)))


@pytest.mark.parametrize("write", [rejects, video, writable_folder, require_writable])
def test_no_link_that_lies_there_is_followed(write: Callable[[Path], object], precious: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in (".nnet-edge-probe", ".000001.original.png.part", ".line.part.avi"):
        (folder / name).symlink_to(precious)
    write(folder)
    assert precious.read_text() == "a stranger's"


def test_a_draft_never_takes_a_name_that_is_there(
    precious: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "guessed")
    (tmp_path / ".guessed.part").symlink_to(precious)
    with pytest.raises(FileExistsError):
        new_draft(tmp_path)
    with pytest.raises(FileExistsError):
        write_atomically(tmp_path / "000001.jpg", b"picture")
    assert precious.read_text() == "a stranger's"


def test_what_anybody_may_write_is_not_trusted(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    file = cache / "kernel"
    file.write_bytes(b"code")
    assert require_private(file, "the kernel") == file
    file.chmod(0o666)
    with pytest.raises(ConfigError, match=r"the kernel .*kernel is not used: anybody may write .*kernel; chmod o-w"):
        require_private(file, "the kernel")
    file.chmod(0o644)
    cache.chmod(0o777)
    for path in (file, cache, cache / "a" / "b"):
        with pytest.raises(ConfigError, match="anybody may write"):
            require_private(path, "the kernel")
    cache.chmod(0o1777)  # sticky, as /tmp: others put files there, and change none of ours
    assert require_private(file, "the kernel")


@needs_root
def test_what_belongs_to_another_user_is_not_trusted(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "kernel").write_bytes(b"code")
    os.chown(cache / "kernel", STRANGER, STRANGER)
    with pytest.raises(ConfigError, match=f"belongs to user {STRANGER}"):
        require_private(cache / "kernel", "the kernel")
    os.chown(cache / "kernel", 0, 0)
    os.chown(cache, STRANGER, STRANGER)
    with pytest.raises(ConfigError, match=f"belongs to user {STRANGER}"):
        require_private(cache / "kernel", "the kernel")
    with pytest.raises(ConfigError, match=f"belongs to user {STRANGER}"):
        writable_folder(cache)


def test_a_kept_kernel_is_hashed_and_must_be_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = iter([b"first", b"second"])
    monkeypatch.setattr(nvcc, "installed_nvcc", lambda: "/bin/true")
    monkeypatch.setattr(nvcc, "compile_kernel", lambda kernel, target: next(made))
    assert nvcc.cubin_for("preprocess", "8.9", tmp_path) == nvcc.cubin_for("preprocess", "8.9", tmp_path) == b"first"
    (kept,) = tmp_path.glob("*.cubin")
    kept.write_bytes(kept.read_bytes()[:-1] + b"T")  # one letter of "first"
    assert nvcc.cubin_for("preprocess", "8.9", tmp_path) == b"second"  # compiled again
    kept.chmod(0o666)
    with pytest.raises(ConfigError, match=r"the compiled kernel .* is not used: anybody may write"):
        nvcc.cubin_for("preprocess", "8.9", tmp_path)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ConfigError, match="set XDG_CACHE_HOME or HOME"):
        user_cache("kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache("kernels") == tmp_path / "nnet-edge/kernels"
