"""`nnet-edge build-engine`: engines in the bundle, the gate's verdict where a GPU runs them, one sentence for each mistake."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nnet_edge import build_engine_verb
from nnet_edge.build_engine_verb import fastest, require_accepted, sentence
from nnet_edge.bundle import Bundle, add_artefact, read_bundle
from nnet_edge.calibration.gate import Gate
from nnet_edge.calibration.quantize import read_graph
from nnet_edge.cli import run
from nnet_edge.config import RunnerSettings
from nnet_edge.errors import BundleError, EngineBuildError
from nnet_edge.export.precision import to_half
from nnet_edge.runtime import engine_record
from nnet_edge.runtime.engine_record import engine_here, faults_here, record_of
from nnet_edge.runtime.gpu_facts import GpuFacts, find_gpu
from nnet_edge.runtime.runner import Runner, load_runner

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
HAS_GPU = isinstance(find_gpu(), GpuFacts)
ADA = GpuFacts("RTX 4000 Ada", "8.9", "580.65.06", "13.0", 20_475)
ENGINE = "nnet.fp32.rtx-sm86-sm89.engine"


@pytest.fixture(scope="module")
def built(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with an FP32 engine for two cards that are not here."""
    path = tmp_path_factory.mktemp("built") / "bundle"
    shutil.copytree(trained_run / "bundle", path)
    assert run(["build-engine", str(path), "--precision", "fp32", "--target", "rtx:sm89,sm86", "--batch", "1,4,8"]) == 0
    return path


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    """The trained bundle, to be changed."""
    shutil.copytree(bundle.path, tmp_path / "bundle")
    return tmp_path / "bundle"


def gate(bundle: Bundle, milliseconds: float, accepted: bool = True) -> Gate:
    reasons = () if accepted else ("3 of 20 verdicts flip",)
    return Gate(accepted, reasons, "tensorrt_rtx", bundle.threshold, 20, 0 if accepted else 3, 0, {}, 1.0,
                {"mean": 0.0, "p99.9": 0.0, "max": 0.001}, (9.0, milliseconds))  # fmt: skip


def test_the_engine_and_its_record_are_in_the_bundle(built: Path) -> None:
    bundle = read_bundle(built)
    artefact = bundle.artefact("fp32", kind="engine")
    record = record_of(artefact)
    assert artefact.name == ENGINE
    assert artefact.record["source"] == bundle.manifest["files"]["nnet.onnx"]
    assert record.sha256 == bundle.manifest["files"][ENGINE]
    assert (record.batch, record.compute_capabilities) == ((1, 4, 8), ("8.6", "8.9"))


def test_an_engine_of_the_same_name_is_replaced(built: Path, tmp_path: Path) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(built, path)
    assert run(["build-engine", str(path), "--precision", "fp32", "--target", "rtx:sm86,sm89", "--batch", "2"]) == 0
    assert record_of(read_bundle(path).artefact("fp32", kind="engine")).batch == (1, 2, 2)


def test_a_broken_engine_can_be_built_again(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(built, path)
    content = (path / ENGINE).read_bytes()
    (path / ENGINE).write_bytes(content[:1000])
    monkeypatch.setattr(engine_record, "find_gpu", lambda: ADA)
    with pytest.raises(BundleError, match=r"nnet\.fp32.*: the file has 1000 bytes and had \d+ when it was built"):
        engine_here(read_bundle(path), "fp32")
    (path / ENGINE).unlink()
    with pytest.raises(BundleError, match=r"nnet\.fp32.*: the file is not there: build one here"):
        engine_here(read_bundle(path), "fp32")
    monkeypatch.undo()
    assert run(["build-engine", str(path), "--precision", "fp32", "--target", "rtx:sm86,sm89", "--batch", "1,4,8"]) == 0
    assert (path / ENGINE).stat().st_size == len(content)


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_an_engine_for_elsewhere_is_measured_there(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["build-engine", str(copied), "--precision", "fp32", "--target", "rtx:sm86"]) == 0
    said = capsys.readouterr().err
    assert "not measured: there is no NVIDIA driver here" in said
    assert f"run nnet-edge build-engine {copied} --measure" in said
    with pytest.raises(BundleError, match="measured on no runner and not on tensorrt_rtx"):
        read_bundle(copied).artefact("fp32", kind="engine").threshold_for("tensorrt_rtx")


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ([], 2, "--precision best measures on the GPU, and there is no NVIDIA driver here"),
        (["--precision", "fp32"], 1, "--target local builds on the GPU that the engine is for"),
        (["--precision", "int8", "--target", "rtx:sm86"], 1, "holds no int8 graph: make one with nnet-edge calibrate"),
        (["--precision", "fp8"], 2, "'fp8' is not one of 'fp32', 'fp16', 'int8', 'best'"),
        (["--precision", "fp32", "--target", "rtx:sm87"], 2, "not for sm87"),
        (["--precision", "fp32", "--target", "jetson"], 2, "only on that Jetson"),
        (["--precision", "fp32", "--target", "rtx:sm86", "--batch", "8,4,2"], 2, "do not ascend"),
        (["--precision", "fp32", "--target", "rtx:sm86", "--optimization", "9"], 2, "from 0 to 5"),
        (["--precision", "fp32", "--target", "rtx:sm86", "--version-compatible"], 2, "no version compatible engines"),
        (["--measure"], 1, "holds no engine for this machine: build one"),
    ],
)
def test_a_mistake_is_one_sentence(
    options: list[str], code: int, says: str, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["build-engine", str(bundle.path), *options]) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("nnet-edge: error:")]
    assert len(lines) == 1
    assert says in lines[0]


