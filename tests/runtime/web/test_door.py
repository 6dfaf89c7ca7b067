"""What a request by HTTP passes: odd values, addresses and methods get one sentence, and never break the page."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.runtime.web.app import SAFE_HEADERS
from nnet_edge.settings.web import WebSettings

TOKEN = "a-token-of-some-length"
ODD = [  # as JSON text: what a browser never sends
    "null", "true", "-1", "1e999", "1" + "0" * 400, "1" + "0" * 5000, "NaN", "[]", "{}", '""', '"\\ud800"', '"a\\u0000b"',
    '"\\u202e\\u001b[31m"', json.dumps("x" * 300), "[[[1, 2], [3, 4], [1e300, 5]]]", '[["\\ud800", 1]]', '{"\\ud800": 1}',
]  # fmt: skip
FIELDS = {
    "/login": ("token",),
    "/api/streams": ("name", "address", "policy", "width", "rate_hz", "pixel_format", "\\ud800"),
    "/api/streams/left/threshold": ("value",),
    "/api/streams/left/regions": ("regions_of_interest", "ignored"),
    "/api/streams/left/pause": ("anything",),
    "/api/swap": ("bundle", "stream"),
}
PATHS = [
    "/api/streams/%ED%A0%80/pause", "/api/streams/%FF/threshold", "/api/streams/a%00b/remove", "/api/streams/left/%FF",
    "/api/streams/%2e%2e/pause",
]  # fmt: skip
READS = [
    "/api/state?after=%FF", "/api/state?after=" + "9" * 400, "/api/state?after=-1", "/api/rejects?stream=%ED%A0%80",
    "/api/rejects/%FF/overlay", "/api/rejects/1/%00", "/static/%2e%2e%2fapp.py", "/static/%FF", "/nothing", "/login",
    "/api/state/", "/static/", "//", "/%FF",
]  # fmt: skip


def is_safe(headers: Any) -> bool:
    return all(headers.get(name) == value for name, value in SAFE_HEADERS.items())


def test_odd_values_get_one_sentence(serve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = WebSettings(port=0, bundle_folder=tmp_path, source_folder=tmp_path, addable=("file", "http", "rtsp"))
    with serve(settings) as site:
        headers = site.session()
        asked = [
            (path, f'{{"{field}": {value}}}')
            for (path, fields), value in itertools.product(FIELDS.items(), ODD)
            for field in fields
        ]
        for path, body in asked + [(path, "{}") for path in PATHS]:
            status, found, answered = site.ask(path, headers=headers, body=body.encode())
            assert status < 500, (path, body, found)
            assert is_safe(answered)
            assert status < 400 or "\n" not in found["error"]
        for path in READS:
            status, found, answered = site.ask(path, headers=headers)
            assert status < 500, (path, found)
            assert is_safe(answered), path
        assert site.ask("/api/state", headers=headers)[0] == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize(("path", "method"), [("/nothing", "GET"), ("/api/state", "DELETE"), ("/api/state/", "GET")])
def test_the_frameworks_own_answers_are_checked_too(serve: Any, path: str, method: str) -> None:
    with serve() as site:
        status, found, headers = site.ask(path, method=method)
        assert status in (404, 405)
        assert method in found["error"]
        assert is_safe(headers)
        status, found, headers = site.ask(path, method=method, headers={"host": "evil.example"})
        assert status == 421
        assert is_safe(headers)


def test_log_ins_with_odd_and_wrong_tokens_are_bounded_and_logged_briefly(
    serve: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGE_TOKEN", TOKEN)
    with serve(WebSettings(port=0, token_from="env:PAGE_TOKEN")) as site:
        found = [site.ask("/login", body=token)[0] for token in [b'{"token": "\\ud800"}', *[b'{"token": "x"}'] * 12]]
        assert found == [400] + [401] * 10 + [429] * 2
        assert site.ask("/login", {"token": TOKEN})[0] == 429
    assert len(caplog.text) < 2000


def test_a_handler_that_breaks_costs_one_line_of_the_log(
    serve: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as site:
        monkeypatch.setattr(site.server.gallery, "scores", lambda after: 1 / 0)
        status, found, headers = site.ask("/api/state")
        assert status == 500
        assert found["error"].startswith("unexpected: ZeroDivisionError")
        assert is_safe(headers)
        assert site.ask("/healthz")[0] == 200
    assert "Traceback" not in caplog.text
    assert caplog.text.count("the page broke at '/api/state'") == 1
