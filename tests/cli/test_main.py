"""The command line as its user meets it: what works, and one line for everything that does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.bundle import read_bundle
from nnet_edge.cli.main import commands, run
from nnet_edge.cli.options import parse_share

Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs the command line; gives the exit code and the last line on standard error."""

    def command(*arguments: object) -> tuple[int, str]:
        code = run([str(argument) for argument in arguments])
        lines = capsys.readouterr().err.strip().splitlines()
        if code not in (0, 130):
            assert sum("error" in line for line in lines) == 1, lines
            assert lines[-1].startswith("nnet-edge: error: ")
        return code, lines[-1] if lines else ""

    return command


@pytest.fixture
def bundle_path(trained_run: Path) -> Path:
    return trained_run / "bundle"


@pytest.mark.parametrize("is_debugged", [False, True])
def test_an_unexpected_error_is_one_line_and_a_traceback_only_on_request(
    is_debugged: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> int:
        raise ZeroDivisionError("of\nthe program")

    monkeypatch.setattr(commands, "main", broken)
    assert run([*(["--debug"] if is_debugged else []), "doctor"]) == 1
    told = capsys.readouterr().err
    assert "nnet-edge: error: unexpected: ZeroDivisionError: of the program; please report it" in told
    assert ("Traceback" in told) == is_debugged


def test_a_settings_file_without_a_name_is_one_line(ask: Ask) -> None:
    assert ask("stream", "--config", "") == (2, "nnet-edge: error: the settings file . cannot be read: Is a directory")


def test_train_leaves_a_bundle_a_log_and_a_picture(trained_run: Path) -> None:
    assert (trained_run / "training/log.csv").read_text().splitlines()[0].startswith("epoch,loss,reverse")
    assert len((trained_run / "training/log.csv").read_text().splitlines()) == 5
    assert cv2.imread(str(trained_run / "training/losses.png")) is not None
    assert read_bundle(trained_run / "bundle").threshold.held_out == 10
    assert {path.name for path in trained_run.iterdir()} == {"bundle", "training"}


@pytest.mark.parametrize("how", [["--torch"], ["--runner", "openvino"], ["--runner", "onnxruntime"]])
def test_evaluate_any_artifact(
    how: list[str], bundle_path: Path, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(bundle_path), str(parts_folder), "--out", str(tmp_path / "report"), *how]) == 0
    table = capsys.readouterr().out
    assert "pixel AP" in table
    assert "PRO (RD4AD)" in table
    found = json.loads((tmp_path / "report/metrics.json").read_text())
    assert found["images"] == {"good": 4, "anomalous": 4, "skipped": 0}
    assert found["runner"] == how[-1].removeprefix("--")
    for name in ("sheet.png", "histogram.png"):
        assert cv2.imread(str(tmp_path / "report" / name)) is not None


