"""The film is one that the product reads, whole, moving and in the colours of what was drawn; bad wishes are one sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.benchmarks.line.film import write_film
from nnet_edge.benchmarks.line.stages import drawn
from nnet_edge.errors import ConfigError, MissingExtraError
from nnet_edge.runtime.sources.open import open_source


@pytest.mark.parametrize(("name", "codec"), [("film.mp4", "h264"), ("film.mkv", "h265")])
def test_a_film_is_read_whole_and_shows_what_was_drawn(tmp_path: Path, name: str, codec: str) -> None:
    write_film(tmp_path / name, (720, 320), 6, 30.0, codec)
    with open_source(str(tmp_path / name)) as source:
        frames = list(source)

    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(frames) == 6
    assert frames[0].image.shape == (720, 320, 3)
    first = drawn((720, 320))[0]
    assert np.abs(frames[0].image.astype(int) - first).mean() < 4  # a wrong matrix is 9 off
    assert np.abs(frames[0].image.astype(int) - frames[5].image).mean() > 1


def test_bad_wishes_are_refused_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="give even numbers"):
        write_film(tmp_path / "film.mp4", (101, 64), 2, 30.0)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_film(tmp_path / "absent" / "film.mp4", (64, 64), 2, 30.0)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_film(tmp_path / "film.nothing", (64, 64), 2, 30.0)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtraError, match=r"nnet-edge\[decode\]"):
        write_film(tmp_path / "film.mp4", (64, 64), 2, 30.0)

    assert not list(tmp_path.iterdir())
