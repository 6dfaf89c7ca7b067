"""Addresses of cameras: what people see of them holds no secret, and what is no address is one sentence."""

from __future__ import annotations

import pytest

from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.runtime.sources.addresses import redact, with_credentials
from nnet_edge.runtime.sources.open import open_source


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://camera/1", "rtsp://camera/1"),
        ("rtsp://camera:554/Streaming/Channels/101", "rtsp://camera:554/Streaming/Channels/101"),
        ("rtsp://[fe80::1]:554/cam/realmonitor", "rtsp://[fe80::1]:554/cam/realmonitor"),
        ("rtsp://me:p@ss@camera:554/1", "rtsp://***@camera:554/1"),
        ("https://host/a?token=1", "https://host/a?***"),
        ("rtsp://h/user=admin&password=geheim&channel=1", "rtsp://h/user=***&password=***&channel=1"),
        ("rtsp://h/user=admin_password=geheim_channel=1_stream=0.sdp", "rtsp://h/user=***"),
        ("rtsp://h/live;PWD=geheim/1", "rtsp://h/live;PWD=***/1"),
        ("http://h/api_key%3Dgeheim/video", "http://h/api_key%3D***/video"),
        ("http://h/x-auth-token=geheim", "http://h/x-auth-token=***"),
        ("rtsp://admin:ge/heim@camera/1", "rtsp://***@camera/1"),
        ("rtsp://admin:ge#heim@camera/1", "rtsp://***@camera/1"),
        ("rtsp://admin:ge?heim@camera/1", "rtsp://***@camera/1"),
        ("rtsp://admin:geheim@[camera/1", "rtsp://***"),
    ],
)
def test_nobody_reads_passwords_in_messages(address: str, shown: str) -> None:
    assert redact(address) == shown


@pytest.mark.parametrize(
    "address",
    [
        "rtsp://[x",
        "rtsp://user:geheim@[x",
        "rtsp://camera:port/1",
        "rtsp://camera:99999/1",
        "http:///geheim=1",
        "rtsp://",
    ],
)
def test_what_is_no_address_is_one_sentence(address: str) -> None:
    with pytest.raises((ConfigError, SourceError), match="is not a valid address: look at its host") as caught:
        open_source(address)
    assert "user:geheim" not in str(caught.value)


def test_credentials_go_into_the_address_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMERA_LOGIN", "me:p@ss/w#rd")
    assert with_credentials("rtsp://camera:554/1", "env:CAMERA_LOGIN") == "rtsp://me:p%40ss%2Fw%23rd@camera:554/1"
