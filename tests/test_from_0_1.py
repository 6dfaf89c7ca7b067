"""What version 0.1 wrote is read, and does what it did then: tests/data/from_0_1, made by the commit that its README names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from dataclasses import fields, is_dataclass
from enum import Enum
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from nnet_edge.bundle import read_bundle
from nnet_edge.cli.main import run as run_command
from nnet_edge.data.layouts import read_dataset
from nnet_edge.data.training_data import load_training_data
from nnet_edge.machine import find_processor
from nnet_edge.methods.backbone import BACKBONES, Backbone
from nnet_edge.methods.torchvision_operators import import_torchvision
from nnet_edge.runtime.sinks.callback import CallbackSink
from nnet_edge.runtime.sinks.fields import to_fields
from nnet_edge.runtime.sinks.spool import Spool, SpoolSettings
from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.stream.model import open_graph
from nnet_edge.runtime.stream.running import run
from nnet_edge.settings.camera import CameraSettings, defaults_of
from nnet_edge.settings.line import read_line_config, read_toml
from nnet_edge.settings.registry import SOURCES
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.stream import VerdictSettings
from nnet_edge.training.checkpoint import read_checkpoint, write_held_out

DATA = Path(__file__).parent / "data/from_0_1"
SAME_SCORE = 1e-4  # relative; the parity of an export of FP32
SAME_INT8_SCORE = 0.05  # relative; other processors round otherwise
HAS_AMX = any(name.startswith("AMX") for name in find_processor().features)
SAME_LENGTH = 1e-2 if HAS_AMX else 1e-3  # of a weight trained on another processor, relative; seen with AMX: 5e-3
NEW_FIELDS = {
    "bundle",
    "bundle_id",
    "precision",
    "recipe",
    "runner",
    "schema",
    "threshold_from",
    "trigger",
    "time_in_file_s",
}  # that 0.1 did not write
NEW_STAGES = ("queue", "resize", "inference", "verdict", "total")  # that 0.1 called otherwise


def expected(name: str) -> Any:
    return json.loads((DATA / "expected" / name).read_text(encoding="utf-8"))


def load(name: str) -> ModuleType:
    """A module of the data's folder."""
    spec = spec_from_file_location(f"from_0_1_{name}", DATA / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


washer = load("pictures").washer


@pytest.mark.parametrize("case", sorted(expected("verdicts.json")["json_lines"]))
def test_a_bundle_judges_as_it_did(case: str) -> None:
    wanted = expected("verdicts.json")
    pictures = [washer(one["seed"], one["is_scratched"]) for one in wanted["pictures"]]
    hashes = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pictures]
    assert hashes == [one["sha256"] for one in wanted["pictures"]]
    precision, kind = case.split()
    settings = RunnerSettings(kind=kind, threads=1, max_batch=1)
    runner, threshold = open_graph(read_bundle(DATA / "bundle"), settings, precision)
    found: list[dict[str, Any]] = []
    sink = CallbackSink(lambda prediction: found.append(to_fields(prediction)))
    run(SyntheticSource(pictures, None, "washers"), runner, [sink], VerdictSettings(threshold))
    near = SAME_INT8_SCORE if precision == "int8" else SAME_SCORE
    for line, one in zip(wanted["json_lines"][case], found, strict=True):
        assert set(one) == set(line) | NEW_FIELDS
        assert tuple(one["latencies_ms"]) == NEW_STAGES
        for name in ("stream", "index", "crop", "name", "verdict", "threshold"):
            assert line[name] == one[name], name
        for name in ("score", "relative_score"):
            assert one[name] == pytest.approx(line[name], rel=near)
        assert len(line["regions"]) == len(one["regions"])
        if precision == "fp32":
            for there, here in zip(line["regions"], one["regions"], strict=True):
                assert [here[name] for name in ("x", "y", "width", "height")] == [
                    there[name] for name in ("x", "y", "width", "height")
                ]


