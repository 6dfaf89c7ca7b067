"""The page behind a real nginx and a real Caddy, as examples/ sets them up: people read, write and see pictures."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from nnet_edge.settings.web import WebSettings

EXAMPLES = Path(__file__).parents[3] / "examples"
TOKEN = "a-token-of-some-length"
PATHS = os.environ["PATH"] + ":/usr/sbin"
CADDY_OPTIONS = "{\n\tadmin off\n\tauto_https off\n\tservers {\n\t\tprotocols h1 h2\n\t}\n}\n"  # nothing but one port
Proxy = Callable[[Path, int, int, str], list[str]]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a self-signed certificate of line.example."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here: apt-get install openssl")
    folder = tmp_path_factory.mktemp("certificate")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=line.example", "-addext",
               "subjectAltName=DNS:line.example", "-keyout", "line.example.key", "-out", "line.example.crt"]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return folder


def example(name: str, certificate: Path, page: int, listening: int) -> str:
    """The example file with this test's ports and certificate."""
    changes = {
        "/etc/ssl": str(certificate),
        "127.0.0.1:8080": f"127.0.0.1:{page}",
        "listen 443": f"listen 127.0.0.1:{listening}",
        "line.example {": f"{CADDY_OPTIONS}https://line.example:{listening} {{\n\tbind 127.0.0.1",
    }
    text = (EXAMPLES / name).read_text()
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


def nginx(folder: Path, page: int, listening: int, host: str = "") -> list[str]:
    """The command that runs nginx; `host` is a line of its own about the Host header."""
    block = example("nginx.conf", folder, page, listening).replace("proxy_http_version", f"{host}\nproxy_http_version")
    scratch = "".join(
        f"{kind}_temp_path {folder}/temp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/errors; events {{}}\nhttp {{ access_log off; {scratch}\n{block}\n}}"
    )
    return ["nginx", "-c", str(folder / "nginx.conf")]


def caddy(folder: Path, page: int, listening: int, host: str = "") -> list[str]:
    """The command that runs Caddy."""
    (folder / "Caddyfile").write_text(example("Caddyfile", folder, page, listening))
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


@contextmanager
def running(command: list[str], folder: Path, port: int) -> Iterator[None]:
    """A proxy from its first answer to the end of the block; skips where it is not installed."""
    if shutil.which(command[0], path=PATHS) is None:
        pytest.skip(f"no {command[0]} here: apt-get install {command[0]}")
    environment = {"PATH": PATHS, "HOME": str(folder)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            for _ in range(200):
                try:
                    ask(folder, port, "/healthz")
                    break
                except OSError:
                    assert process.poll() is None, process.stdout and process.stdout.read()
                    time.sleep(0.05)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(10)


def context_of(folder: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(folder / "line.example.crt"))


def socket_to(port: int) -> socket.socket:
    """A connection to the proxy, whatever name its address has."""
    return socket.create_connection(("127.0.0.1", port), 5)


def ask(folder: Path, port: int, path: str, fields: Any = None, **headers: str) -> tuple[int, bytes, str]:
    """Status, body and cookie of what a browser at https://line.example would be given."""
    connection = http.client.HTTPSConnection("line.example", port)
    connection.sock = context_of(folder).wrap_socket(socket_to(port), server_hostname="line.example")
    given = {"host": f"line.example:{port}", "content-type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    try:
        connection.request(
            "GET" if fields is None else "POST", path, None if fields is None else json.dumps(fields), given
        )
        answer = connection.getresponse()
        return answer.status, answer.read(), (answer.headers.get("set-cookie") or "").partition(";")[0]
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("proxy", "host"),
    [
        (nginx, ""),  # the Host header that nginx sends by itself: the page's own address
        (nginx, "proxy_set_header Host $host;"),  # without the port
        (nginx, "proxy_set_header Host $http_host;"),
        (caddy, ""),
    ],
    ids=["nginx", "nginx-host", "nginx-http-host", "caddy"],
)
def test_people_log_in_steer_and_see_pictures_behind_a_proxy(
    proxy: Proxy, host: str, certificate: Path, serve: Any, free_port: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAGE_TOKEN", TOKEN)
    port = free_port()
    public = f"https://line.example:{port}"
    with (
        serve(WebSettings(port=0, token_from="env:PAGE_TOKEN", public_url=f"{public}/")) as site,
        running(proxy(certificate, site.server.port, port, host), certificate, port),
    ):
        status, _, cookie = ask(certificate, port, "/login", {"token": TOKEN}, origin=public)
        assert (status, bool(cookie)) == (200, True)
        status, body, _ = ask(certificate, port, "/api/session", cookie=cookie)
        csrf = json.loads(body)["csrf"]
        writing = {"cookie": cookie, "x_csrf_token": csrf}
        assert ask(certificate, port, "/api/streams/left/pause", {}, origin=public, **writing)[0] == 200
        assert site.line.streams()[0].is_paused
        assert ask(certificate, port, "/api/streams/left/resume", {}, origin=public, **writing)[0] == 200
        foreign = ask(certificate, port, "/api/streams/left/pause", {}, origin="https://evil.example", **writing)
        assert foreign[0] == 403
        more = {"origin": public, "additional_headers": {"cookie": cookie}, "sock": socket_to(port)}
        with connect(f"wss://line.example:{port}/live", ssl=context_of(certificate), **more) as pictures:
            pictures.send(json.dumps({"views": [{"stream": "left", "overlay": True}]}))
            assert isinstance(pictures.recv(timeout=10), bytes)
