"""Pictures over real WebSockets on loopback: how many, to whom, and what a slow or odd page costs the others."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from nnet_edge.runtime.sources.synthetic import SyntheticSource
from nnet_edge.runtime.web import live
from nnet_edge.settings.camera import CameraSettings
from nnet_edge.settings.stream import LineStream
from nnet_edge.settings.web import WebSettings

TOKEN = "a-token-of-some-length"


def read_picture(message: bytes) -> tuple[dict[str, Any], np.ndarray]:
    """The header and the picture of one message."""
    length = int.from_bytes(message[:2], "big")
    picture = cv2.imdecode(np.frombuffer(message[2 + length :], np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return json.loads(message[2 : 2 + length]), picture


def test_pictures_come_at_a_capped_rate_and_only_while_somebody_looks(serve: Any, until: Any) -> None:
    settings = WebSettings(port=0, picture_hz=10.0, picture_share=1.0, picture_width=160)
    with serve(settings, rate_hz=100.0) as site:
        time.sleep(0.3)
        assert site.server.maker.made == 0
        with connect(site.live) as page:
            page.send(json.dumps({"views": [{"stream": "left", "overlay": True}]}))
            first, picture = read_picture(page.recv(5))
            assert picture.shape == (120, 160, 3)
            assert (first["stream"], first["overlay"], first["verdict"]["is_anomalous"]) == ("left", True, False)
            assert site.line.is_watched
            start_s, count, names = time.monotonic(), 0, {first["verdict"]["id"]}
            while time.monotonic() - start_s < 1.5:
                header, _ = read_picture(page.recv(5))
                assert header["verdict"]["id"] not in names  # no picture comes twice
                names.add(header["verdict"]["id"])
                count += 1
            assert 3 <= count <= 17  # 15 in 1.5 s, and one at each end
            page.send(json.dumps({"views": []}))
            until(lambda: not site.line.is_watched)
        until(lambda: site.server.broadcast.viewers == 0)
        made = site.server.maker.made
        time.sleep(0.3)
        assert site.server.maker.made == made


def noise() -> Iterator[np.ndarray]:
    """Pictures that JPEG cannot make small, uint8 BGR (480, 640, 3)."""
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, 256, (480, 640, 3), np.uint8)


def test_a_page_that_takes_nothing_is_left_alone_and_costs_nobody_else_a_picture(
    serve: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "SEND_LIMIT_S", 2.0)
    settings = WebSettings(port=0, picture_hz=30.0, picture_share=1.0, picture_width=640, picture_quality=95)
    view = json.dumps({"views": [{"stream": "noise", "overlay": False}]})
    with serve(settings) as site, socket.socket() as small:
        site.line.add_source(LineStream("noise", CameraSettings("synthetic")), SyntheticSource(noise(), 30.0))
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.connect(("127.0.0.1", site.server.port))
        with connect(site.live, sock=small, max_queue=1) as deaf, connect(site.live, max_size=None) as page:
            deaf.send(view)
            page.send(view)
            until(lambda: site.server.broadcast.viewers == 2)
            received = 0
            while site.server.broadcast.viewers == 2:  # until the deaf one is given up, which nothing but that ends
                received += len(page.recv(10))
            assert received > 1 << 20  # far more than the buffers of a small socket hold
            for _ in range(3):
                page.recv(10)
            assert site.server.broadcast.viewers == 1


def test_a_page_may_name_streams_that_are_not_there(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    settings = WebSettings(port=0, picture_hz=30.0, picture_share=1.0)
    views = [{"stream": f"invented-{number}", "overlay": True} for number in range(20)]
    with serve(settings) as site, connect(site.live) as page:
        page.send(json.dumps({"views": [*views, {"stream": "left", "overlay": True}]}))
        for _ in range(10):
            assert read_picture(page.recv(5))[0]["stream"] == "left"
    assert "invented" not in caplog.text


def test_pictures_end_with_their_session(serve: Any, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGE_TOKEN", TOKEN)
    with serve(WebSettings(port=0, token_from="env:PAGE_TOKEN")) as site:
        _, _, given = site.ask("/login", {"token": TOKEN})
        cookie = {"cookie": given["set-cookie"].partition(";")[0]}
        csrf = {"x-csrf-token": site.ask("/api/session", headers=cookie)[1]["csrf"]}
        with connect(site.live, additional_headers=cookie) as page:
            page.send(json.dumps({"views": [{"stream": "left", "overlay": False}]}))
            page.recv(5)
            assert site.ask("/logout", {}, cookie | csrf)[0] == 200
            until(lambda: site.server.broadcast.viewers == 0)
            with pytest.raises(ConnectionClosed, match="the session has ended"):
                list(page)  # what was sent before, then the end


def test_messages_that_cannot_be_meant_and_too_many_pages_are_closed(serve: Any, until: Any) -> None:
    with serve(WebSettings(port=0, viewers=1)) as site:
        for message in ("x", "{}", '{"views": 1}', '{"views": [1]}', json.dumps({"views": [{"stream": "a"}] * 65})):
            until(lambda: site.server.broadcast.viewers == 0)
            with connect(site.live) as page:
                page.send(message)
                with pytest.raises(ConnectionClosed) as caught:
                    page.recv(5)
                assert caught.value.rcvd is not None
                assert caught.value.rcvd.code == 1008
        until(lambda: site.server.broadcast.viewers == 0)
        with connect(site.live):
            until(lambda: site.server.broadcast.viewers == 1)
            with connect(site.live) as second, pytest.raises(ConnectionClosed, match="already"):
                second.recv(5)
        with pytest.raises(InvalidStatus) as refused, connect(site.live, origin="http://evil.example"):  # type: ignore[arg-type]
            pass
        assert refused.value.response.status_code == 403
