"""The race against other methods: rounds at real pipes, rows from maps, the table's arithmetic."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from jsonschema import validate

from nnet_edge.benchmarks.harness.rounds import Round
from nnet_edge.benchmarks.peers import environment, pipes, race
from nnet_edge.benchmarks.peers.learn import in_a_process
from nnet_edge.benchmarks.peers.methods import METHODS, find_methods
from nnet_edge.benchmarks.peers.pipes import Entry, TimedProcess, time_rounds
from nnet_edge.benchmarks.peers.rows import LearnCell, LearnSettings, chosen, row_folder
from nnet_edge.benchmarks.peers.table import Absent, Candidate, RaceReport, draw_figure
from nnet_edge.bundle import Bundle
from nnet_edge.data.dataset import Dataset
from nnet_edge.errors import ConfigError

SCHEMAS = Path(__file__).parent.parent.parent.parent / "benchmarks" / "schemas"
FACTS = {
    "method": "stfpm", "backbone": "efficientnet_lite0", "seed": 1, "parameters": 5_900_000, "values": 6_000_000,
    "macs": 950_000_000,
    "training": {"images": 24, "epochs": 7, "epochs_planned": 100, "steps": 7, "seconds": 120.0, "limit_minutes": 2,
                 "cut_short": True},
    "exports": {"torch": {"path": "torch/model.pt", "bytes": 10}, "openvino": {"error": "RuntimeError: no"}},
    "versions": {"anomalib": "2.7.0"},
}  # fmt: skip


def learned(folder: Path, dataset: Dataset) -> Path:
    """A row's folder as learn.py leaves it: maps that are the masks themselves, so every figure is 1."""
    from nnet_edge.data.images import load_mask

    place = folder / "learned"
    place.mkdir(parents=True)
    masks = np.stack([load_mask(sample) for sample in dataset.test])
    np.save(place / "maps-fp32.npy", masks.astype(np.float32))
    np.save(place / "scores-fp32.npy", np.array([sample.is_anomalous for sample in dataset.test], np.float32))
    (place / "facts.json").write_text(json.dumps(FACTS))
    return folder


def test_a_row_is_measured_by_our_metrics_and_obeys_the_schema(parts: Dataset, tmp_path: Path) -> None:
    folder = learned(row_folder(tmp_path, METHODS["stfpm"], parts.category, 1), parts)
    LearnCell(Path(), METHODS["stfpm"], parts, tmp_path, LearnSettings(), "the command").write_rows()
    row = json.loads((folder / "fp32.json").read_text())
    validate(row, json.loads((SCHEMAS / "accuracy_row.json").read_text()))
    assert row["metrics"]["pixel_ap"] == row["metrics"]["image_auroc"] == pytest.approx(1)
    assert row["metrics"]["pro"] == pytest.approx(1)
    assert not (folder / "int8.json").exists()  # no maps, no row
    assert row["key"]["learning"]["images"] == 150


def test_what_was_cut_short_or_cannot_be_exported_stands_in_the_note(parts: Dataset, tmp_path: Path) -> None:
    folder = learned(row_folder(tmp_path, METHODS["stfpm"], parts.category, 1), parts)
    LearnCell(Path(), METHODS["stfpm"], parts, tmp_path, LearnSettings(), "the command").write_rows()
    found = race.candidates_of(Path(sys.executable), METHODS["stfpm"], folder / "learned", {parts.category: folder})
    torch, openvino = found
    assert "cut short after 7 of 100 epochs (2.0 min)" in torch.note
    assert "as told" not in torch.note
    row = json.loads((folder / "fp32.json").read_text())
    row["peer"]["training"] |= {"epochs_planned": 7, "cut_short": False}
    (folder / "fp32.json").write_text(json.dumps(row))
    short = race.candidates_of(Path(sys.executable), METHODS["stfpm"], folder / "learned", {parts.category: folder})
    assert "7 epochs as told, not anomalib's 100" in short[0].note
    assert openvino.entry is None
    assert "RuntimeError: no" in openvino.note
    assert openvino.metrics_from == "torch"  # the table says whose maps the figures are of
    assert torch.metrics[parts.category]["pixel_ap"] == pytest.approx(1)


def test_the_images_are_drawn_by_the_seed_and_limited() -> None:
    paths = [Path(f"{n:02d}.png") for n in range(20)]
    some = chosen(paths, LearnSettings(seed=1, images=5))
    assert some == sorted(some)
    assert len(set(some)) == 5
    assert some == chosen(paths, LearnSettings(seed=1, images=5)) != chosen(paths, LearnSettings(seed=2, images=5))
    assert chosen(paths, LearnSettings(images=20)) == paths


def test_processes_share_the_rounds_and_a_dead_one_is_named(random_bundle: Bundle, tmp_path: Path) -> None:
    frames = tmp_path / "frames.npy"
    np.save(frames, np.random.default_rng(0).integers(0, 256, (3, 256, 256, 3), np.uint8))
    ours = Entry("N-Net, openvino fp32", Path(sys.executable), "openvino", random_bundle.path)
    dead = Entry("no such bundle", Path(sys.executable), "openvino", tmp_path / "none")
    timed, failed = time_rounds([ours, dead], frames, 1, 2, 0.05, tmp_path)
    assert list(timed) == [ours.name]
    assert [turn.frames >= 2 and min(turn.latencies_ms) > 0 for turn in timed[ours.name].rounds] == [True, True]
    assert "there is no bundle at" in failed["no such bundle"]
    memory = timed[ours.name].memory_mib
    assert memory is None or 20 < memory < 4000


