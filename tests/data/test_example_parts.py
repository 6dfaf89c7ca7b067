"""The demo's line: its pictures follow from the seed, its masks show where the defect is, its folder can be read."""

from __future__ import annotations

import resource
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from nnet_edge.data.example_parts import DEFECTS, FRAME_SIDE, GOOD, KINDS, camera, make_line, make_part
from nnet_edge.data.images import read_dataset
from nnet_edge.errors import ConfigError
from nnet_edge.image_files import read_mask
from nnet_edge.imaging import resize_mask

NOISE = 12  # grey levels: sensor noise of at most 3 levels, four times over


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_part_fills_a_grey_frame_and_has_no_defect(kind: str) -> None:
    part = make_part(kind, GOOD, np.random.default_rng(1))
    assert part.image.shape == (FRAME_SIDE, FRAME_SIDE, 3)
    assert part.image.dtype == np.uint8
    assert (part.image[..., 0] == part.image[..., 1]).all()
    assert (part.image[..., 0] == part.image[..., 2]).all()
    assert not part.mask.any()
    assert not part.is_anomalous
    surface = part.image[80:240, 80:240, 0].astype(float)
    assert 40 < surface.mean() < 200  # neither black nor burnt out
    assert part.image[:8].mean() < 80  # the belt is dark
    assert surface.std() > 10


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_defect_changes_the_picture_where_its_mask_is(kind: str, defect: str) -> None:
    for seed in range(8):
        part = make_part(kind, defect, np.random.default_rng(seed))
        assert part.is_anomalous
        assert part.mask.shape == (FRAME_SIDE, FRAME_SIDE)
        share = part.mask.mean()
        assert 0.003 < share < 0.08, f"seed {seed}: {share:.4f} of the frame"
        assert resize_mask(part.mask).sum() > 150  # the scratch survives the resize to 256x256
        rows, columns = np.nonzero(part.mask)
        assert min(rows.min(), columns.min()) > 20  # on the part, not on the belt
        assert max(rows.max(), columns.max()) < FRAME_SIDE - 20


@pytest.mark.parametrize("kind", KINDS)
def test_outside_its_mask_a_defect_leaves_the_part_alone(kind: str) -> None:
    from nnet_edge.data import example_parts as demo_parts

    for defect, paint in demo_parts._PAINTERS.items():
        rng = np.random.default_rng(3)
        surface = demo_parts._cut(demo_parts.photograph(kind), rng)
        painted, cover = paint(surface, rng)
        change = np.abs(painted - surface)
        assert change[cover < 1e-3].max(initial=0) < NOISE, f"{defect} changes the part outside its mask"
        inside = change[cover > 0.5]
        assert inside.mean() > 2 * NOISE / 3, f"{defect} cannot be seen: {inside.mean():.1f} grey levels"


def test_the_seed_decides_every_pixel() -> None:
    first, again, other = (list(islice(camera(seed, parts=6, good_first=2), 6)) for seed in (4, 4, 5))
    assert all((a.image == b.image).all() and (a.mask == b.mask).all() for a, b in zip(first, again, strict=True))
    assert not any((a.image == b.image).all() for a, b in zip(first, other, strict=True))


def test_the_camera_shows_good_parts_first_and_defects_later() -> None:
    parts = list(camera(0, parts=80, good_first=20, defect_share=0.4))
    assert len(parts) == 80
    assert not any(part.is_anomalous for part in parts[:20])
    assert {part.kind for part in parts} == set(KINDS)
    assert {part.defect for part in parts[20:]} == {GOOD, *DEFECTS}
    assert 12 <= sum(part.is_anomalous for part in parts) <= 36  # 24 expected, three standard deviations
    assert all(part.mask.any() == part.is_anomalous for part in parts)


def test_the_line_is_a_dataset_in_mvtec_layout(tmp_path: Path) -> None:
    root = make_line(tmp_path / "line", seed=0, train=6, test_good=3, test_each=3)
    dataset = read_dataset(root)
    assert len(dataset.train) == 6
    assert [sample.is_anomalous for sample in dataset.test].count(True) == 3 * len(DEFECTS)
    assert {sample.defect for sample in dataset.test if sample.is_anomalous} == set(DEFECTS)
    for sample in dataset.test:
        if sample.is_anomalous:
            assert sample.mask_path is not None
            assert read_mask(sample.mask_path).any()
    again = make_line(tmp_path / "again", seed=0, train=6, test_good=3, test_each=3)
    for path in root.rglob("*.png"):
        assert path.read_bytes() == (again / path.relative_to(root)).read_bytes()


def test_train_test_and_camera_share_no_picture(tmp_path: Path) -> None:
    root = make_line(tmp_path / "line", seed=0, train=3, test_good=3, test_each=1)
    files = [path.read_bytes() for path in root.rglob("*.png") if "ground_truth" not in path.parts]
    assert len(files) == len(set(files)) == 10


def test_a_folder_that_exists_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "line").mkdir()
    (tmp_path / "line" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="line exists already"):
        make_line(tmp_path / "line", seed=0, train=1, test_good=1, test_each=1)
    assert [path.name for path in tmp_path.rglob("*")] == ["line", "mine.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_a_disk_that_fills_leaves_nothing_behind(tmp_path: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, (20000, {resource.getrlimit(resource.RLIMIT_FSIZE)[1]})); "
    code = "from pathlib import Path; from nnet_edge.data.example_parts import make_line; import sys; "
    code += "make_line(Path(sys.argv[1]), 0, 2, 1, 1)"
    done = subprocess.run(
        [sys.executable, "-c", limit + code, str(tmp_path / "line")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "DataError: cannot write the line's pictures" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "defect", "words"), [("steel", GOOD, "brick"), ("brick", "rust", "scratch")])
def test_an_unknown_kind_or_defect_is_refused_with_the_known_ones(kind: str, defect: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_part(kind, defect, np.random.default_rng(0))
