"""What is typed beside a line's settings file stands over it, and what the file only points to is read where it lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from nnet_edge.cli.main import run
from nnet_edge.cli.stream import page_place
from nnet_edge.errors import ConfigError
from nnet_edge.runtime.sinks import WebhookSink
from nnet_edge.settings.line import read_line_config
from nnet_edge.settings.registry import SINKS

LINE = "bundle = 'part'\n[[stream]]\nname = 'left'\ncamera.address = 'synthetic'\n"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("8080", {"port": 8080}),
        ("0", {"port": 0}),
        ("127.0.0.1:80", {"port": 80, "host": "127.0.0.1"}),
        ("line7:80", {"port": 80, "host": "line7"}),
        ("[::1]:80", {"port": 80, "host": "::1"}),
    ],
)
def test_a_page_is_a_port_or_a_host_and_a_port(text: str, place: dict[str, object]) -> None:
    assert page_place(text) == place


@pytest.mark.parametrize("text", ["", "line7", ":80", "line7:", "http://line7:x", "-1"])
def test_another_text_is_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match="is neither a port nor HOST:PORT"):
        page_place(text)


def test_the_page_that_is_typed_stands_over_the_files(tmp_path: Path) -> None:
    config = tmp_path / "line.toml"
    config.write_text(LINE + "[web]\nport = 80\nviewers = 3\n")
    web = read_line_config(config, {"web": page_place("8081")}).web
    assert web is not None
    assert (web.host, web.port, web.viewers) == ("127.0.0.1", 8081, 3)
    config.write_text(LINE)
    web = read_line_config(config, {"web": page_place("8081")}).web
    assert web is not None  # there is a page where the file asks for none
    assert web.port == 8081


def test_the_address_of_a_webhook_may_lie_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "line.toml"
    config.write_text(LINE + "[[sink]]\nkind = 'webhook'\nurl = 'file:hook'\n")
    (sink,) = read_line_config(config).sinks
    with pytest.raises(ConfigError, match=r"url: the file .*hook cannot be read"):
        SINKS.find(sink.kind).make(sink)
    (tmp_path / "hook").write_text("https://chat.example/services/geheim\n")
    assert isinstance(SINKS.find(sink.kind).make(sink), WebhookSink)
    (tmp_path / "hook").write_text("geheim\n")
    with pytest.raises(ConfigError, match="webhook's address is invalid") as caught:
        SINKS.find(sink.kind).make(sink)
    assert "geheim" not in str(caught.value)
    monkeypatch.setenv("HOOK", "https://chat.example/services/geheim?key=geheim")
    config.write_text(LINE + "[[sink]]\nkind = 'webhook'\nurl = 'env:HOOK'\n")
    assert run(["config", "check", "--without-bundle", str(config)]) == 0
    assert "geheim" not in "".join(capfd.readouterr())


def test_a_page_that_others_reach_needs_the_files_token(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "line.toml"
    config.write_text(LINE)
    assert run(["stream", "--config", str(config), "--page", "0.0.0.0:8080"]) != 0
    assert "without a token" in capfd.readouterr().err
    assert run(["stream", "synthetic:1", "--bundle", str(tmp_path), "--page", "0.0.0.0:8080"]) != 0
    assert "without a token" in capfd.readouterr().err
