"""Bundles beside each other: measured in the same rounds, told apart by name, refused twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from nnet_edge.benchmarks.line import line, stages
from nnet_edge.benchmarks.speed import bundles
from nnet_edge.benchmarks.speed.bundles import command, measure, named
from nnet_edge.bundle import Bundle
from nnet_edge.errors import BundleError, ConfigError


def test_bundles_are_measured_in_the_same_rounds(bundle: Bundle) -> None:
    found = measure({"one": bundle, "other": bundle}, ["fp32"], rounds=3, turn_s=0.01, tell=lambda line: None)
    assert list(found) == [("one", "fp32"), ("other", "fp32")]
    speed, times = found["one", "fp32"]
    assert times.smallest == times.largest == 1
    assert 0 < speed.smallest <= speed.median <= speed.largest
    assert found["other", "fp32"][1].median > 0
    with pytest.raises(BundleError, match="int8"):
        measure({"one": bundle}, ["int8"], 1, 0.01)


def test_bundles_have_names_that_tell_them_apart(bundle: Bundle, tmp_path: Path) -> None:
    for name in ("left", "right"):
        shutil.copytree(bundle.path, tmp_path / name / "bundle")
    folders = [tmp_path / name / "bundle" for name in ("left", "right")]
    assert list(named(folders)) == ["left/bundle", "right/bundle"]
    assert list(named(folders[:1])) == ["bundle"]
    with pytest.raises(ConfigError, match="given twice"):
        named([folders[0], folders[0] / "."])


def test_the_command_prints_a_table(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    command.main([str(bundle.path), "--rounds", "1", "--turn", "0.01"], standalone_mode=False)
    head, _, row, _, conditions = capsys.readouterr().out.strip().splitlines()
    assert [cell.strip() for cell in head.split("|")][1:3] == ["bundle", "method"]
    assert [cell.strip() for cell in row.split("|")][2:4] == ["nnet", "fp32"]
    assert conditions.startswith("`python -m nnet_edge.benchmarks.speed.bundles")


def test_a_precision_that_there_is_none_of_is_refused(bundle: Bundle) -> None:
    for module in (bundles, line, stages):
        told = CliRunner().invoke(module.command, [str(bundle.path), "--precision", "int4"])
        assert told.exit_code == 2
        assert "'int4' is not one of 'fp32', 'bf16', 'fp16', 'int8'" in told.output
