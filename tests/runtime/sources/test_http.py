"""HTTP cameras of many dialects, their sign-ins, redirects, refusals and certificates, served on this machine."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.jpeg import whole_picture
from nnet_edge.runtime.sources import http
from nnet_edge.runtime.sources.open import open_source
from nnet_edge.runtime.sources.sign_in import SignIn
from tests.runtime.sources.test_jpegs import jpeg, with_thumbnail
from tests.test_jpeg import with_restarts, with_strays

PICTURES = [jpeg(50), jpeg(90), jpeg(130)]
SHOWN = [cv2.imdecode(np.frombuffer(one, np.uint8), 1) for one in PICTURES]
USER, PASSWORD = "me", 'p@s:s/w"r%d ü'
Answer = Callable[[str, dict[str, str]], bytes]  # path and headers of a request -> the whole answer


class HttpCamera:
    """Gives each request the answer that `answer` makes of it, then hangs up."""

    def __init__(self, answer: Answer, host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> None:
        self._server, self._answer, self._context = socket.create_server((host, 0)), answer, context
        self.port = self._server.getsockname()[1]
        self.address = f"http{'s' if context else ''}://{host}:{self.port}"
        self.requests: list[tuple[str, dict[str, str]]] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            try:
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                with connection:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += connection.recv(4096) or b"\r\n\r\n"
                        if head.startswith(b"\x16"):  # a TLS handshake
                            connection.sendall(refused(400))
                            raise OSError
                    first, *lines = head.decode("latin-1").split("\r\n\r\n")[0].split("\r\n")
                    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                    self.requests.append((first.split(" ")[1], headers))
                    connection.sendall(self._answer(*self.requests[-1]))
            except OSError:
                continue

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(2)


@pytest.fixture
def serve() -> Iterator[Callable[..., HttpCamera]]:
    """Starts cameras, which end with the test."""
    cameras: list[HttpCamera] = []

    def start(answer: Answer | bytes, **options: object) -> HttpCamera:
        given = (lambda path, headers: answer) if isinstance(answer, bytes) else answer
        cameras.append(HttpCamera(given, **options))  # type: ignore[arg-type]
        return cameras[-1]

    yield start
    for camera in cameras:
        camera.close()


def ok(kind: str, body: bytes, *headers: str) -> bytes:
    """An answer with this content type, as long as the connection."""
    return "\r\n".join(["HTTP/1.1 200 OK", f"Content-Type: {kind}", *headers, "", ""]).encode() + body


def refused(status: int, *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} No", "Content-Length: 0", *headers, "", ""]).encode()


def parts(pictures: list[bytes], length: Callable[[int], str] = str, mark: str = "--cam", eol: str = "\r\n",
          first: bool = True, between: str = "") -> bytes:  # fmt: skip
    """The body of a multipart answer."""
    data = b""
    for number, picture in enumerate(pictures):
        wanted = length(len(picture))
        lines = [mark] * (first or number > 0) + ["Content-Type: image/jpeg"]
        lines += ([f"Content-Length: {wanted}"] if wanted else []) + ["", ""]
        data += eol.join(lines).encode() + picture + (eol + between).encode()
    return data


def chunked(data: bytes) -> bytes:
    return b"".join(b"%x\r\n" % len(one) + one + b"\r\n" for one in (data[:700], data[700:])) + b"0\r\n\r\n"


MIXED = "multipart/x-mixed-replace; boundary=cam"
TEXT_PART = "--cam\r\nContent-Type: text/plain\r\nContent-Length: 7\r\n\r\nmotion\n\r\n"
DIALECTS = {
    "plain": ok(MIXED, parts(PICTURES)),
    "multipart/mixed": ok("multipart/mixed; boundary=cam", parts(PICTURES)),
    "upper case": ok("Multipart/X-Mixed-Replace;boundary=cam", parts(PICTURES)),
    "quoted boundary": ok('multipart/x-mixed-replace; boundary="cam"', parts(PICTURES)),
    "boundary with --": ok("multipart/x-mixed-replace; boundary=--cam", parts(PICTURES)),
    "boundary with --, as RFC 2046": ok("multipart/x-mixed-replace; boundary=--cam", parts(PICTURES, mark="----cam")),
    "mark without --": ok(MIXED, parts(PICTURES, mark="cam")),
    "another mark": ok(MIXED, parts(PICTURES, mark="--other")),
    "no boundary": ok("multipart/x-mixed-replace", parts(PICTURES)),
    "no first boundary": ok(MIXED, parts(PICTURES, first=False)),
    "preamble": ok(MIXED, b"here come pictures\r\n\r\n" + parts(PICTURES)),
    "line feeds": ok(MIXED, parts(PICTURES, eol="\n")),
    "no length": ok(MIXED, parts(PICTURES, lambda length: "")),
    "glued": ok(MIXED, b"".join(parts([one])[:-2] for one in PICTURES)),
    "length too short": ok(MIXED, parts(PICTURES, lambda length: str(length - 2))),
    "length too long": ok(MIXED, parts(PICTURES, lambda length: str(length + 100))),
    "length of zero": ok(MIXED, parts(PICTURES, lambda length: "0")),
    "length with a unit": ok(MIXED, parts(PICTURES, lambda length: f"{length} bytes")),
    "length without sense": ok(MIXED, parts(PICTURES, lambda length: "-99999999999999999999")),
    "text parts": ok(MIXED, parts(PICTURES, between=TEXT_PART)),
    "padding": ok(MIXED, parts([one + bytes(5000) for one in PICTURES])),
    "previews": ok(MIXED, parts([one + jpeg(7, 16) for one in PICTURES])),
    "thumbnails": ok(MIXED, parts([with_thumbnail(one) for one in PICTURES])),
    "chunked": ok(MIXED, chunked(parts(PICTURES)), "Transfer-Encoding: chunked"),
    "bare JPEGs": ok("video/x-motion-jpeg", b"".join(PICTURES)),
    "parts without their type": ok("application/octet-stream", parts(PICTURES)),
    "no content type": b"HTTP/1.0 200 OK\r\n\r\n" + b"".join(PICTURES),
}


def frames_of(address: str, most: int = 99, **options: object) -> tuple[list[np.ndarray], int, str]:
    """The images that come before the stream ends, how many were skipped, and the words of its end."""
    images: list[np.ndarray] = []
    source = open_source(address, **options)
    with source:
        try:
            for frame in source:
                images.append(frame.image)
                assert frame.index == len(images) - 1
                if len(images) == most:
                    return images, source.skipped, "enough"
        except SourceError as ended:
            return images, source.skipped, str(ended)
    raise AssertionError("a live stream ends with an error")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dialect_gives_every_picture_bit_for_bit(serve: Callable[..., HttpCamera], dialect: str) -> None:
    images, skipped, ended = frames_of(serve(DIALECTS[dialect]).address + "/live")
    assert (len(images), skipped) == (3, 0)
    assert all(np.array_equal(image, shown) for image, shown in zip(images, SHOWN, strict=True))
    assert "stopped after 3 frames: is it switched on" in ended


HALVES = [PICTURES[0], PICTURES[1][:900], PICTURES[2], PICTURES[0], PICTURES[1][:1200]]


@pytest.mark.parametrize("kind", [MIXED, "multipart/mixed; boundary=cam", "multipart/x-mixed-replace"])
@pytest.mark.parametrize("length", [str, lambda length: ""])
def test_half_pictures_are_counted_and_never_shown(
    serve: Callable[..., HttpCamera], kind: str, length: Callable[[int], str]
) -> None:
    images, skipped, _ = frames_of(serve(ok(kind, parts(HALVES, length))).address)
    assert (len(images), skipped) == (3, 2)
    assert all(np.array_equal(image, SHOWN[number]) for image, number in zip(images, (0, 2, 0), strict=True))


def digest(headers: dict[str, str], target: str, name: str) -> bool:
    """Whether the Authorization answers the challenge of `asks_digest` (RFC 7616)."""
    facts = dict(re.findall(r'(\w+)="?([^",]+)"?', headers.get("authorization", "")))

    def of(*words: str) -> str:
        return hashlib.new(name, ":".join(words).encode()).hexdigest()

    secret, request = of(USER, "cam, 1", PASSWORD), of("GET", target)
    return headers.get("authorization", "").startswith("Digest") and facts["response"] == of(
        secret, "abc", facts["nc"], facts["cnonce"], "auth", request
    )


def asks_digest(algorithm: str, *others: str) -> Answer:
    ask = f'WWW-Authenticate: Digest realm="cam, 1", nonce="abc", qop="auth-int, auth", algorithm={algorithm}'

    def answer(path: str, headers: dict[str, str]) -> bytes:
        is_right = digest(headers, path, algorithm.replace("-", ""))
        return ok(MIXED, parts(HALVES)) if is_right else refused(401, *others, ask)

    return answer


def asks_basic(path: str, headers: dict[str, str]) -> bytes:
    is_right = headers.get("authorization") == "Basic bWU6cEBzOnMvdyJyJWQgw7w="
    return ok(MIXED, parts(HALVES)) if is_right else refused(401, 'WWW-Authenticate: Basic realm="cam"')


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CAMERA", f"{USER}:{PASSWORD}")
    monkeypatch.setenv("WRONG", f"{USER}:geheim")
    return "env:CAMERA"


@pytest.mark.parametrize(
    "answer",
    [
        asks_basic, asks_digest("MD5"), asks_digest("SHA-256"), asks_digest("MD5", 'WWW-Authenticate: Basic realm="x"'),
        asks_digest("MD5", 'WWW-Authenticate: Digest realm="x", nonce="1", algorithm=SHA-512-256, Basic realm="x"'),
    ],
)  # fmt: skip
def test_a_sign_in_is_answered_and_the_pictures_behind_it_are_checked(
    serve: Callable[..., HttpCamera], answer: Answer, credentials: str, caplog: pytest.LogCaptureFixture
) -> None:
    camera = serve(answer)
    images, skipped, _ = frames_of(camera.address + "/a b/live?x=%20&y", credentials=credentials)
    assert (len(images), skipped) == (3, 2)
    assert "authorization" not in camera.requests[0][1]  # nothing is told before the camera asks
    with pytest.raises(SourceError, match=r"refuses the user or the password \(401\): correct them") as wrong:
        frames_of(camera.address, credentials="env:WRONG")
    with pytest.raises(SourceError, match=r"asks for a user and a password \(401\): give credentials = file:PATH"):
        frames_of(camera.address)
    assert "geheim" not in str(wrong.value) + caplog.text


def test_digest_never_falls_back_to_basic_where_the_camera_knows_both() -> None:
    asked = SignIn("http://u:p@h/")
    assert asked.take(['Basic realm="a", Digest realm="b", nonce="c"']) is None
    assert str(asked.answer("GET", "http://h/", "/")).startswith('Digest username="u", realm="b", nonce="c", uri="/"')
    assert "by negotiate and ntlm, of a kind that is not spoken" in str(asked.take(["Negotiate", "NTLM"]))
    assert asked.take([]) is None
    assert asked.answer("GET", "http://h/", "/") == "Basic dTpw"


def test_a_redirect_is_followed_and_the_pictures_behind_it_are_checked(
    serve: Callable[..., HttpCamera], credentials: str
) -> None:
    def answer(path: str, headers: dict[str, str]) -> bytes:
        return asks_basic(path, headers) if path == "/b" else refused(302, "Location: /b")

    images, skipped, _ = frames_of(serve(answer).address + "/a", credentials=credentials)
    assert (len(images), skipped) == (3, 2)


def test_another_host_is_sent_no_password(serve: Callable[..., HttpCamera], credentials: str) -> None:
    other = serve(asks_basic, host="127.0.0.2")
    camera = serve(
        lambda path, headers: asks_basic(path, headers).replace(
            b"200 OK", f"302 Found\r\nLocation: {other.address}/".encode()
        )
    )
    with pytest.raises(SourceError, match=r"redirects to http://127.0.0.2:\d+/, which asks for a password: give that"):
        frames_of(camera.address, credentials=credentials)
    assert "authorization" in camera.requests[-1][1]
    assert all("authorization" not in headers for _, headers in other.requests)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("/again", "redirects more than 5 times"),
        ("file:///etc/passwd", "redirects to file:///etc/passwd: give that address itself"),
        ("https://example.invalid/x?key=secret", r"redirects to https://example.invalid/x\?\*\*\*: give that address"),
        ("http://[x", "redirects to an invalid address"),
    ],
)
def test_a_redirect_that_is_not_followed_is_told(serve: Callable[..., HttpCamera], place: str, says: str) -> None:
    camera = serve(refused(302, f"Location: {place}"))
    with pytest.raises(SourceError, match=rf"http://127.0.0.1:{camera.port} cannot be opened: it {says}"):
        frames_of(camera.address)
    assert len(camera.requests) <= 6


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (refused(403), r"refuses this user \(403\): give one that may see live pictures"),
        (refused(404), r"has nothing at this path \(404\): look up the path"),
        (refused(410), r"has nothing at this path \(410\): look up the path"),
        (refused(500), "answers with status 500: look at the camera's own page"),
        (refused(503), r"is busy \(503\): close other viewers"),
        (ok("text/html", b"<html>"), "answers with text/html, not with JPEGs"),
        (ok("image/png", b"\x89PNG"), "answers with image/png, not with JPEGs"),
        (b"SSH-2.0-OpenSSH_9\r\n", "s answer is no HTTP: is the port right"),
    ],
)
def test_each_refusal_is_one_sentence_that_says_what_to_do(
    serve: Callable[..., HttpCamera], answer: bytes, says: str
) -> None:
    camera = serve(answer)
    with pytest.raises(
        SourceError, match=rf"\*\*\*@127.0.0.1:{camera.port}/x cannot be opened: it('s)? ?{says}"
    ) as told:
        frames_of(camera.address.replace("//", "//me:geheim@") + "/x")
    assert "geheim" not in str(told.value)
    assert "\n" not in str(told.value)


def test_single_pictures_are_asked_for_again_and_again(serve: Callable[..., HttpCamera], credentials: str) -> None:
    pictures = iter([PICTURES[0], PICTURES[1][:900], PICTURES[2]] + [PICTURES[1]] * 9)

    def answer(path: str, headers: dict[str, str]) -> bytes:
        asked = asks_basic(path, headers)
        if asked.startswith(b"HTTP/1.1 401"):
            return asked
        picture = next(pictures)
        return ok("image/jpeg", picture, f"Content-Length: {len(picture)}")

    camera = serve(answer)
    images, skipped, _ = frames_of(camera.address, most=3, credentials=credentials, rate_hz=50.0)
    assert skipped == 1
    assert all(np.array_equal(image, SHOWN[number]) for image, number in zip(images, (0, 2, 1), strict=True))
    assert len(camera.requests) == 5  # the sign-in is asked for once
    assert not open_source(camera.address).may_be_silent


def test_a_slow_rate_of_single_pictures_is_no_stall(serve: Callable[..., HttpCamera]) -> None:
    with open_source(serve(ok("image/jpeg", PICTURES[0])).address, rate_hz=0.1) as source:
        assert source.may_be_silent
        assert next(iter(source)).index == 0


def tls_camera(
    serve: Callable[..., HttpCamera], certificate: Path, answer: Answer | bytes, host: str = "127.0.0.1"
) -> HttpCamera:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return serve(answer, context=context, host=host)


def test_a_camera_that_signed_its_own_certificate_needs_ca_file(
    serve: Callable[..., HttpCamera], certificate: Path, tmp_path: Path
) -> None:
    camera = tls_camera(serve, certificate, ok(MIXED, parts(HALVES)))
    with pytest.raises(
        SourceError, match=r"certificate is not trusted \(self-signed certificate\): give it, .* ca_file"
    ):
        frames_of(camera.address)
    assert not camera.requests
    images, skipped, _ = frames_of(camera.address, ca_file=certificate)
    assert (len(images), skipped) == (3, 2)
    other = tls_camera(serve, certificate, b"", host="127.0.0.2")
    with pytest.raises(SourceError, match="its certificate is for another name: give the address with the name"):
        frames_of(other.address, ca_file=certificate)
    with pytest.raises(SourceError, match="it speaks no TLS at this port: use an address without the s"):
        frames_of(serve(b"HTTP/1.1 400 No\r\n\r\n").address.replace("http", "https"))
    with pytest.raises(ConfigError, match=r"ca_file .*absent cannot be read: No such file"):
        frames_of(camera.address, ca_file=tmp_path / "absent")
    (tmp_path / "empty").write_bytes(b"no certificate")
    with pytest.raises(ConfigError, match="empty cannot be read: it holds no certificate in PEM"):
        frames_of(camera.address, ca_file=tmp_path / "empty")
    with pytest.raises(ConfigError, match="ca_file belongs to an http:// address"):
        open_source("synthetic", ca_file=certificate)


def test_a_redirect_to_tls_on_the_same_host_is_followed_with_the_password_and_never_back(
    serve: Callable[..., HttpCamera], certificate: Path, credentials: str
) -> None:
    safe = tls_camera(serve, certificate, asks_basic)
    camera = serve(refused(301, f"Location: {safe.address}/"))
    assert len(frames_of(camera.address, ca_file=certificate, credentials=credentials)[0]) == 3
    back = tls_camera(serve, certificate, refused(301, f"Location: {camera.address}/"))
    with pytest.raises(SourceError, match=rf"redirects to {camera.address}/: give that address itself"):
        frames_of(back.address, ca_file=certificate, credentials=credentials)


def test_jpegs_whose_address_is_like_a_files_are_checked_too(
    serve: Callable[..., HttpCamera], write_video: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    images, skipped, _ = frames_of(serve(ok(MIXED, parts(HALVES))).address + "/live.mp4", decode="gpu:77")
    assert (len(images), skipped) == (3, 2)
    assert "its JPEGs are decoded on the processor, not on GPU 77" in caplog.text
    with pytest.raises(SourceError, match=r"has nothing at this path \(404\)"):
        open_source(serve(refused(404)).address + "/film.avi")
    data = write_video(frames=5).read_bytes()
    with open_source(serve(ok("video/x-msvideo", data, f"Content-Length: {len(data)}")).address + "/film.avi") as film:
        assert not film.is_live
        assert len(list(film)) == 5


def test_no_answer_with_jpegs_is_handed_to_opencv(
    serve: Callable[..., HttpCamera], monkeypatch: pytest.MonkeyPatch
) -> None:
    handed: list[str] = []

    class Video:
        advice = "no"

        def __init__(self, address: str, *others: object) -> None:
            handed.append(address)

        def __enter__(self) -> None:
            raise SourceError("handed over")

    monkeypatch.setattr(http, "VideoSource", Video)
    for answer in DIALECTS.values():
        frames_of(serve(answer).address)
    assert not handed
    with pytest.raises(SourceError, match="handed over"):
        frames_of(serve(ok("video/mp2t", b"\x47" * 400)).address)
    assert len(handed) == 1


def test_stray_bytes_are_passed_over_where_they_are_the_cameras_habit_and_refused_where_they_are_not(
    serve: Callable[..., HttpCamera], caplog: pytest.LogCaptureFixture
) -> None:
    whole = [with_restarts(7, "420", seed) for seed in range(3)]
    shown = [whole_picture(one) for one in whole]
    dirty = [with_strays(one, b"\0\x11\x22") for one in whole]
    images, skipped, _ = frames_of(serve(ok(MIXED, parts(dirty * 3))).address)
    assert (len(images), skipped) == (6, 3)  # the first three could be damage
    assert all(np.array_equal(image, shown[number % 3]) for number, image in enumerate(images))
    assert caplog.text.count("leaves stray bytes in its pictures, and no other fault") == 1
    images, skipped, _ = frames_of(serve(ok(MIXED, parts((whole * 4 + dirty[:1]) * 3))).address)
    assert (len(images), skipped) == (36, 3)
    cut_off = [one[:-500] for one in whole]
    images, skipped, _ = frames_of(serve(ok(MIXED, parts([*dirty, cut_off[0], *dirty, cut_off[1], *dirty]))).address)
    assert (len(images), skipped) == (0, 11)
