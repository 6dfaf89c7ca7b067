"""`nnet-edge calibrate` on a small trained bundle: what it writes, what it refuses, and what evaluate and stream make of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nnet_edge.bundle import Bundle, read_bundle
from nnet_edge.calibration import gate as gates
from nnet_edge.calibration.gate import Gate, GateLimits, compare
from nnet_edge.calibration.predictions import predict
from nnet_edge.calibration.qdq import Plan
from nnet_edge.calibration.quantize import QuantizeSettings
from nnet_edge.calibration.sensitivity import Sensitivity
from nnet_edge.cli.calibrate import require_taken, table_of
from nnet_edge.cli.main import run
from nnet_edge.errors import BundleError, ConfigError
from nnet_edge.export.calibrating import CalibrateSettings, runner_kinds
from nnet_edge.export.layer_search import GraphJudge
from nnet_edge.export.precision import to_half
from nnet_edge.files import sha256
from nnet_edge.kept_frames import frame_hash
from nnet_edge.runtime.stream.model import choose_runnable, open_graph
from nnet_edge.settings.runner import RunnerSettings

QUICK = ["--threads", "1", "--skip-bad-images"]
WIDE = ["--metric-points", "100", "--band", "9"]


@pytest.fixture(scope="module")
def trained_run(second_run: Path) -> Path:
    """That of the smaller input, which takes less time."""
    return second_run / "run"


@pytest.fixture(scope="module")
def parts(parts_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(parts_folder, tmp_path_factory.mktemp("calibrate") / "parts"))


@pytest.fixture(scope="module", autouse=True)
def few_rounds() -> Iterator[None]:
    """No test here asks how fast a graph is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gates, "ROUNDS", 5)
        yield


@pytest.fixture(scope="module")
def calibrated(trained_run: Path, parts: Path) -> Path:
    """A bundle with int8 and fp16 graphs that a wide gate took: four epochs make no steady network."""
    path = Path(shutil.copytree(trained_run / "bundle", parts.parent / "bundle"))
    assert run(["calibrate", str(path), str(parts), "--runner", "openvino", *WIDE, *QUICK]) == 0
    return path


def test_the_graphs_their_frames_and_their_figures_are_in_the_bundle(calibrated: Path, trained_run: Path) -> None:
    bundle = read_bundle(calibrated)
    names = ["nnet.onnx", "nnet.fp16.onnx", "nnet.int8.onnx", "nnet.int8.source.onnx"]
    assert [item.name for item in bundle.artefacts] == names
    int8 = bundle.artefact("int8")
    assert int8.record["source"] == sha256(bundle.graph)
    made = int8.record["made"]
    assert (made["tool"], made["method"], made["frames"], made["seed"]) == ("nnet-edge", "auto", 14, 0)
    assert made["ranges"]["by"].startswith("nnet-edge ")
    assert made["ranges"]["activations"].startswith("onnxruntime ")
    gate = int8.record["gates"]["openvino"]
    assert set(gate["metrics"]) == {"image_auroc", "pixel_auroc", "pixel_ap", "pro"}
    assert gate["metric_points"] == {
        name: pytest.approx(100 * (new - old)) for name, (old, new) in gate["metrics"].items()
    }
    assert gate["images"] == 10 + 8
    assert gate["latency_ms"][0] > 0
    assert int8.path.stat().st_size < bundle.graph.stat().st_size / 2
    frames = bundle.frames("int8")
    assert len(frames) == 14
    held_out = set(bundle.manifest["frames"]["held_out"])
    assert not held_out & {frame_hash(frame) for frame in frames}, "what chose the threshold is not calibrated on"
    assert list(bundle.manifest["frames"]) == ["held_out"]
    assert read_bundle(trained_run / "bundle").manifest["artefacts"] == {}


