"""The fault table holds what the tests counted, and says what was not run or is unaccounted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnet_edge.benchmarks.line.faults import TESTS, Row, require_complete, run_tests, table
from nnet_edge.errors import ConfigError, StreamError

ROOT = Path(__file__).parents[3]
ONCE = "runner throws once"


def test_a_fault_is_caused_for_real_and_its_row_is_what_the_test_counted() -> None:
    rows, said = run_tests([TESTS[ONCE]], ROOT)
    assert "2 passed" in said
    assert [(row.fault, row.captured, row.judged, row.dropped, row.lost) for row in rows] == [(ONCE, 40, 40, {}, 0)]
    require_complete(rows, [ONCE], said)
    with pytest.raises(StreamError, match=r"not run, or not passed: disk full; pytest said: .*2 passed"):
        require_complete(rows, [ONCE, "disk full"], said)


def test_each_fault_names_a_test_that_notes_it() -> None:
    for fault, test in TESTS.items():
        file, _, function = test.partition("::")
        text = (ROOT / "tests/runtime" / file).read_text(encoding="utf-8")
        assert f'"{fault}"' in text
        assert f"def {function}" in text


def test_what_is_unaccounted_for_is_an_error_and_the_table_has_it() -> None:
    row = Row("disk full", "verdicts", 10, 7, {"undelivered": 2}, "1 s")
    assert table([row]).splitlines()[-1] == "| disk full | verdicts | 10 | 7 | 2 undelivered | 1 | 1 s |"
    with pytest.raises(StreamError, match="unaccounted for: disk full: 1"):
        require_complete([row], ["disk full"], "")


def test_without_a_checkout_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run this in a checkout"):
        run_tests([TESTS[ONCE]], tmp_path)
