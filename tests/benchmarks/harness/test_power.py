"""Power mode and clocks of a Jetson, a PC with a card, and a machine that tells nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnet_edge.benchmarks.harness.machine import describe_gpu, power_and_clocks
from nnet_edge.gpu import GpuFacts


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")


def program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder where programs are looked for."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def test_a_jetson_tells_mode_and_clocks(tmp_path: Path, programs: Path) -> None:
    program(programs, "nvpmodel", "echo 'NV Power Mode: MAXN'; echo 0")
    cores = "devices/system/cpu"
    files = {f"{cores}/cpu{n}/cpufreq/scaling_{name}": text for n, clock in enumerate(("729600", "2201600"))
             for name, text in (("cur_freq", clock), ("max_freq", "2201600"), ("governor", "schedutil"))}  # fmt: skip
    gpu = "class/devfreq/17000000.gpu"
    files |= {f"{gpu}/cur_freq": "306000000", f"{gpu}/max_freq": "1300500000", f"{gpu}/governor": "nvhost_podgov"}
    write(tmp_path / "sys", files)
    expected = "power mode MAXN; CPU 2.20 of 2.20 GHz (schedutil); GPU 306 of 1300 MHz (nvhost_podgov)"
    assert power_and_clocks(tmp_path / "sys") == expected


@pytest.mark.parametrize("script", ["exit 9", "echo 'No devices were found'", "exit 0"])
def test_what_cannot_be_found_out_is_not_guessed(script: str, tmp_path: Path, programs: Path) -> None:
    program(programs, "nvidia-smi", script)
    write(tmp_path / "sys", {"devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "<unknown>"})
    assert power_and_clocks(tmp_path / "sys") == "unknown"
    assert describe_gpu(GpuFacts("x", "8.9", None, "13.0", 1))["clocks and power"] == "unknown: nvidia-smi does not say"
