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
from nnet_edge.runtime.sinks import MqttSettings, MqttSink, QueuedSink, QueueSettings
from nnet_edge.runtime.sinks.base import Orders
from nnet_edge.runtime.sinks.spool import SpoolSettings
from nnet_edge.settings.registry import SINKS, Asked
from nnet_edge.settings.sink import SinkSettings

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
    return MqttSettings(host="127.0.0.1", port=broker.port, **facts)


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
    with QueuedSink(MqttSink(to(broker, only_rejects=True))) as queued:
        for index in range(6):
            queued.write(make_prediction(index, is_good=index % 3 != 0))
        until(lambda: queued.counts().delivered == 2)
    until(lambda: len(listener.payloads("nnet-edge/test/verdict")) == 2)
    found = [json.loads(payload)["index"] for payload in listener.payloads("nnet-edge/test/verdict")]
    assert found == [0, 3]
    assert queued.counts().offered == 2


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_every_quality_of_service_delivers(
    make_broker: Make, listen: Make, until: Make, make_prediction: Make, qos: int
) -> None:
    broker = make_broker()
    listener = listen(broker)
    with QueuedSink(MqttSink(to(broker, qos=qos))) as queued:
        for index in range(150):
            queued.write(make_prediction(index))
        until(lambda: queued.counts().delivered == 150)
    until(lambda: len(listener.payloads("nnet-edge/test/verdict")) == 150)
    found = [json.loads(payload)["index"] for payload in listener.payloads("nnet-edge/test/verdict")]
    assert found == list(range(150))


