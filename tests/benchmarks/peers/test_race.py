"""`bench peers` from end to end: a program that obeys learn.py and serve.py stands in the peers' environment."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import validate

from nnet_edge.benchmarks.accuracy.tables import AccuracyTables
from nnet_edge.benchmarks.accuracy.trainings import read_datasets
from nnet_edge.benchmarks.harness.grid import claiming
from nnet_edge.benchmarks.peers import environment
from nnet_edge.benchmarks.peers.methods import METHODS
from nnet_edge.benchmarks.peers.race import WITHOUT_OURS, RaceSettings, our_candidates, run_race
from nnet_edge.benchmarks.peers.rows import LearnCell, LearnSettings
from nnet_edge.benchmarks.peers.table import RaceReport
from nnet_edge.cli.main import run
from nnet_edge.data.dataset import Dataset
from nnet_edge.errors import ConfigError, DataError

SCHEMAS = Path(__file__).parent.parent.parent.parent / "benchmarks" / "schemas"
PEER = """
import json, sys
from pathlib import Path
import numpy as np
module = sys.argv[2].rpartition(".")[2]
if module == "serve":
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"latencies_ms": [20.0] * json.loads(line)["frames"]}), flush=True)
else:
    job = json.loads(Path(sys.argv[3]).read_text())
    if job["method"] in ("stfpm", "efficient_ad"):
        sys.exit("it diverged")
    out = Path(job["out"])
    with (out / "called.txt").open("a") as file:
        file.write("once ")
    (out / "model.pt").write_bytes(b"x")
    exports = {"torch": {"path": "model.pt", "bytes": 1}}
    facts = {"method": job["method"], "backbone": job["backbone"], "parameters": 1, "values": 2, "macs": 3,
             "versions": {"anomalib": "2.7.0"}}
    if "test" in job:
        images = np.load(job["test"])
        for precision in ("fp32", "int8") if job["int8"] else ("fp32",):
            np.save(out / f"maps-{precision}.npy", images.mean(axis=3, dtype=np.float32))
            np.save(out / f"scores-{precision}.npy", images.mean(axis=(1, 2, 3)))
        facts["training"] = {"images": len(list(Path(job["train"]).glob("*.png"))), "epochs": 1, "epochs_planned": 1,
                             "steps": 1, "seconds": 1.0, "limit_minutes": None, "cut_short": False}
        if job["int8"]:
            exports["openvino-int8"] = {"error": "RuntimeError: no"}
    (out / "facts.json").write_text(json.dumps(facts | {"exports": exports}))
"""
LEARNING = LearnSettings(images=12)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a finished environment whose Python is PEER."""
    wanted = environment.requirements()
    folder = environment.environment_folder(tmp_path / "the cache", wanted)
    (folder / "bin").mkdir(parents=True)
    (folder / "peer.py").write_text(PEER)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "{folder}/peer.py" "$@"\n')
    python.chmod(0o755)
    (folder / environment.MARK).write_text(json.dumps(wanted))
    return tmp_path / "the cache"


