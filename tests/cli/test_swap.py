"""`nnet-edge swap` is bounded, whatever answers."""

from __future__ import annotations

import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nnet_edge.cli.swap import PageClient
from nnet_edge.errors import StreamError


class Dripping(BaseHTTPRequestHandler):
    """A peer that gives a byte of its answer now and then, without end."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b" ")
                time.sleep(0.05)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Foreign(Dripping):
    """A web server of another kind that answers with JSON."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[]")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.do_GET()


@pytest.mark.parametrize(
    ("peer", "token", "says"),
    [
        (Dripping, None, r"does not answer \(not whole after 0.4 s\)"),
        (Foreign, None, "no page"),
        (Foreign, "t", "no page"),
    ],
)
def test_a_swap_does_not_wait_for_a_peer_that_drips(peer: type[Dripping], token: str | None, says: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), peer)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    start_s = time.monotonic()
    try:
        with pytest.raises(StreamError, match=says):
            PageClient(f"http://127.0.0.1:{server.server_port}", token, answer_limit_s=0.4).swap("bundle")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert time.monotonic() - start_s < 5
