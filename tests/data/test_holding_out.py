"""A training that goes on: what the earlier one learned is never held out, what it held out stays held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnet_edge.data.holding_out import Before, hold_out, seen_before
from nnet_edge.data.images import file_hash, fingerprint
from nnet_edge.errors import DataError

OLD, NEW = (
    [Path(f"old/{number:03}.png") for number in range(40)],
    [Path(f"new/{number:03}.png") for number in range(20)],
)


@pytest.mark.parametrize("seed", range(5))
def test_new_parts_are_held_out_beside_those_of_before(seed: int) -> None:
    learned, held = hold_out(OLD, 3)
    more, kept = hold_out([*OLD, *NEW], seed, before=Before(frozenset(learned), frozenset(held)))
    assert set(learned) < set(more)
    assert set(held) < set(kept)
    assert len(kept) == len(held) + 3  # 15 % of the new ones
    assert sorted(more + kept) == sorted([*OLD, *NEW])
    _, kept = hold_out([*OLD, *NEW[:6]], seed, before=Before(frozenset(learned), frozenset(held)))
    assert kept == held  # few new ones are learned


def test_without_new_parts_the_choice_is_that_of_before() -> None:
    learned, held = hold_out(OLD, 3)
    assert hold_out(OLD, 9, before=Before(frozenset(learned), frozenset(held))) == (learned, held)


def test_too_few_that_were_not_learned_are_refused() -> None:
    with pytest.raises(DataError, match=r"all but 9 of the good parts were learned .* at least 10 .* or train anew"):
        hold_out([*OLD, *NEW[:9]], 0, before=Before(frozenset(OLD)))
    more, kept = hold_out([*OLD, *NEW[:12]], 0, before=Before(frozenset(OLD)))
    assert len(kept) == 10
    assert set(kept) < set(NEW)
    assert set(OLD) < set(more)


def test_a_part_of_which_an_image_was_learned_is_learned() -> None:
    parts = [*range(40), *range(10), *range(100, 110)]  # ten of the new images show parts of before
    learned, held = hold_out(OLD, 3)
    more, kept = hold_out([*OLD, *NEW], 5, parts=parts, before=Before(frozenset(learned), frozenset(held)))
    copies = {path for path, part in zip(NEW, parts[40:], strict=True) if part < 40 and OLD[part] in learned}
    assert copies <= set(more)
    assert not set(kept) & (set(learned) | copies)


def test_a_group_of_which_an_image_was_learned_is_learned() -> None:
    groups = (
        [f"day {number // 5}" for number in range(40)] + ["day 0"] * 5 + [f"new {number // 5}" for number in range(15)]
    )
    learned, held = hold_out(OLD, 3, groups=groups[:40])
    more, kept = hold_out([*OLD, *NEW], 5, groups=groups, before=Before(frozenset(learned), frozenset(held)))
    of = dict(zip([*OLD, *NEW], groups, strict=True))
    assert {of[path] for path in more}.isdisjoint(of[path] for path in kept)
    assert set(held) < set(kept) | set(NEW)
    assert not set(kept) & set(learned)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Files of different content; the last four are new."""
    paths = [tmp_path / f"{number}.png" for number in range(16)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]))
    return paths


def facts_of(learned: list[Path], held: list[Path], *left_out: str) -> dict[str, Any]:
    facts = {
        "fingerprint": fingerprint([*learned, *held]),
        "held_out_files": [file_hash(path) for path in held],
        "learned_files": [file_hash(path) for path in learned],
    }
    return {name: value for name, value in facts.items() if name not in left_out}


def test_files_are_known_by_what_they_hold(files: list[Path]) -> None:
    learned, held = files[:8], files[8:12]
    facts = facts_of(learned, held)
    renamed = files[0].rename(files[0].with_name("another.png"))
    paths = [renamed, *files[1:]]
    assert seen_before(facts, paths, paths) == Before(frozenset([renamed, *learned[1:]]), frozenset(held))


def test_of_a_bundle_that_does_not_name_them_all_but_the_added_may_have_been_learned(files: list[Path]) -> None:
    learned, held, new = files[:8], files[8:12], files[12:]
    facts = facts_of(learned, held, "learned_files")
    assert seen_before(facts, files, [*learned, *held]) == Before(frozenset(learned), frozenset(held))
    assert seen_before(facts, files, files) == Before(frozenset([*learned, *new]), frozenset(held))  # who knows?
    again = facts_of([*learned, *new], held, "learned_files")  # what is added now was learned before, too
    assert seen_before(again, files, [*learned, *held]) == Before(frozenset([*learned, *new]), frozenset(held))


def test_a_file_that_cannot_be_read_is_left_to_who_reads_it(files: list[Path]) -> None:
    facts = facts_of(files[:8], files[8:12])
    files[0].unlink()
    assert seen_before(facts, files, files) == Before(frozenset(files[1:8]), frozenset(files[8:12]))


def test_of_a_bundle_in_folds_all_was_learned(files: list[Path]) -> None:
    facts = facts_of(files[:12], [])
    assert seen_before(facts, files, files[:12]) == Before(frozenset(files[:12]), frozenset())