@pytest.mark.parametrize("name", sorted(expected("spools.json")))
def test_a_spool_gives_what_was_not_delivered(name: str, tmp_path: Path) -> None:
    wanted = expected("spools.json")[name]
    folder = Path(shutil.copytree(DATA / "spools" / name, tmp_path / name))
    found = []
    with Spool(SpoolSettings(folder)) as spool:
        assert spool.waiting == wanted["waiting"] == len(wanted["messages"])
        while messages := spool.peek(2, 0):
            found += messages
            spool.done(len(messages))
        assert spool.damaged == 0
    for there, here in zip(wanted["messages"], found, strict=True):
        assert here.id == there["id"]
        assert [
            {"name": part, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for part, content in here.parts
        ] == [{key: part[key] for key in ("name", "bytes", "sha256")} for part in there["parts"]]
    assert {path.name for path in folder.iterdir()} == {"lock", "spool.db"}


def test_a_line_file_means_what_it_meant() -> None:
    line = DATA / "line"
    found, wanted = to_plain(read_line_config(line / "line.toml"), line), expected("line.json")
    written = read_toml(line / "line.toml")["stream"]
    for there, here, table in zip(wanted["streams"], found["streams"], written, strict=True):
        lane = there.pop("lane") or {}
        buffer = here.pop("buffer")
        for key in table.get("lane", {}):
            assert buffer[key] == lane[key]
        assert all(value is None for key, value in buffer.items() if key not in {*table.get("lane", {}), "weight"})
    for there, here in zip(wanted["streams"], found["streams"], strict=True):
        assert (here["verdict"].pop("adapt"), here["verdict"].pop("adapted")) == (None, None)
        for key in here["camera"].keys() - there["camera"].keys():  # of later versions
            known = {"colour_matrix": "bt601", "loop": False, "frozen_s": 10.0, "decode": "cpu"}
            assert here["camera"].pop(key) == known.get(key), key
    for key in ("public_url", "operator_token_from", "teach_folder"):
        assert found["web"].pop(key, None) is None
    for sink in found["sinks"]:
        assert sink.pop("by_stream", True)  # keys of later versions; as it was without them
        assert sink.pop("events_path", None) is None
        assert not sink.pop("takes_orders", False)
    for stream in found["streams"]:
        assert stream.pop("trigger", None) is None
    assert not found.pop("recipes", [])
    assert found["runner"].pop("gpu", 0) == 0  # which is counted from 0 on a machine with several
    assert found.pop("first_recipe", None) is None
    assert found == wanted


def to_plain(value: Any, folder: Path) -> Any:
    """Settings as expected/line.json holds them: with their kinds, paths relative to the file's folder."""
    if isinstance(value, CameraSettings):
        options = {name: default for kind in SOURCES for name, default in defaults_of(kind).items()}
        common = {name: each for name, each in vars(value).items() if name != "options"}
        return {name: to_plain(each, folder) for name, each in (common | options | dict(value.options)).items()}
    if is_dataclass(value):
        kind = getattr(value, "kind", None)
        plain = {item.name: to_plain(getattr(value, item.name), folder) for item in fields(value)}
        return plain | ({"kind": kind} if isinstance(kind, str) else {})
    if isinstance(value, Path):
        return os.path.relpath(value, folder)
    if isinstance(value, tuple):
        return [to_plain(item, folder) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value.replace(str(folder), "FOLDER") if isinstance(value, str) else value


@pytest.mark.parametrize("command", sorted(expected("config_check.json")["answers"]))
def test_config_check_says_what_it_said(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    wanted = expected("config_check.json")
    for name in ("line", "bundle"):
        shutil.copytree(DATA / name, tmp_path / name)
    for name in ("interest.png", "ignored.png"):  # which the check reads today
        cv2.imwrite(str(tmp_path / "line" / name), np.full((480, 640), 255 * (name == "interest.png"), np.uint8))
    monkeypatch.chdir(tmp_path / "line")
    for name, value in wanted["environment"].items():
        monkeypatch.setenv(name, value)
    code = run_command(command.split())
    said = capfd.readouterr().out.replace(str(tmp_path / "line"), "FOLDER")
    answer = wanted["answers"][command]
    assert (code, without_advice(said)) == (answer["code"], without_advice(answer["out"]))


def without_advice(said: str) -> str:
    """The text without the addresses that a note offers: there are more of them today."""
    return re.sub(r": give [^;]*;", ";", said)


@pytest.fixture
def tiny_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher of the checkpoint, which no product code knows."""
    tiny = load("tiny_backbone")
    monkeypatch.setitem(BACKBONES, tiny.TINY_NAME, Backbone(tiny.TINY_NAME, *tiny.TINY_FIELDS))
    monkeypatch.setattr(import_torchvision().models, tiny.TINY_NAME, tiny.TinyNetwork, raising=False)


def test_a_checkpoint_holds_what_it_held(tiny_teacher: None) -> None:
    wanted = expected("checkpoint.json")
    checkpoint = read_checkpoint(DATA / "checkpoint")
    assert (checkpoint.epoch, checkpoint.step) == (wanted["epoch"], wanted["step"])
    assert checkpoint.facts == wanted["facts"]
    assert json.loads(json.dumps(checkpoint.settings.as_dict())) == wanted["settings"]
    for part, tensors in wanted["tensors"].items():
        found = getattr(checkpoint, part)
        assert {name: facts_of_tensor(value) for name, value in found.items()} == tensors
    state = checkpoint.build_network().state_dict()
    assert all(torch.equal(state[name], value) for name, value in checkpoint.deployed.items())


def facts_of_tensor(value: torch.Tensor) -> list[Any]:
    plain = value.contiguous().numpy()
    return [str(plain.dtype), list(plain.shape), hashlib.sha256(plain.tobytes()).hexdigest()[:16]]


@pytest.mark.usefixtures("one_thread", "tiny_teacher")
def test_a_stopped_training_goes_on_to_the_weights_of_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = expected("checkpoint.json")["resumed"]
    monkeypatch.chdir(tmp_path)
    write_washers(Path("washers"))
    shutil.copytree(DATA / "checkpoint", "out/training")
    write_held_out(Path("out/training"), load_training_data(read_dataset(Path("washers")), 7).held_out)
    options = [
        "--resume",
        "--seed",
        "7",
        "--device",
        "cpu",
        "--deterministic",
        "--threads",
        "1",
        "--runner",
        "openvino",
    ]
    assert run_command(["train", "washers", "--out", "out", *options]) == 0

    checkpoint = read_checkpoint(Path("out/training"))
    assert (checkpoint.epoch, checkpoint.is_finished) == (wanted["epoch"], wanted["is_finished"])
    lengths = {name: float(np.linalg.norm(value.double())) for name, value in checkpoint.deployed.items()}
    assert lengths == pytest.approx(wanted["lengths"], rel=SAME_LENGTH)
    if is_same_machine(wanted["on_processor"]):
        weights = Path("out/bundle/weights.safetensors").read_bytes()
        assert hashlib.sha256(weights).hexdigest() == wanted["weights_sha256"]
        assert weights == (DATA / "bundle/weights.safetensors").read_bytes()


def is_same_machine(model: str) -> bool:
    """Whether this processor, with these libraries, rounds as the one that made the data."""
    here = find_processor()
    made_on = read_bundle(DATA / "bundle").manifest["made_on"]["libraries"]
    return (here.model, torch.__version__) == (model, made_on["torch"]) and "AVX-512 VNNI" in here.features


def write_washers(root: Path) -> None:
    """The pictures that the checkpoint was trained with."""
    for kind, seeds, name, is_scratched in (
        ("good", range(24), "{:02d}.bmp", False),
        ("test_good", range(100, 104), "{}.bmp", False),
        ("bad/scratch", range(200, 204), "{}.bmp", True),
    ):
        (root / kind).mkdir(parents=True)
        for number, seed in enumerate(seeds):
            assert cv2.imwrite(str(root / kind / name.format(number)), washer(seed, is_scratched, 256, 256))
