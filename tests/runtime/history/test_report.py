"""The report of a shift stands by itself, in every language, and holds no text of others as markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.runtime.history.labels import add_label
from nnet_edge.runtime.history.queries import History, Window
from nnet_edge.runtime.history.report import shift_report
from nnet_edge.runtime.texts import LANGUAGES, text

SHAPES = {"meta", "img", "line", "rect", "circle", "polyline", "br"}


class Balanced(HTMLParser):
    """Sees that every element is closed in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in SHAPES:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in SHAPES:
            assert self.open.pop() == tag


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_report_has_figures_charts_and_pictures(
    make_history: Callable[..., Path], make_fields: Callable[..., dict[str, Any]], language: str
) -> None:
    picture = cv2.imencode(".png", np.full((48, 64, 3), 90, np.uint8))[1].tobytes()
    name = "left<script>alert(1)</script>"
    path = make_history(
        *(make_fields(n, 1.8e9 + 60 * n, n % 5 == 0, stream=name) for n in range(20)), pictures={"original": picture}
    )
    add_label(path, 1, "<b>Ann</b>", "true_defect", "a & b")
    with History(path) as history:
        page = shift_report(history, Window(round(1.8e12), round(1.8e12) + 3_600_000), language)
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    assert text(language, "report_title") in page
    assert f"{text(language, 'yield')}</dt><dd>80.00 %" in page
    assert page.count("data:image/jpeg;base64,") == 4
    assert page.count("<polyline") == 1
    assert "<script" not in page
    assert "<b>Ann" not in page
    assert "&lt;b&gt;Ann&lt;/b&gt;" in page
    assert not re.search(r"https?://(?!www\.w3\.org)", page)


def test_a_report_of_nothing_is_whole(make_history: Callable[..., Path]) -> None:
    with History(make_history()) as history:
        assert "–" in shift_report(history, Window(0, 1000), "en")