KILLED = """
import sys, time
from nnet_edge.runtime.sinks import MqttSettings, MqttSink
with MqttSink(MqttSettings(host="127.0.0.1", port=int(sys.argv[1]))) as sink:
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


def test_a_line_that_ends_does_not_leave_another_of_its_prefix_offline(
    make_broker: Make, listen: Make, until: Make, make_prediction: Make, caplog: pytest.LogCaptureFixture
) -> None:
    broker = make_broker()
    listener = listen(broker)
    with MqttSink(to(broker)) as first:
        first.write(make_prediction(0))
        assert "another program" not in caplog.text
        with MqttSink(to(broker)) as second:
            second.write(make_prediction(1))
            until(lambda: "another program writes nnet-edge/status too" in caplog.text)
        until(lambda: listener.payloads("nnet-edge/status") == [b"online", b"online", b"offline", b"online"])
        first.write(make_prediction(2))
    until(lambda: listener.payloads("nnet-edge/status")[-1] == b"offline")
    assert caplog.text.count("another program") == 1


def test_tls_is_checked_against_the_authority(
    make_broker: Make,
    listen: Make,
    until: Make,
    make_prediction: Make,
    certificates: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PASSWORD", SECRET)
    monkeypatch.setenv("WRONG", "wrong" + SECRET)
    passwords = tmp_path / "passwords"
    made = subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "line", SECRET], capture_output=True)
    assert made.returncode == 0, made.stderr
    broker = make_broker(
        f"cafile {certificates / 'ca.pem'}", f"certfile {certificates / 'server.pem'}",
        f"keyfile {certificates / 'server.key'}", "allow_anonymous false", f"password_file {passwords}",
    )  # fmt: skip
    good = to(broker, tls=True, ca_file=certificates / "ca.pem", user="line", password_from="env:PASSWORD")
    with MqttSink(good) as sink:
        sink.write(make_prediction(0))  # QoS 1: the broker has acknowledged it
    wrongs = {
        "certificate verify failed": replace(good, ca_file=certificates / "other.pem"),
        "No such file": replace(good, ca_file=certificates / "none.pem"),
        "Not authorized": replace(good, password_from="env:WRONG"),
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
    settings = QueueSettings(must_deliver=SpoolSettings(tmp_path / "spool"), **QUICK)  # type: ignore[arg-type]
    with QueuedSink(MqttSink(to(broker)), settings) as queued:
        queued.report_to(told.append)
        for outage in range(3):
            for index in range(100 * outage, 100 * outage + 50):
                queued.write(make_prediction(index))
                time.sleep(0.002)
            broker.stop()  # while messages are on their way
            for index in range(100 * outage + 50, 100 * outage + 100):
                queued.write(make_prediction(index))
                assert queued.counts().is_balanced
            until(lambda: queued.counts().state == "dead")
            broker.start()
            until(lambda: queued.counts().state == "ok")
        until(lambda: queued.counts().delivered == 300)
        assert queued.counts().spooled == 0
    until(lambda: len(set(listener.payloads("nnet-edge/test/verdict"))) == 300)
    found = [json.loads(payload)["id"] for payload in listener.payloads("nnet-edge/test/verdict")]
    assert list(dict.fromkeys(found)) == [f"test/{index}" for index in range(300)]  # in order; a copy has the same id
    assert [event.kind for event in told] == ["sink.dead", "sink.back"] * 3
    assert queued.counts().is_balanced


def test_a_broker_that_is_down_costs_its_own_queue_only(make_broker: Make, until: Make, make_prediction: Make) -> None:
    broker = make_broker()
    with QueuedSink(MqttSink(to(broker)), QueueSettings(queue_items=20, **QUICK)) as queued:  # type: ignore[arg-type]
        queued.write(make_prediction(0))
        until(lambda: queued.counts().delivered == 1)
        broker.stop()
        began_s = time.monotonic()
        for index in range(1, 200):
            queued.write(make_prediction(index))
        assert time.monotonic() - began_s < 5  # no write has waited for the broker
        broker.start()
        until(lambda: queued.counts().queued == 0)
    counts = queued.counts()
    assert counts.is_balanced
    assert set(counts.dropped) == {"queue full"}
    assert counts.delivered >= 20


def test_a_broker_that_hangs_is_noticed_in_time(make_broker: Make, until: Make, make_prediction: Make) -> None:
    broker = make_broker()
    with QueuedSink(MqttSink(to(broker, timeout_s=0.5)), QueueSettings(**QUICK)) as queued:  # type: ignore[arg-type]
        queued.write(make_prediction(0))
        until(lambda: queued.counts().delivered == 1)
        broker.send(signal.SIGSTOP)
        try:
            queued.write(make_prediction(1))
            until(lambda: queued.counts().state == "dead", 5)
            assert "within 0.5 s" in str(queued.counts().reason)
        finally:
            broker.send(signal.SIGCONT)
        until(lambda: queued.counts().delivered == 2)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="this system does not list open files")
def test_connecting_again_and_again_keeps_nothing_open(
    make_broker: Make, until: Make, make_prediction: Make, certificates: Path
) -> None:
    broker = make_broker()
    with MqttSink(to(broker)) as good, MqttSink(to(broker, tls=True, ca_file=certificates / "ca.pem")) as bad:
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
    with QueuedSink(MqttSink(to(broker))):
        until(lambda: listener.payloads("nnet-edge/status") == [b"online"])


def test_a_missing_library_names_the_extra() -> None:
    code = """
