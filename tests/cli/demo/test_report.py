"""The report page: every value escaped, pictures inside, files beside it, nothing from elsewhere."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.cli.demo.report import (
    Alarm,
    Block,
    Command,
    Figure,
    Files,
    Page,
    Picture,
    Section,
    Table,
    Text,
    Video,
    write_report,
)
from nnet_edge.errors import DataError

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


def page(*blocks: Block, **facts: object) -> Page:
    return Page("Line", "All is well.", [Figure("AUROC", "0.99")], [Section("Part", blocks)], **facts)  # type: ignore[arg-type]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint8))
    return path


def test_every_value_is_escaped(tmp_path: Path, picture: Path) -> None:
    nasty_file = tmp_path / "a&b #1.jsonl"
    nasty_file.write_text("{}")
    blocks: list[Block] = [
        Text(NASTY),
        Alarm(NASTY),
        Command(NASTY),
        Table([NASTY], [[NASTY]], caption=NASTY),
        Picture(picture, NASTY, NASTY),
        Files([(nasty_file, NASTY)]),
    ]
    figure = Figure(NASTY, NASTY, NASTY, tone=NASTY)
    whole = Page(NASTY, NASTY, [figure], [Section(NASTY, blocks)], [NASTY], NASTY)
    out = write_report(whole, tmp_path / "report.html")
    text = out.read_text(encoding="utf-8")
    assert "<script" not in text
    read = structure(text)
    assert read.text.count(NASTY) == 17
    assert ("a", {"href": "a%26b%20%231.jsonl"}) in read.tags
    image = next(attributes for tag, attributes in read.tags if tag == "img")
    assert image["alt"] == NASTY


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path, picture: Path) -> None:
    text = write_report(page(Picture(picture, "a picture")), tmp_path / "report.html").read_text(encoding="utf-8")
    for _, attributes in structure(text).tags:
        for name in ("src", "href", "poster"):
            assert not re.match(r"https?:|//", attributes.get(name) or "")
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_a_picture_is_inside_the_page(tmp_path: Path, picture: Path) -> None:
    text = write_report(page(Picture(picture, "a picture")), tmp_path / "report.html").read_text(encoding="utf-8")
    found = re.search(r'src="data:image/png;base64,([^"]+)"', text)
    assert found is not None
    assert base64.b64decode(found.group(1)) == picture.read_bytes()


def test_a_video_lies_beside_the_page(tmp_path: Path, picture: Path) -> None:
    (tmp_path / "stream").mkdir()
    video = tmp_path / "stream" / "line.webm"
    video.write_bytes(b"webm")
    out = write_report(page(Video(video, "caption", poster=picture)), tmp_path / "report.html")
    tags = structure(out.read_text(encoding="utf-8")).tags
    assert ("source", {"src": "stream/line.webm", "type": "video/webm"}) in tags
    assert (next(a for tag, a in tags if tag == "video")["poster"] or "").startswith("data:image/png")


def test_sizes_of_files_are_readable_and_folders_are_links(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    sizes = {"a": 0, "b": 999, "c": 1500, "d": 25_000, "e": 3_200_000}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(bytes(size))
    entries = [(tmp_path / name, "file") for name in sizes] + [(tmp_path / "bundle", "folder")]
    html = Files(entries).html(tmp_path)
    assert re.findall(r"file, ([^<]+)<", html) == ["0 B", "999 B", "1.5 kB", "25 kB", "3.2 MB"]
    assert 'href="bundle/"' in html
    assert "folder<" in html


@pytest.mark.parametrize(
    ("block", "words"),
    [
        (Picture(Path("absent.png"), "absent"), "needs the picture absent.png"),
        (Picture(Path("absent.svg"), "absent"), "cannot show absent.svg"),
        (Video(Path("absent.webm")), "links absent.webm, which does not exist"),
        (Files([(Path("absent.jsonl"), "lines")]), "links absent.jsonl"),
    ],
)
def test_what_is_not_there_is_named_and_no_page_is_written(tmp_path: Path, block: Block, words: str) -> None:
    with pytest.raises(DataError, match=words):
        write_report(page(block), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="cannot write the report"):
        write_report(page(Text("text")), tmp_path / "file" / "report.html")
