"""Groups: where they come from, that they are held out whole, how they are dealt into folds, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.data.groups import by_name, deal, find_groups, units_of
from nnet_edge.data.holding_out import hold_out, with_held_out_images
from nnet_edge.data.images import read_dataset
from nnet_edge.data.training_data import load_training_data
from nnet_edge.errors import ConfigError, DataError


def named(*stems: str) -> list[Path]:
    return [Path(f"good/{stem}.png") for stem in stems]


def test_names_give_groups_where_every_one_ends_in_a_view() -> None:
    groups = by_name(named("part_01_view2", "part_01_view3", "part_02_view1", "part_03-cam_a"))
    assert groups is not None
    assert groups.names == ("part_01", "part_01", "part_02", "part_03")
    assert groups.as_dict() == {"by": "names", "count": 3, "smallest": 1, "largest": 2}
    videos = by_name(named("line1_frame0001", "line1_frame0002", "line2_frame0001", "line3 img 7"))
    assert videos is not None
    assert videos.names == ("line1", "line1", "line2", "line3")


@pytest.mark.parametrize(
    "stems",
    [
        ("000", "001", "002", "003"),  # numbers alone say nothing
        ("part_01_view1", "part_01_view2", "part_02_view1", "extra"),  # one that ends otherwise
        ("view1", "view2", "view3"),  # of what?
        ("part_view1", "part_view2", "part_view3"),  # what is left names nothing: no digit
        ("part_01_view1", "part_01_view2", "part_02_view1"),  # two groups
        ("p1_view1", "p2_view1", "p3_view1"),  # each has one image: the same as none
        ("exp1_num_108889", "exp1_num_108890", "exp2_num_1", "exp3_num_1"),  # no word for a view
    ],
)
def test_names_that_are_not_safe_give_none(stems: tuple[str, ...]) -> None:
    assert by_name(named(*stems)) is None


def write(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = np.random.default_rng([len(names), number]).integers(0, 255, (24, 24, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / name), picture)


@pytest.fixture
def days(tmp_path: Path) -> Path:
    """Six days of four parts each in folders of their own."""
    write(tmp_path, *(f"good/day{day}/{part}.png" for day in range(6) for part in range(4)))
    return tmp_path


def test_folders_are_groups_held_out_whole(days: Path) -> None:
    data = load_training_data(read_dataset(days), 1, groups="auto")
    assert data.facts["groups"] == {"by": "folders", "count": 6, "smallest": 4, "largest": 4}
    assert Counter(data.facts["held_out_groups"]) == dict.fromkeys(set(data.facts["held_out_groups"]), 4)
    assert len(data.held_out) == 12  # ten at least, in whole groups
    assert len(data.learned) == 12
    alone = load_training_data(read_dataset(days), 1, groups="none")
    assert alone.facts["groups"] is None
    assert len(alone.held_out) == 10


def test_evaluation_takes_the_very_images_that_were_held_out(days: Path) -> None:
    dataset = read_dataset(days)
    data = load_training_data(dataset, 1, groups="auto")
    test = with_held_out_images(dataset, data.facts).test
    assert {sample.path.parent.name for sample in test} == set(data.facts["held_out_groups"])
    assert len(test) == 12
    in_folds = load_training_data(dataset, 1, groups="auto", folds=3)
    judged = with_held_out_images(dataset, in_folds.facts)
    assert judged.test == ()
    assert "learned all good ones" in judged.notes[-1]


def test_a_table_beside_the_data_goes_first_and_names_files_by_path_or_name(days: Path) -> None:
    rows = [f"good/day{day}/{part}.png,{'ab'[part % 2]}{day % 3}" for day in range(6) for part in range(4)]
    (days / "groups.csv").write_text("\n".join(["file,group,note", *(f"{row},x" for row in rows)]))
    dataset = read_dataset(days)
    groups = find_groups(dataset, dataset.train)
    assert groups is not None
    assert (groups.source, groups.count) == ("groups.csv", 6)
    write(days / "flat", *(f"good/{part}.png" for part in range(4)))
    flat = read_dataset(days / "flat")
    table = days / "parts.csv"
    table.write_text("group,file\nx,0.png\nx,1.png\ny,2.png\ny,3.png\n")
    found = find_groups(flat, flat.train, str(table))
    assert found is not None
    assert found.names == ("x", "x", "y", "y")
    assert find_groups(flat, flat.train) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,group\n0.png,a\n1.png,a\n2.png,b\n", r"misses 1 good image \(first: .*3.png\): give each a group"),
        (
            "file,group\n0.png,a\n1.png,a\n2.png,b\n3.png,b\n9.png,b\n",
            r"names 1 image \(first: 9.png\) that the data do not",
        ),
        ("file,group\n0.png,a\n1.png,a\n2.png,a\n3.png,a\n", "all good images into one group"),
        ("file,group\n0.png,a\n0.png,b\n1.png,a\n2.png,a\n3.png,a\n", "puts 0.png into a and into b: keep one row"),
        ("file,group\n0.png,\n", "line 2: file and group must both be said"),
        ("name,part\n0.png,1\n", "needs the columns file and group"),
        ("", "needs the columns file and group"),
        ('file,group\n"0.png,a\n', "is no CSV table"),
        ("file,group\n0.png,\xff\n".encode("latin-1"), "is no CSV table"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_a_sentence(tmp_path: Path, text: str | bytes, words: str) -> None:
    write(tmp_path, *(f"good/{part}.png" for part in range(4)))
    (tmp_path / "groups.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    dataset = read_dataset(tmp_path)
    with pytest.raises(DataError, match=words):
        find_groups(dataset, dataset.train)


def test_a_table_that_is_absent_is_refused(days: Path) -> None:
    dataset = read_dataset(days)
    with pytest.raises(DataError, match="No such file or directory; give a CSV file"):
        find_groups(dataset, dataset.train, str(days / "absent.csv"))


def test_groups_that_share_a_copy_are_one_unit() -> None:
    assert units_of([0, 1, 1, 2, 3], ["a", "a", "b", "c", "c"]) == [0, 0, 0, 1, 1]
    assert units_of([0, 1, 1, 2], None) == [0, 1, 1, 2]


def test_groups_that_cannot_be_parted_are_refused() -> None:
    paths = [Path(f"{number:02d}") for number in range(20)]
    with pytest.raises(DataError, match=r"2 groups cannot be parted: 10 are to be held out .* --groups none"):
        hold_out(paths, 0, groups=["a"] * 19 + ["b"])
    learned, held = hold_out(paths, 0, groups=[str(number) for number in range(20)])  # groups of one image are images
    assert len(held) == 10
    assert not set(held) & set(learned)


def test_folds_are_whole_units_of_about_one_size() -> None:
    units = [unit for unit, size in enumerate((7, 1, 1, 2, 3, 5, 1)) for _ in range(size)]
    for seed in range(5):
        fold_of = deal(units, 3, seed)
        assert all(len({fold for fold, unit in zip(fold_of, units, strict=True) if unit == one}) == 1 for one in units)
        assert max(Counter(fold_of).values()) - min(Counter(fold_of).values()) <= 2
    assert deal(units, 3, 0) == deal(units, 3, 0)
    assert len({tuple(deal(list(range(12)), 3, seed)) for seed in range(5)}) == 5


@pytest.mark.parametrize(
    ("folds", "words"), [(7, "more than the 6 groups"), (0, "give 1 to hold"), (-2, "give 1 to hold")]
)
def test_a_number_of_folds_that_cannot_be_is_refused(days: Path, folds: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_training_data(read_dataset(days), 1, groups="auto", folds=folds)


def test_a_fold_that_would_leave_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    write(tmp_path, *(f"good/{part:02d}.png" for part in range(14)))
    lines = [f"{part:02d}.png,{'large' if part < 13 else 'small'}" for part in range(14)]
    (tmp_path / "groups.csv").write_text("\n".join(["file,group", *lines]))
    with pytest.raises(DataError, match="a fold would leave 1 part to learn from"):
        load_training_data(read_dataset(tmp_path), 1, groups="auto", folds=2)
