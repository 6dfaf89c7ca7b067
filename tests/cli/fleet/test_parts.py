"""A fleet's file: what it may say, what it is refused for in one sentence, and when a part must be trained again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nnet_edge.cli.fleet.parts import TrainFlags, key_of, read_fleet
from nnet_edge.cli.main import run
from nnet_edge.errors import ConfigError

WHOLE = """
out = "out"
cpus = 2
[train]
epochs = 3
deterministic = true
textures = "dtd"
set = { augmentation_copies = 0, "model.memory_slots" = 64 }
[[part]]
name = "bolt"
data = "bolt"
[[part]]
name = "nut"
data = "nut"
cpus = 1
gpus = 0.5
train.size = "64x96"
train.false_rejects = "1/200"
train.set = { augmentation_copies = 2 }
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("bolt", "nut"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"picture")
    return tmp_path


def write(folder: Path, text: str) -> Path:
    path = folder / "parts.toml"
    path.write_text(text)
    return path


def test_a_part_has_the_options_of_all_and_its_own(folder: Path) -> None:
    settings = read_fleet(write(folder, WHOLE))
    bolt, nut = settings.parts
    assert settings.out == folder / "out"
    assert (settings.cpus_of(bolt), settings.cpus_of(nut), settings.gpus_of(nut)) == (2, 1, 0.5)
    assert settings.flags_of(bolt).arguments() == [
        "--deterministic", "--epochs", "3", "--set", "augmentation_copies=0", "--set", "model.memory_slots=64",
        "--textures", str(folder / "dtd"), "--threads", "2",
    ]  # fmt: skip
    assert settings.flags_of(nut).arguments() == [
        "--deterministic", "--epochs", "3", "--false-rejects", "1/200", "--set", "augmentation_copies=2",
        "--set", "model.memory_slots=64", "--size", "64x96", "--textures", str(folder / "dtd"), "--threads", "1",
    ]  # fmt: skip


PART = '[[part]]\nname = "bolt"\ndata = "bolt"\n'
REFUSED = {
    PART + PART: "parts.toml: two parts are called 'bolt': give each a name of its own",
    '[[part]]\nname = "bolt"\ndata = "screws"\n': "[[part]] 'bolt': the folder",
    PART + 'colour = "red"\n': "[[part]] 'bolt' has a key 'colour' that is unknown: known are name, data",
    PART + "train.epoch = 3\n": "[[part]] 'bolt': train has a key 'epoch' that is unknown: did you mean epochs?",
    PART
    + 'train.epochs = "many"\n': "[[part]] 'bolt': train: Invalid value for '--epochs': 'many' is not a valid integer",
    PART + "train.epochs = true\n": "train: epochs is True: it must be a text or a number",
    PART + "train.deterministic = 1\n": "train: deterministic is 1: it must be true or false",
    PART + "train.epochs = [3, 4]\n": "--epochs was given twice",
    PART + 'train.out = "x"\n': "train has a key 'out' that is unknown",
    PART + "cpus = 0\n": "cpus is 0",
    PART + "gpus = 1.5\n": "gpus is 1.5: give a share from 0 to 1, or a whole number",
    '[[part]]\nname = "a/b"\ndata = "bolt"\n': "a part cannot be called 'a/b'",
    'out = "x"\n': "parts.toml lacks part: give it",
    "part = []\n": "parts.toml: it names no part: write a [[part]]",
    "[part]\n": "[part] is one table: write [[part]]",
    "train = 3\n" + PART: "train is 3: it must be a table of options of nnet-edge train",
    "retries = -1\n" + PART: "retries",
    "[[part\n": "parts.toml is not valid TOML",
}


@pytest.mark.parametrize("text", REFUSED, ids=[words[:40] for words in REFUSED.values()])
def test_what_cannot_be_is_refused_in_one_sentence(
    text: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    write(folder, text)
    assert run(["fleet", "train", "parts.toml"]) == 2
    said = capsys.readouterr().err
    assert REFUSED[text] in said
    assert said.count("\n") == 1
    assert not (folder / "out").exists()


def test_an_out_that_cannot_be_written_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(folder, WHOLE)
    (folder / "file").write_text("")
    assert run(["fleet", "train", str(file), "--out", str(folder / "file/out")]) == 2
    assert "cannot be written (Not a directory): give another --out" in capsys.readouterr().err


def test_a_file_that_is_absent_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fleet", "train", str(tmp_path / "parts.toml")]) == 2
    assert "parts.toml cannot be read" in capsys.readouterr().err


def test_the_key_follows_options_and_files_and_nothing_else(folder: Path) -> None:
    flags = TrainFlags({"epochs": 3}).arguments()
    key = key_of(folder / "bolt", flags)
    assert key == key_of(folder / "bolt", flags)
    assert key != key_of(folder / "bolt", TrainFlags({"epochs": 4}).arguments())
    (folder / "bolt").rename(folder / "moved")
    assert key == key_of(folder / "moved", flags)
    os.utime(folder / "moved/1.png", ns=(1, 1))
    touched = key_of(folder / "moved", flags)
    (folder / "moved/2.png").write_bytes(b"another")
    assert len({key, touched, key_of(folder / "moved", flags)}) == 3


def test_paths_of_options_start_at_the_file(folder: Path) -> None:
    flags = TrainFlags.from_table({"textures": "dtd", "teacher_weights": "random"}, "train", folder)
    assert flags.values == {"textures": str(folder / "dtd"), "teacher_weights": "random"}
    with pytest.raises(ConfigError, match="did you mean textures"):
        TrainFlags.from_table({"texture": "dtd"}, "train", folder)
