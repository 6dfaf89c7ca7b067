"""Real receivers on loopback: mosquitto, where Debian's package is installed, and what listens to it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

MOSQUITTO = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


class Broker:
    """A mosquitto on `port` that keeps its sessions over a restart in `folder`; `lines` are more of its settings."""

    def __init__(self, folder: Path, port: int, lines: tuple[str, ...]) -> None:
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = folder / "mosquitto.conf"
        user = "root" if os.geteuid() == 0 else os.environ.get("USER", "nobody")
        always = (f"listener {self.port} 127.0.0.1", f"user {user}", "persistence true", f"persistence_location {folder}/",
                  "max_queued_messages 0")  # fmt: skip
        self._settings.write_text("\n".join([*always, *lines]) + "\n")
        self._log = folder / "mosquitto.log"

    def start(self) -> None:
        assert MOSQUITTO is not None
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._settings)], stdout=log, stderr=log)
        end_s = time.monotonic() + 10
        while time.monotonic() < end_s:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError(f"mosquitto does not listen: {self._log.read_text()}")

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """End it the usual way: it writes down what it owes."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def make_broker(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Callable[..., Broker]]:
    """A function that starts a mosquitto, which ends with the test."""
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed: apt-get install mosquitto")
    brokers: list[Broker] = []

    def make(*lines: str) -> Broker:
        folder = tmp_path / f"broker-{len(brokers)}"
        folder.mkdir()
        brokers.append(Broker(folder, free_port(), lines or ("allow_anonymous true",)))
        brokers[-1].start()
        return brokers[-1]

    yield make
    for broker in brokers:
        broker.stop()


class Listener:
    """Hears every topic of a broker, in order; its session outlives the broker's restarts."""

    def __init__(self, port: int) -> None:
        paho = pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is not installed")
        self.heard: list[tuple[str, bytes, bool]] = []  # topic, payload, retained
        self._is_ready = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, f"listener-{port}", clean_session=False)
        self._client.reconnect_delay_set(0.1, 0.1)
        self._client.on_connect = lambda client, *about: client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *about: self._is_ready.set()
        self._client.on_message = self._hear
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._is_ready.wait(10)

    def _hear(self, client: Any, userdata: Any, message: Any) -> None:
        self.heard.append((message.topic, message.payload, message.retain))

    def payloads(self, topic: str) -> list[bytes]:
        return [payload for each, payload, _ in self.heard if each == topic]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture
def listen() -> Iterator[Callable[[Broker], Listener]]:
    """A function that listens to a broker until the test ends."""
    listeners: list[Listener] = []

    def start(broker: Broker) -> Listener:
        listeners.append(Listener(broker.port))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture
def until() -> Callable[..., None]:
    """A function that waits until something is true, and fails after a limit."""

    def wait(is_true: Callable[[], bool], limit_s: float = 10.0) -> None:
        end_s = time.monotonic() + limit_s
        while not is_true():
            assert time.monotonic() < end_s, "it did not become true in time"
            time.sleep(0.01)

    return wait


@pytest.fixture(scope="session")
def certificates(made_once: Callable[..., Path]) -> Path:
    """A folder with an authority (ca.pem), and a certificate of 127.0.0.1 (server.pem, server.key), made by openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: apt-get install openssl")
    return made_once("certificates", fill_certificates)


def fill_certificates(folder: Path) -> None:
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem"
    ask = "openssl req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr"
    sign = "openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem"
    other = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other -keyout other.key -out other.pem"
    for command in (make, ask, sign, other):
        subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)


class Receiver:
    """A server that keeps what was posted; `answers` gives the status for each body; it can be stopped and started."""

    def __init__(self, port: int, certificates: Path | None = None) -> None:
        self.posted: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.retry_after: str | None = None
        self.asked = 0  # posts, refused ones too
        self.connections = 0
        self.open_connections: list[socket.socket] = []
        self.answers: Callable[[dict[str, Any]], int] = lambda body: 200
        self.port = port
        self._certificates = certificates
        self._server: ThreadingHTTPServer | None = None

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or each answer takes 40 ms

            def setup(self) -> None:
                super().setup()
                receiver.connections += 1
                receiver.open_connections.append(self.connection)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.asked += 1
                status = receiver.answers(body)
                if status == 200:
                    receiver.posted.append(body)
                    receiver.headers.append(dict(self.headers))
                    receiver.paths.append(self.path)
                self.send_response(status)
                self.send_header("Content-Length", "2")
                if receiver.retry_after is not None:
                    self.send_header("Retry-After", receiver.retry_after)
                self.send_header("Location", "http://127.0.0.1/elsewhere")
                self.end_headers()
                self.wfile.write(b"ok")

            def log_message(self, *about: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *about: object) -> None:
                pass  # a handshake that a test lets fail

        self._server = Server(("127.0.0.1", self.port), Handler)
        if self._certificates is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificates / "server.pem", self._certificates / "server.key")
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in self.open_connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def url(self) -> str:
        return f"{'http' if self._certificates is None else 'https'}://127.0.0.1:{self.port}/hook?key=hunter2"

    @property
    def place(self) -> str:
        """Where a webhook's settings find the address, which holds a secret."""
        os.environ["NNET_EDGE_TEST_HOOK"] = self.url
        return "env:NNET_EDGE_TEST_HOOK"


@pytest.fixture
def receiver(free_port: Callable[[], int]) -> Iterator[Receiver]:
    """A receiver that listens until the test ends."""
    made = Receiver(free_port())
    made.start()
    yield made
    made.stop()


@pytest.fixture
def make_receiver(free_port: Callable[[], int]) -> Callable[..., Receiver]:
    """A function that gives a receiver, with certificates if need be."""
    return lambda certificates=None: Receiver(free_port(), certificates)
