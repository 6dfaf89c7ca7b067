"""A real mosquitto on loopback: plain topics, the last will, TLS, and a broker that is down, hangs or says no."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.errors import ConfigError, SinkError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction
from nnet_edge.runtime.sinks import MqttSettings, MqttSink
from nnet_edge.runtime.sinks.queue import DeliverySettings
from nnet_edge.runtime.sinks.queued import Delivery
from nnet_edge.runtime.sinks.spool import SpoolSettings

MakePrediction = Callable[..., Prediction]
Make = Callable[..., Any]
QUICK = {"first_pause_s": 0.02, "longest_pause_s": 0.2, "dead_after_s": 0.2}
SECRET = "hunter2"


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    end_s = time.monotonic() + 3
    while [thread for thread in threading.enumerate() if "paho" in thread.name or "MQTT" in thread.name]:
        assert time.monotonic() < end_s, [thread.name for thread in threading.enumerate()]
        time.sleep(0.01)


def to(broker: Any, **facts: Any) -> MqttSettings:
    return MqttSettings("127.0.0.1", broker.port, timeout_s=facts.pop("timeout_s", 5.0), **facts)


def test_verdicts_events_and_presence_have_plain_topics(
    make_broker: Make, listen: Make, until: Make, make_prediction: MakePrediction
) -> None:
    broker = make_broker()
    listener = listen(broker)
    with MqttSink(to(broker, prefix="hall/line 1")) as sink:
        sink.write(make_prediction(3))
        sink.write(make_prediction(4, is_good=True, stream="left+/#"))
        sink.tell(Event("source.lost", "test", 1_700_000_000.0, {"reason": "cut"}))
        sink.tell(Event("bundle.swapped"))
        until(lambda: len(listener.heard) == 5)
    until(lambda: len(listener.heard) == 6)
    topics = [topic for topic, _, _ in listener.heard]
    assert topics == ["hall/line 1/status", "hall/line 1/test/verdict", "hall/line 1/left%2B%2F%23/verdict",
                      "hall/line 1/test/event", "hall/line 1/event", "hall/line 1/status"]  # fmt: skip
    assert listener.payloads("hall/line 1/status") == [b"online", b"offline"]
    (verdict,) = listener.payloads("hall/line 1/test/verdict")
    fields = json.loads(verdict)
    assert (fields["id"], fields["verdict"], fields["score"]) == ("test/3", "anomalous", 3.0)
    (event,) = listener.payloads("hall/line 1/test/event")
    assert json.loads(event)["facts"] == {"reason": "cut"}


def test_only_rejects_where_asked(make_broker: Make, listen: Make, until: Make, make_prediction: Make) -> None:
    broker = make_broker()
    listener = listen(broker)
    with Delivery(MqttSink(to(broker, only_rejects=True))) as delivery:
        for index in range(6):
            delivery.write(make_prediction(index, is_good=index % 3 != 0))
        until(lambda: delivery.counts().delivered == 2)
    until(lambda: len(listener.payloads("nnet-edge/test/verdict")) == 2)
    found = [json.loads(payload)["index"] for payload in listener.payloads("nnet-edge/test/verdict")]
    assert found == [0, 3]
    assert delivery.counts().offered == 2


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_every_quality_of_service_delivers(
    make_broker: Make, listen: Make, until: Make, make_prediction: Make, qos: int
) -> None:
    broker = make_broker()
    listener = listen(broker)
    with Delivery(MqttSink(to(broker, qos=qos))) as delivery:
        for index in range(150):
            delivery.write(make_prediction(index))
        until(lambda: delivery.counts().delivered == 150)
    until(lambda: len(listener.payloads("nnet-edge/test/verdict")) == 150)
    found = [json.loads(payload)["index"] for payload in listener.payloads("nnet-edge/test/verdict")]
    assert found == list(range(150))


KILLED = """
import sys, time
from nnet_edge.runtime.sinks import MqttSettings, MqttSink
with MqttSink(MqttSettings("127.0.0.1", int(sys.argv[1]))) as sink:
    sink.tick()
    print("connected", flush=True)
    time.sleep(60)
