"""A fleet on a real Ray of this machine: a killed worker loses nothing; weights and verdicts are the plain commands'."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import psutil
import pytest
from safetensors.numpy import load_file

from nnet_edge.cli.fleet.cluster import Cluster
from nnet_edge.cli.fleet.parts import FleetSettings, Part, TrainFlags
from nnet_edge.cli.fleet.scoring import ScoreSettings, list_pictures, score
from nnet_edge.cli.fleet.state import TRAININGS, WORKER
from nnet_edge.cli.fleet.training import train_fleet
from nnet_edge.cli.main import run
from nnet_edge.settings.runner import RunnerSettings

pytestmark = [
    pytest.mark.skipif(  # not imported here: it reads its variables then
        find_spec("ray") is None, reason="NOT RUN: ray is not installed: pip install 'nnet-edge[ray]'"
    ),
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("one_thread"),
]
FLAGS = TrainFlags({
    "epochs": 4, "batch": 7, "size": 64, "device": "cpu", "precision": "fp32", "teacher_weights": "random",
    "protocol": "paper", "set": {"model.memory_slots": 16},
})  # fmt: skip
PATIENCE_S = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(cpus=2) as cluster:
        yield cluster
        assert cluster._folder is not None
        folder = cluster._folder
        started = psutil.Process().children(recursive=True)
    assert not folder.exists()
    _, left = psutil.wait_procs(started, timeout=10.0)
    assert not left
    with warnings.catch_warnings(action="ignore"):  # Ray asks none of its processes whether it has ended
        gc.collect()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_it_listens_on_the_loopback_alone(cluster: Cluster) -> None:
    own = [psutil.Process(), *psutil.Process().children(recursive=True)]
    found = {place.laddr.ip for process in own for place in process.net_connections("inet") if place.status == "LISTEN"}
    assert found
    assert found <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_a_killed_worker_loses_nothing(cluster: Cluster, parts_folder: Path, tmp_path: Path) -> None:
    settings = FleetSettings((Part("bolt", parts_folder),), tmp_path / "fleet", train=FLAGS)
    place, killed, said = tmp_path / "fleet" / TRAININGS / "bolt", list[int](), list[str]()

    def kill() -> None:
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            log = place / "training/log.csv"
            if log.is_file() and len(log.read_text().splitlines()) > 1:  # an epoch is done
                killed.append(json.loads((place / WORKER).read_text())["pid"])
                os.kill(killed[0], signal.SIGKILL)
                return
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    state = train_fleet(settings, settings.out, cluster, say=said.append)
    killer.join()
    assert (state.parts["bolt"].state, state.parts["bolt"].tries, len(killed)) == ("finished", 2, 1), said
    assert any("its worker was lost" in line for line in said)
    assert "--resume" not in (place / "said.txt").read_text()
    assert (
        run(["train", str(parts_folder), "--out", str(tmp_path / "plain"), *FLAGS.arguments(), "--threads", "1"]) == 0
    )
    plain, fleet = (
        load_file(path / "weights.safetensors") for path in (tmp_path / "plain/bundle", tmp_path / "fleet/bundles/bolt")
    )
    assert plain.keys() == fleet.keys()
    assert not [name for name in plain if not np.array_equal(plain[name], fleet[name])]


def test_verdicts_are_those_of_stream_though_an_actor_is_killed(
    cluster: Cluster, second_run: Path, parts_folder: Path, tmp_path: Path
) -> None:
    import fsspec

    bundle, folder = second_run / "run/bundle", tmp_path / "belt"
    folder.mkdir()
    for number, path in enumerate(
        sorted((parts_folder / "good").iterdir())[:5] + sorted((parts_folder / "bad/stain").iterdir())
    ):
        (folder / f"{number}.png").write_bytes(path.read_bytes())
    lines = tmp_path / "stream.jsonl"
    assert run(["stream", str(folder), "--bundle", str(bundle), "--json", str(lines), "--threads", "1"]) == 0
    expected = [json.loads(line) for line in lines.read_text().splitlines()]
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/store/", recursive=True)
    memory.pipe("/store/belt/9.png", b"\x89PNG, and no picture")
    pictures = list_pictures([str(folder), "memory://store/belt"])
    found: list[dict[str, object]] = []

    def write(fields: dict[str, object]) -> None:
        found.append(fields)
        if len(found) == 1:  # of the first chunk: whoever judges now is killed once
            workers = [one for one in psutil.Process().children(recursive=True) if "Scorer" in " ".join(one.cmdline())]
            workers[0].kill()

    settings = ScoreSettings(bundle, RunnerSettings(threads=1, hint="throughput"))
    scored = score(pictures, settings, cluster, (1, 2), 3, write)
    assert (scored.pictures, scored.good + scored.anomalous, scored.lost) == (19, 18, 1)
    assert [fault.partition(":")[0] for fault in scored.failed] == ["memory"]
    assert found[-1]["verdict"] is None
    names = ("index", "name", "verdict", "threshold")
    assert [{name: one[name] for name in names} for one in found[:9]] == [
        {name: one[name] for name in names} for one in expected
    ]
    for one, same, streamed in zip(found[:9], found[9:18], expected, strict=True):
        assert one["score"] == pytest.approx(streamed["score"], rel=1e-5)
        assert same["score"] == pytest.approx(streamed["score"], rel=1e-5)
        assert len(one["regions"]) == len(streamed["regions"])
    assert {one["verdict"] for one in found[:18]} == {"good", "anomalous"}
