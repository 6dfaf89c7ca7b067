"""A preview of the bundle after the first pass: made beside the training, said to be one, gone at its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nnet_edge.bundle import Bundle
from nnet_edge.cli.preview import PREVIEW_LEFT_S, Preview
from nnet_edge.export.bundling import manifest_of
from nnet_edge.frame import JudgedBy
from nnet_edge.runtime.sinks.fields import constant_fields
from nnet_edge.training.checkpoint import CHECKPOINT, read_checkpoint
from nnet_edge.training.loop import Progress

Make = Callable[..., Preview]


def at(epoch: int, seconds_left: float = 2 * PREVIEW_LEFT_S) -> Progress:
    return Progress(epoch, 40, {}, seconds_left)


@pytest.fixture
def preview(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """A function that gives the preview of a training in tmp_path; the export is the lines of a shell script."""

    def make(script: str, wanted: str = "auto") -> Preview:
        program = tmp_path / "python"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
        asked = {"preview": wanted, "false_rejects": 0.005, "margin": 0.0}
        found = Preview(tmp_path / "preview", tmp_path / "training", asked)  # before the first checkpoint
        (tmp_path / "training").mkdir(exist_ok=True)
        (tmp_path / "training" / CHECKPOINT).touch()
        return found

    return make


def wait_until(is_done: Callable[[], bool]) -> None:
    limit_s = time.monotonic() + 30
    while not is_done():
        assert time.monotonic() < limit_s
        time.sleep(0.02)


def test_it_is_made_after_the_first_pass_and_goes_at_the_end(
    preview: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = []
    with preview('echo "$@" >' + str(tmp_path / "asked") + '; mkdir -p "$6"') as made:
        watch = made.watching(shown.append)
        watch(at(1))
        assert made._process is None  # the first pass is under way
        watch(at(2))
        wait_until(lambda: watch(at(2)) or made._process is None)  # type: ignore[func-returns-value]
        assert f"try while it learns on: nnet-edge stream 0 --bundle {tmp_path / 'preview'}" in capsys.readouterr().err
        assert (tmp_path / "preview").is_dir()
        watch(at(3))
        assert made._process is None  # one is enough
        made.remove()
    assert not (tmp_path / "preview").exists()
    asked = (tmp_path / "asked").read_text().strip()
    assert asked.endswith(
        f"export {tmp_path / 'training'} --out {tmp_path / 'preview'} --force --threads 1 --nice 19 --quiet "
        "--false-rejects 0.005"
    )
    assert len(shown) > 3


@pytest.mark.parametrize(("wanted", "seconds_left", "is_made"), [
    ("auto", PREVIEW_LEFT_S - 1, False), ("auto", PREVIEW_LEFT_S, True), ("always", 1.0, True), ("never", 9999.0, False),
])  # fmt: skip
def test_a_short_training_has_none_unless_asked(preview: Make, wanted: str, seconds_left: float, is_made: bool) -> None:
    with preview("exec sleep 60", wanted) as made:
        made.watching(lambda progress: None)(at(2, seconds_left))
        assert (made._process is not None) is is_made
        process = made._process
    assert process is None or process.returncode is not None  # nothing runs on behind the training


def test_an_export_that_fails_is_said_and_the_training_goes_on(
    preview: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    with preview("echo nnet-edge: error: no room >&2; exit 1") as made:
        watch = made.watching(lambda progress: None)
        watch(at(2))
        wait_until(lambda: watch(at(2)) or made._process is None)  # type: ignore[func-returns-value]
    assert "note: no preview, the training goes on: nnet-edge: error: no room" in capsys.readouterr().err


def test_a_checkpoint_of_an_earlier_training_is_none(preview: Make, tmp_path: Path) -> None:
    with preview("exec sleep 60"):
        pass
    with Preview(
        tmp_path / "preview", tmp_path / "training", {"preview": "always", "false_rejects": None, "margin": 0.0}
    ) as made:
        made.watching(lambda progress: None)(at(2))
        assert made._process is None


def test_a_bundle_of_an_unfinished_training_says_that_it_is_a_preview(trained_run: Path, bundle: Bundle) -> None:
    checkpoint = read_checkpoint(trained_run / "training")
    network = checkpoint.build_network()
    early = replace(checkpoint, facts=checkpoint.facts | {"finished": False})
    found, whole = (manifest_of(one, network, bundle.threshold, (), {})["trained"] for one in (early, checkpoint))
    assert found["preview"] is True
    assert "preview" not in whole
    (told,) = (
        line for line in replace(bundle, manifest=bundle.manifest | {"trained": found}).warnings if "PREVIEW" in line
    )
    assert told.startswith("A PREVIEW, made after 4 passes of a training: the finished bundle")
    assert not any("PREVIEW" in line for line in bundle.warnings)


def test_verdicts_of_a_preview_say_so_in_json() -> None:
    assert constant_fields(JudgedBy("part", "id", "fp32", "openvino", preview=True))["preview"] is True
    assert "preview" not in constant_fields(JudgedBy("part", "id", "fp32", "openvino"))
