"""Timings beside the bundle: named by version and GPU, kept by TensorRT, not by TensorRT-RTX."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.export.engine import cache_path, keep_timing_cache, use_timing_cache
from nnet_edge.gpu import GpuFacts
from nnet_edge.runtime.runners.trt.library import TensorrtLibrary, collecting_log, load_tensorrt

GPU = GpuFacts("NVIDIA RTX 4000 SFF Ada Generation", "8.9", "580.65.06", "13.0", 20_475)


@pytest.fixture(scope="module")
def library() -> TensorrtLibrary:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
    return load_tensorrt("tensorrt_rtx")


def test_the_name_says_version_and_gpu(library: TensorrtLibrary) -> None:
    tensorrt = replace(library, flavour="tensorrt", version="10.16.1.11")
    expected = "timing.tensorrt-10.16.1.11-nvidia-rtx-4000-sff-ada-generation-sm89.cache"
    assert cache_path(Path("bundle"), tensorrt, GPU) == Path("bundle", expected)


def test_tensorrt_rtx_and_a_build_without_a_gpu_keep_none(library: TensorrtLibrary, tmp_path: Path) -> None:
    assert use_timing_cache(library, None, tmp_path, GPU) is None
    assert use_timing_cache(replace(library, flavour="tensorrt"), None, tmp_path, None) is None
    keep_timing_cache(None, None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Use Deprecated:DeprecationWarning")
def test_timings_are_read_and_kept(library: TensorrtLibrary, tmp_path: Path) -> None:
    """The calls, on the real classes: those of TensorRT-RTX take them and keep nothing. TensorRT itself was not at hand."""
    log = collecting_log(library)
    builder = library.trt.Builder(log)
    config: Any = builder.create_builder_config()
    tensorrt = replace(library, flavour="tensorrt")
    cache_path(tmp_path, tensorrt, GPU).write_bytes(b"of another day")
    file = use_timing_cache(tensorrt, config, tmp_path, GPU)
    assert file == cache_path(tmp_path, tensorrt, GPU)
    keep_timing_cache(file, config)
    assert file.read_bytes() != b"of another day"
    assert list(tmp_path.iterdir()) == [file]
