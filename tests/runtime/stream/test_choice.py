"""Which runner "auto" means: TensorRT, then CUDA, then the processor; and batches that do not fit into a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.bundle import Artefact, Bundle, read_bundle
from nnet_edge.errors import BundleError, MissingExtraError
from nnet_edge.gpu import GpuFacts, NoGpu
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.runners.trt import record
from nnet_edge.runtime.runners.trt.device import used_up
from nnet_edge.runtime.stream import model as opening
from nnet_edge.runtime.stream.model import choose_runnable, choose_runner, load_model
from nnet_edge.settings.runner import RunnerSettings

L4 = GpuFacts("NVIDIA L4", "8.9", "580.65.06", "13.0", 24_000)
ABSENT = MissingExtraError("the installed ONNX Runtime 1.32 computes on the processor alone")


@pytest.fixture
def small(second_run: Path) -> Bundle:
    """A real bundle of 64x64 pixels, without engines."""
    return read_bundle(second_run / "run/bundle")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU, as far as the driver says, where ONNX Runtime computes and no engine fits."""
    monkeypatch.setattr(opening, "find_gpu", lambda index: replace(L4, index=index))
    monkeypatch.setattr(record, "find_gpu", lambda index: NoGpu("no engine here"))
    monkeypatch.setattr(opening, "require_cuda_parts", lambda index, precision: None)


def test_without_a_gpu_it_is_the_processor(small: Bundle) -> None:
    assert choose_runner(small, RunnerSettings(), None) == (RunnerSettings("openvino"), "")


@pytest.mark.usefixtures("gpu")
def test_what_is_asked_for_by_name_stays(small: Bundle) -> None:
    for kind in ("openvino", "onnxruntime", "tensorrt", "cuda"):
        assert choose_runner(small, RunnerSettings(kind), None) == (RunnerSettings(kind), "")


@pytest.mark.usefixtures("gpu")
def test_the_order_of_choice(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_runner(small, RunnerSettings(gpu=1), None) == (RunnerSettings("cuda", gpu=1), "")
    assert choose_runnable(small, RunnerSettings(), None)[1:] == ("onnxruntime-cuda", small.threshold.value)
    gates = {"tensorrt": {"accepted": True, "threshold": small.threshold.as_dict()}}
    engine = Artefact(
        small.path / "nnet.fp32.local.engine", "engine", "fp32", {"made": {"tool": "tensorrt"}, "gates": gates}
    )
    monkeypatch.setattr(record, "engine_here", lambda bundle, precision, index: engine)
    assert choose_runner(small, RunnerSettings(), None) == (RunnerSettings("tensorrt"), "")
    gates["tensorrt"] |= {"accepted": False, "reasons": ["3 of 20 verdicts flip"]}
    assert choose_runner(small, RunnerSettings(), None) == (RunnerSettings("cuda"), "")


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_not_used_is_said_with_the_reasons(small: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(index: int, precision: str | None) -> None:
        raise ABSENT

    monkeypatch.setattr(opening, "require_cuda_parts", absent)
    settings, why = choose_runner(small, RunnerSettings(), None)
    assert settings.kind == "openvino"
    assert "tensorrt: " in why
    assert "holds no engine for this machine" in why
    assert "cuda: the installed ONNX Runtime 1.32 computes on the processor alone" in why
    told = load_model(small.path, RunnerSettings(threads=1), is_warm=False)
    assert any(warning.startswith("the GPU is not used (tensorrt: ") for warning in told.warnings)
    with told.runner:
        assert told.facts()["device"] == "the processor"


@pytest.mark.usefixtures("gpu")
def test_bf16_is_the_processors(small: Bundle) -> None:
    assert choose_runner(small, RunnerSettings(precision="bf16"), "bf16") == (RunnerSettings("openvino", "bf16"), "")


def test_fp16_on_cuda_must_have_been_measured_there(small: Bundle) -> None:
    gates = {"openvino": {"accepted": True, "threshold": small.threshold.as_dict()}}
    artefact = Artefact(small.path / "nnet.fp16.onnx", "graph", "fp16", {"gates": gates})
    with pytest.raises(BundleError, match=r"not on onnxruntime-cuda, .* run nnet-edge build-engine .* --measure where"):
        artefact.threshold_for("onnxruntime-cuda")
    assert artefact.threshold_for("openvino-cpu") == artefact.threshold_for("openvino") == small.threshold
    gates["openvino-cpu"] = gates.pop("openvino")
    assert artefact.threshold_for("openvino") == small.threshold


@pytest.mark.parametrize(("fits", "judged"), [(8, 8), (5, 4), (1, 1), (0, None)])
def test_the_largest_batch_that_fits_is_found_and_said(
    fits: int, judged: int | None, small: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(graph: Path, settings: RunnerSettings) -> Any:
        if settings.max_batch > fits:
            raise used_up(f"allocate for {settings.max_batch}")
        return load_runner(graph, replace(settings, kind="onnxruntime", threads=1))

    monkeypatch.setattr(opening, "load_runner", load)
    settings = RunnerSettings("cuda", max_batch=32)
    if judged is None:
        with pytest.raises(type(used_up("")), match="the GPU's memory is used up"):
            load_model(small.path, settings)
        return
    model = load_model(small.path, settings, is_warm=False)
    with model.runner:
        assert model.runner.max_batch == judged
    assert model.batch_s is not None  # warm all the same
    said = f"a batch of 32 does not fit into the GPU's memory, the largest that does is of {judged}: --runner-batch"
    assert said in model.warnings
