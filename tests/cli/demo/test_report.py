"""The report page: every value escaped, pictures inside, files beside it, nothing from elsewhere."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.cli.demo.page import DemoRun, html, write_report
from nnet_edge.errors import DataError
from nnet_edge.evaluation.page import size

NASTY = "<script>alert('\"x\" & y')</script>"
VOID = {"meta", "img", "source"}


class Structure(HTMLParser):
    """Reads a page strictly enough to notice a tag that is not closed, and keeps what it met."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def structure(text: str) -> Structure:
    parser = Structure()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint8))
    return path


def test_every_value_is_escaped(facts: DemoRun, tmp_path: Path) -> None:
    nasty_file = tmp_path / "a&b #1.jsonl"
    nasty_file.write_text("{}")
    manifest = facts.bundle.manifest | {
        "nnet_edge": NASTY, "backbone": NASTY, "teacher": {"origin": NASTY, "is_random": False},
        "trained": {"epochs": NASTY, "precision": NASTY},
        "made_on": {"system": NASTY, "python": NASTY, "libraries": {NASTY: NASTY}},
    }  # fmt: skip
    nasty = replace(
        facts, command=NASTY, processor=NASTY, learned=NASTY, files=[(nasty_file, NASTY)],
        bundle=replace(facts.bundle, manifest=manifest), evaluation=replace(facts.evaluation, runner=NASTY, precision=NASTY),
        seconds={NASTY: 1.0, "train": 2.0},
    )  # fmt: skip
    text = write_report(nasty, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    read = structure(text)
    # command 1, processor 3, learned 2, file 1, network 1, teacher 1, trained 2, system 1, Python 1, library 2, version 2,
    # runner and precision 6, step 1
    assert read.text.count(NASTY) == 24
    assert ("a", {"href": "a%26b%20%231.jsonl"}) in read.tags


def test_the_page_needs_nothing_from_elsewhere(facts: DemoRun, tmp_path: Path) -> None:
    text = write_report(facts, tmp_path / "report.html").read_text(encoding="utf-8")
    for _, attributes in structure(text).tags:
        for name in ("src", "href", "poster"):
            assert not re.match(r"https?:|//", attributes.get(name) or "")
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_the_page_says_how_many_parts_are_distinct(facts: DemoRun) -> None:
    assert "48 learned, 24 held out, 71 distinct in all" in structure(html(facts, facts.out)).text


def test_a_picture_is_inside_the_page(facts: DemoRun, picture: Path) -> None:
    text = html(replace(facts, losses=picture), facts.out)
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(found[-1]) == picture.read_bytes()
    assert len(found) == 3  # histogram, sheet and this one
    images = [attributes for tag, attributes in structure(text).tags if tag == "img"]
    assert images[-1]["alt"] == "losses over the epochs"


def test_a_video_lies_beside_the_page(facts: DemoRun) -> None:
    tags = structure(html(facts, facts.out.parent)).tags
    assert ("source", {"src": f"{facts.out.name}/line.mp4", "type": "video/mp4"}) in tags
    assert (next(a for tag, a in tags if tag == "video")["poster"] or "").startswith("data:image/jpeg")


def test_sizes_of_files_are_readable_and_folders_are_links(facts: DemoRun, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    sizes = {"a": 0, "b": 999, "c": 1500, "d": 25_000, "e": 3_200_000}
    for name, count in sizes.items():
        (tmp_path / name).write_bytes(bytes(count))
    entries = [(tmp_path / name, "file") for name in sizes] + [(tmp_path / "bundle", "folder")]
    text = html(replace(facts, files=entries), tmp_path)
    assert re.findall(r"file, ([^<]+)<", text) == ["0 B", "999 B", "1.5 kB", "25 kB", "3.2 MB"]
    assert 'href="bundle/"' in text
    assert "folder<" in text
    assert size(tmp_path / "bundle") == ""


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"losses": Path("absent.png")}, "needs the picture absent.png"),
        ({"losses": Path("absent.svg")}, "cannot show absent.svg"),
        ({"video": Path("absent.mp4")}, "links absent.mp4, which does not exist"),
        ({"files": [(Path("absent.jsonl"), "lines")]}, "links absent.jsonl"),
    ],
)
def test_what_is_not_there_is_named_and_no_page_is_written(
    facts: DemoRun, tmp_path: Path, changed: dict[str, object], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        write_report(replace(facts, **changed), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_named(facts: DemoRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(facts, tmp_path / "file" / "report.html")
