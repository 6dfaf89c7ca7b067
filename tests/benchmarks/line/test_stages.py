"""Stages of a line are measured alone and together, of folders and of cameras, and wrong sources are refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
from click.testing import CliRunner

from nnet_edge.benchmarks.line.stages import command, measure, plot, table
from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.runtime.sources.synthetic import draw_part
from nnet_edge.runtime.stream.model import Model
from tests.benchmarks.line.test_line import IMAGE_S, SlowRunner


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        small = cv2.resize(draw_part(number)[0], (128, 96))  # decoded in far less time than the runner takes
        cv2.imwrite(str(folder / f"{number}.jpg"), small)
    return folder


def test_each_stage_is_measured_alone_and_the_whole_beside_it(photos: Path, tmp_path: Path) -> None:
    model = Model("slow", None, SlowRunner(), 1.0)
    told: list[str] = []
    rows = list(measure(model, [str(photos)], [2], (240, 320), 0.15, 2, told.append))
    folder, cameras = rows
    assert told == [str(photos), "2 cameras"]
    assert (folder.size, cameras.size) == ((96, 128), (240, 320))
    assert cameras.decode is None
    assert folder.decode is not None
    for row in rows:
        assert 0 < row.network.median <= 1 / IMAGE_S
        assert 0 < row.whole.median <= 1 / IMAGE_S
        assert row.resize.smallest > 1 / IMAGE_S
        assert row.slowest == "network"
        assert 0 < row.share <= 1.5
    assert len(table(rows).splitlines()) == 4
    plot(rows, tmp_path / "stages.png")
    assert cv2.imread(str(tmp_path / "stages.png")) is not None


def test_what_cannot_be_read_again_is_refused(tmp_path: Path) -> None:
    model = Model("slow", None, SlowRunner(), 1.0)
    for source, error, told in (
        ("rtsp://127.0.0.1:1/live", ConfigError, "is live: give a folder or a video file"),
        (str(tmp_path / "absent"), SourceError, "absent"),
    ):
        with pytest.raises(error, match=told):
            next(measure(model, [source], [], (64, 64), 0.1, 1, lambda line: None))


def test_the_command_asks_for_something_to_measure(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to measure: give folders or videos, or --cameras"):
        command.main([str(tmp_path)], standalone_mode=False)
    wrong = CliRunner().invoke(command, [str(tmp_path), "--cameras", "1", "--size", "1920"])
    assert wrong.exit_code == 2
    assert "give WIDTHxHEIGHT in pixels, as 1920x1080" in wrong.output
