"""A true HTTP receiver on loopback: what arrives, what it may answer, and what happens while it is down, slow or wrong."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks import QueuedSink, QueueSettings, RefusedError, WebhookSettings, WebhookSink
from nnet_edge.runtime.sinks.spool import SpoolSettings
from nnet_edge.runtime.sinks.webhook import wait_of
from nnet_edge.settings.registry import SINKS, Asked
from nnet_edge.settings.sink import SinkSettings

MakePrediction = Callable[..., Prediction]
QUICK = {"first_pause_s": 0.02, "longest_pause_s": 0.2, "dead_after_s": 0.2}
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", SECRET)


def test_each_verdict_is_one_post_over_one_connection(receiver: Any, make_prediction: MakePrediction) -> None:
    settings = WebhookSettings(url=receiver.place, token_from="env:TOKEN", events=True)
    with WebhookSink(settings) as sink:
        for index in range(5):
            sink.write(make_prediction(index, stream="Lötstelle"))
        sink.tell(Event("source.lost", "left"))
    assert [body.get("index") for body in receiver.posted] == [0, 1, 2, 3, 4, None]
    assert receiver.posted[5]["event"] == "source.lost"
    assert receiver.paths[0] == f"/hook?key={SECRET}"
    assert receiver.headers[0]["Content-Type"] == "application/json"
    assert receiver.headers[0]["Authorization"] == f"Bearer {SECRET}"
    assert receiver.headers[2]["Idempotency-Key"] == "L%C3%B6tstelle/2"
    assert receiver.connections == 1
    assert SECRET not in repr(settings)


def test_a_connection_that_the_receiver_closed_is_made_anew(receiver: Any, make_prediction: MakePrediction) -> None:
    with WebhookSink(WebhookSettings(url=receiver.place)) as sink:
        sink.write(make_prediction(0))
        receiver.stop()
        receiver.start()
        sink.write(make_prediction(1))
    assert [body["index"] for body in receiver.posted] == [0, 1]


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (400, RefusedError, "refused test/0: it answered 400"),
        (409, RefusedError, "it answered 409"),
        (413, RefusedError, "it answered 413"),
        (422, RefusedError, "it answered 422"),
        (301, SinkError, "it answered 301: give the address that it leads to"),
        (401, SinkError, "it answered 401"),
        (
            404,
            SinkError,
            "it answered 404",
        ),  # of the first message nobody knows whether it is the message or the address
        (429, SinkError, "it answered 429"),
        (503, SinkError, "it answered 503"),
    ],
)
def test_an_answer_that_is_no_success_is_a_fault(
    receiver: Any, make_prediction: MakePrediction, status: int, kind: type[SinkError], says: str
) -> None:
    receiver.answers = lambda body: status
    with (
        WebhookSink(WebhookSettings(url=receiver.place, token_from="env:TOKEN")) as sink,
        pytest.raises(SinkError, match=says) as caught,
    ):
        sink.write(make_prediction(0))
    assert type(caught.value) is kind
    assert SECRET not in str(caught.value)
    assert f"http://127.0.0.1:{receiver.port}" in str(caught.value)
    assert "/hook" not in str(caught.value)  # a path may hold a token


@pytest.mark.parametrize("status", [404, 405, 409, 410, 418])
def test_one_message_that_is_refused_for_ever_does_not_block_those_behind_it(
    receiver: Any, make_prediction: MakePrediction, tmp_path: Path, status: int
) -> None:
    receiver.answers = lambda body: status if body["index"] == 2 else 200
    settings = QueueSettings(flush_s=5.0, must_deliver=SpoolSettings(tmp_path), **QUICK)
    with QueuedSink(WebhookSink(WebhookSettings(url=receiver.place)), settings) as sink:
        for index in range(6):
            sink.write(make_prediction(index))
        assert sink.flush(5)
    arrived = [body["index"] for body in receiver.posted if body["index"] != 2]
    assert arrived == [0, 1, 3, 4, 5]
    assert (sink.counts().delivered, sink.counts().dropped) == (5, {"refused": 1})


def test_an_address_that_is_wrong_for_all_loses_nothing(
    receiver: Any, make_prediction: MakePrediction, tmp_path: Path
) -> None:
    receiver.answers = lambda body: 404
    settings = QueueSettings(flush_s=0.5, must_deliver=SpoolSettings(tmp_path), **QUICK)
    with QueuedSink(WebhookSink(WebhookSettings(url=receiver.place)), settings) as sink:
        for index in range(6):
            sink.write(make_prediction(index))
    counts = sink.counts()
    assert (counts.delivered, counts.dropped, counts.spooled) == (0, {}, 6)
    assert "has 6 messages in its spool, the next start delivers them: cannot post" in (counts.waiting() or "")
    assert receiver.asked >= 4


@pytest.mark.parametrize(
    ("text", "wait_s"), [("0", 0), ("2", 2), ("999999", 3600), (None, 0), ("soon", 0), ("-5", 0), ("9" * 5000, 0)]
)
def test_how_long_a_receiver_asks_to_wait(text: str | None, wait_s: float) -> None:
    assert wait_of(text) == wait_s


def test_a_date_to_wait_for_is_read_too() -> None:
    assert 25 < wait_of(formatdate(time.time() + 30, usegmt=True)) <= 30
    assert wait_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_a_receiver_that_asks_for_time_is_left_alone(
    receiver: Any, make_prediction: MakePrediction, tmp_path: Path
) -> None:
    receiver.answers = lambda body: 429 if receiver.asked == 1 else 200
    receiver.retry_after = "1"
    settings = QueueSettings(flush_s=5.0, must_deliver=SpoolSettings(tmp_path), **QUICK)
    begin_s = time.monotonic()
    with QueuedSink(WebhookSink(WebhookSettings(url=receiver.place)), settings) as sink:
        sink.write(make_prediction(0))
        assert sink.flush(5)
    assert time.monotonic() - begin_s >= 1.0
    assert receiver.asked == 2


def test_nobody_there_is_a_fault_without_secrets(receiver: Any, make_prediction: MakePrediction) -> None:
    receiver.stop()
    url = f"http://127.0.0.1:{receiver.port}/services/{SECRET}"
    with WebhookSink(WebhookSettings(url=url)) as sink, pytest.raises(SinkError, match="refused") as caught:
        sink.write(make_prediction(0))
    assert SECRET not in str(caught.value)


def test_a_receiver_that_drips_is_cut_off_in_time(make_prediction: MakePrediction) -> None:
    """One byte of the answer every 50 ms: each read is quick, the whole takes for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        is_over = threading.Event()

        def drip() -> None:
            connection, _ = server.accept()
            with connection:
                for letter in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
                    if is_over.wait(0.05):
                        return
                    try:
                        connection.sendall(bytes([letter]))
                    except OSError:
                        return

        thread = threading.Thread(target=drip)
        thread.start()
        settings = WebhookSettings(url=f"http://127.0.0.1:{server.getsockname()[1]}/", timeout_s=0.4)
        began_s = time.monotonic()
        with WebhookSink(settings) as sink, pytest.raises(SinkError, match=r"no answer within 0\.4 s"):
            sink.write(make_prediction(0))
        assert time.monotonic() - began_s < 2
        is_over.set()
        thread.join(5)
        assert not thread.is_alive()


