"""`nnet-edge collect` keeps good photographs as the camera gave them, and counts what it does not keep, with the reason."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.cli import collect as collecting
from nnet_edge.cli.collect import Collection, png_of, spaced
from nnet_edge.cli.main import run
from nnet_edge.errors import SourceError
from nnet_edge.frame import Frame
from nnet_edge.image_files import decode
from nnet_edge.runtime.sources.base import Source
from tests.conftest import good_part


def write(folder: Path, pictures: dict[str, np.ndarray]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        cv2.imwrite(str(folder / name), picture)
    return folder


def moved(seed: int) -> np.ndarray:
    """A part that lies elsewhere with every seed."""
    return np.roll(good_part(seed), (7 * seed, 5 * seed), axis=(0, 1))


def test_what_is_wrong_is_counted_and_not_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pictures = {f"{seed}.png": moved(seed) for seed in range(8)}
    pictures |= {
        "8_dark.png": moved(8) // 4,
        "8_white.png": np.full_like(moved(8), 255),
        "9_blurred.png": cv2.GaussianBlur(moved(3), (0, 0), 3),
        "9_same.png": moved(5),
    }
    source, out = write(tmp_path / "camera", pictures), tmp_path / "photos"
    assert run(["collect", str(source), "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert [path.name for path in sorted(out.iterdir())] == [f"{number:06d}.png" for number in range(1, 9)]
    assert all(np.array_equal(cv2.imread(str(out / f"{seed + 1:06d}.png")), moved(seed)) for seed in range(8))
    assert "kept 8 photographs" in said
    for told in ("1 under-exposed", "1 over-exposed", "1 blurred", "1 duplicates", "the part of 000006.png again"):
        assert told in said
    assert "not enough yet" in said
    assert f"next: nnet-edge train {out}" in said


def test_a_second_run_goes_on_and_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = write(tmp_path / "camera", {f"{seed}.png": moved(seed) for seed in range(6)}), tmp_path / "photos"
    write(out, {"000041.png": moved(0), "mine.png": moved(1)})
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(["collect", str(source), "--out", str(out), "--count", "3"]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "000041.png",
        "000042.png",
        "000043.png",
        "000044.png",
        "mine.png",
    ]
    assert {name: (out / name).read_bytes() for name in before} == before
    assert "holds 2 photographs already" in capsys.readouterr().err
    assert run(["collect", str(source), "--out", str(out), "--count", "3"]) == 0  # the sixth is new, five are there
    assert "kept 1 photographs" in (said := capsys.readouterr().err)
    assert "5 duplicates" in said
    assert run(["collect", str(source), "--out", str(out)]) == 1
    assert "no photograph was kept: 6 duplicates" in capsys.readouterr().err
    assert run(["collect", str(source), "--out", str(out), "--keep-all", "--count", "2"]) == 0
    assert "kept 2 photographs" in (said := capsys.readouterr().err)
    assert "kept though: 2 duplicates" in said


@pytest.mark.parametrize("bits", [None, 12])
@pytest.mark.parametrize("is_grey", [True, False])
def test_twelve_bits_stay_twelve_bits(bits: int | None, is_grey: bool) -> None:
    image = np.random.default_rng(0).integers(0, 1 << 12, (5, 7, 3), np.uint16)
    image = np.repeat(image[..., :1], 3, axis=2) if is_grey else image
    found = decode(png_of(image, bits))
    assert np.array_equal(found.pixels[..., ::-1], image)
    assert found.bits == bits


def test_files_of_twelve_bits_are_kept_so(tmp_path: Path) -> None:
    picture = moved(1).astype(np.uint16) * 16
    out = tmp_path / "photos"
    assert run(["collect", str(write(tmp_path / "camera", {"a.png": picture})), "--out", str(out), "--bits", "12"]) == 0
    kept = decode((out / "000001.png").read_bytes())
    assert kept.bits == 12
    assert np.array_equal(kept.pixels[..., ::-1], picture)


class Camera(Source):
    """Gives the same part for ever."""

    is_live = True

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *about: object) -> None:
        return None

    def __iter__(self):  # type: ignore[no-untyped-def]
        for index in range(1000):
            yield Frame(moved(index), index, 0.0, "camera")

    def describe(self) -> str:
        return "a camera"


def test_a_camera_settles_and_is_asked_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter(np.arange(0, 1000, 0.1))
    monkeypatch.setattr(collecting.time, "monotonic", lambda: 100 + float(next(seconds)))
    frames = spaced(Camera("camera"), 1.0)
    assert [next(frames).index for _ in range(3)] == [5, 15, 25]


def test_enough_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = {f"{number:03d}.png": np.roll(moved(number % 7), number, axis=1) for number in range(60)}
    assert (
        run(["collect", str(write(tmp_path / "camera", parts)), "--out", str(tmp_path / "photos"), "--keep-all"]) == 0
    )
    said = capsys.readouterr().err
    assert said.count("enough: new parts look like those before them") == 1
    assert "not enough yet" not in said


def test_ctrl_c_ends_it_with_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupted(Camera):
        def __iter__(self):  # type: ignore[no-untyped-def]
            yield Frame(moved(1), 0, 0.0, "camera")
            raise KeyboardInterrupt

    found = Collection(tmp_path / "photos")
    found.read()
    Interrupted.is_live = False
    with pytest.raises(KeyboardInterrupt):
        collecting.collect(Interrupted("camera"), found, 60, 0.0, False)
    assert len(found.kept) == 1
    collecting.tell(found, False)
    assert "kept 1 photographs" in capsys.readouterr().err


def test_a_source_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["collect", str(tmp_path / "none.mp4"), "--out", str(tmp_path / "photos")]) == SourceError.exit_code
    assert "there is no source" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").write_text("kept")
    assert run(["collect", "synthetic", "--out", str(tmp_path / "photos"), "--count", "3"]) == 2
    assert "is a file: give a folder" in capsys.readouterr().err
    assert (tmp_path / "photos").read_text() == "kept"
