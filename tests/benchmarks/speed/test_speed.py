"""Speed: a random bundle through every system of this machine for real, and the report's arithmetic on known rounds."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch

from nnet_edge.anomaly_map import LAYER_MAPS, Fusion, anomaly_map
from nnet_edge.benchmarks.harness.command_line import run_command
from nnet_edge.benchmarks.harness.machine import (
    EVERY_MS,
    busy_percent,
    busy_warning,
    measuring_energy,
    no_meter,
    open_nvml,
    watts_of,
)
from nnet_edge.benchmarks.harness.random_bundle import command as random_bundle_command
from nnet_edge.benchmarks.harness.random_bundle import real_pictures
from nnet_edge.benchmarks.harness.roofline import Ceiling, Roofline, Work, merged, work_of
from nnet_edge.benchmarks.harness.rounds import Round, run_rounds
from nnet_edge.benchmarks.speed import plan as speed_plan
from nnet_edge.benchmarks.speed.memory import measure_memory, resident_mib
from nnet_edge.benchmarks.speed.plan import Camera, OneAtATime, Plan, SpeedSettings
from nnet_edge.benchmarks.speed.plot import plot_speed
from nnet_edge.benchmarks.speed.report import Result, SpeedReport
from nnet_edge.benchmarks.speed.speed import measure_speed, warmed_up
from nnet_edge.benchmarks.speed.system_torch import every_shape_compiled, torch_fusion
from nnet_edge.bundle import Bundle
from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError, DataError, StreamError
from nnet_edge.frame import Outputs
from nnet_edge.methods.backbone import find_backbone
from nnet_edge.methods.nnet.network import build_nnet
from nnet_edge.methods.nnet.settings import ModelSettings
from nnet_edge.methods.teacher_weights import RANDOM, load_teacher

SCHEMA = json.loads((Path(speed_plan.__file__).parents[1] / "schemas/speed.json").read_text())
TINY = SpeedSettings(("torch", "onnxruntime", "openvino", "tensorrt_rtx"), ("fp32", "int8"), batches=(1, 2), repeats=2,
                     turn_s=0.001, threads=1, with_memory=False)  # fmt: skip


@pytest.fixture(scope="module")
def report(random_bundle: Bundle, parts_folder: Path) -> SpeedReport:
    """Two short rounds of everything that runs here."""
    return measure_speed(random_bundle.path, parts_folder / "test_good", TINY, "the command")


def test_a_random_bundle_says_so_and_holds_no_training(random_bundle: Bundle, report: SpeedReport) -> None:
    assert random_bundle.manifest["teacher"]["is_random"] is True
    assert random_bundle.manifest["trained"]["epochs"] == 0
    assert random_bundle.threshold.held_out == len(real_pictures()) == 12
    assert report.warnings[0] == random_bundle.warnings[0]
    assert report.markdown().startswith("**THE TEACHER HAS RANDOM WEIGHTS")


def test_real_pictures_are_twelve_different_photographs() -> None:
    pictures = real_pictures()
    assert (pictures.shape, pictures.dtype) == ((12, 256, 256, 3), np.uint8)
    assert len(np.unique(pictures.reshape(12, -1), axis=0)) == 12
    assert pictures.std(axis=(1, 2, 3)).min() > 10


def test_every_system_took_part_in_every_round_in_every_scope(report: SpeedReport) -> None:
    found = {(one.name, one.scope, one.batch) for one in report.results}
    systems = ("torch fp32", "onnxruntime fp32", "openvino fp32")
    assert found == {
        (name, scope, batch) for name in systems for scope in ("model", "map", "camera") for batch in (1, 2)
    }
    for result in report.results:
        assert len(result.rounds) == 2
        assert all(turn.seconds > 0 and turn.frames % result.batch == 0 for turn in result.rounds)
        assert 1 <= result.met_batch <= result.batch
        assert (result.latencies_ms is None) is (result.scope == "camera" and result.batch == 2)
        if result.scope == "camera":
            assert result.rounds[0].rejected is not None
            assert all(len(turn.latencies_ms) == (turn.frames if result.batch == 1 else 0) for turn in result.rounds)


class SleepingRunner:
    """Obeys Runner; a call takes INFER_S."""

    name, precision, max_batch, input_shape = "sleeping", "fp32", 1, (256, 256, 3)

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> SleepingRunner:
        return self

    def __exit__(self, *about: object) -> None:
        return None

    def infer(self, images: np.ndarray, layer_maps: bool = False) -> Outputs:
        time.sleep(INFER_S)
        self.calls += 1
        return Outputs(np.zeros((len(images), 256, 256), np.float32), np.ones(len(images), np.float32))

    def start(self, images: np.ndarray, layer_maps: bool = False) -> Callable[[], Outputs]:
        return lambda: self.infer(images)


INFER_S = 0.02


def test_a_picture_alone_waits_for_nobody_and_its_latency_holds_everything(parts_folder: Path, tmp_path: Path) -> None:
    runner = SleepingRunner()
    opened = speed_plan.Opened(Plan("openvino", "fp32"), 1, runner, None, 2.0, Path(), "")
    paths = sorted((parts_folder / "test_good").iterdir())
    camera = Camera(opened, paths, 0.1, no_meter("not asked for"), tmp_path / "verdicts.jsonl")
    found = camera.measure()
    assert (found.frames, found.calls, found.rejected, runner.calls) == (2, 2, 0, 4)
    assert len(found.latencies_ms) == 2
    assert min(found.latencies_ms) >= 1e3 * INFER_S
    source = OneAtATime(paths)
    frames = iter(source)
    next(frames)
    taken = threading.Thread(target=lambda: list(frames), daemon=True)
    taken.start()
    taken.join(0.3)
    assert taken.is_alive()  # no verdict came, so no further picture is read
    source.interrupt()
    taken.join(5)
    assert not taken.is_alive()


def test_what_cannot_run_is_listed_with_the_reason(report: SpeedReport) -> None:
    reasons = {(one.system, one.precision): one.reason for one in report.missing}
    assert "holds no int8 graph" in reasons["openvino", "int8"]
    assert "FP32" in reasons["torch", "int8"]
    assert "holds no fp32 engine of TensorRT-RTX" in reasons["tensorrt_rtx", "fp32"]
    assert len(reasons) == 5


def test_the_json_obeys_its_schema_and_the_picture_is_drawn(report: SpeedReport, tmp_path: Path) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(json.dumps(report.as_dict(), allow_nan=False)), SCHEMA)
    broken = report.as_dict() | {"results": [report.results[0].as_dict()]}  # lacks its share of the matrix rate
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, SCHEMA)
    plot_speed(report, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_the_work_is_that_of_the_specification() -> None:
    """Its table: 157.40 M parameters, 132.54 M of them trained, 46.02 GMACs with WideResNet-50-2 and 512 slots."""
    network = build_nnet(ModelSettings("resnet18"), load_teacher(find_backbone("resnet18"), RANDOM), 0)
    work = work_of(network)
    assert work.parameters / 1e6 == pytest.approx(31.14, abs=0.05)  # its ResNet-18 variant
    assert work.macs / 1e9 == pytest.approx(6.98, abs=0.03)
    assert work.traffic_bytes > 4 * work.parameters  # every weight is read at least once


def test_memory_is_that_of_a_process_of_its_own(random_bundle: Bundle) -> None:
    ballast = np.ones(600 << 20, np.uint8)  # of this process, which the other one must not be charged with
    found = measure_memory(random_bundle.path, Plan("openvino", "fp32"), replace(TINY, systems=("openvino",)))
    assert resident_mib("VmRSS") > 600
    assert found.before_mib + 25 < found.peak_mib < 600  # the graph alone has 25 MB
    del ballast
    with pytest.raises(StreamError, match=r"openvino int8 failed in a process of its own .*holds no int8 graph"):
        measure_memory(random_bundle.path, Plan("openvino", "int8"), TINY)


def test_medians_percentiles_and_ratios_of_the_same_round() -> None:
    def result(system: str, scope: str, rates: list[float]) -> Result:
        rounds = [Round(10, 10 / rate, tuple(range(1, 11)), 5, 2.0) for rate in rates]
        return Result(tuple(rounds), system, "fp32", scope, 8, "")

    roofline = Roofline((Ceiling("processor", "fp32", 100.0, 90.0, 110.0, "a product"),), "processor")
    results = (result("torch", "map", [10, 40, 20]), result("openvino", "map", [9, 20, 19]))
    found = SpeedReport("", "", {}, {}, (), Work(1, 1, 10**9, 10**9), roofline, (), results, ())
    torch, openvino = results
    assert (torch.frames_per_s.median, torch.frames_per_s.smallest, torch.frames_per_s.largest) == (20, 10, 40)
    assert torch.latencies_ms == pytest.approx((5.5, 10.0, 10.0))
    assert (torch.met_batch, torch.joules_per_frame) == (2.0, 0.2)
    (ratio,) = found.ratios  # of the rounds 0.9, 0.5, 0.95; that of the medians would be 0.95
    assert ratio.value.as_dict() == pytest.approx({"median": 0.9, "min": 0.5, "max": 0.95})
    assert found.share(openvino) == pytest.approx(2 * 19 / 100)
    assert found.share(openvino, of_roof=True) is None  # no copy rate was measured
    slow = replace(roofline, ceilings=(*roofline.ceilings, Ceiling("processor", "copy", 20.0, 20.0, 20.0, "a copy")))
    assert replace(found, roofline=slow).share(openvino, of_roof=True) == pytest.approx(
        2 * 19 / (2 * 20)
    )  # 2 operations a byte
    assert merged(roofline, Roofline((Ceiling("processor", "fp32", 80.0, 70.0, 85.0, ""),), "processor")).ceilings[
        0
    ] == Ceiling("processor", "fp32", 100.0, 70.0, 110.0, "a product")


def test_candidates_alternate_and_each_round_starts_with_another() -> None:
    order: list[str] = []

    class Recorder:
        def __init__(self, name: str) -> None:
            self.name = name

        def warm_up(self) -> None:
            raise AssertionError("a round never warms up")

        def measure(self) -> Round:
            order.append(self.name)
            return Round(1, 1.0, (1.0,), 1)

    rounds = run_rounds({name: Recorder(name).measure for name in "abc"}, 3)
    assert order == [*"abc", *"bca", *"cab"]
    assert [len(found) for found in rounds.values()] == [3, 3, 3]


def test_weights_are_read_once_a_batch_and_narrow_numbers_move_fewer_bytes() -> None:
    work = Work(parameters=1000, trained_parameters=1, macs=8000, traffic_bytes=8000)
    assert (work.intensity_at(1), work.intensity_at(2)) == (2.0, 16000 / 6000)
    ceilings = [Ceiling("processor", what, rate, rate, rate, "") for what, rate in
                (("fp32", 100.0), ("int8", 100.0), ("copy", 10.0))]  # fmt: skip
    roofline = Roofline(tuple(ceilings), "processor")
    shares = [roofline.share(10e9, precision, "openvino", 2.0) for precision in ("fp32", "fp16", "int8", "bf16")]
    assert shares == [10 / 20, 10 / 20, 10 / 80, None]  # FP16 graphs are widened; BF16 products were not measured
    assert roofline.share(10e9, "fp32", "openvino", 50.0) == 10 / 100


def test_one_that_fails_in_a_round_is_lost_and_the_rest_goes_on() -> None:
    class Flaky:
        def __init__(self, fails_in: int) -> None:
            self.left = fails_in

        def warm_up(self) -> None:
            raise AssertionError("a round never warms up")

        def measure(self) -> Round:
            self.left -= 1
            if self.left < 0:
                raise StreamError("out of memory")
            return Round(1, 1.0, (1.0,), 1)

    lost: list[tuple[int, str]] = []
    candidates = {place: Flaky(fails_in).measure for place, fails_in in enumerate((2, 9))}
    rounds = run_rounds(candidates, 4, lose=lambda place, error, number: lost.append((place, str(error))))
    assert [len(rounds.get(place, ())) for place in candidates] == [0, 4]
    assert lost == [(0, "out of memory")]
    with pytest.raises(StreamError):
        run_rounds({0: Flaky(0).measure}, 1)


def test_a_probe_of_memory_that_fails_costs_no_rounds(
    random_bundle: Bundle, parts_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nnet_edge.benchmarks.speed.memory.PATIENCE_S", 0.01)
    settings = replace(
        TINY, systems=("openvino",), precisions=("fp32",), scopes=("map",), batches=(1,), with_memory=True
    )
    found = measure_speed(random_bundle.path, parts_folder / "test_good", settings, "the command")
    assert [one.scope for one in found.results] == ["map"]
    (missing,) = found.missing
    assert (missing.scope, found.systems[0].memory) == ("memory", None)
    assert "was not ready within 0.01 s" in missing.reason
    jsonschema.validate(json.loads(json.dumps(found.as_dict(), allow_nan=False)), SCHEMA)


def test_torch_fuses_as_the_reference_does() -> None:
    rng = np.random.default_rng(0)
    maps = {name: 2 * rng.random((2, 1, side, side), np.float32) for name in LAYER_MAPS
            for side in [int(name.split("_")[1])]}  # fmt: skip
    for fusion in (Fusion(), Fusion(False, (0.3, 0.0, 1.0), (1.0, 1.0, 0.1)), Fusion(True, (1, 1, 1), (0, 0, 1)),
                   Fusion(False, (0.5, 1.0, 2.0), (0.1, 1.0, 0.25), "sum")):  # fmt: skip
        fused = torch_fusion(fusion)({name: torch.from_numpy(values) for name, values in maps.items()})
        np.testing.assert_allclose(fused.numpy(), anomaly_map(maps, fusion=fusion), rtol=2e-5, atol=1e-6)
    assert fused.dtype == torch.float32


def test_torch_compile_compiles_every_batch_and_never_falls_back() -> None:
    compiled: list[int] = []

    def backend(module: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., object]:
        compiled.append(len(inputs[0]))
        return module.forward

    def double(images: torch.Tensor) -> torch.Tensor:
        return images * 2

    network = torch.compile(double, dynamic=False, backend=backend)
    with every_shape_compiled():
        for batch in range(1, 13):  # torch's own limit is 8 shapes, after which it computes eagerly without a word
            network(torch.ones(batch, 3))
    assert compiled == list(range(1, 13))
    torch.compiler.reset()


def test_what_fails_while_it_warms_up_is_listed_and_the_rest_goes_on() -> None:
    class Failing:
        opened = speed_plan.Opened(Plan("torch.compile", "fp32"), 8, None, None, 1.0, Path(), "")
        scope = "model"

        def warm_up(self) -> None:
            raise StreamError("no compiler")

        def measure(self) -> Round:
            raise AssertionError("it was not ready")

    ready, first_s, (missing,) = warmed_up([Failing()], lambda line: None)
    assert (ready, first_s) == ([], {})
    assert (missing.system, missing.scope, missing.reason) == ("torch.compile", "model", "batch 8: no compiler")


def test_energy_is_told_or_said_to_be_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "tegrastats"
    line = "RAM 1/2MB CPU [1%@729] VDD_IN 5000mW/5100mW VDD_CPU 900mW/900mW"
    program.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\nwhile true; do echo '{line}'; sleep 0.{EVERY_MS}; done\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    began_s = time.monotonic()
    with measuring_energy() as meter:
        while meter.joules() is None:
            time.sleep(0.02)
        before = meter.joules()
        time.sleep(0.6)
        joules, more = meter.joules(), meter.since(before)
        most = 5.0 * (time.monotonic() - began_s)
    assert joules is not None
    assert more is not None
    assert 0 < joules <= most  # 5 W from the first line to the last that was read, however late it is read
    assert 0 <= more <= most
    assert watts_of("RAM 1/2MB POM_5V_IN 2300/2300 POM_5V_GPU 1/1") == 2.3
    assert watts_of("RAM 1/2MB") is None
    monkeypatch.setenv("PATH", "")
    with measuring_energy("libabsent.so") as meter:
        assert (meter.joules(), meter.since(None)) == (None, None)
        assert meter.source == "not told: neither tegrastats nor libabsent.so is here"


@pytest.mark.skipif(shutil.which("gcc") is None, reason="NVML's part is played by a library that gcc makes")
def test_nvml_counts_joules(tmp_path: Path) -> None:
    source = tmp_path / "nvml.c"
    source.write_text(
        "static unsigned long long n = 1000;\nint nvmlInit_v2(void){return 0;}\n"
        "int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **d){*d = &n; return i;}\n"
        "int nvmlDeviceGetTotalEnergyConsumption(void *d, unsigned long long *e){*e = n += 500; return d != (void*)&n;}\n"
    )
    library = tmp_path / "libnvml.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    meter = open_nvml(str(library))
    assert meter.source == "NVML, the whole card"
    assert meter.since(meter.joules()) == 0.5


def test_a_busy_machine_is_named() -> None:
    assert 0 <= busy_percent() <= 100
    assert busy_warning(9.0) == []
    assert "NOT IDLE (60 % busy" in busy_warning(60.0)[0]


def test_the_command_writes_json_table_and_picture(
    random_bundle: Bundle, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [random_bundle.path, parts_folder / "good", "--system", "openvino", "--precision", "fp32", "--batch", 2,
                 "--repeats", 1, "--turn-seconds", 0.001, "--threads", 1, "--no-memory", "--out", tmp_path]  # fmt: skip
    assert run(["bench", "speed", *map(str, arguments)]) == 0
    written = json.loads((tmp_path / "speed.json").read_text())
    jsonschema.validate(written, SCHEMA)
    assert [one["scope"] for one in written["results"]] == ["model", "map", "camera"]
    printed = capsys.readouterr().out
    assert (tmp_path / "speed.md").read_text().rstrip() == printed.rstrip()
    for result in written["results"]:
        assert f"{result['frames_per_s']['median']:.1f} (" in printed
    assert re.search(r"24 \(96x96 pixels, png\)", printed)
    assert (tmp_path / "speed.png").stat().st_size > 10_000


def test_invalid_settings(random_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong, said in (({"batches": (0,)}, "batch is 0"), ({"batches": (2, 2)}, "give each once"),
                        ({"systems": ()}, "nothing to measure"), ({"turn_s": 0.0}, "seconds of a turn"),
                        ({"scopes": ("all",)}, "scope 'all' is unknown")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            SpeedSettings(**wrong)
    with pytest.raises(DataError, match="no images in"):
        measure_speed(random_bundle.path, tmp_path, TINY)
    assert run(["bench", "speed", str(tmp_path / "none"), str(tmp_path)]) == 1
    assert run_command(random_bundle_command, [str(random_bundle.path)]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "there is no bundle at" in errors[0]
    assert "exists already" in errors[1]
    assert no_meter("x").source == "not told: x"
