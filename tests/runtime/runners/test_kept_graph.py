"""Compiled graphs that are kept: a stale one is never met, a damaged one never used, and only one of several lines compiles."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnet_edge.runtime.runners import kept_graph, openvino_runner
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.runners.kept_graph import KeptGraph
from nnet_edge.runtime.stream.model import load_model
from nnet_edge.sealed import seal
from nnet_edge.settings.runner import RunnerSettings

FROM_0_1 = Path(__file__).parents[2] / "data/from_0_1/bundle"


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The graphs that were compiled so far."""
    found: list[Path] = []
    compile_graph = openvino_runner.compile_graph

    def count(model: Any, graph: Path, options: Any) -> Any:
        found.append(graph)
        return compile_graph(model, graph, options)

    monkeypatch.setattr(openvino_runner, "compile_graph", count)
    return found


def kept_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.blob"))


def maps(graph: Path, settings: RunnerSettings) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), np.uint8)
    with load_runner(graph, settings) as runner:
        return runner.infer(images).anomaly_map


@pytest.mark.parametrize("hint", ["latency", "throughput"])
def test_what_was_kept_gives_the_same_numbers_and_is_not_compiled_again(
    graph: Path, tmp_path: Path, compiles: list[Path], hint: str
) -> None:
    settings = RunnerSettings(kind="openvino", cache_dir=tmp_path / "cache", hint=hint)
    first = maps(graph, settings)
    np.testing.assert_array_equal(maps(graph, settings), first)
    np.testing.assert_array_equal(maps(graph, RunnerSettings(kind="openvino", hint=hint)), first)
    assert len(compiles) == 2  # the third keeps nothing


def test_a_graph_is_compiled_again_where_anything_is_another(
    graph: Path, write_graph: Callable[..., Path], tmp_path: Path, compiles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    settings = RunnerSettings(kind="openvino", cache_dir=cache, threads=1)

    def is_compiled(graph: Path = graph, **other: Any) -> bool:
        before = len(compiles)
        load_runner(graph, RunnerSettings(**vars(settings) | other)).__enter__().__exit__(None, None, None)
        return len(compiles) > before

    assert is_compiled()
    assert not is_compiled()
    altered = tmp_path / "altered.onnx"
    altered.write_bytes(graph.read_bytes() + b"\x32\x01x")  # field 6, doc_string: "x"
    assert is_compiled(altered)
    assert is_compiled(threads=2)
    assert is_compiled(hint="throughput")
    for place, name, value in (
        (openvino_runner.openvino, "get_version", lambda: "2099.1"),
        (kept_graph, "cpu_facts", lambda: "a processor of 2099"),
        (kept_graph.os, "cpu_count", lambda: 99),
    ):
        with monkeypatch.context() as other:
            other.setattr(place, name, value)
            assert is_compiled(), name
    assert not is_compiled()
    assert len(kept_in(cache)) == len(compiles) == 7


def test_options_of_each_precision_have_a_file_of_their_own(tmp_path: Path) -> None:
    files = {
        KeptGraph(tmp_path, "graph", "1", openvino_runner.options_of(RunnerSettings(precision=precision))).file
        for precision in ("fp32", "bf16")
    }
    assert len(files) == 2


def test_of_two_lines_that_start_at_once_one_compiles(graph: Path, tmp_path: Path, compiles: list[Path]) -> None:
    settings = RunnerSettings(kind="openvino", cache_dir=tmp_path)
    found: list[np.ndarray] = []
    lines = [threading.Thread(target=lambda: found.append(maps(graph, settings))) for _ in range(3)]
    for line in lines:
        line.start()
    for line in lines:
        line.join(60)
    assert len(compiles) == 1
    assert len(found) == 3
    assert all((one == found[0]).all() for one in found)
    assert {file.suffix for file in tmp_path.iterdir()} == {".blob", ".sha256"}


def test_what_openvino_cannot_use_is_made_again(
    graph: Path, tmp_path: Path, compiles: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    settings = RunnerSettings(kind="openvino", cache_dir=tmp_path)
    first = maps(graph, settings)
    (file,) = kept_in(tmp_path)
    file.write_bytes(b"of a build that wrote other files")
    seal(file, file.read_bytes())
    np.testing.assert_array_equal(maps(graph, settings), first)
    assert f"OpenVINO cannot use {file} and compiles the graph anew" in caplog.text
    np.testing.assert_array_equal(maps(graph, settings), first)
    assert len(compiles) == 2


def test_the_folder_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_graph, "LARGEST_BYTES", 250)
    one, two, three, large = (KeptGraph(tmp_path, name, "1", {}) for name in ("1", "2", "3", "4"))
    for moment, kept in enumerate((one, two)):
        kept.write(b"x" * 100)
        kept_graph.os.utime(kept.file, (moment, moment))
    content = one.read()
    assert content is not None
    assert content.tobytes() == b"x" * 100  # now two is the one that was used longest ago
    three.write(b"x" * 100)
    large.write(b"x" * 200)
    assert [kept.read() is not None for kept in (one, two, three, large)] == [True, False, True, False]


def test_a_bundle_is_kept_in_the_user_s_cache_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiles: list[Path]
) -> None:
    def load(**more: Any) -> None:
        with load_model(FROM_0_1, RunnerSettings("openvino", threads=1, **more), is_warm=False).runner:
            pass

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    load(cache_dir=Path("none"))
    assert not (tmp_path / "home").exists()
    load()
    load()
    assert len(compiles) == 2
    assert len(kept_in(tmp_path / "home/nnet-edge/openvino")) == 1
    (tmp_path / "file").touch()  # no folder can be made below it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    load()
    assert len(compiles) == 3