DYING = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for number, line in enumerate(sys.stdin):
    if number == 2:  # the probe and one round went well
        sys.exit("out of memory")
    print(json.dumps({"latencies_ms": [1.0] * json.loads(line)["frames"]}), flush=True)
"""


def script(path: Path, code: str) -> Path:
    """A program that runs `code`, whatever module it is asked for."""
    path.with_suffix(".py").write_text(code)
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {path.with_suffix(".py")} "$@"\n')
    path.chmod(0o755)
    return path


def test_one_that_dies_in_a_round_takes_nothing_from_the_others(tmp_path: Path) -> None:
    dying = Entry("dying", script(tmp_path / "dying", DYING), "torch", tmp_path)
    steady = Entry("steady", script(tmp_path / "steady", DYING.replace("== 2", "== 99")), "torch", tmp_path)
    timed, failed = time_rounds([dying, steady], tmp_path / "none.npy", 1, 4, 0.01, tmp_path)
    assert list(timed) == ["steady"]
    assert len(timed["steady"].rounds) == 4
    assert failed == {"dying": "dying cannot be timed (out of memory) in round 2 of 4: its turns before are left out"}


def test_candidates_stop_starting_before_memory_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "LEAST_FREE_MIB", 1e9)
    entry = Entry("large", script(tmp_path / "large", DYING), "torch", tmp_path)
    timed, failed = time_rounds([entry], tmp_path / "none.npy", 1, 1, 0.01, tmp_path)
    assert timed == {}
    assert "of memory are free" in failed["large"]


def candidate(name: str, pro: dict[str, float | None], rates: list[float]) -> Candidate:
    """A candidate with these figures."""
    metrics = {
        c: {"image_auroc": 1.0, "pixel_auroc": 0.5, "pixel_ap": 0.5, "pro": v, "pro_rd4ad": v} for c, v in pro.items()
    }
    timed = TimedProcess(tuple(Round(2, 2 / rate, (1000 / rate,) * 2, 2) for rate in rates), 321.0)
    return Candidate(
        name, name, "torch", "fp32", "efficientnet_lite0", 5, 7, 9, 11, metrics, None, "", timed, "openvino"
    )


def test_table_figure_and_json_compare_over_common_categories_only() -> None:
    header = dict.fromkeys(("command", "processor", "threads", "versions", "categories", "busy before"), "x")
    one = candidate("N-Net", {"a": 0.8, "b": 0.4, "toy": None}, [10, 40, 20])
    other = candidate("PaDiM", {"a": 0.5}, [5, 5, 5])
    bare = candidate("Dinomaly", {}, [1, 1, 1])
    absent = (Absent("FastFlow", "all", "its weights are a download"),)
    report = RaceReport(header, (), (one, other, bare), absent)
    assert report.categories == ("a",)
    assert one.mean_of("pro", report.categories) == 0.8
    int8 = replace(candidate("PatchCore", {"b": 0.9}, [7, 7, 7]), precision="int8")  # died on a
    with_int8 = replace(report, candidates=(one, other, int8))
    assert with_int8.categories == ("a",)
    assert int8.mean_of("pro", with_int8.categories) is None
    assert one.mean_of("pro", ("a", "b")) == pytest.approx(0.6)
    assert one.mean_of("pro", ("a", "toy")) is None
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    validate(values, json.loads((SCHEMAS / "peers.json").read_text()))
    assert values["contenders"][0]["speed"]["frames_per_s"] == {"median": 20, "min": 10, "max": 40}
    printed = report.markdown()
    assert "20.0 (10.0..40.0) | 50.0 / 100.0 / 100.0" in printed
    assert printed.index("| N-Net |") < printed.index("| PaDiM |") < printed.index("| Dinomaly |")  # fastest first
    assert "| 321 | 80.0 (openvino) |" in printed  # memory of the process, and whose maps the PRO is of
    assert "| FastFlow | all | its weights are a download |" in printed
    assert "RTX 3080 Ti" in printed
    assert draw_figure(report).startswith(b"\x89PNG")


def test_the_environment_holds_our_versions_and_says_what_pip_said(tmp_path: Path) -> None:
    wanted = environment.requirements()
    assert wanted["torch"][0].startswith("torch==")
    assert "+" not in " ".join(wanted["torch"] + wanted["anomalib"])
    assert wanted["torch"][0] in wanted["anomalib"]
    broken = tmp_path / "bin" / "python"
    broken.parent.mkdir()
    broken.write_text("#!/bin/sh\necho first >&2\necho 'no such package' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(ConfigError, match=r"cannot install torch==.*: no such package"):
        environment.install(broken, wanted)


def test_invalid_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown method 'rd'"):
        find_methods(("rd",))
    with pytest.raises(ConfigError, match="minutes is invalid"):
        LearnSettings(minutes=0)
    with pytest.raises(ConfigError, match="turns of 0"):
        race.RaceSettings(LearnSettings(), turn_s=0)
    with pytest.raises(ConfigError, match="holds no bundle"):
        race.our_candidates(tmp_path, [], 1)


def test_what_dies_in_a_process_of_its_own_costs_only_itself() -> None:
    in_a_process(os.getpid)
    with pytest.raises(RuntimeError, match="abort died of SIGABRT"):
        in_a_process(os.abort)
    with pytest.raises(RuntimeError, match="exit code 3"):
        in_a_process(sys.exit, 3)
    with pytest.raises(RuntimeError, match="loads: JSONDecodeError: Expecting value"):
        in_a_process(json.loads, "no JSON")


def test_trainings_by_gradients_run_in_the_allocator_s_own_ways() -> None:
    changed = {method.name for method in METHODS.values() if method.variables}
    assert changed == {"patchcore"}
