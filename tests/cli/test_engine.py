"""`nnet-edge build-engine`: engines in the bundle, the gate's verdict where a GPU runs them, one sentence for each mistake."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnet_edge.bundle import Bundle, add_artefact, read_bundle
from nnet_edge.calibration import gate as gates
from nnet_edge.calibration.gate import Gate
from nnet_edge.calibration.quantize import read_graph
from nnet_edge.cli.main import run
from nnet_edge.errors import BundleError, ConfigError, EngineBuildError, MissingExtraError, StreamError
from nnet_edge.export import engine_settings as target_settings
from nnet_edge.export import engines
from nnet_edge.export.engine import BuiltEngine, build_engine
from nnet_edge.export.engine_settings import EngineSettings
from nnet_edge.export.engines import require_accepted, sentence, time_engines
from nnet_edge.export.precision import to_half
from nnet_edge.files import sha256
from nnet_edge.frame import Frame, FrameOutputs
from nnet_edge.gpu import GpuFacts, NoGpu, find_gpu
from nnet_edge.runtime.runners import base as runner_module
from nnet_edge.runtime.runners.base import Runner, load_runner
from nnet_edge.runtime.runners.onnx_runner import OnnxRunner
from nnet_edge.runtime.runners.trt import flavours, question
from nnet_edge.runtime.runners.trt import record as engine_record
from nnet_edge.runtime.runners.trt.flavours import Answer
from nnet_edge.runtime.runners.trt.record import Place, engine_here, faults_here, record_of, require_engine, system_here
from nnet_edge.runtime.stream import model as opening
from nnet_edge.runtime.stream.model import choose_artefact, choose_runnable, open_graph
from nnet_edge.settings.runner import RunnerSettings

pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'nnet-edge[test]' (x86-64)")
HAS_GPU = isinstance(find_gpu(), GpuFacts)
ADA = GpuFacts("RTX 4000 Ada", "8.9", "580.65.06", "13.0", 20_475)
ENGINE = "nnet.fp32.rtx-sm86-sm89.engine"


@pytest.fixture(scope="module")
def trained_run(second_run: Path) -> Path:
    """That of the smaller input, which takes less time."""
    return second_run / "run"


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
    monkeypatch.setattr(engine_record, "find_gpu", lambda index: ADA)
    answers(monkeypatch, runs(True))
    with pytest.raises(BundleError, match=r"nnet\.fp32.*: the file has 1000 bytes and had \d+ when it was built"):
        engine_here(read_bundle(path), "fp32")
    (path / ENGINE).unlink()
    with pytest.raises(BundleError, match=r"nnet\.fp32.*: the file is not there: build one here"):
        engine_here(read_bundle(path), "fp32")
    monkeypatch.undo()
    assert run(["build-engine", str(path), "--precision", "fp32", "--target", "rtx:sm86,sm89", "--batch", "1,4,8"]) == 0
    assert (path / ENGINE).stat().st_size == pytest.approx(len(content), rel=0.01)  # two builds differ by some bytes


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
        *(
            (
                ["--precision", "fp32", "--target", f"rtx:sm{number}"],
                1,
                f"116 does not build for sm{number}: name other cards",
            )
            for number in (87, 90, 100, 110)
        ),
        (["--precision", "fp32", "--target", "rtx:orin"], 2, "not as orin"),
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
    monkeypatch.setattr(engine_record, "find_gpu", lambda index: ADA)
    answers(monkeypatch, runs(True))
    assert faults_here(record_of(bundle.artefact("fp32", kind="engine"))) == []
    assert engine_here(bundle, "fp32").name == ENGINE
    hopper = GpuFacts("H200", "9.0", "580.65.06", "13.0", 141_000)
    monkeypatch.setattr(engine_record, "find_gpu", lambda index: hopper)
    with pytest.raises(
        BundleError, match=r"no fp32 engine for this machine; nnet\.fp32.* this GPU has 9\.0: build one here"
    ):
        engine_here(bundle, "fp32")
    with pytest.raises(BundleError, match="no fp16 engine for this machine: build one here"):
        engine_here(bundle, "fp16")


def test_a_refused_engine_is_an_error_with_its_reasons(built: Path) -> None:
    bundle = read_bundle(built)
    artefact = bundle.artefact("fp32", kind="engine")
    require_accepted(artefact, gate(bundle, 1.0))
    refused = gate(bundle, 1.0, accepted=False)
    said = sentence(artefact, refused, "fp32 on openvino")
    assert "against fp32 on openvino: refused; 3 of 20 verdicts flip, map error 1.0e-03" in said
    with pytest.raises(
        EngineBuildError, match=r"refuses it on tensorrt_rtx: 3 of 20 verdicts flip; use another --precision"
    ):
        require_accepted(artefact, refused)


class StandIn(OnnxRunner):
    """ONNX Runtime in an engine's place, called as TensorRT-RTX is; frames are only waited for, `frames_s` a batch."""

    name = "tensorrt_rtx"
    frames_s = 0.0

    def start_frames(self, frames: Sequence[Frame]) -> Callable[[], FrameOutputs]:
        time.sleep(self.frames_s)
        return lambda: FrameOutputs(np.zeros(len(frames)), np.zeros((len(frames), 256, 256)))


