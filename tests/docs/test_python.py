"""docs/python.md: every block of Python runs, one after another, as a reader would type it."""

from __future__ import annotations

import doctest
import re
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import nnet_edge.cli.python
import nnet_edge.runtime.inspector.inspector

ROOT = Path(__file__).parents[2]
PAGE, README = ROOT / "docs/python.md", ROOT / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MODULES = (nnet_edge.cli.python, nnet_edge.runtime.inspector.inspector)


def test_the_readme_stays_short_and_its_python_runs(desk: Path) -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    (block,) = BLOCK.findall(text)
    names: dict[str, object] = {}
    exec(compile(block, str(README), "exec"), names)
    assert isinstance(names["result"], nnet_edge.Result)


def test_every_block_of_the_page_runs(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(desk / "photos/bad/stain", desk / "pictures")
    names: dict[str, object] = {}
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    assert re.search(r"^Result\((GOOD|REJECT), score [\d.e-]+, threshold 0\.\d+, ratio \d\.\d+.*, part\.png\)$",
                     capsys.readouterr().out, re.MULTILINE)  # fmt: skip
    rejected = [result for result in names["inspector"].folder("pictures") if result.is_anomalous]  # type: ignore[attr-defined]
    assert sorted(path.stem for path in (desk / "rejects").iterdir()) == sorted(one.path.stem for one in rejected)
    assert rejected


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_examples_in_docstrings_say_what_comes(desk: Path, module: ModuleType) -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    examples = [found for found in finder.find(module) if found.examples]
    assert examples
    for found in examples:
        runner.run(found)
    assert runner.summarize(verbose=False).failed == 0