def test_evaluate_a_checkpoint(trained_run: Path, parts_folder: Path, tmp_path: Path) -> None:
    assert run(["evaluate", str(trained_run / "training"), str(parts_folder), "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "metrics.json").read_text())["runner"] == "torch"


def test_evaluate_records_in_the_manifest_when_told(bundle_path: Path, parts_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle_path, tmp_path / "bundle")
    assert run(["evaluate", str(copy), str(parts_folder), "--record"]) == 0
    assert read_bundle(copy).manifest["metrics"]["image_auroc"] is not None
    assert (tmp_path / "evaluation/sheet.png").exists()


def test_every_report_says_that_the_teacher_is_random(
    bundle_path: Path, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bundle_path, tmp_path / "bundle"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["teacher"]["is_random"] = True
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert run(["evaluate", str(copy), str(parts_folder), "--out", str(tmp_path / "report")]) == 0
    assert "RANDOM" in capsys.readouterr().err
    assert "RANDOM" in json.loads((tmp_path / "report/metrics.json").read_text())["warnings"][0]
    assert run(["stream", str(parts_folder / "test_good"), "--bundle", str(copy)]) == 0
    assert "RANDOM" in capsys.readouterr().err


def test_held_out_images_stand_in_for_good_test_images(
    bundle_path: Path, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(parts_folder, tmp_path / "data")
    shutil.rmtree(data / "test_good")
    assert run(["evaluate", str(bundle_path), str(data), "--out", str(tmp_path / "report")]) == 0
    assert "10 held-out images" in capsys.readouterr().err
    assert json.loads((tmp_path / "report/metrics.json").read_text())["false_rejects"] == {"count": 0, "of": 10}


def test_stream_a_folder_into_lines_rejects_and_video(
    bundle_path: Path, parts_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"--json": "lines.jsonl", "--rejects": "rejects", "--video": "line.mp4"}
    options = [text for name, path in files.items() for text in (name, str(tmp_path / path))]
    assert run(["stream", str(parts_folder / "test_good"), "--bundle", str(bundle_path), *options]) == 0
    lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert (tmp_path / "line.mp4").stat().st_size > 0
    assert f"wrote {tmp_path / 'lines.jsonl'}" in capsys.readouterr().err


def test_several_sources_are_one_line_with_one_log(
    bundle_path: Path, parts_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines.jsonl"
    sources = [f"good={parts_folder / 'test_good'}", str(parts_folder / "bad/stain"), "drawn=synthetic:5"]
    assert run(["stream", *sources, "--bundle", str(bundle_path), "--json", str(lines)]) == 0
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sorted(item["stream"] for item in found) == ["camera-1"] * 4 + ["drawn"] * 5 + ["good"] * 4
    assert len({item["id"] for item in found}) == 13
    assert "13 captured, 0 dropped, 0 queued" in capfd.readouterr().err
    assert run(["stream", *sources, "--bundle", str(bundle_path), "--video", str(tmp_path / "a.mp4")]) == 0
    shown = {path.name for path in tmp_path.glob("*.mp4")}  # a video of each stream
    assert shown == {"a.camera-1.000001.mp4", "a.drawn.000001.mp4", "a.good.000001.mp4"}


def test_what_must_be_delivered_goes_through_a_spool_and_is_appended(
    bundle_path: Path, parts_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines, rejects, spool = tmp_path / "lines.jsonl", tmp_path / "rejects", tmp_path / "spool"
    options = ["--bundle", str(bundle_path), "--json", str(lines), "--rejects", str(rejects)]
    options += ["--must-deliver", str(spool)]
    for sources in (["good=synthetic:3", "bad=synthetic:4"], ["synthetic:5"]):
        assert run(["stream", *sources, "--threshold", "0.001", *options]) == 0  # every part is a reject
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sorted(item["stream"] for item in found) == ["bad"] * 4 + ["camera-0"] * 5 + ["good"] * 3
    assert {path.name for path in spool.iterdir()} == {"json-lines", "pictures"}
    assert len(list(rejects.rglob("*.jpg"))) == 12  # of each stream its own


def test_the_stream_and_the_evaluation_give_the_same_score(
    bundle_path: Path, parts_folder: Path, tmp_path: Path
) -> None:
    assert run(["evaluate", str(bundle_path), str(parts_folder), "--out", str(tmp_path)]) == 0
    lines = tmp_path / "lines.jsonl"
    assert run(["stream", str(parts_folder / "bad/stain"), "--bundle", str(bundle_path), "--json", str(lines)]) == 0
    streamed = {item["name"]: item["score"] for item in map(json.loads, lines.read_text().splitlines())}
    evaluated = json.loads((tmp_path / "metrics.json").read_text())["scores"]
    for row in (row for row in evaluated if row["is_anomalous"]):
        assert streamed[Path(row["name"]).name] == pytest.approx(row["score"], rel=1e-5)


def test_doubtful_masks_and_unused_folders_are_said(
    bundle_path: Path, parts_folder: Path, tmp_path: Path, ask: Ask, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shutil.copytree(parts_folder, tmp_path / "parts")
    for mask in (data / "masks").rglob("*.png"):
        assert cv2.imwrite(str(mask), 255 - cv2.imread(str(mask)))
    (data / "good/old.heic").write_bytes(b"x")
    command = ["evaluate", str(bundle_path), str(data), "--out", str(tmp_path / "report")]
    code, line = ask(*command)
    assert code == 1
    assert "4 of 4 masks leave a doubt" in line
    assert "--mask-mark" in line
    assert run([*command, "--mask-mark", "dark"]) == 0
    assert "note: not used: 1 .heic in good/ (first: old.heic)" in capsys.readouterr().err
    plain = tmp_path / "plain"
    assert run(["evaluate", str(bundle_path), str(parts_folder), "--out", str(plain)]) == 0
    found, expected = (json.loads((out / "metrics.json").read_text()) for out in (tmp_path / "report", plain))
    assert found["metrics"] == expected["metrics"]
    assert found["distinct_images"] == 8


@pytest.mark.parametrize(("text", "share"), [("1/200", 0.005), ("0.005", 0.005), ("1/11", 1 / 11)])
def test_a_share_is_written_either_way(text: str, share: float) -> None:
    assert parse_share(None, None, text) == pytest.approx(share)  # type: ignore[arg-type]


def test_wrong_use_of_the_command_line(ask: Ask, tmp_path: Path, parts_folder: Path, bundle_path: Path) -> None:
    for arguments, words in (
        (["fly"], "fly"),
        (["train"], "DATA"),
        (["train", tmp_path / "nowhere"], "nowhere"),
        (["train", parts_folder, "--layout", "visa"], "csv"),
        (["train", parts_folder, "--epochs", "0"], "epochs is 0"),
        (["train", parts_folder, "--out", tmp_path / "r", "--batch", "99"], "--batch 14"),
        (["train", parts_folder, "--batch", "1"], "batch is 1"),
        (["train", parts_folder, "--learning-rate", "0.1", "--paper-lr"], "contradict"),
        (["train", parts_folder, "--set", "colour=red"], "no setting colour"),
        (["train", parts_folder, "--set", "model.memory_slots=many"], "memory_slots"),
        (["train", parts_folder, "--ablation", "9.9"], "9.9"),
        (["train", parts_folder, "--false-rejects", "2"], "between 0 and 1"),
        (["train", parts_folder, "--false-rejects", "a/b"], "no share"),
        (["train", parts_folder, "--out", tmp_path / "f", "--false-rejects", "1/200"], "199"),
        (["train", parts_folder, "--resume", "--force"], "contradict"),
        (["train", parts_folder, "--checkpoint-every", "0"], "at least 1"),
        (["train", parts_folder, "--hold-out", "1.5", "--out", tmp_path / "h"], "1.5"),
        (["evaluate", bundle_path, tmp_path / "nowhere"], "nowhere"),
        (["stream", "synthetic:4"], "--bundle"),
        (["stream", "synthetic:4", "--bundle", bundle_path, "--threshold", "-1"], "above 0"),
        (["stream", "synthetic:4", "--bundle", bundle_path, "--runner-batch", "0"], "batch"),
        (["stream", "synthetic:4", "--bundle", bundle_path, "--credentials", "env:LOGIN"], "network address"),
        (["stream", "rtsp://c/1", "--bundle", bundle_path, "--credentials", "env:NO_SUCH_LOGIN"], "NO_SUCH_LOGIN"),
        (["stream", "rtsp://c/1", "a=0", "--bundle", bundle_path, "--credentials", tmp_path / "no"], "cannot be read"),
        (["stream", "synthetic:4", "--bundle", bundle_path, "--deadline", "0.1"], "several sources"),
        (["stream", "rtsp://me:geheim@[c/1", "--bundle", bundle_path], "rtsp://*** is not a valid address"),
        (["stream", "synthetic:4", "--bundle", bundle_path, "--video", tmp_path / "v.txt"], "suffix"),
    ):
        code, line = ask(*arguments)
        assert code == 2, (arguments, line)
        assert words in line, (arguments, line)


def test_failures_that_are_nobodys_typing(ask: Ask, tmp_path: Path, parts_folder: Path, bundle_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    broken = shutil.copytree(bundle_path, tmp_path / "broken")
    (broken / "nnet.onnx").write_bytes(b"not a graph")
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"not weights")
    for arguments, words in (
        (["train", tmp_path / "empty"], "empty"),
        (["train", parts_folder, "--teacher-weights", weights, "--out", tmp_path / "w"], "not a readable weights file"),
        (["train", parts_folder, "--teacher-weights", tmp_path / "no.pth", "--out", tmp_path / "w"], "does not exist"),
        (["train", parts_folder, "--resume", "--out", tmp_path / "none"], "no checkpoint"),
        (["export", tmp_path / "empty"], "no checkpoint"),
        (["evaluate", tmp_path / "empty", parts_folder], "no bundle"),
        (["stream", "synthetic:4", "--bundle", broken], "altered"),
        (["stream", "synthetic:4", "--bundle", tmp_path / "gone"], "does not exist"),
        (["stream", "who knows", "--bundle", bundle_path], "no source"),
        (["stream", "synthetic:4", "gone.mp4", "--bundle", bundle_path], "no source 'gone.mp4'"),
        (["stream", tmp_path / "empty", "--bundle", bundle_path], "empty"),
    ):
        code, line = ask(*arguments)
        assert code == 1, (arguments, line)
        assert words in line, (arguments, line)
    assert not (tmp_path / "w/bundle").exists()


def test_too_few_images_for_a_threshold_say_how_many_it_needs(ask: Ask, trained_run: Path, tmp_path: Path) -> None:
    code, line = ask("export", trained_run / "training", "--out", tmp_path / "b", "--false-rejects", "1/200")
    assert code == 2
    assert "199" in line
    assert "10" in line
    assert list(tmp_path.iterdir()) == []


def test_too_few_images_to_train(ask: Ask, tmp_path: Path) -> None:
    for seed in range(5):
        cv2.imwrite(str(tmp_path / f"{seed}.png"), np.full((32, 32, 3), 40 + seed, np.uint8))
    code, line = ask("train", tmp_path, "--out", tmp_path / "run")
    assert code == 1
    assert "5 good images are too few" in line


def test_a_corrupt_image_is_named_or_skipped_and_counted(ask: Ask, second_run: Path, tmp_path: Path) -> None:
    code, line = ask("train", second_run / "data", "--out", tmp_path / "run")
    assert code == 1
    assert "truncated.png" in line
    assert "skipped 1 images" in (second_run / "said.txt").read_text()
    assert read_bundle(second_run / "run/bundle").manifest["data"]["skipped"] == 1


def test_a_training_is_not_overwritten_unasked(ask: Ask, trained_run: Path, parts_folder: Path) -> None:
    before = (trained_run / "training/checkpoint.safetensors").read_bytes()
    code, line = ask("train", parts_folder, "--out", trained_run)
    assert code == 2
    assert "--force" in line
    assert (trained_run / "training/checkpoint.safetensors").read_bytes() == before


def test_resume_with_other_data_is_refused(ask: Ask, trained_run: Path, parts_folder: Path, tmp_path: Path) -> None:
    data = shutil.copytree(parts_folder, tmp_path / "data")
    (data / "good/00.png").unlink()
    code, line = ask("train", data, "--out", trained_run, "--resume")
    assert code == 1
    assert "other data" in line


def test_an_output_that_cannot_be_written(ask: Ask, trained_run: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    code, line = ask("export", trained_run / "training", "--out", blocked / "bundle")
    assert code == 1
    assert "file" in line


def test_a_full_disk_leaves_no_bundle(trained_run: Path, ask: Ask) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    code, line = ask("stream", "synthetic:3", "--bundle", trained_run / "bundle", "--json", full)
    assert code == 1
    assert "space" in line


@pytest.mark.usefixtures("no_broadcast")
def test_doctor_speaks_to_people_and_programs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    assert "openvino" in capsys.readouterr().out
    assert run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verbs"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "photos", "--seed", "1", "--seed", "1"], "--seed"),
        (["train", "photos", "--resume", "--resume"], "--resume"),
        (["train", "PARTS", "--set", "kd_weight=0", "--set", " kd_weight =1"], "--set kd_weight"),
        (["stream", "0", "--bundle", "a", "--bundle=b"], "--bundle"),
        (["config", "check", "line.toml", *2 * ["--without-bundle"]], "--without-bundle"),
        (["bench", "peers", "photos", "--out", "a", "--out", "b"], "--out"),
    ],
)
def test_an_option_said_twice_is_refused(ask: Ask, parts_folder: Path, arguments: list[str], said: str) -> None:
    code, error = ask(*(parts_folder if word == "PARTS" else word for word in arguments))
    assert (code, error) == (2, f"nnet-edge: error: {said} was given twice: say it once")


def test_what_may_be_repeated_still_may(ask: Ask, tmp_path: Path) -> None:
    code, error = ask("bench", "speed", tmp_path, "--precision", "fp32", "--precision", "int8")
    assert "twice" not in error
    assert code
