"""nvcc on every kernel for every GPU, and the cache of what it made."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from nnet_edge.errors import ConfigError, EngineBuildError, MissingExtraError
from nnet_edge.runtime.runners.trt.kernels import nvcc
from nnet_edge.runtime.runners.trt.kernels.nvcc import (
    KERNELS,
    VARIANTS,
    compile_kernel,
    compiler_version,
    cubin_for,
    find_nvcc,
    source_hash,
)

ARCHITECTURES = ("75", "80", "86", "87", "89", "90", "110", "120")
ELF = b"\x7fELF"

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="NO NVCC: the CUDA kernels were NOT compiled; install the CUDA toolkit"
)


@needs_nvcc
@pytest.mark.parametrize("kernel", [*KERNELS, *VARIANTS])
def test_every_architecture_and_ptx_compile_without_a_warning(kernel: str) -> None:
    """One fat binary: machine code for the GPUs that are named, PTX of the last for those that come."""
    code = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in ARCHITECTURES]
    code.append(f"-gencode=arch=compute_{ARCHITECTURES[-1]},code=compute_{ARCHITECTURES[-1]}")
    fat = compile_kernel(kernel, ("-fatbin", "-Werror", "all-warnings", *code))
    assert len(fat) > 1000 * len(ARCHITECTURES)


@needs_nvcc
def test_a_kernel_is_compiled_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cubin_for("preprocess", "8.9", tmp_path)
    assert first.startswith(ELF)
    kept, seal = sorted(tmp_path.iterdir())
    assert seal.name == f"{kept.name}.sha256"
    version = compiler_version(find_nvcc())
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    assert kept.name == f"preprocess-sm_89-{source_hash('preprocess')}-{version}.cubin"
    monkeypatch.setattr(nvcc, "find_nvcc", lambda: pytest.fail("compiled again"))
    assert cubin_for("preprocess", "8.9", tmp_path) == first
    with pytest.raises(pytest.fail.Exception):
        cubin_for("preprocess", "9.0", tmp_path)  # another GPU


def test_another_compiler_compiles_again_and_none_uses_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def install(version: str) -> None:
        program = tmp_path / version / "nvcc"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release 1.0, V{version}'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")

    def compile_here(kernel: str, target: tuple[str, ...]) -> bytes:
        compiled.append(compiler_version(find_nvcc()))
        return compiled[-1].encode()

    monkeypatch.setattr(nvcc, "compile_kernel", compile_here)
    monkeypatch.setattr(nvcc, "USUAL_PLACE", "")
    cache = tmp_path / "cache"
    for version in ("12.6.85", "13.0.88"):
        install(version)
        assert cubin_for("preprocess", "8.9", cache) == cubin_for("preprocess", "8.9", cache) == version.encode()
    assert compiled == ["12.6.85", "13.0.88"]
    damaged = next(cache.glob("*12.6.85*.cubin"))
    damaged.write_bytes(b"12.6.84")
    install("12.6.85")
    assert cubin_for("preprocess", "8.9", cache) == b"12.6.85", "a damaged cubin is compiled again"
    assert compiled[2:] == ["12.6.85"]
    os.utime(damaged, (1, 1))
    monkeypatch.setenv("PATH", "")
    assert cubin_for("preprocess", "8.9", cache) == b"13.0.88"


def test_the_hash_follows_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_hash("preprocess")
    sources = tmp_path / "kernels"
    shutil.copytree(nvcc.SOURCES, sources)
    monkeypatch.setattr(nvcc, "SOURCES", sources)
    assert source_hash("preprocess") == before
    (sources / "portable.h").write_text((sources / "portable.h").read_text() + "\n// changed\n")
    assert source_hash("preprocess") != before


def test_no_nvcc_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc.shutil, "which", lambda name, path=None: None)
    with pytest.raises(MissingExtraError, match=r"nvcc is neither on PATH nor in .* install the CUDA toolkit"):
        cubin_for("preprocess", "8.9", tmp_path)
    assert not list(tmp_path.iterdir())


def test_nvcc_off_path_is_found_where_the_toolkit_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "nvcc"
    compiler.write_text("#!/bin/sh\nexit 0\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(nvcc, "USUAL_PLACE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    assert find_nvcc() == str(compiler)


@needs_nvcc
def test_what_nvcc_refuses_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(
        EngineBuildError, match=r"nvcc cannot compile preprocess\.cu with .*sm_10: .*host compiler"
    ) as caught:
        cubin_for("preprocess", "1.0", tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvcc, "compile_kernel", lambda kernel, target: ELF)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(ConfigError, match=r"cannot be kept in .*--cache-dir"):
        cubin_for("preprocess", "8.9", tmp_path / "cache")