def test_the_engine_for_this_gpu_is_found(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = read_bundle(built)
    monkeypatch.setattr(engine_record, "find_gpu", lambda: ADA)
    assert faults_here(record_of(bundle.artefact("fp32", kind="engine"))) == []
    assert engine_here(bundle, "fp32").name == ENGINE
    hopper = GpuFacts("H200", "9.0", "580.65.06", "13.0", 141_000)
    monkeypatch.setattr(engine_record, "find_gpu", lambda: hopper)
    with pytest.raises(
        BundleError, match=r"no fp32 engine for this machine; nnet\.fp32.* this GPU has 9\.0: build one here"
    ):
        engine_here(bundle, "fp32")
    with pytest.raises(BundleError, match="no fp16 engine for this machine: build one here"):
        engine_here(bundle, "fp16")


def test_the_fastest_accepted_precision_is_best(bundle: Bundle) -> None:
    gates = {"fp32": gate(bundle, 4.0), "fp16": gate(bundle, 2.0), "int8": gate(bundle, 1.0, accepted=False)}
    assert fastest(gates) == "fp16"
    with pytest.raises(
        EngineBuildError, match=r"accepts no precision .*int8: 3 of 20 verdicts flip\): use a CPU runner"
    ):
        fastest({"int8": gates["int8"]})


def test_a_refused_engine_is_an_error_with_its_reasons(built: Path) -> None:
    bundle = read_bundle(built)
    artefact = bundle.artefact("fp32", kind="engine")
    require_accepted(artefact, gate(bundle, 1.0))
    refused = gate(bundle, 1.0, accepted=False)
    assert "refused; 3 of 20 verdicts flip, map error 1.0e-03" in sentence(artefact, refused, "openvino")
    with pytest.raises(
        EngineBuildError, match=r"refuses it on tensorrt_rtx: 3 of 20 verdicts flip; use another --precision"
    ):
        require_accepted(artefact, refused)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a card, as far as the verb asks; ONNX Runtime computes the bundle's FP32 graph in an engine's place."""

    def load(path: Path, settings: RunnerSettings | None = None) -> Runner:
        graph = path.parent / "nnet.onnx" if path.suffix == ".engine" else path
        return load_runner(graph, RunnerSettings(kind="onnxruntime" if path.suffix == ".engine" else "openvino"))

    monkeypatch.setattr(build_engine_verb, "load_runner", load)
    for module in (engine_record, build_engine_verb):
        monkeypatch.setattr(module, "find_gpu", lambda: ADA)


@pytest.mark.usefixtures("stand_in")
def test_an_engine_that_came_from_elsewhere_is_measured_here(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(built, path)
    assert run(["build-engine", str(path), "--measure"]) == 0
    assert (
        f"{ENGINE} on onnxruntime against fp32 on openvino: accepted; 0 of 10 verdicts flip" in capsys.readouterr().err
    )
    bundle = read_bundle(path)
    artefact = bundle.artefact("fp32", kind="engine")
    assert artefact.threshold_for("onnxruntime").value == pytest.approx(bundle.threshold.value, rel=1e-3)
    assert len(artefact.record["gates"]["onnxruntime"]["latency_ms"]) == 2


@pytest.mark.usefixtures("stand_in")
def test_best_keeps_one_engine(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = read_bundle(copied)
    model = to_half(read_graph(bundle.graph.read_bytes(), "nnet.onnx"), bundle.frames("held_out")[:2], threads=1)
    record = {
        "kind": "graph",
        "precision": "fp16",
        "source": bundle.manifest["files"]["nnet.onnx"],
        "made": {},
        "gates": {},
    }
    add_artefact(bundle, "nnet.fp16.onnx", model.SerializeToString(), record)
    assert run(["build-engine", str(copied), "--target", "rtx:sm89", "--batch", "1,2,4"]) == 0
    said = capsys.readouterr().err
    engines = [item for item in read_bundle(copied).artefacts if item.kind == "engine"]
    assert len(engines) == 1
    assert f"best on this machine: {engines[0].precision} of fp32, fp16" in said
    assert said.count("accepted;") == 2
    assert [path.name for path in copied.glob("*.engine")] == [engines[0].name]


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="NOT RUN: no GPU here to build for and measure on")
def test_the_best_engine_of_this_gpu_is_built_and_measured(copied: Path) -> None:
    assert run(["build-engine", str(copied), "--batch", "1,4,8"]) == 0
    bundle = read_bundle(copied)
    engine = engine_here(bundle, "fp32")
    gates = engine.record["gates"]
    assert gates[record_of(engine).tool]["accepted"]
    assert engine.threshold_for(record_of(engine).tool).value == pytest.approx(bundle.threshold.value, rel=0.01)
    assert run(["build-engine", str(copied), "--measure"]) == 0