"""


def test_the_broker_says_when_the_line_is_killed(make_broker: Make, listen: Make, until: Make) -> None:
    broker = make_broker()
    listener = listen(broker)
    with subprocess.Popen([sys.executable, "-c", KILLED, str(broker.port)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"connected\n"
        until(lambda: listener.payloads("nnet-edge/status") == [b"online"])
        process.kill()
    until(lambda: listener.payloads("nnet-edge/status") == [b"online", b"offline"])


def test_tls_is_checked_against_the_authority(
    make_broker: Make, listen: Make, until: Make, make_prediction: Make, certificates: Path, tmp_path: Path
) -> None:
    passwords = tmp_path / "passwords"
    made = subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "line", SECRET], capture_output=True)
    assert made.returncode == 0, made.stderr
    broker = make_broker(
        f"cafile {certificates / 'ca.pem'}", f"certfile {certificates / 'server.pem'}",
        f"keyfile {certificates / 'server.key'}", "allow_anonymous false", f"password_file {passwords}",
    )  # fmt: skip
    good = to(broker, has_tls=True, ca_file=certificates / "ca.pem", user="line", password=SECRET)
    with MqttSink(good) as sink:
        sink.write(make_prediction(0))  # QoS 1: the broker has acknowledged it
    wrongs = {
        "certificate verify failed": replace(good, ca_file=certificates / "other.pem"),
        "No such file": replace(good, ca_file=certificates / "none.pem"),
        "Not authorized": replace(good, password="wrong" + SECRET),
    }
    for says, settings in wrongs.items():
        with MqttSink(settings) as sink, pytest.raises(SinkError, match=says) as caught:
            sink.write(make_prediction(1))
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(settings)


def test_a_broker_that_is_down_costs_nothing_with_must_deliver(
    make_broker: Make, listen: Make, until: Make, make_prediction: Make, tmp_path: Path
) -> None:
    broker = make_broker("allow_anonymous true", "max_inflight_messages 1")  # or the broker itself mixes its queue up
    listener = listen(broker)
    told: list[Event] = []
    settings = DeliverySettings(must_deliver=SpoolSettings(tmp_path / "spool"), **QUICK)  # type: ignore[arg-type]
    with Delivery(MqttSink(to(broker)), settings) as delivery:
        delivery.report_to(told.append)
        for outage in range(3):
            for index in range(100 * outage, 100 * outage + 50):
                delivery.write(make_prediction(index))
                time.sleep(0.002)
            broker.stop()  # while messages are on their way
            for index in range(100 * outage + 50, 100 * outage + 100):
                delivery.write(make_prediction(index))
                assert delivery.counts().is_balanced
            until(lambda: delivery.counts().state == "dead")
            broker.start()
            until(lambda: delivery.counts().state == "ok")
        until(lambda: delivery.counts().delivered == 300)
        assert delivery.counts().spooled == 0
    until(lambda: len(set(listener.payloads("nnet-edge/test/verdict"))) == 300)
    found = [json.loads(payload)["id"] for payload in listener.payloads("nnet-edge/test/verdict")]
    assert list(dict.fromkeys(found)) == [f"test/{index}" for index in range(300)]  # in order; a copy has the same id
    assert [event.kind for event in told] == ["sink.dead", "sink.back"] * 3
    assert delivery.counts().is_balanced


def test_a_broker_that_is_down_costs_its_own_queue_only(make_broker: Make, until: Make, make_prediction: Make) -> None:
    broker = make_broker()
    with Delivery(MqttSink(to(broker)), DeliverySettings(queue_items=20, **QUICK)) as delivery:  # type: ignore[arg-type]
        delivery.write(make_prediction(0))
        until(lambda: delivery.counts().delivered == 1)
        broker.stop()
        began_s = time.monotonic()
        for index in range(1, 200):
            delivery.write(make_prediction(index))
        assert time.monotonic() - began_s < 5  # no write has waited for the broker
        broker.start()
        until(lambda: delivery.counts().queued == 0)
    counts = delivery.counts()
    assert counts.is_balanced
    assert set(counts.dropped) == {"queue full"}
    assert counts.delivered >= 20


def test_a_broker_that_hangs_is_noticed_in_time(make_broker: Make, until: Make, make_prediction: Make) -> None:
    broker = make_broker()
    with Delivery(MqttSink(to(broker, timeout_s=0.5)), DeliverySettings(**QUICK)) as delivery:  # type: ignore[arg-type]
        delivery.write(make_prediction(0))
        until(lambda: delivery.counts().delivered == 1)
        broker.send(signal.SIGSTOP)
        try:
            delivery.write(make_prediction(1))
            until(lambda: delivery.counts().state == "dead", 5)
            assert "within 0.5 s" in str(delivery.counts().reason)
        finally:
            broker.send(signal.SIGCONT)
        until(lambda: delivery.counts().delivered == 2)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not list open files")
def test_connecting_again_and_again_keeps_nothing_open(
    make_broker: Make, until: Make, make_prediction: Make, certificates: Path
) -> None:
    broker = make_broker()
    with MqttSink(to(broker)) as good, MqttSink(to(broker, has_tls=True, ca_file=certificates / "ca.pem")) as bad:
        for attempt in range(24):
            if attempt == 4:
                files, threads = len(list(Path("/proc/self/fd").iterdir())), threading.active_count()
            good.write(make_prediction(attempt))
            good._drop()  # what every fault does
            with pytest.raises(SinkError, match="cannot publish"):
                bad.tick()  # no TLS there
        until(lambda: threading.active_count() <= threads)
        assert len(list(Path("/proc/self/fd").iterdir())) <= files


def test_an_idle_line_connects_and_says_that_it_is_there(make_broker: Make, listen: Make, until: Make) -> None:
    broker = make_broker()
    listener = listen(broker)
    with Delivery(MqttSink(to(broker))):
        until(lambda: listener.payloads("nnet-edge/status") == [b"online"])


def test_a_missing_library_names_the_extra() -> None:
    code = """