def test_every_method_is_raced_or_has_a_reason(
    parts_folder: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a relative --out, as the default is, stands for this folder in every process
    said: list[str] = []
    settings = RaceSettings(LEARNING, ("padim", "stfpm", "fastflow", "efficient_ad"), rounds=1, turn_s=0.01)
    report = run_race([parts_folder], Path("out"), None, cache, settings, said.append)
    assert f"warning: {WITHOUT_OURS}" in said[:1]  # before anything is made
    assert WITHOUT_OURS in report.warnings
    values = json.loads((tmp_path / "out/peers.json").read_text())
    validate(values, json.loads((SCHEMAS / "peers.json").read_text()))
    raced = {one["name"] for one in values["contenders"] if one["speed"]}
    assert raced == {"PaDiM, anomalib torch fp32", "FastFlow (random weights), anomalib torch fp32"}
    reasons = {one["method"]: one["reason"] for one in values["absent"]}
    assert set(reasons) == {"STFPM", "FastFlow", "EfficientAD-S"}
    assert "it diverged" in reasons["STFPM"]
    assert "cannot learn here" in reasons["FastFlow"]
    assert any("EfficientAD-S with random weights failed (it diverged)" in text for text in values["warnings"])
    assert report.markdown() + "\n" == (tmp_path / "out/peers.md").read_text()
    assert (tmp_path / "out/figure4.png").exists()
    untimed = run_race([parts_folder], tmp_path / "out", None, cache, replace(settings, rounds=0, learns=False))
    assert {one.timed for one in untimed.candidates} == {None}
    assert not (tmp_path / "out/figure4.png").exists()  # it was the earlier report's
    assert any("run without --no-learning" in one.reason for one in untimed.absent)


def test_our_rows_bring_their_warnings_and_whose_maps_they_are_of(
    visa: Path, accuracy: tuple[AccuracyTables, Path], parts: Dataset
) -> None:
    ours, seed = accuracy[1], 3
    datasets = read_datasets([visa])
    found, warnings = our_candidates(ours, datasets, seed)
    by_name = {one.name: one for one in found}
    assert {one.metrics_from for one in found} == {"openvino"}  # torch's and ONNX Runtime's lines too
    assert set(by_name["N-Net, torch fp32"].metrics) == {"candle"}
    assert any("RANDOM WEIGHTS" in text for text in warnings)
    assert "N-Net, fp32: no row of pcb1: run bench accuracy on it" in warnings
    other = replace(datasets[0], test=parts.test)
    with pytest.raises(ConfigError, match="is of another run"):
        our_candidates(ours, [other], seed)


def test_rows_of_other_settings_or_images_are_refused(parts: Dataset, cache: Path, tmp_path: Path) -> None:
    python = environment.ensure_environment(cache)
    padim, stfpm = METHODS["padim"], METHODS["stfpm"]
    (row,) = (
        path for path in LearnCell(python, padim, parts, tmp_path, LEARNING, "x").learn() if path.name == "fp32.json"
    )
    assert json.loads(row.read_text())["images"]["train"] == 12
    before = row.read_bytes()
    assert LearnCell(python, padim, parts, tmp_path, LEARNING, "x").is_done()
    assert LearnCell(
        python, padim, parts, tmp_path, replace(LEARNING, minutes=3, epochs=7), "x"
    ).is_done()  # it looks at every image once anyhow
    assert LEARNING.key(stfpm) != replace(LEARNING, minutes=3).key(stfpm)
    assert LEARNING.key(stfpm) == replace(LEARNING, threads=2).key(stfpm)
    with pytest.raises(ConfigError, match=r"learning.images was 12, is 13\): choose another --out"):
        LearnCell(python, padim, parts, tmp_path, replace(LEARNING, images=13), "x").learn()
    for other in (replace(parts, test=parts.test[1:]), replace(parts, train=parts.train[1:])):
        with pytest.raises(ConfigError, match=r"is of another run \(data\."):
            LearnCell(python, padim, other, tmp_path, LEARNING, "x").learn()
    assert row.read_bytes() == before


def test_two_processes_never_learn_one_row(parts: Dataset, cache: Path, tmp_path: Path) -> None:
    python, padim = environment.ensure_environment(cache), METHODS["padim"]
    with (
        claiming(tmp_path / "padim" / parts.category / "seed_1"),
        pytest.raises(DataError, match=r"PaDiM on \w+: process \d+ on .* is at it"),
    ):
        LearnCell(python, padim, parts, tmp_path, LEARNING, "x").learn()
    assert LearnCell(python, padim, parts, tmp_path, LEARNING, "x").learn()


def test_int8_that_was_left_out_is_made_when_it_is_wanted(parts: Dataset, cache: Path, tmp_path: Path) -> None:
    python, padim = environment.ensure_environment(cache), METHODS["padim"]
    called = tmp_path / "padim" / parts.category / "seed_1" / "learned" / "called.txt"
    without = replace(LEARNING, int8=False)
    assert [path.name for path in LearnCell(python, padim, parts, tmp_path, without, "x").learn()] == ["fp32.json"]
    LearnCell(python, padim, parts, tmp_path, without, "x").learn()
    assert called.read_text() == "once "
    wanted = [path.name for path in LearnCell(python, padim, parts, tmp_path, LEARNING, "x").learn()]
    assert wanted == ["fp32.json", "int8.json"]
    for settings in (LEARNING, without):  # what is there serves both
        LearnCell(python, padim, parts, tmp_path, settings, "x").learn()
    assert called.read_text() == "once once "


def test_a_second_run_takes_no_code_from_the_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = environment.ensure_environment(cache)
    code = first.parent / "nnet_edge" / "benchmarks" / "peers" / "learn.py"
    inode = code.stat().st_ino
    assert environment.ensure_environment(cache) == first
    assert code.stat().st_ino == inode  # not even made again
    files = environment.our_files()
    monkeypatch.setattr(environment, "our_files", lambda: files | {"nnet_edge/new.py": b""})
    assert environment.ensure_environment(cache) != first
    assert code.stat().st_ino == inode
    folder = first.parent.parent
    (folder / "bin/python").unlink()
    (folder / "bin/python").symlink_to(sys.executable)
    seen = subprocess.run(
        [first, "-I", "-c", "print()"], capture_output=True, text=True, check=True, cwd=tmp_path
    ).stdout
    assert seen == "\n"
    found = subprocess.run(
        [first, "-c", "import nnet_edge.benchmarks.peers.learn as it; print(it.__file__)"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert Path(found.strip()) == code


def test_the_help_says_how_ours_comes_in(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "peers", "--help"]) == 0
    assert "N-Net runs with --ours" in " ".join(capsys.readouterr().out.split())


def test_a_report_without_anybody_is_not_finished() -> None:
    assert not RaceReport({}, (), ()).finished
