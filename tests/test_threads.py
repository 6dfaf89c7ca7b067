"""Threads of native libraries: how many, how they wait, who goes first."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner

from nnet_edge.cli.options import runner_settings
from nnet_edge.cli.train import command
from nnet_edge.errors import ConfigError
from nnet_edge.threads import give_way, limit_threads, spare_blas, wait_passively

NO_RUNNER = {"runner": "auto", "runner_batch": 8, "threads": None, "hint": None, "cache_dir": None, "gpu": 0}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": "1000"}),
        ({"GOMP_SPINCOUNT": "0"}, {"GOMP_SPINCOUNT": "0"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
)
def test_waiting_threads_sleep_unless_the_user_has_said_how_they_wait(before, after):
    wait_passively(before)
    assert before == after


def test_every_command_waits_passively_before_torch_is_there():
    look = "import json, os, sys, importlib; main = importlib.import_module('nnet_edge.cli.main'); "
    look += "main.run = lambda _: print(json.dumps([os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules])) or 0; "
    look += "main.main()"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    done = subprocess.run([sys.executable, "-c", look], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ["1000", False]


def test_threads_of_a_command_reach_torch_and_what_it_starts(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    before = torch.get_num_threads()
    try:
        assert runner_settings(NO_RUNNER | {"threads": before + 1}).threads == before + 1
        assert torch.get_num_threads() == before + 1
        assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == str(before + 1)
    finally:
        torch.set_num_threads(before)


def test_without_a_number_torch_keeps_its_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = torch.get_num_threads()
    runner_settings(dict(NO_RUNNER))
    assert (torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]) == (before, "7")


@pytest.mark.parametrize("threads", [0, -1, 5000])
def test_a_wrong_number_of_threads_is_refused_and_changes_nothing(threads):
    before = torch.get_num_threads()
    with pytest.raises(ConfigError, match="threads"):
        runner_settings(NO_RUNNER | {"threads": threads})
    assert torch.get_num_threads() == before


def test_threads_are_handed_to_processes_before_torch_is_imported():
    environment: dict[str, str] = {}
    before = torch.get_num_threads()
    try:
        limit_threads(before, environment)
    finally:
        torch.set_num_threads(before)
    assert environment == {"OMP_NUM_THREADS": str(before), "MKL_NUM_THREADS": str(before)}


def test_a_training_gives_way_to_others():
    look = "import os; from nnet_edge.threads import give_way; give_way(5); give_way(3); print(os.getpriority(0, 0))"
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert int(done.stdout) == max(5, os.getpriority(os.PRIO_PROCESS, 0))  # never ahead of how it was started


def test_niceness_where_there_is_none(monkeypatch):
    monkeypatch.delattr(os, "setpriority")
    with pytest.raises(ConfigError, match="--nice"):
        give_way(5)


def test_niceness_above_the_scale_is_refused(tmp_path):
    result = CliRunner().invoke(command, [str(tmp_path), "--out", str(tmp_path / "out"), "--nice", "20"])
    assert result.exit_code == 2
    assert "--nice" in result.output


def test_numpy_has_one_thread_on_a_line_unless_the_user_says_otherwise() -> None:
    for given in ({}, {"OPENBLAS_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "2"}):
        environment = dict(given)
        spare_blas(environment)
        assert environment == (given or {"OPENBLAS_NUM_THREADS": "1"})