@dataclass
class Machine:
    """A machine with a card, as far as the verb asks; an engine is the bundle's FP32 graph on the processor."""

    breaks: dict[str, Exception] = field(default_factory=dict)  # precision -> what loading its engine raises
    waits_s: dict[str, float] = field(default_factory=dict)  # precision -> that a batch of frames takes
    loaded: list[tuple[str, int]] = field(default_factory=list)  # engine, largest batch
    gpus: list[int] = field(default_factory=list)  # that engines were loaded on
    together: int = 9  # engines that fit into the GPU
    opened: int = 0

    def load(self, path: Path, settings: RunnerSettings | None = None) -> Runner:
        if path.suffix != ".engine":
            return load_runner(path, RunnerSettings(kind="openvino", threads=1))
        precision = path.name.split(".")[1]
        if precision in self.breaks:
            raise self.breaks[precision]
        if self.opened >= self.together:
            raise StreamError("the GPU's memory is used up")
        settings = replace(settings or RunnerSettings(), kind="onnxruntime", threads=1)
        self.gpus.append(settings.gpu)
        self.loaded.append((path.name, settings.max_batch))
        runner, self.opened = StandIn(path.parent / "nnet.onnx", settings), self.opened + 1
        runner.frames_s = self.waits_s.get(precision, 0.0)
        release = runner._release

        def release_and_count() -> None:
            self.opened -= 1
            release()

        runner._release = release_and_count  # type: ignore[method-assign]
        return runner


BUILT: dict[tuple[str, EngineSettings], BuiltEngine] = {}  # hash of graph, settings -> what TensorRT-RTX really built