import sys
sys.modules["paho"] = None
from nnet_edge.errors import MissingExtraError
from nnet_edge.runtime.sinks import MqttSettings, MqttSink
try:
    MqttSink(MqttSettings(host="127.0.0.1"))
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
        ({"password_from": "env:PASSWORD"}, "without a user"),
        ({"password_from": SECRET, "user": "line"}, "never the secret itself"),
        ({"ca_file": Path("ca.pem")}, "without TLS"),
        ({"tls": True, "key_file": Path("key")}, "without a certificate"),
        ({"timeout_s": 0.0}, "broker has to answer are 0.0"),
    ],
)
def test_invalid_settings_are_refused(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        MqttSettings(**{"host": "broker", **wrong})
    assert SECRET not in str(caught.value)


def test_nothing_can_be_promised_with_qos_0(tmp_path: Path) -> None:
    settings = QueueSettings(must_deliver=SpoolSettings(tmp_path))
    with pytest.raises(ConfigError, match="nobody acknowledges"):
        QueuedSink(MqttSink(MqttSettings(host="broker", qos=0)), settings)


def test_the_port_follows_tls() -> None:
    assert (MqttSettings(host="broker").port, MqttSettings(host="broker", tls=True).port) == (1883, 8883)


def test_the_registry_builds_it_from_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        "kind": "mqtt",
        "host": "broker",
        "tls": True,
        "ca_file": "ca.pem",
        "user": "u",
        "password_from": "env:SECRET",
    }
    settings = SinkSettings.from_table(table, "[[sink]]", tmp_path)
    assert settings == MqttSettings(
        host="broker", port=8883, tls=True, ca_file=tmp_path / "ca.pem", user="u", password_from="env:SECRET"
    )
    kind = SINKS.find("mqtt")
    with pytest.raises(ConfigError, match="password_from: the environment has no SECRET"):
        kind.make(settings)
    monkeypatch.setenv("SECRET", SECRET)
    assert isinstance(kind.make(settings), MqttSink)
    assert SECRET not in repr(settings)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("broker", ("broker", 1883)),
        ("broker:1884", ("broker", 1884)),
        ("[::1]:1884", ("::1", 1884)),
        ("::1", ("::1", 1883)),
    ],
)
def test_the_flag_names_host_and_port(text: str, place: tuple[str, int]) -> None:
    flag = SINKS.find("mqtt").flag
    assert flag is not None
    typed = SinkSettings.from_table({"kind": "mqtt", **flag.table(text, Asked(is_live=True))}, flag.name, Path())
    assert isinstance(typed, MqttSettings)
    assert (typed.host, typed.port) == place
    assert not typed.every_frame


def test_a_scheme_in_the_flag_is_one_sentence() -> None:
    flag = SINKS.find("mqtt").flag
    assert flag is not None
    with pytest.raises(ConfigError, match="--mqtt: the MQTT host must be a name or an address, without a scheme"):
        SinkSettings.from_table({"kind": "mqtt", **flag.table("mqtt://broker", Asked())}, flag.name, Path())


def test_triggers_and_recipes_come_from_the_broker_and_outlive_its_outage(
    make_broker: Make, until: Make, caplog: pytest.LogCaptureFixture
) -> None:
    paho = pytest.importorskip("paho.mqtt.client")
    broker = make_broker()
    orders: list[tuple[Any, ...]] = []

    def refuse(stream: str | None, number: int | None, by: str) -> int:
        orders.append((stream, number, by))
        if stream == "absent":
            raise ConfigError("there is no stream called 'absent'")
        return 1

    def publish(topic: str, payload: str, retain: bool = False) -> None:
        client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        client.connect("127.0.0.1", broker.port)
        client.loop_start()
        client.publish(f"hall/{topic}", payload, qos=1, retain=retain).wait_for_publish(5)
        client.disconnect()
        client.loop_stop()

    publish("left/trigger", "5", retain=True)  # of yesterday
    settings = to(broker, prefix="hall", takes_orders=True, name="plc")
    with QueuedSink(MqttSink(settings), QueueSettings(**QUICK)) as sink:
        sink.obey(Orders(refuse, lambda name, by: orders.append((name, by))))
        until(lambda: sink.sink._client is not None)  # type: ignore[attr-defined]
        for topic, payload in (("left/trigger", ""), ("left%2B%2F%23/trigger", "77"), ("left/trigger", "seven"),
                               ("absent/trigger", "1"), ("recipe", "m10")):  # fmt: skip
            publish(topic, payload)
        until(lambda: orders and orders[-1] == ("m10", "plc"))
        assert orders == [("left", None, "plc"), ("left+/#", 77, "plc"), ("absent", 1, "plc"), ("m10", "plc")]
        assert "'seven' is no number" in caplog.text
        broker.stop()
        until(lambda: sink.counts().state == "dead", 5)  # told and counted, while the line goes on
        broker.start()
        until(lambda: sink.counts().state == "ok", 5)
        publish("left/trigger", "78")
        until(lambda: orders[-1] == ("left", 78, "plc"))
