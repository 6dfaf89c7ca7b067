"""A fleet's training: what becomes of each part, on a cluster that loses workers as told; the state that others read."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.cli.fleet.cluster import Cluster, WorkerLostError
from nnet_edge.cli.fleet.parts import FleetSettings, Part, TrainFlags
from nnet_edge.cli.fleet.state import LOCK, STATE, TRAININGS, WORKER, is_locked, locked, read_state
from nnet_edge.cli.fleet.training import DONE, Order, train_fleet, train_part
from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError
from nnet_edge.files import write_atomically

FACTS = {"images": 14, "epochs": 2, "threshold": 0.25, "expected_false_rejects": 0.1, "host": "here", "minutes": 0.5}
Outcome = dict[str, Any] | WorkerLostError


class Rehearsed(Cluster):
    """A cluster whose workers do what `plan` says of each try, and write bundles where that says that they finish."""

    cpus = 2

    def __init__(self, plan: dict[str, list[Outcome]]) -> None:
        self.plan, self.tried = plan, list[str]()

    def require(self, cpus: float, gpus: float) -> None:
        pass

    def submit(self, function: Callable[..., Any], *arguments: Any, cpus: float, gpus: float = 0.0) -> Any:
        assert function is train_part
        (order,) = arguments
        self.tried.append(order.name)
        return order, len(self.tried)

    def wait(self, tasks: Sequence[Any], timeout_s: float) -> list[Any]:
        return [tasks[0]]

    def result(self, task: Any) -> Any:
        order: Order = task[0]
        outcome = self.plan[order.name].pop(0)
        if isinstance(outcome, WorkerLostError):
            raise outcome
        if "error" not in outcome:
            order.bundle.mkdir(parents=True)
            (order.bundle / "manifest.json").write_text("{}")
            write_atomically(order.place / DONE, json.dumps({"key": order.key, "facts": FACTS}).encode())
        return outcome


@pytest.fixture
def settings(tmp_path: Path) -> FleetSettings:
    parts = []
    for name in ("bolt", "nut", "pin"):
        (tmp_path / name).mkdir()
        parts.append(Part(name, tmp_path / name))
    return FleetSettings(tuple(parts), tmp_path / "out")


LOST = WorkerLostError("its worker was lost")
REFUSED = {"error": "a batch of 9 is impossible", "again": False, "host": "here"}
BROKEN = {"error": "OSError: Stale file handle", "again": True, "host": "here"}


def test_lost_workers_are_tried_again_and_what_fails_is_named(settings: FleetSettings) -> None:
    said: list[str] = []
    cluster = Rehearsed({"bolt": [LOST, BROKEN, FACTS], "nut": [REFUSED], "pin": [LOST, LOST, LOST]})
    state = train_fleet(settings, settings.out, cluster, file="parts.toml", say=said.append)
    assert {part.name: (part.state, part.tries) for part in state.parts.values()} == {
        "bolt": ("finished", 3), "nut": ("failed", 1), "pin": ("failed", 3)
    }  # fmt: skip
    assert "nut: FAILED: a batch of 9 is impossible" in said
    assert "bolt: OSError: Stale file handle; tried again (2 of 2)" in said
    written = json.loads((settings.out / STATE).read_text())
    assert written["counts"] == {"waiting": 0, "running": 0, "finished": 1, "kept": 0, "failed": 2}
    assert written["ended"] is not None
    with (settings.out / "fleet.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert (rows["bolt"]["threshold"], rows["pin"]["error"]) == ("0.25", "its worker was lost")


def test_what_is_finished_is_kept_until_its_settings_change(settings: FleetSettings) -> None:
    train_fleet(settings, settings.out, Rehearsed({name: [FACTS] for name in ("bolt", "nut", "pin")}))
    again = Rehearsed({})
    state = train_fleet(settings, settings.out, again)
    assert [part.state for part in state.parts.values()] == ["kept"] * 3
    assert state.parts["bolt"].threshold == 0.25
    assert again.tried == []
    shutil.rmtree(settings.out / "bundles/nut")
    changed = replace(settings.parts[0], train=TrainFlags({"epochs": 9}))
    changed = replace(settings, parts=(changed, *settings.parts[1:]))
    shutil.rmtree(settings.out / "bundles/bolt")
    again = Rehearsed({"bolt": [FACTS], "nut": [FACTS]})
    train_fleet(changed, settings.out, again)
    assert sorted(again.tried) == ["bolt", "nut"]
    threads = replace(changed, cpus=2)  # which changes no more than the rounding
    assert train_fleet(threads, settings.out, Rehearsed({})).count("kept") == 3


def test_a_bundle_that_only_the_worker_sees_is_no_bundle(settings: FleetSettings) -> None:
    class Elsewhere(Rehearsed):
        def result(self, task: Any) -> Any:
            return self.plan[task[0].name].pop(0)

    one = replace(settings, parts=settings.parts[:1], retries=0)
    state = train_fleet(one, settings.out, Elsewhere({"bolt": [FACTS]}))
    assert state.parts["bolt"].state == "failed"
    assert "does not see it: share" in str(state.parts["bolt"].error)


def test_status_says_who_trains_while_it_runs_and_what_is_left_when_it_was_killed(
    settings: FleetSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stopped(Rehearsed):
        def result(self, task: Any) -> Any:
            raise KeyboardInterrupt

    place = settings.out / TRAININGS / "bolt"
    with locked(settings.out), pytest.raises(KeyboardInterrupt):
        train_fleet(settings, settings.out, Stopped({}))
    with locked(settings.out):
        (place / "training").mkdir(parents=True)
        (place / "training/log.csv").write_text("epoch,loss\n1,0.5\n2,0.4\n")
        (place / WORKER).write_text(json.dumps({"host": "box-3", "pid": 7, "began": 0.0}))
        state, is_running = read_state(settings.out)
        assert is_running
        assert (state.parts["bolt"].state, state.parts["bolt"].host, state.parts["bolt"].epochs) == (
            "running",
            "box-3",
            2,
        )
        assert state.parts["nut"].state == "waiting"
        with pytest.raises(ConfigError, match="another fleet is being trained into"), locked(settings.out):
            raise AssertionError("two at once")
    capsys.readouterr()
    assert run(["fleet", "status", str(settings.out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["is_running"], found["counts"]["waiting"]) == (False, 3)
    assert run(["fleet", "status", str(settings.out)]) == 0
    assert "0 of 3 parts finished, 0 failed; ended 20" in capsys.readouterr().out


def test_an_address_where_nobody_listens_is_one_sentence(free_port: Callable[[], int]) -> None:
    with pytest.raises(ConfigError, match="no Ray cluster answers at 127"), Cluster(f"127.0.0.1:{free_port()}"):
        raise AssertionError("it connected")


@pytest.mark.parametrize("content", [None, b"{", b"[]", b'{"schema": 2}', b'{"schema": 1, "parts": [{"name": 3}]}'])
def test_a_folder_without_a_fleet_is_one_sentence(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / STATE).write_bytes(content)
    assert run(["fleet", "status", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not is_locked(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_a_worker_of_another_version_refuses(settings: FleetSettings) -> None:
    order = Order("bolt", str(settings.parts[0].data), (), (), "key", str(settings.out), 1, version="0.0.1")
    before = dict(os.environ)
    outcome = train_part(order)
    assert "and 0.0.1 asks" in outcome["error"]
    assert outcome["again"] is False
    assert before == dict(os.environ)