def test_onnx_runtime_takes_a_form_of_its_own_and_openvino_does_not(
    calibrated: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(calibrated, tmp_path / "bundle"))
    words = ["calibrate", str(path), str(parts), "--precision", "int8", *WIDE, *QUICK]
    assert run([*words, "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    bundle = read_bundle(path)
    variant = path / "nnet.onnxruntime.int8.onnx"
    assert told["variants"]["onnxruntime"]["bytes"] == variant.stat().st_size
    for runner, file in (("onnxruntime", variant), ("openvino", path / "nnet.int8.onnx")):
        assert bundle.graph_for(runner, "int8").path == file
        assert choose_runnable(bundle, RunnerSettings(runner), "int8")[0].path == file
        assert list(bundle.graph_for(runner, "int8").record["gates"]) == [runner]
        with open_graph(bundle, RunnerSettings(runner, threads=1), "int8")[0] as opened:
            assert opened.name == runner
    assert list(bundle.manifest["variants"]) == [variant.name], "where versions that know none do not look"
    assert variant.name not in bundle.manifest["artefacts"]
    assert bundle.artefact("int8").name == "nnet.int8.onnx", "what a command names without a runner is the one for all"
    source = bundle.engine_source("int8")
    assert source.name == "nnet.int8.source.onnx"
    assert set(source.record["answers"]) == {"openvino", "onnxruntime"}, (
        "an engine of it is asked for them at its first start"
    )
    assert not source.record["gates"]
    assert run([*words, "--runner", "openvino"]) == 0
    assert not variant.exists(), "a form of an earlier calibration must not judge beside a new one"


def test_each_graph_keeps_its_own_frames_and_seed(calibrated: Path, parts: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(calibrated, tmp_path / "bundle"))
    before = read_bundle(path).artefact("int8").record
    words = ["--precision", "fp16", "--frames", "8", "--seed", "5", "--runner", "openvino", *WIDE, *QUICK]
    assert run(["calibrate", str(path), str(parts), *words]) == 0
    bundle = read_bundle(path)
    assert bundle.artefact("int8").record == before
    assert [frame_hash(frame) for frame in bundle.frames("int8")] == before["frames"]
    assert (len(bundle.frames("int8")), len(bundle.frames("fp16"))) == (14, 8)
    assert [bundle.artefact(name).record["made"]["seed"] for name in ("int8", "fp16")] == [0, 5]


def test_a_graph_that_gives_no_numbers_is_not_taken_with_accept_either(
    bundle: Bundle, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A weight of the FP16 graph is NaN; good images alone, whose maps no metric looks at."""
    from nnet_edge.export import calibrating

    def spoiled(*arguments: Any) -> onnx.ModelProto:
        half = to_half(*arguments)
        last = [item for item in half.graph.initializer if "conv_pwl.weight" in item.name][-1]
        last.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(last) * np.nan, last.name))
        return half

    monkeypatch.setattr(calibrating, "to_half", spoiled)
    path = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    good = Path(shutil.copytree(parts, tmp_path / "parts", ignore=shutil.ignore_patterns("bad", "masks")))
    words = ["calibrate", str(path), str(good), "--precision", "fp16", "--runner", "openvino", "--accept", *QUICK]
    assert run(words) == 1
    told = capsys.readouterr()
    assert "REFUSED" in told.out
    assert "images get a score or a map that is NaN or infinite" in told.out
    assert "fp16 gives no verdicts" in told.err
    assert read_bundle(path).manifest == bundle.manifest


def test_engines_of_int8_are_built_of_a_graph_whose_rest_is_fp16(calibrated: Path) -> None:
    bundle = read_bundle(calibrated)
    source = bundle.engine_source("int8")
    assert (source.name, source.kind) == ("nnet.int8.source.onnx", "source")
    model = onnx.load(source.path)
    operators = [node.op_type for node in model.graph.node]
    plain = [node.op_type for node in onnx.load(bundle.artefact("int8").path).graph.node]
    for name in ("QuantizeLinear", "DequantizeLinear", "Conv"):
        assert operators.count(name) == plain.count(name) > 0
    assert any(item.data_type == onnx.TensorProto.FLOAT16 for item in model.graph.initializer)
    assert bundle.engine_source("fp16") == bundle.artefact("fp16")
    with pytest.raises(BundleError, match="was measured on no runner"):
        source.threshold_for("openvino")


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_evaluate_takes_the_precision_and_its_own_threshold(
    calibrated: Path, parts: Path, tmp_path: Path, precision: str
) -> None:
    arguments = ["evaluate", calibrated, parts, "--precision", precision, "--runner", "openvino", "--out", tmp_path]
    assert run([str(word) for word in arguments]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["precision"] == precision
    threshold = read_bundle(calibrated).artefact(precision).threshold_for("openvino")
    assert found["threshold"] == threshold.value != read_bundle(calibrated).threshold.value


def test_stream_takes_the_precision_and_its_own_threshold(calibrated: Path, parts: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    arguments = ["stream", parts / "bad/stain", "--bundle", calibrated, "--precision", "int8", "--json", lines]
    assert run([str(word) for word in (*arguments, "--runner", "openvino")]) == 0
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    threshold = read_bundle(calibrated).artefact("int8").threshold_for("openvino").value
    assert len(rows) == 4
    assert [row["threshold"] for row in rows] == pytest.approx([threshold] * 4)


def test_a_runner_that_never_saw_the_graph_is_told_what_to_run(
    calibrated: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BundleError, match="measured on openvino and not on onnxruntime"):
        read_bundle(calibrated).artefact("int8").threshold_for("onnxruntime")
    words = ["evaluate", str(calibrated), str(parts), "--precision", "int8", "--runner", "onnxruntime"]
    assert run(words) == 1
    assert "nnet-edge calibrate" in capsys.readouterr().err


def test_a_precision_that_is_not_in_the_bundle_names_the_command(
    trained_run: Path, parts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(trained_run / "bundle")
    for words in (["evaluate", bundle, str(parts)], ["stream", "synthetic:4", "--bundle", bundle]):
        assert run([*words, "--precision", "fp16"]) == 1
        assert "holds no fp16 graph" in capsys.readouterr().err
    assert run(["evaluate", bundle, str(parts), "--torch", "--precision", "int8"]) == 2
    assert "leave --torch out" in capsys.readouterr().err


def test_a_refused_graph_is_not_written(
    bundle: Bundle, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The gate asks for metrics that rise by ten hundredths."""
    path = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))
    words = [
        "calibrate",
        str(path),
        str(parts),
        "--precision",
        "fp16",
        "--runner",
        "openvino",
        "--metric-points",
        "-1000",
        *QUICK,
    ]
    assert run(words) == 1
    told = capsys.readouterr()
    assert "REFUSED" in told.out
    assert "say --accept" in told.err
    assert read_bundle(path).manifest == bundle.manifest
    assert run([*words, "--accept"]) == 0
    assert "taken all the same" in capsys.readouterr().out
    assert read_bundle(path).artefact("fp16").record["gates"]["openvino"]["overridden"] is True


def test_the_gate_says_how_many_blocks_stay_fp32(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Costs that name two blocks, and a gate that holds once both of them are kept."""
    from nnet_edge.export import calibrating

    wanted = ("teacher.stages.0.2.0", "fusion.mix.0")
    path = Path(shutil.copytree(bundle.path, tmp_path / "bundle"))

    def costs(planned: Plan, *rest: object) -> Sensitivity:
        found = {name: float(name in wanted) for name in planned.blocks}
        return Sensitivity(found, {}, dict.fromkeys(found, 1.0))

    def verdict(
        judge: GraphJudge, content: bytes, precision: str, rows: object = None, reference: object = None
    ) -> Gate:
        facts = {item.key: item.value for item in onnx.load_model_from_string(content).metadata_props}
        kept = set(facts.get("nnet_edge.kept_in_fp32", "").split())
        return replace(any_gate, accepted=kept >= set(wanted), reasons=() if kept >= set(wanted) else ("too rough",))

    monkeypatch.setattr(calibrating, "measure_sensitivity", costs)
    monkeypatch.setattr(GraphJudge, "judge", verdict)
    said: list[str] = []
    copy = read_bundle(path)
    settings = CalibrateSettings(("int8",), QuantizeSettings(threads=1), frames=8, limits=GateLimits(100, 9))
    runner = RunnerSettings(threads=1)
    frames = copy.frames("held_out")[:8]
    with GraphJudge(copy, None, ["openvino"], runner, settings.limits, said.append) as judge:
        bench = calibrating.GraphMaker(judge, frames, settings, no_bar, said.append)
        predictions = predict(judge.references[0], judge.held_out)
        any_gate = compare(predictions, predictions)
        graph = bench.make("int8")
        again = bench.keep(copy, graph)
    assert sorted(graph.made["kept_in_fp32"]) == sorted(wanted)
    assert again.artefact("int8").record["made"]["kept_in_fp32"] == list(graph.made["kept_in_fp32"])
    assert again.artefact("int8").record["made"]["search"] == {"on": "all"}
    assert any("too rough" in line for line in said)
    assert "FP32 stay" in table_of([graph])


@contextmanager
def no_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    yield lambda done, total: None


def test_too_few_good_images_end_it(
    bundle: Bundle, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = tmp_path / "few"
    (few / "good").mkdir(parents=True)
    for image in sorted((parts / "good").iterdir())[:5]:
        shutil.copy(image, few / "good")
    assert run(["calibrate", str(bundle.path), str(few)]) == 1
    assert "at least 8 are needed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--precision", "int4"], "'int4' cannot be calibrated: choose int8 or fp16"),
        (["--precision", ""], "cannot be calibrated"),
        (["--precision", "int4", "--precision", "fp16"], "'int4' cannot be calibrated"),  # the first one counts too
        (["--method", "magic"], "magic"),
        (["--frames", "3"], "3 calibration frames are too few"),
        (["--tool", "hammer"], "hammer"),
        (["--tool", "modelopt", "--method", "percentile"], "choose max, entropy, auto, or another tool"),
    ],
)
def test_wrong_use(
    bundle: Bundle, parts: Path, capsys: pytest.CaptureFixture[str], words: list[str], answer: str
) -> None:
    assert run(["calibrate", str(bundle.path), str(parts), *words]) == 2
    assert answer in capsys.readouterr().err


def test_runners_to_judge_on() -> None:
    assert runner_kinds("auto") == ["openvino", "onnxruntime"]
    assert runner_kinds("onnxruntime") == ["onnxruntime"]
    with pytest.raises(ConfigError, match="computes engines, not graphs"):
        runner_kinds("tensorrt")


def test_nothing_made_is_nothing_refused(tmp_path: Path) -> None:
    require_taken([], tmp_path)
    assert table_of([]).startswith("precision")
