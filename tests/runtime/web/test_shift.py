"""The shift on the page: sums, parts, pictures, labels, reports; who may do what."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.runtime.history.queries import History, Window
from nnet_edge.runtime.sinks.history import HistorySettings
from nnet_edge.runtime.sinks.queued import serve as serve_sink
from nnet_edge.runtime.web import shift as module
from nnet_edge.runtime.web.shift import Shift
from nnet_edge.settings.web import WebSettings

ENGINEERS, OPERATORS = "a-token-of-engineers", "a-token-of-operators"
LAMP = "document.querySelector('.lamp-word')"
LINES = f"(() => {{ const r = new Range(); r.selectNodeContents({LAMP}); return r.getClientRects().length; }})()"


@pytest.fixture
def history(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


def sink_of(history: Path) -> Any:
    return serve_sink(HistorySettings(path=history, good_every_s=0.0))


def wait_for_parts(site: Any, until: Any, only: str = "all", count: int = 3) -> list[dict[str, Any]]:
    until(lambda: len(site.ask(f"/api/history/parts?only={only}")[1]) >= count)
    found: list[dict[str, Any]] = site.ask(f"/api/history/parts?only={only}")[1]
    return found


def test_sums_parts_and_pictures_of_the_line(serve: Any, until: Any, history: Path) -> None:
    with serve(sinks=[sink_of(history)]) as site:
        site.line.set_threshold("left", 0.4)  # every frame scores 0.6
        parts = wait_for_parts(site, until, "rejects")
        status, sums, _ = site.ask("/api/history?since=1h")
        assert status == 200
        assert sums["rejects"] >= 3
        assert sums["cameras"][0]["camera"] == "left"
        row = parts[-1]["row"]
        for kind in ("thumbnail", "original", "overlay", "map"):
            status, data, headers = site.ask(f"/api/history/parts/{row}/{kind}")
            assert status == 200
            assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED) is not None
        _, _, headers = site.ask(f"/api/history/parts/{row}/original?download=1")
        assert headers["content-disposition"] == f'attachment; filename="part-{row}-original.png"'
        until(lambda: site.ask("/api/state")[1]["shift"]["rejects"] >= 3)
        status, page, headers = site.ask("/api/history/report?since=1h&language=zh")
        assert status == 200
        assert headers["content-disposition"].startswith('attachment; filename="shift-')
        assert "班次报告" in page.decode()
        for wrong in ("?since=soon", "?until=x", "/parts?only=x", "/parts/99999", "/report?language=xx"):
            assert site.ask(f"/api/history{wrong}")[0] == 400
        for absent in (f"/api/history/parts/{row}/x", "/api/history/parts/99999/map", "/api/history/parts/x/map"):
            assert site.ask(absent)[0] == 404


def test_a_label_is_kept_with_who_and_two_are_both_kept(serve: Any, until: Any, history: Path) -> None:
    with serve(sinks=[sink_of(history)]) as site:
        accepted = wait_for_parts(site, until, "accepted")[-1]
        site.line.set_threshold("left", 0.4)
        until(lambda: site.ask("/api/rejects")[1])
        key, headers = site.ask("/api/rejects")[1][-1]["key"], site.session()
        until(lambda: site.ask(f"/api/rejects/{key}/label", {}, headers)[0] == 200)
        assert site.ask(f"/api/rejects/{key}/label", {}, headers)[1]["labels"] == []
        ann = {"who": "Ann", "label": "false_alarm"}
        assert site.ask(f"/api/rejects/{key}/label", ann, headers)[0] == 200
        bob = {"who": "Bob", "label": "true_defect", "defect": "scratch"}
        status, part, _ = site.ask(f"/api/rejects/{key}/label", bob, headers)
        assert status == 200
        assert [(one["who"], one["label"]) for one in part["labels"]] == [
            ("Ann", "false_alarm"),
            ("Bob", "true_defect"),
        ]
        assert (part["label"], part["defect"]) == ("true_defect", "scratch")
        missed = {"who": "Ann", "label": "missed", "defect": "dent"}
        assert site.ask(f"/api/history/parts/{accepted['row']}/label", missed, headers)[0] == 200
        assert site.ask("/api/history")[1]["labels"]["held"] == {"true_defect": 1, "missed": 1}
        wrong = [
            {"label": "missed"},
            {"who": "Ann"},
            {"who": "Ann", "label": "true_defect"},
            {"who": [], "label": "good"},
        ]
        for given in wrong:
            assert site.ask(f"/api/history/parts/{accepted['row']}/label", given, headers)[0] == 400
        assert site.ask(f"/api/history/parts/{accepted['row']}/label", missed)[0] == 403  # without a session
    with History(history) as found:
        assert len(list(found.verdicts(Window(0), "labelled"))) == 2


def test_a_label_that_the_disk_does_not_take_is_one_sentence(serve: Any, until: Any, history: Path) -> None:
    with serve(sinks=[sink_of(history)]) as site:
        part = wait_for_parts(site, until, "accepted")[-1]
        with sqlite3.connect(history, isolation_level=None) as other:
            other.execute(
                "CREATE TRIGGER full BEFORE INSERT ON label BEGIN SELECT raise(FAIL, 'database or disk is full'); END"
            )
        path = f"/api/history/parts/{part['row']}/label"
        status, answer, _ = site.ask(path, {"who": "Ann", "label": "missed"}, site.session())
        assert status == 400
        assert "the label was not kept" in answer["error"]
        assert "disk is full" in answer["error"]


def test_without_a_history_the_page_says_so(serve: Any) -> None:
    with serve() as site:
        assert site.ask("/api/session")[1]["keeps_history"] is False
        assert site.ask("/api/state")[1]["shift"] is None
        status, answer, _ = site.ask("/api/history")
        assert status == 400
        assert "--history FILE" in answer["error"]


def test_operators_see_and_label_and_only_engineers_change(
    serve: Any, until: Any, history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEERS", ENGINEERS)
    monkeypatch.setenv("OPERATORS", OPERATORS)
    settings = WebSettings(port=0, token_from="env:ENGINEERS", operator_token_from="env:OPERATORS")

    def bearer(token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}

    def log_in(site: Any, token: str) -> tuple[dict[str, str], str]:
        _, _, headers = site.ask("/login", {"token": token})
        cookie = (headers.get("set-cookie") or "").partition(";")[0]
        session = site.ask("/api/session", headers={"cookie": cookie})[1]
        return {"cookie": cookie, "x-csrf-token": session["csrf"]}, session["role"]

    with serve(settings, sinks=[sink_of(history)]) as site:
        assert site.ask("/api/history")[0] == 401
        operator, role = log_in(site, OPERATORS)
        engineer, other_role = log_in(site, ENGINEERS)
        assert (role, other_role) == ("operator", "engineer")
        until(lambda: site.ask("/api/history/parts?only=accepted", headers=operator)[1])
        row = site.ask("/api/history/parts?only=accepted", headers=operator)[1][0]["row"]
        for headers, is_allowed in (
            (operator, False),
            (bearer(OPERATORS), False),
            (engineer, True),
            (bearer(ENGINEERS), True),
        ):
            for path, fields in (
                ("/api/streams/left/threshold", {"value": 0.7}),
                ("/api/streams/left/pause", {}),
                ("/api/streams/left/resume", {}),
                ("/api/streams/left/adapt", {"pictures": 5}),
                ("/api/swap", {"bundle": "x"}),
                ("/api/streams", {"name": "x"}),
                ("/api/changes/forget", {}),
            ):
                status, answer, _ = site.ask(path, fields, headers)
                assert (status != 403) == is_allowed, path
                assert is_allowed or "engineers' token" in answer["error"]
            label = {"who": "Ann", "label": "good"}
            assert site.ask(f"/api/history/parts/{row}/label", label, headers)[0] == 200
        forged = {
            "cookie": operator["cookie"].replace("operator.", "engineer."),
            "x-csrf-token": operator["x-csrf-token"],
        }
        assert site.ask("/api/streams/left/pause", {}, forged)[0] == 401
        assert site.ask("/logout", {}, operator)[0] == 200


def test_roles_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="operator_token_from without token_from"):
        WebSettings(operator_token_from="env:OPERATORS")
    with pytest.raises(ConfigError, match="operator_token_from is"):
        WebSettings(token_from="env:ENGINEERS", operator_token_from=OPERATORS)
    monkeypatch.setenv("ENGINEERS", ENGINEERS)
    with pytest.raises(ConfigError, match="the same token"):
        WebSettings(token_from="env:ENGINEERS", operator_token_from="env:ENGINEERS").operator_token()


@pytest.mark.slow
def test_an_operator_labels_in_a_browser_and_the_board_speaks_three_languages(
    browser: Any, serve: Any, until: Any, history: Path
) -> None:
    with serve(sinks=[sink_of(history)]) as site:
        browser.open(site.server.address)
        browser.wait(
            "document.querySelector('.lamp-word') && document.querySelector('.lamp-word').textContent === 'GOOD'"
        )
        assert browser.value("document.getElementById('sound').getAttribute('aria-pressed')") == "false"
        site.line.set_threshold("left", 0.4)
        browser.wait(f"{LAMP}.textContent === 'REJECT'")
        browser.wait("document.querySelector('#last-reject .true_defect') !== null")
        site.line.pause("left")
        browser.click("#last-reject .true_defect")
        browser.wait("document.getElementById('who-dialog').open")
        browser.write_text("Ann")
        browser.click("#who-dialog [type=submit]")
        browser.wait("document.getElementById('defect-dialog').open")
        browser.write_text("scratch")
        browser.click("#defect-dialog [type=submit]")
        browser.wait("document.querySelector('#last-reject .label-list').textContent.includes('True defect (scratch)')")
        browser.value("localStorage.setItem('who', 'Bob')")
        browser.click("#last-reject .false_alarm")
        browser.wait("document.querySelector('#last-reject .label-list').textContent.includes('2 labels on this part')")
        for language, word in (("de", "ANGEHALTEN"), ("zh", "已暂停"), ("en", "PAUSED")):
            browser.value(f"localStorage.setItem('language', '{language}')")
            browser.open(site.server.address)
            browser.wait(
                f"document.querySelector('.lamp-word') && document.querySelector('.lamp-word').textContent === '{word}'"
            )
        browser.open(f"{site.server.address}history")
        browser.wait("document.querySelectorAll('.part').length > 0")
        browser.click("[data-only=labelled]")
        browser.wait("document.querySelectorAll('.part').length === 1")
        assert "Bob" in browser.value("document.querySelector('.part .label-list').textContent")
        assert browser.complaints == []
    with History(history) as found:
        (part,) = found.verdicts(Window(0), "labelled")
    assert [(one.who, one.label, one.defect) for one in part.labels] == [
        ("Ann", "true_defect", "scratch"),
        ("Bob", "false_alarm", None),
    ]


def test_wrong_questions_are_answered_by_one_sentence(serve: Any, until: Any, history: Path) -> None:
    with serve(sinks=[sink_of(history)]) as site:
        wait_for_parts(site, until)
        beyond, headers = "99999999999999999999", site.session()
        for path, status, words in (
            (f"parts/{beyond}", 400, "has no verdict"), (f"parts/{beyond}/original", 404, "no such picture"),
            (f"parts/{beyond}/thumbnail", 404, "no such picture"), ("parts?stream=nobody", 400, "'nobody': choose left"),
            ("report?stream=nobody", 400, "'nobody': choose left"), ("parts?since=1h&until=2h", 400, "behind since"),
            ("report?language=fr", 400, "choose en, de or zh"), ("parts?only=bad", 400, "choose rejects"),
        ):  # fmt: skip
            found, answer, _ = site.ask(f"/api/history/{path}")
            assert (found, words in answer["error"]) == (status, True), (path, answer)
        said = {"who": "Anna", "label": "good"}
        found, answer, _ = site.ask(f"/api/history/parts/{beyond}/label", said, headers)
        assert (found, "has no verdict" in answer["error"]) == (400, True)
        assert site.ask("/api/history?stream=left")[0] == 200


def test_sums_are_made_once_for_all_pages_and_again_when_they_are_old(
    serve: Any, until: Any, history: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(sinks=[sink_of(history)]) as site:
        wait_for_parts(site, until)
        shift, window = Shift(site.line, site.server.gallery), Window(0)
        first = shift.sums(window)
        assert shift.sums(Window(59_000)) is first  # of the same minute
        monkeypatch.setattr(module, "KEPT_S", 0.0)
        second = shift.sums(window)
        assert second is not first
        monkeypatch.setattr(module, "KEPT_S", 60.0)
        assert shift.sums(window) is second


def test_a_removed_history_is_told_and_the_page_goes_on(serve: Any, until: Any, history: Path) -> None:
    with serve(sinks=[sink_of(history)]) as site:
        wait_for_parts(site, until)
        site.line.pause("left")
        for name in os.listdir(history.parent):
            if name.startswith(history.name):
                (history.parent / name).unlink()
        status, answer, _ = site.ask("/api/history/parts")
        assert status in (200, 400)
        assert status == 200 or "cannot read the history" in answer["error"]
        assert site.ask("/api/state")[0] == 200


@pytest.mark.slow
def test_no_page_is_wider_than_its_screen_and_the_sound_is_off(
    browser: Any, serve: Any, until: Any, history: Path, tmp_path: Path
) -> None:
    with serve(WebSettings(port=0, teach_folder=tmp_path), sinks=[sink_of(history)]) as site:
        wait_for_parts(site, until)
        for width, height in ((1280, 900), (1024, 768), (390, 844)):
            browser.call(
                "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
            )
            for language in ("en", "de", "zh"):
                for page in ("", "history", "teach"):
                    browser.open(f"{site.server.address}{page}")
                    browser.value(f"localStorage.setItem('language', '{language}')")
                    browser.open(f"{site.server.address}{page}")
                    browser.wait(
                        f"document.documentElement.lang === '{language}' && document.body.dataset.role !== undefined"
                    )
                    if not page:  # a word that breaks, a bundle with a long name
                        browser.wait(f"{LAMP} && {LAMP}.textContent.length > 1")
                        browser.value(
                            "by('bundles').replaceChildren(new Option('a-bundle-of-the-new-light-2026-11-29'))"
                        )
                        for lamps in ("add", "remove"):
                            browser.value(f"by('lamps').classList.{lamps}('single')")
                            assert browser.value(LINES) == 1, (width, language)
                    assert browser.value("document.documentElement.scrollWidth") <= width, (page, width, language)
        browser.open(site.server.address)
        browser.wait("document.body.dataset.role !== undefined")
        browser.wait(f"{LAMP} && {LAMP}.textContent.length > 1")  # until then the head of the page moves
        pressed = "document.getElementById('sound').getAttribute('aria-pressed')"
        assert browser.value(pressed) == "false"
        browser.click("#sound")
        browser.wait(f"{pressed} === 'true' && board.sound.state === 'running'")
        browser.click("#sound")
        browser.wait(f"{pressed} === 'false'")
        assert browser.complaints == []