def test_https_is_checked_against_the_authority(
    certificates: Path, make_prediction: MakePrediction, make_receiver: Callable[..., Any]
) -> None:
    receiver = make_receiver(certificates)
    receiver.start()
    try:
        with WebhookSink(WebhookSettings(url=receiver.place, ca_file=certificates / "ca.pem")) as sink:
            sink.write(make_prediction(0))
        wrong = WebhookSettings(url=receiver.place, ca_file=certificates / "other.pem")
        with WebhookSink(wrong) as sink, pytest.raises(SinkError, match="certificate verify failed"):
            sink.write(make_prediction(1))
    finally:
        receiver.stop()
    assert [body["index"] for body in receiver.posted] == [0]


def test_a_receiver_that_is_down_costs_nothing_with_must_deliver(
    receiver: Any, make_prediction: MakePrediction, until: Callable[..., None], tmp_path: Path
) -> None:
    told: list[Event] = []
    settings = QueueSettings(must_deliver=SpoolSettings(tmp_path / "spool"), flush_s=0.2, **QUICK)  # type: ignore[arg-type]
    for run in range(2):  # the second one begins with what the first one left
        with QueuedSink(WebhookSink(WebhookSettings(url=receiver.place, timeout_s=1.0)), settings) as queued:
            queued.report_to(told.append)
            for index in range(200 * run, 200 * run + 100):
                queued.write(make_prediction(index))
            until(lambda run=run: len(receiver.posted) > 200 * run + 20)
            receiver.stop()
            for index in range(200 * run + 100, 200 * run + 200):
                queued.write(make_prediction(index))
            until(lambda: queued.counts().state == "dead")
            if run == 1:
                receiver.start()
                until(lambda: queued.counts().spooled == 0)
            assert queued.counts().is_balanced
        if run == 0:
            assert queued.counts().spooled > 0
            receiver.start()
    found = [body["id"] for body in receiver.posted]
    assert list(dict.fromkeys(found)) == [f"test/{index}" for index in range(400)]
    assert [event.kind for event in told] == ["sink.dead", "sink.dead", "sink.back"]
    assert queued.counts().is_balanced