import sys
sys.modules["paho"] = None
from nnet_edge.errors import MissingExtraError
from nnet_edge.runtime.sinks import MqttSettings, MqttSink
try:
    MqttSink(MqttSettings("127.0.0.1"))
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "paho-mqtt is not installed: pip install 'nnet-edge[mqtt]'\n", done.stderr


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"host": "mqtt://broker"}, "without a scheme"),
        ({"host": f"line:{SECRET}@broker"}, "without a scheme"),
        ({"port": 70000}, "MQTT port is 70000"),
        ({"qos": 3}, "MQTT QoS is 3"),
        ({"prefix": "line/#"}, "without"),
        ({"prefix": "/line"}, "without / at its ends"),
        ({"password": SECRET}, "without a user"),
        ({"ca_file": Path("ca.pem")}, "without TLS"),
        ({"has_tls": True, "key_file": Path("key")}, "without a certificate"),
        ({"timeout_s": 0.0}, "broker has to answer are 0.0"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        MqttSettings(**{"host": "broker", **wrong})
    assert SECRET not in str(caught.value)


def test_nothing_can_be_promised_with_qos_0(tmp_path: Path) -> None:
    settings = DeliverySettings(must_deliver=SpoolSettings(tmp_path))
    with pytest.raises(ConfigError, match="nobody acknowledges"):
        Delivery(MqttSink(MqttSettings("broker", qos=0)), settings)


def test_the_port_follows_tls() -> None:
    assert (MqttSettings("broker").port, MqttSettings("broker", has_tls=True).port) == (1883, 8883)
