"""What marks a defect in a mask, and which masks leave a doubt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nnet_edge.data.dataset import Sample
from nnet_edge.data.layouts import read_dataset
from nnet_edge.data.masks import find_mask_like, load_masks
from nnet_edge.errors import ConfigError, DataError

THERE = np.zeros((40, 60), bool)
THERE[8:16, 10:22] = True
Save = Callable[[np.ndarray, Path], None]


def grey(on: int, off: int) -> Save:
    return lambda there, path: Image.fromarray(np.where(there, on, off).astype(np.uint8)).save(path)


def palette(there: np.ndarray, path: Path) -> None:
    """The defect is index 0 and shown white."""
    picture = Image.fromarray((~there).astype(np.uint8)).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0])
    picture.save(path)


def alpha(colour: int) -> Save:
    def save(there: np.ndarray, path: Path) -> None:
        Image.fromarray(np.dstack([np.full((*there.shape, 3), colour), there * 255]).astype(np.uint8)).save(path)

    return save


def noisy(there: np.ndarray, path: Path) -> None:
    """A mask that was a JPEG once: faint noise on a tenth of the ground."""
    random = np.random.default_rng(0)
    noise = random.integers(1, 20, there.shape) * (random.random(there.shape) < 0.1)
    Image.fromarray(np.where(there, 255 - noise, noise).astype(np.uint8)).save(path)


HABITS: dict[str, tuple[Save, str, str]] = {  # what the masks are like -> how they are saved, what is said, the answer
    "inverted": (grey(0, 255), "marks 96% of its picture, the edges too", "dark"),
    "a grey ground": (grey(255, 16), "marks 100% of its picture", "bright"),
    "one value of two": (grey(7, 9), "marks 100% of its picture", "7"),
    "white with alpha": (alpha(255), "its colours and another by its transparency", "alpha"),
    "black with alpha": (alpha(0), "its colours and another by its transparency", "alpha"),
    "a palette the other way round": (palette, "marks 96% of its picture", "bright"),
    "noise": (noisy, "most of that faintly", "bright"),
}


def samples(folder: Path, save: Save, mark: str = "auto", name: str = "m{}.png") -> list[Sample]:
    """Two defects with masks saved so."""
    found = []
    for number in range(2):
        Image.fromarray(np.zeros(THERE.shape, np.uint8)).save(folder / f"{number}.png")
        save(np.roll(THERE, number, axis=1), folder / name.format(number))
        found.append(Sample(folder / f"{number}.png", True, folder / name.format(number), "cut", mask_mark=mark))
    return found


@pytest.mark.parametrize("habit", HABITS)
def test_masks_of_other_habits_are_asked_about_and_read_as_told(tmp_path: Path, habit: str) -> None:
    save, why, answer = HABITS[habit]
    with pytest.raises(
        DataError,
        match=rf"2 of 2 masks leave a doubt \(first: .*m0.png .*{why}.*--mask-mark .*{answer if answer.isalpha() else 'value'}",
    ):
        load_masks(samples(tmp_path, save))
    (tmp_path / "plain").mkdir()
    plain, _ = load_masks(samples(tmp_path / "plain", grey(255, 0)))
    told, known = load_masks(samples(tmp_path, save, answer))
    np.testing.assert_array_equal(told, plain)
    assert known.all()
    assert told.any(axis=(1, 2)).all()
    if not habit.startswith("black"):
        kept, _ = load_masks(samples(tmp_path, save, "nonzero"))  # the one who insists is heard
        assert kept.mean() > plain.mean()


@pytest.mark.parametrize(
    "save",
    [
        grey(1, 0),
        lambda there, path: Image.fromarray(there).save(path),
        lambda there, path: Image.fromarray((there * 65535).astype(np.uint16)).save(path),
        lambda there, path: Image.fromarray(there.astype(np.float32)).save(path.with_suffix(".tif")),
        lambda there, path: Image.fromarray(np.dstack([there * 128, there * 0, there * 0]).astype(np.uint8)).save(path),
        lambda there, path: Image.fromarray(np.dstack([there * 255] * 3 + [there * 0 + 255]).astype(np.uint8)).save(
            path
        ),
        lambda there, path: Image.fromarray(np.dstack([there * 255] * 4).astype(np.uint8)).save(path),
    ],
    ids=["1", "bit", "16 bits", "float", "red", "opaque", "drawn on nothing"],
)
def test_masks_that_leave_no_doubt(tmp_path: Path, save: Save) -> None:
    (tmp_path / "plain").mkdir()
    plain, _ = load_masks(samples(tmp_path / "plain", grey(255, 0)))
    found = samples(tmp_path, save)
    if not found[0].masks[0].exists():
        found = [Sample(sample.path, True, sample.masks[0].with_suffix(".tif"), "cut") for sample in found]
    np.testing.assert_array_equal(load_masks(found)[0], plain)


def test_soft_edges_leave_no_doubt(tmp_path: Path) -> None:
    def soft(there: np.ndarray, path: Path) -> None:
        large = Image.fromarray(np.kron(there * 255, np.ones((4, 4))).astype(np.uint8))
        large.resize((80, 56)).resize((240, 160), Image.Resampling.BILINEAR).save(path)
        Image.fromarray(np.zeros((160, 240), np.uint8)).save(path.with_name(path.name[1:]))

    assert load_masks(samples(tmp_path, soft))[0].any()


def test_a_large_defect_leaves_no_doubt(tmp_path: Path) -> None:
    def large(there: np.ndarray, path: Path) -> None:
        there = there * 0
        there[2:-2, 2:] = 255  # 86 % of the picture, and one edge of four
        Image.fromarray(there.astype(np.uint8)).save(path)

    assert load_masks(samples(tmp_path, large))[0].mean() > 0.8


def test_a_mask_that_marks_a_good_part(tmp_path: Path) -> None:
    (sample, _) = samples(tmp_path, grey(255, 0))
    with pytest.raises(DataError, match=r"1 of 1 masks leave a doubt .*m0.png marks a defect on a good part"):
        load_masks([Sample(sample.path, False, sample.mask_path, "good")])


def test_masks_that_all_mark_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 of 2 masks leave a doubt .*marks nothing on a defect, and so do all"):
        load_masks(samples(tmp_path, grey(0, 0)))
    with pytest.raises(DataError, match="marks nothing on a defect"):
        load_masks(samples(tmp_path, grey(255, 0), "254"))
    empty, full = samples(tmp_path, grey(0, 0))
    grey(255, 0)(THERE, full.masks[0])
    assert load_masks([empty, full])[0].any(axis=(1, 2)).tolist() == [False, True]


def test_an_answer_that_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match='mask mark "white" is unknown: choose auto, nonzero, bright, dark, alpha or a value'
    ):
        read_dataset(tmp_path, mask_mark="white")
    with pytest.raises(DataError, match="has no transparency"):
        load_masks(samples(tmp_path, grey(255, 0), "alpha"))
    with pytest.raises(DataError, match="has colours, no single values"):
        load_masks(samples(tmp_path, alpha(255), "255"))


def test_pictures_that_look_like_masks_are_found_among_others() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3), np.uint8)
    mask = np.repeat(np.where(THERE, 255, 0)[..., None], 3, axis=2).astype(np.uint8)
    paths = [Path(f"{number}.png") for number in range(6)]
    assert find_mask_like(np.concatenate([noise, [mask, mask]]), paths) == paths[4:]
    assert find_mask_like(noise, paths[:4]) == []
    assert find_mask_like(np.array([mask] * 6), paths) == []  # silhouettes: the parts themselves look so


def test_the_answer_reaches_every_mask_of_a_dataset(tmp_path: Path) -> None:
    for place in ("good", "bad/cut"):
        (tmp_path / place).mkdir(parents=True)
    samples(tmp_path / "bad/cut", grey(0, 255), name="{}_mask.png")
    Image.fromarray(np.zeros(THERE.shape, np.uint8)).save(tmp_path / "good/0.png")
    grey(255, 255)(THERE, tmp_path / "good/0_mask.png")
    with pytest.raises(DataError, match="leave a doubt"):
        read_dataset(tmp_path)
    dataset = read_dataset(tmp_path, mask_mark="dark")
    assert {sample.mask_mark for sample in dataset.test} == {"dark"}
    assert 0 < load_masks(dataset.test)[0].mean() < 0.1