def test_a_receiver_that_is_overloaded_is_tried_again_with_growing_pauses(
    receiver: Any, make_prediction: MakePrediction, until: Callable[..., None]
) -> None:
    moments_s: list[float] = []

    def answer(body: dict[str, Any]) -> int:
        moments_s.append(time.monotonic())
        return 200 if len(moments_s) == 6 else 503

    receiver.answers = answer
    settings = QueueSettings(first_pause_s=0.05, longest_pause_s=0.4)
    with QueuedSink(WebhookSink(WebhookSettings(url=receiver.place)), settings) as queued:
        queued.write(make_prediction(0))
        until(lambda: queued.counts().delivered == 1)
    pauses_s = [later - earlier for earlier, later in itertools.pairwise(moments_s)]
    wanted_s = [0.05, 0.1, 0.2, 0.4, 0.4]
    assert len(pauses_s) == 5
    assert all(pause_s >= 0.8 * wanted for pause_s, wanted in zip(pauses_s, wanted_s, strict=True))  # 20 % of jitter
    assert sum(pauses_s) < 5


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"url": "ftp://host/"}, "give http://host/path"),
        ({"url": "http:///x"}, "give http://host/path"),
        ({"url": f"http://[{SECRET}"}, "give http://host/path"),
        ({"url": "http://host:99999/x"}, "give http://host/path"),
        ({"url": "http://host/x\r\nX: y"}, "give http://host/path"),
        ({"url": f"http://line:{SECRET}@host/x"}, "holds no user and no query"),
        ({"url": f"http://host/x?key={SECRET}"}, "holds no user and no query"),
        ({"url": "http://host/x", "token_from": SECRET}, "never the secret itself"),
        ({"url": "http://host/x", "ca_file": Path("ca.pem")}, "not https"),
        ({"url": "http://host/x", "timeout_s": 0.0}, "webhook has to answer are 0.0"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        WebhookSettings(**wrong)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("hidden", "says"),
    [
        ({"HOOK": "ftp://host/"}, "give http://host/path"),
        ({"HOOK": f"http://line:{SECRET}@host/x"}, "http://host holds a user: give a token"),
        ({"HOOK": "http://host/x", "TOKEN": f"{SECRET}\nX: y"}, "token is empty, or holds letters"),
        ({"HOOK": "http://host/x", "TOKEN": ""}, "token is empty"),
        ({"TOKEN": SECRET}, "the environment has no HOOK"),
    ],
)
def test_secrets_are_checked_when_the_sink_is_made(
    monkeypatch: pytest.MonkeyPatch, hidden: dict[str, str], says: str
) -> None:
    settings = WebhookSettings(url="env:HOOK", token_from="env:TOKEN")
    for name, secret in hidden.items():
        monkeypatch.setenv(name, secret)
    with pytest.raises(ConfigError, match=says) as caught:
        WebhookSink(settings)
    assert SECRET not in str(caught.value)


def test_the_registry_builds_it_from_a_table_and_from_the_flag(tmp_path: Path) -> None:
    table = {"kind": "webhook", "url": "https://host/x", "token_from": "env:TOKEN", "ca_file": "ca.pem", "events": True}
    settings = SinkSettings.from_table(table, "[[sink]]", tmp_path)
    assert settings == WebhookSettings(
        url="https://host/x", token_from="env:TOKEN", ca_file=tmp_path / "ca.pem", events=True
    )
    kind = SINKS.find("webhook")
    assert kind.flag is not None
    typed = SinkSettings.from_table(
        {"kind": "webhook", **kind.flag.table("http://host/x", Asked())}, "--webhook", Path()
    )
    assert typed == WebhookSettings(url="http://host/x", every_frame=True)  # never without a queue
    assert isinstance(kind.make(typed), WebhookSink)