def build_once(graph: Path, settings: EngineSettings, *rest: Any) -> BuiltEngine:
    """What `build_engine` gives; of the same graph the same engine again, for a build takes seconds."""
    key = sha256(graph), settings
    if key not in BUILT:
        BUILT[key] = build_engine(graph, settings, *rest)
    return BUILT[key]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(engines, "build_engine", build_once)
    monkeypatch.setattr(engines, "load_runner", found.load)
    monkeypatch.setattr(engines, "open_gpu", lambda index: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(engines, "require_loads", lambda library, plan: None)
    monkeypatch.setattr(engines, "TURNS", 5)  # no test here asks how fast; where one must be slower, it waits 50 ms
    monkeypatch.setattr(gates, "ROUNDS", 5)
    for module in (engine_record, engines, target_settings):
        monkeypatch.setattr(module, "find_gpu", lambda index: ADA)
    answers(monkeypatch, runs(True))
    return found


def runs(does: bool | None, reason: str = "", **facts: Any) -> Answer:
    """What TensorRT-RTX answers to the question."""
    return Answer("8.9", "1.7.1.116", does, reason, **facts)


def answers(monkeypatch: pytest.MonkeyPatch, *given: Answer) -> None:
    """Let the installed flavours answer so."""
    monkeypatch.setattr(flavours, "installed_flavours", lambda: tuple(answer.flavour for answer in given))
    monkeypatch.setattr(
        flavours, "ask_in_process", lambda flavour, gpu: next(one for one in given if one.flavour == flavour)
    )
    monkeypatch.setattr(flavours, "cache_file", lambda *facts: None)


@pytest.mark.usefixtures("machine")
def test_an_engine_that_came_from_elsewhere_is_measured_here(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(built, path)
    assert run(["build-engine", str(path), "--measure"]) == 0
    assert (
        f"{ENGINE} on tensorrt_rtx against fp32 on openvino: accepted; 0 of 10 verdicts flip" in capsys.readouterr().err
    )
    bundle = read_bundle(path)
    artefact = bundle.artefact("fp32", kind="engine")
    assert artefact.threshold_for("tensorrt_rtx").value == pytest.approx(bundle.threshold.value, rel=1e-3)
    gate = artefact.record["gates"]["tensorrt_rtx"]
    assert len(gate["latency_ms"]) == 2
    assert gate["against"] == "fp32 on openvino"


@pytest.mark.usefixtures("machine")
def test_labelled_images_are_judged_too(
    built: Path, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(built, path)
    assert run(["build-engine", str(path), "--measure", "--data", str(parts_folder)]) == 0
    gate = read_bundle(path).artefact("fp32", kind="engine").record["gates"]["tensorrt_rtx"]
    assert gate["images"] == 10 + 8
    assert set(gate["metrics"]) == {"image_auroc", "pixel_auroc", "pixel_ap", "pro"}
    (tmp_path / "few/good").mkdir(parents=True)
    for image in sorted((parts_folder / "good").iterdir())[:12]:
        shutil.copy(image, tmp_path / "few/good")
    assert run(["build-engine", str(path), "--measure", "--data", str(tmp_path / "few")]) == 1
    assert "holds no test images to judge engines on" in capsys.readouterr().err


def test_measuring_needs_neither_torch_nor_onnx(built: Path, parts_folder: Path, tmp_path: Path) -> None:
    """On a box with the extras that the documentation names: a CPU runner, scipy, and a GPU's libraries."""
    path = tmp_path / "bundle"
    shutil.copytree(built, path)
    script = f"""
import sys
from importlib.machinery import PathFinder

absent = {{"torch", "torchvision", "timm", "onnx", "onnxscript", "onnx_graphsurgeon", "skimage", "sklearn", "matplotlib"}}
find_installed = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest, **more: (
    None if name.split(".")[0] in absent else find_installed(name, *rest, **more)
)

from types import SimpleNamespace
from nnet_edge.cli import run
from nnet_edge.export import engine_settings as target_settings
from nnet_edge.export import engines
from nnet_edge.gpu import GpuFacts
from nnet_edge.runtime.runners.base import load_runner
from nnet_edge.runtime.runners.trt import record as engine_record
from nnet_edge.runtime.runners.trt.flavours import Answer
from nnet_edge.settings.runner import RunnerSettings

def load(path, settings=None):
    kind = "onnxruntime" if path.suffix == ".engine" else "openvino"
    return load_runner(path.parent / "nnet.onnx", RunnerSettings(kind=kind, threads=1))

engines.load_runner = load
engines.open_gpu = lambda index: SimpleNamespace(close=lambda: None)
engine_record.answer_of = lambda flavour, gpu: Answer("8.9", "1.7.1", True, "")
engine_record.find_gpu = lambda index: GpuFacts("RTX 4000 Ada", "8.9", "580.65.06", "13.0", 20_475)
sys.exit(run(["build-engine", {str(path)!r}, "--measure", "--data", {str(parts_folder)!r}]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "accepted; 0 of 18 verdicts flip" in done.stderr


@pytest.mark.parametrize("absent", ["scipy", "openvino and onnxruntime", "nvcc"])
def test_what_judging_lacks_is_said_before_the_build(
    absent: str, machine: Machine, copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(index: int) -> None:
        raise MissingExtraError("the CUDA compiler nvcc is neither on PATH nor elsewhere")

    if absent == "scipy":
        monkeypatch.setattr(engines, "find_spec", lambda name: None)
    elif absent == "nvcc":
        monkeypatch.setattr(engines, "open_gpu", refuse)
    else:
        monkeypatch.setattr(runner_module, "find_spec", lambda name: None)
    monkeypatch.setattr(engines, "build_engine", lambda *rest: pytest.fail("it was built"))
    says = {"scipy": "pip install 'nnet-edge[gpu]'", "nvcc": "nvcc"}.get(absent, "neither openvino nor onnxruntime")
    for precision in ("best", "fp32"):
        assert run(["build-engine", str(copied), "--target", "rtx:sm89", "--precision", precision]) == 1
        assert says in capsys.readouterr().err
    assert not list(copied.glob("*.engine"))


@pytest.fixture(scope="module")
def fp16_graph(trained_run: Path) -> bytes:
    """The trained bundle's graph in FP16."""
    bundle = read_bundle(trained_run / "bundle")
    model = read_graph(bundle.graph.read_bytes(), "nnet.onnx")
    return to_half(model, bundle.frames("held_out")[:2], threads=1).SerializeToString()


@pytest.fixture
def two_graphs(copied: Path, fp16_graph: bytes) -> Path:
    """A bundle with an FP16 graph."""
    bundle = read_bundle(copied)
    source = bundle.manifest["files"]["nnet.onnx"]
    record = {"kind": "graph", "precision": "fp16", "source": source, "made": {}, "gates": {}}
    add_artefact(bundle, "nnet.fp16.onnx", fp16_graph, record)
    return copied


BEST = ["--target", "rtx:sm89", "--batch", "1,2,4"]


def test_best_keeps_the_fastest_engine_and_tensorrt_takes_it(
    two_graphs: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.waits_s["fp32"] = 0.05
    assert run(["build-engine", str(two_graphs), *BEST]) == 0
    said = capsys.readouterr().err
    bundle = read_bundle(two_graphs)
    (engine,) = [item for item in bundle.artefacts if item.kind == "engine"]
    assert engine.precision == "fp16"
    assert "best on this machine: fp16 (fp32 " in said
    assert said.count("accepted;") == 2
    assert [path.name for path in two_graphs.glob("*.engine")] == [engine.name]
    assert engine.record["best"]["batch"] == 2
    assert engine.record["best"]["ms"]["fp32"] >= 50 > engine.record["best"]["ms"]["fp16"]
    assert {batch for name, batch in machine.loaded[2:]} == {2}
    settings = RunnerSettings(kind="tensorrt")
    assert choose_runnable(bundle, settings, None)[:2] == (engine, "tensorrt_rtx")
    assert run(["build-engine", str(two_graphs), "--precision", "fp32", *BEST]) == 0
    assert choose_artefact(read_bundle(two_graphs), settings, None) == read_bundle(two_graphs).artefact(
        "fp16", "engine"
    )
    assert choose_artefact(read_bundle(two_graphs), settings, "fp32").precision == "fp32"


@pytest.mark.usefixtures("machine")
def test_of_two_engines_that_nobody_compared_one_must_be_named(two_graphs: Path) -> None:
    for precision in ("fp32", "fp16"):
        assert run(["build-engine", str(two_graphs), "--precision", precision, *BEST]) == 0
    bundle, settings = read_bundle(two_graphs), RunnerSettings(kind="tensorrt")
    with pytest.raises(
        BundleError, match=r"engines of fp16 and fp32 .* compared none of them: say --precision, or let"
    ):
        choose_artefact(bundle, settings, None)
    assert choose_artefact(bundle, settings, "fp16").precision == "fp16"
    with pytest.raises(ConfigError, match="bf16 is for the processor"):
        choose_artefact(bundle, settings, "bf16")


def test_best_goes_on_when_one_precision_does_not_run(
    two_graphs: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.breaks["fp32"] = StreamError("out of luck")
    assert run(["build-engine", str(two_graphs), *BEST]) == 0
    assert "fp32 is left out: out of luck" in capsys.readouterr().err
    assert [path.name for path in two_graphs.glob("*.engine")] == ["nnet.fp16.rtx-sm89.engine"]


@pytest.mark.usefixtures("machine")
def test_best_goes_on_when_one_precision_cannot_be_built(
    two_graphs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = engines.build_engine

    def build_half(graph: Path, *rest: Any) -> Any:
        if graph.name == "nnet.onnx":
            raise EngineBuildError("no kernel fits")
        return build(graph, *rest)

    monkeypatch.setattr(engines, "build_engine", build_half)
    assert run(["build-engine", str(two_graphs), *BEST]) == 0
    assert "fp32 is left out: no kernel fits" in capsys.readouterr().err
    assert read_bundle(two_graphs).artefact("fp16", "engine").record["best"]["ms"].keys() == {"fp16"}


def test_best_fails_when_nothing_is_left(
    two_graphs: Path, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.breaks |= {"fp32": StreamError("out of luck"), "fp16": BundleError("of another kind")}
    assert run(["build-engine", str(two_graphs), *BEST]) == 1
    said = capsys.readouterr().err
    assert (
        "no precision can be used on this machine (fp32: out of luck; fp16: of another kind): use a CPU runner" in said
    )
    assert len(read_bundle(two_graphs).artefacts) == 2 + 2


def test_engines_that_do_not_fit_together_are_timed_one_after_another(copied: Path, machine: Machine) -> None:
    machine.together = 1
    said: list[str] = []
    paths = {name: copied / f"nnet.{name}.local.engine" for name in ("fp32", "fp16")}
    times = time_engines(paths, 2, read_bundle(copied).frames("held_out"), said.append)
    assert times.keys() == paths.keys()
    assert "one after another" in said[0]
    assert machine.opened == 0


def test_a_truncated_engine_leaves_the_others_to_be_measured(
    built: Path, machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bundle"
    shutil.copytree(built, path)
    assert run(["build-engine", str(path), "--precision", "fp32", "--target", "rtx:sm89", "--batch", "1,2,4"]) == 0
    assert run(["build-engine", str(path), "--precision", "fp32", "--target", "rtx:sm75,sm89", "--batch", "2"]) == 0
    (path / ENGINE).write_bytes((path / ENGINE).read_bytes()[:1000])
    machine.loaded.clear()
    capsys.readouterr()
    assert run(["build-engine", str(path), "--measure"]) == 0
    assert f"{ENGINE} is not measured: the file has 1000 bytes" in capsys.readouterr().err
    assert [name for name, _ in machine.loaded] == ["nnet.fp32.rtx-sm75-sm89.engine", "nnet.fp32.rtx-sm89.engine"]
    machine.breaks["fp32"] = StreamError("out of luck")
    assert run(["build-engine", str(path), "--measure"]) == 1
    assert capsys.readouterr().err.count("out of luck") == 2


def test_the_threshold_is_asked_for_before_anything_is_loaded(
    built: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "load_runner", lambda path, settings: pytest.fail("it was loaded"))
    with pytest.raises(BundleError, match="measured on no runner and not on tensorrt_rtx"):
        open_graph(read_bundle(built), RunnerSettings(kind="tensorrt"))


def test_an_int8_engine_of_a_calibrated_bundle_passes_its_record(copied: Path, parts_folder: Path) -> None:
    """It is built of a graph of its own, whose rest is FP16."""
    quick = ["--frames", "8", "--threads", "1", "--runner", "openvino", "--metric-points", "100", "--band", "9"]
    assert run(["calibrate", str(copied), str(parts_folder), "--precision", "int8", *quick]) == 0
    assert run(["build-engine", str(copied), "--precision", "int8", "--target", "rtx:sm86", "--batch", "1"]) == 0
    bundle = read_bundle(copied)
    artefact = bundle.artefact("int8", kind="engine")
    assert artefact.record["source"] == bundle.manifest["files"]["nnet.int8.source.onnx"]
    record = record_of(artefact)
    place = Place("tensorrt_rtx", record.version, system_here(), "8.6")
    assert require_engine(artefact.path, place) == record


def test_a_tensorrt_that_refuses_the_gpu_builds_nothing(
    copied: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, runs(False, "it does not load what it built"))
    monkeypatch.setattr(engines, "build_engine", lambda *rest: pytest.fail("it was built"))
    before = (copied / "manifest.json").read_bytes()
    for precision in ("best", "fp32"):
        assert run(["build-engine", str(copied), "--precision", precision]) == 1
        said = capsys.readouterr().err
        assert "TensorRT-RTX 1.7.1.116 does NOT run on compute capability 8.9 (it does not load what it built)" in said
        assert "nothing was built for RTX 4000 Ada" in said
        assert "try TensorRT (pip install 'nnet-edge[tensorrt]'), or use --runner cuda" in said
    assert (copied / "manifest.json").read_bytes() == before
    assert machine.opened == 0


def test_local_means_the_flavour_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_settings, "find_gpu", lambda index: ADA)
    monkeypatch.setattr(target_settings, "installed_flavours", lambda: ("tensorrt", "tensorrt_rtx"))
    for broken, chosen in ((False, "tensorrt_rtx"), (True, "tensorrt"), (None, "tensorrt")):
        answers(monkeypatch, runs(broken, "no", flavour="tensorrt"), runs(True))
        assert target_settings.parse_target("local").flavour == chosen


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_an_engine_that_tensorrt_does_not_load_is_not_kept(
    copied: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real TensorRT-RTX, which builds here and, without a driver, loads nothing, whatever it answered before."""
    monkeypatch.setattr(engines, "require_loads", question.require_loads)
    assert run(["build-engine", str(copied), "--precision", "fp32", *BEST]) == 1
    assert "it does not load what it built: " in (said := capsys.readouterr().err)
    assert "it was not kept: use --runner cuda" in said
    assert run(["build-engine", str(copied), *BEST]) == 1
    assert "fp32 is left out: TensorRT-RTX" in capsys.readouterr().err
    assert not list(copied.glob("*.engine"))
    assert read_bundle(copied).artefacts == read_bundle(copied).artefacts[:1]


@pytest.mark.usefixtures("machine")
def test_a_stream_is_told_that_no_engine_can_run(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RunnerSettings(kind="tensorrt")
    answers(monkeypatch, runs(False, "it crashed", is_broken=True))
    with pytest.raises(
        BundleError, match=r"no engine of .* can run on RTX 4000 Ada: TensorRT-RTX .* \(it crashed\): try"
    ):
        choose_artefact(read_bundle(built), settings, "fp32")
    answers(monkeypatch, runs(False, "it crashed"), runs(True, flavour="tensorrt"))
    with pytest.raises(
        BundleError, match=r"no fp32 engine for this machine; nnet\.fp32.*: TensorRT-RTX .* does NOT run"
    ):
        choose_artefact(read_bundle(built), settings, "fp32")


def test_the_fp16_graph_is_measured_on_cuda(
    two_graphs: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its gate and threshold there stand beside those of the processor. ONNX Runtime computes on the processor here."""

    def load(path: Path, settings: RunnerSettings | None = None) -> Runner:
        if settings is None or settings.kind != "cuda":
            return machine.load(path, settings)
        runner = OnnxRunner(path, replace(settings, kind="onnxruntime", threads=1))
        runner.name = "onnxruntime-cuda"
        return runner

    monkeypatch.setattr(engines, "load_runner", load)
    assert run(["build-engine", str(two_graphs), "--measure"]) == 1
    assert "nnet.fp16.onnx is not measured: " in capsys.readouterr().err  # no GPU, as far as CUDA goes
    monkeypatch.setattr(engines, "require_cuda_parts", lambda index: None)
    assert run(["build-engine", str(two_graphs), "--measure"]) == 0
    graph = read_bundle(two_graphs).artefact("fp16")
    assert "nnet.fp16.onnx on onnxruntime-cuda against fp32 on openvino: accepted" in capsys.readouterr().err
    assert graph.threshold_for("onnxruntime-cuda").value > 0
    with pytest.raises(BundleError, match="measured on onnxruntime-cuda and not on openvino"):
        graph.threshold_for("openvino")


def test_another_gpu_is_asked_for_by_its_number(
    copied: Path, machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []

    def two(index: int) -> GpuFacts | NoGpu:
        asked.append(index)
        return replace(ADA, index=index) if index < 2 else NoGpu(f"there is no GPU {index}: the NVIDIA driver lists 2")

    for module in (engine_record, engines, target_settings):
        monkeypatch.setattr(module, "find_gpu", two)
    monkeypatch.setattr(engines, "open_gpu", lambda index: asked.append(index) or SimpleNamespace(close=lambda: None))
    assert run(["build-engine", str(copied), "--precision", "fp32", *BEST, "--gpu", "1"]) == 0
    assert {*asked} == {1}
    assert machine.gpus[-1] == 1
    assert run(["build-engine", str(copied), *BEST, "--gpu", "2"]) == 2
    assert "there is no GPU 2: the NVIDIA driver lists 2" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.usefixtures("engines_run_here")
def test_the_best_engine_of_this_gpu_is_built_and_measured(copied: Path) -> None:
    assert run(["build-engine", str(copied), "--batch", "1,4,8"]) == 0
    bundle = read_bundle(copied)
    engine = engine_here(bundle, "fp32")
    assert engine_here(bundle) == engine
    assert engine.record["best"]["ms"].keys() == {"fp32"}
    gates = engine.record["gates"]
    assert gates[record_of(engine).tool]["accepted"]
    assert engine.threshold_for(record_of(engine).tool).value == pytest.approx(bundle.threshold.value, rel=0.01)
    assert run(["build-engine", str(copied), "--measure"]) == 0
