"""Rejects leave pictures, whole ones, and never more bytes than the budget."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks import Message, RefusedError, RejectsSettings, RejectsSink
from nnet_edge.settings.registry import SINKS, Asked
from nnet_edge.settings.sink import SinkSettings

MakePrediction = Callable[..., Prediction]
FilesUpTo = Callable[[int], AbstractContextManager[None]]


def rejects_to(
    folder: Path, pictures: tuple[str, ...] = ("overlay",), budget_bytes: int | None = None, by_stream: bool = False
) -> RejectsSink:
    return RejectsSink(
        RejectsSettings(folder=folder, pictures=pictures, budget_bytes=budget_bytes, by_stream=by_stream)
    )


def test_rejects_leave_a_picture_and_good_frames_none(tmp_path: Path, make_prediction: MakePrediction) -> None:
    with rejects_to(tmp_path / "rejects") as sink:
        sink.write(make_prediction(0, is_good=True))
        sink.write(make_prediction(12, name="part 12.png"))
        sink.write(make_prediction(13))
    (session,) = (tmp_path / "rejects").iterdir()
    assert sorted(os.listdir(session)) == ["000012_part 12.jpg", "000013.jpg"]
    assert cv2.imread(str(session / "000013.jpg")).shape == (32 + 256, 2 * 512 + 56, 3)


@pytest.mark.parametrize("by_stream", [False, True])
@pytest.mark.parametrize("session", ["", "of its own"])
def test_a_second_start_replaces_no_picture(
    tmp_path: Path, make_prediction: MakePrediction, by_stream: bool, session: str
) -> None:
    for number in range(3):
        with rejects_to(tmp_path, by_stream=by_stream) as sink:
            sink.write(make_prediction(0, session=session and f"{session} {number}"))
    assert len(list(tmp_path.rglob("000000.jpg"))) == 3


def test_a_picture_that_does_not_fit_leaves_no_part(
    tmp_path: Path, make_prediction: MakePrediction, files_up_to: FilesUpTo
) -> None:
    says = "cannot write pictures of rejects to"
    with rejects_to(tmp_path) as sink, files_up_to(1000), pytest.raises(SinkError, match=says):
        sink.write(make_prediction())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_original_overlay_and_map_can_be_kept(tmp_path: Path, make_prediction: MakePrediction) -> None:
    prediction = make_prediction(5, stream="left/../gate", session="run 1")
    with rejects_to(tmp_path, ("original", "overlay", "map"), by_stream=True) as sink:
        sink.write(prediction)
    folder = tmp_path / "left_.._gate" / "run_1"
    assert sorted(os.listdir(folder)) == ["000005.jpg", "000005.map.png", "000005.original.png"]
    np.testing.assert_array_equal(cv2.imread(str(folder / "000005.original.png")), prediction.frame.image)
    grey = cv2.imread(str(folder / "000005.map.png"), cv2.IMREAD_UNCHANGED)
    assert grey.dtype == np.uint16
    assert prediction.anomaly_map is not None
    np.testing.assert_allclose(grey * (4.0 / 65535), prediction.anomaly_map, atol=4 / 65535)  # one step


def noisy(make_prediction: MakePrediction, index: int) -> Prediction:
    prediction = make_prediction(index)
    prediction.frame.image[...] = np.random.default_rng(index).integers(0, 256, prediction.frame.image.shape, np.uint8)
    return prediction


def used_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "notes.txt")


def test_pictures_never_exceed_their_budget_and_the_oldest_go_first(
    tmp_path: Path, make_prediction: MakePrediction
) -> None:
    (tmp_path / "notes.txt").write_bytes(b"x" * 5_000_000)  # not ours: neither counted nor touched
    largest = 0
    for session in ("a", "b"):  # what the first run left counts in the second
        with rejects_to(tmp_path, ("original", "overlay"), 3_000_000, by_stream=True) as sink:
            for index in range(8):
                sink.write(replace_session(noisy(make_prediction, index), session))
                largest = max(largest, used_bytes(tmp_path))
    kept = sorted(path.name for path in (tmp_path / "test" / "b").iterdir())
    assert 2_000_000 < largest <= 3_000_000
    assert not (tmp_path / "test" / "a").exists()
    numbers = sorted({int(name[:6]) for name in kept})
    assert numbers == list(range(8 - len(numbers), 8))
    assert len(kept) == 2 * len(numbers)  # the pictures of one reject go together
    assert (tmp_path / "notes.txt").exists()


def replace_session(prediction: Prediction, session: str) -> Prediction:
    return replace(prediction, frame=replace(prediction.frame, session=session))


def test_a_reject_that_is_larger_than_the_budget_is_refused(tmp_path: Path, make_prediction: MakePrediction) -> None:
    sink = rejects_to(tmp_path, ("original",), 100_000)
    with sink, pytest.raises(RefusedError, match="more than the budget of 100000"):
        sink.write(noisy(make_prediction, 0))
    assert os.listdir(tmp_path) == []


def test_pictures_of_two_streams_never_replace_each_other(tmp_path: Path, make_prediction: MakePrediction) -> None:
    with rejects_to(tmp_path) as sink:
        sink.write(make_prediction(0, stream="left"))
        with pytest.raises(RefusedError, match="left and right would have the same names"):
            sink.write(make_prediction(0, stream="right"))
    with rejects_to(tmp_path / "all", by_stream=True) as sink:
        for stream in ("left", "right"):
            sink.write(make_prediction(0, stream=stream))
    assert len(list((tmp_path / "all").rglob("*.jpg"))) == 2


def test_a_folder_that_is_removed_is_begun_anew(tmp_path: Path, make_prediction: MakePrediction) -> None:
    folder = tmp_path / "rejects"
    with rejects_to(folder, budget_bytes=1_000_000) as sink:
        sink.write(make_prediction(0))
        for index in (1, 2):
            shutil.rmtree(folder)
            if index == 1:
                sink.tick()
                assert folder.is_dir()
            sink.write(make_prediction(index))
            assert [path.stem for path in folder.rglob("*.jpg")] == [f"{index:06d}"]
        assert sink._budget.used_bytes == used_bytes(folder)


def test_parts_that_a_kill_left_go_on_entering(tmp_path: Path) -> None:
    (tmp_path / ".000001.jpg.part").write_bytes(b"half")
    with rejects_to(tmp_path, budget_bytes=100_000):
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"pictures": ()}, "at least one"),
        ({"pictures": ("map", "map")}, "once"),
        ({"pictures": ("heat",)}, "'heat' is unknown"),
        ({"budget_bytes": 5}, "bytes of pictures is 5"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RejectsSettings(folder=Path("rejects"), **wrong)


def test_the_registry_builds_it_from_a_table_and_from_the_flag(tmp_path: Path) -> None:
    table = {"kind": "rejects", "folder": "rejects", "pictures": ["map"], "budget_bytes": 1_000_000}
    settings = SinkSettings.from_table(table, "[[sink]]", tmp_path)
    assert settings == RejectsSettings(folder=tmp_path / "rejects", pictures=("map",), budget_bytes=1_000_000)
    kind = SINKS.find("rejects")
    sink = kind.make(settings)
    assert isinstance(sink, RejectsSink)
    assert sink.outputs == (tmp_path / "rejects",)
    assert kind.flag is not None
    for asked, by_stream in ((Asked(), False), (Asked(streams=2), True), (Asked(must_deliver=True), True)):
        typed = SinkSettings.from_table({"kind": "rejects", **kind.flag.table(tmp_path, asked)}, "--rejects", Path())
        assert isinstance(typed, RejectsSettings)
        assert (typed.folder, typed.pictures, typed.budget_bytes) == (tmp_path, ("overlay",), None)
        assert typed.by_stream is by_stream
        assert typed.queue == (256 if by_stream else 0)


def test_a_name_that_is_too_long_is_shortened_and_stays_the_only_one(
    tmp_path: Path, make_prediction: MakePrediction
) -> None:
    names = [f"{'ä' * 125}{end}.png" for end in "ab"]  # 255 bytes: the longest that a file can have
    (tmp_path / names[0]).touch()
    with rejects_to(tmp_path / "rejects", ("original", "overlay", "map"), 10_000_000) as sink:
        for name in names:
            sink.write(make_prediction(7, name=name))
    kept = [path.name for path in (tmp_path / "rejects").rglob("*.*") if path.is_file()]
    assert len(kept) == 6
    assert len({name.partition(".")[0] for name in kept}) == 2  # the three pictures of a reject keep one stem
    assert all(name.startswith("000007_äää") for name in kept)


def test_a_spool_that_holds_a_name_too_long_for_the_disk_is_not_blocked(tmp_path: Path) -> None:
    with rejects_to(tmp_path) as sink:
        assert sink.send([Message("id", (("left/run/" + "x" * 250 + ".jpg", b"picture"),))]) == 1
    (written,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert written.read_bytes() == b"picture"
    assert written.parent == tmp_path / "left" / "run"
