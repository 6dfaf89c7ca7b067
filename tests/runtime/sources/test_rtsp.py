"""RTSP cameras that refuse: wrong passwords, wrong paths, certificates that nobody trusts."""

from __future__ import annotations

import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.runtime.opencv_video import options_of
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.sources.sign_in import SignIn

RIGHT, WRONG = "me:right", "me:geheim"
ASK = 'WWW-Authenticate: Digest realm="cam", nonce="abc"'


class RtspRefuser:
    """Answers every request of every connection with the status that `answer` gives for its headers."""

    def __init__(self, answer: Callable[[str], str], context: ssl.SSLContext | None = None) -> None:
        self._server, self._answer, self._context = socket.create_server(("127.0.0.1", 0)), answer, context
        self.heads: list[str] = []
        self.address = f"rtsp{'s' if context else ''}://{{}}@127.0.0.1:{self._server.getsockname()[1]}/live"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            try:
                connection.settimeout(2)
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                with connection:
                    while head := connection.recv(4096).decode():
                        self.heads.append(head)
                        number = re.findall(r"CSeq: (\d+)", head)
                        connection.sendall(f"RTSP/1.0 {self._answer(head)}\r\nCSeq: {number[0]}\r\n\r\n".encode())
            except OSError:
                continue

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(2)


@pytest.fixture
def refuse() -> Iterator[Callable[..., RtspRefuser]]:
    cameras: list[RtspRefuser] = []

    def start(answer: Callable[[str], str] | str, context: ssl.SSLContext | None = None) -> RtspRefuser:
        given = (lambda head: answer) if isinstance(answer, str) else answer
        cameras.append(RtspRefuser(given, context))
        return cameras[-1]

    yield start
    for camera in cameras:
        camera.close()


def has_signed_in(head: str) -> bool:
    """Whether the request comes from the one who knows the right password."""
    method, target = head.split(" ")[:2]
    asked = SignIn(f"rtsp://{RIGHT}@h/")
    asked.take([ASK.partition(": ")[2]])
    response = re.findall(r'response="(\w+)"', str(asked.answer(method, "rtsp://h/", target)))
    return f'response="{response[0]}"' in head


def knows_only_me(head: str) -> str:
    return "404 Not Found" if has_signed_in(head) else f"401 Unauthorized\r\n{ASK}"


def message(address: str, **options: object) -> str:
    """What opening the camera ends with."""
    source = open_source(address, open_timeout_s=2.0, **options)
    with pytest.raises(SourceError) as told, source:
        pass
    return str(told.value)


@pytest.mark.parametrize(
    ("answer", "user", "says"),
    [
        (knows_only_me, WRONG, "it refuses the user or the password (401): correct them"),
        (knows_only_me, "", "it asks for a user and a password (401): give credentials ="),
        (knows_only_me, RIGHT, "it has nothing at this path (404): look up the path"),
        ("403 Forbidden", RIGHT, "it refuses this user (403): give one that may see live pictures"),
        ("453 Not Enough Bandwidth", RIGHT, "it has no bandwidth left (453): close other viewers"),
        ("503 Service Unavailable", RIGHT, "it is busy (503): close other viewers"),
        ("garbage", RIGHT, "is it switched on, reachable, and the address right?"),
    ],
)
def test_a_refusal_is_one_sentence_without_a_secret(
    refuse: Callable[..., RtspRefuser], answer: Callable[[str], str] | str, user: str, says: str
) -> None:
    camera = refuse(answer)
    address = camera.address.format(user) if user else camera.address.replace("{}@", "")
    told = message(address)
    assert f"cannot be opened: {says}" in told
    assert "geheim" not in told + "".join(camera.heads)
    assert "\n" not in told


def test_a_certificate_of_rtsps_is_looked_at_where_ca_file_is_given(
    refuse: Callable[..., RtspRefuser],
    certificate: Path,
    tmp_path: Path,
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    camera = refuse(knows_only_me, context)
    assert "nothing at this path (404)" in message(camera.address.format(RIGHT), ca_file=certificate)
    assert "refuses the user or the password (401)" in message(camera.address.format(WRONG), ca_file=certificate)
    seen = len(camera.heads)
    other = Path(ssl.get_default_verify_paths().openssl_cafile)
    if other.is_file():
        told = message(camera.address.format(RIGHT), ca_file=other)
        assert (
            "its certificate is not trusted (self-signed certificate): give it, or that of who issued it, in ca_f"
            in told
        )
        assert len(camera.heads) == seen  # nobody was told anything
    with pytest.raises(ConfigError, match=r"ca_file .*absent cannot be read: No such file"):
        open_source(camera.address.format(RIGHT), ca_file=tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"holds a \| or ; which FFmpeg takes for its own"):
        open_source(camera.address.format(RIGHT), ca_file=tmp_path / "a|b")


def test_ffmpeg_is_told_the_transport_and_whom_to_trust() -> None:
    assert options_of(None, None) is None
    assert options_of("tcp", None) == "rtsp_transport;tcp|fflags;discardcorrupt"
    assert options_of(None, Path("a.pem")) == "tls_verify;1|ca_file;a.pem"


@pytest.mark.parametrize("address", ["udp://127.0.0.1:9", "rtsp://127.0.0.1:9/live"])
def test_a_camera_by_udp_is_told_of_what_lost_packets_do(address: str, caplog: pytest.LogCaptureFixture) -> None:
    options = {"transport": "udp"} if address.startswith("rtsp") else {}
    open_source(address, **options, decode="checked")
    assert not caplog.records
    open_source(address, **options)
    (record,) = caplog.records
    assert record.message.startswith(f"{address}: UDP loses packets")
