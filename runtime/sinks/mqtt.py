"""Verdicts at an MQTT broker, on plain topics; the only file that imports paho.

`PREFIX/STREAM/verdict` gets one JSON object a frame, `PREFIX/STREAM/event` and `PREFIX/event` the events of a stream and
of the line. With `takes_orders` a message on `PREFIX/STREAM/trigger` triggers (its payload: the number, or nothing), and one on
`PREFIX/recipe` names the recipe to use.

`PREFIX/status` says `online`, retained, and the broker itself says `offline` when this program is gone. The topic
belongs to one line: when another program writes it, the log says so, and an `offline` of the other is taken back.
"""

from __future__ import annotations

import contextlib
import logging
import re
import ssl
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from nnet_edge.errors import ConfigError, MissingExtraError, NnetEdgeError, SinkError
from nnet_edge.runtime.sinks.base import JsonSink, Message, Orders, flag_defaults
from nnet_edge.settings.registry import SINKS, Asked, Flag, SinkKind
from nnet_edge.settings.runner import require_between, require_seconds
from nnet_edge.settings.secrets import read_secret, require_secret_place
from nnet_edge.settings.sink import SinkSettings

log = logging.getLogger(__name__)

PLAIN_PORT, TLS_PORT = 1883, 8883
ONLINE, OFFLINE = b"online", b"offline"
IN_FLIGHT = 10  # messages without acknowledgement: a broker may hang up on who sends more (mosquitto: 20)
GOODBYE_LIMIT_S = 1.0  # for the last message and the end of paho's thread


@dataclass(frozen=True, kw_only=True)
class MqttSettings(SinkSettings):
    """Verdicts and events published to a broker."""

    kind = "mqtt"

    host: str  # of the broker
    port: int = 0  # 0: 1883, with TLS 8883
    prefix: str = "nnet-edge"  # the first levels of every topic
    qos: int = 1  # 0: nobody acknowledges, and what a broken connection swallows is lost; 1, 2: see MQTT
    user: str | None = None  # at the broker; None: nobody in particular
    password_from: str | None = None  # "env:NAME" or "file:PATH"
    client_id: str = ""  # "": one that the library draws
    tls: bool = False  # encrypted
    ca_file: Path | None = None  # None: the system's authorities
    certificate_file: Path | None = None  # of this client, PEM
    key_file: Path | None = None  # of the certificate, where it is not in the same file
    keepalive_s: int = 30  # the broker says `offline` after 1.5 times this long without a sign
    timeout_s: float = 5.0  # to connect, and for the acknowledgement of a batch
    only_rejects: bool = False  # no verdicts of good parts
    events: bool = True  # those of the line, too
    takes_orders: bool = False  # triggers and recipes from the broker: see that nobody else may write there

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.host or "/" in self.host or "@" in self.host:
            raise ConfigError("the MQTT host must be a name or an address, without a scheme, a user or a path")
        if self.port == 0:
            object.__setattr__(self, "port", TLS_PORT if self.tls else PLAIN_PORT)
        require_between("MQTT port", self.port, 1, 65535)
        require_between("MQTT QoS", self.qos, 0, 2)
        require_between("MQTT keepalive in seconds", self.keepalive_s, 1, 65535)
        require_seconds("seconds that the MQTT broker has to answer", self.timeout_s, above=0.0)
        if not self.prefix.strip("/") or self.prefix != self.prefix.strip("/") or set("+#\0") & set(self.prefix):
            raise ConfigError(f"MQTT prefix {self.prefix!r}: give a topic without + and #, and without / at its ends")
        if self.password_from is not None:
            require_secret_place("password_from", self.password_from)
            if self.user is None:
                raise ConfigError("there is an MQTT password without a user: give both")
        if not self.tls and (self.ca_file or self.certificate_file or self.key_file):
            raise ConfigError("there are MQTT certificates without TLS: set tls, or leave them out")
        if self.key_file is not None and self.certificate_file is None:
            raise ConfigError("there is an MQTT key without a certificate: give both")

    @property
    def where(self) -> str:
        """Host and port, for people."""
        return f"{self.host}:{self.port}"

    @property
    def status_topic(self) -> str:
        """Where `online` and `offline` are said."""
        return f"{self.prefix}/status"


class MqttSink(JsonSink):
    """Publishes predictions and events; a message counts as delivered when the broker has acknowledged it (QoS 1, 2).

    It connects in the first write or tick, not on entering: a broker that is down is no reason for a line to stand.
    After any fault it connects again and the caller sends again what was not acknowledged, so order holds.
    """

    name = "mqtt"
    largest_batch = 64

    def __init__(self, settings: MqttSettings) -> None:
        self._settings = settings
        place = settings.password_from
        self._password = None if place is None else read_secret("password_from", place)
        try:
            import paho.mqtt.client as paho
        except ImportError as error:
            raise MissingExtraError("paho-mqtt is not installed: pip install 'nnet-edge[mqtt]'") from error
        self._paho = paho
        self._client: Any = None  # paho.mqtt.client.Client, connected
        self._awaits_leave = False  # to listen on the status topic, asked for and not answered
        self._is_shared = False  # whether another program writes there, which is told once
        self._orders: Orders | None = None
        self.wants_events = settings.events
        self.wants_good = not settings.only_rejects

    def __exit__(self, *about: object) -> None:
        client, self._client = self._client, None
        if client is None:
            return
        client.on_message = None  # the next `offline` is this line's own
        with contextlib.suppress(ValueError, RuntimeError, OSError):  # the last will says the same a little later
            last = client.publish(self._settings.status_topic, OFFLINE, qos=1, retain=True)
            last.wait_for_publish(GOODBYE_LIMIT_S)
        let_go(client)

    def obey(self, orders: Orders) -> None:
        self._orders = orders

    def require_deliverable(self) -> None:
        if self._settings.qos == 0:
            raise ConfigError("MQTT with QoS 0 cannot be made to deliver, nobody acknowledges there: choose QoS 1 or 2")

    def part_name(self, content: str, stream: str | None) -> str:
        level = "" if stream is None else f"/{topic_level(stream)}"
        return f"{self._settings.prefix}{level}/{content}"

    def send(self, messages: Sequence[Message]) -> int:
        self.tick()
        client, settings = self._client, self._settings
        deadline_s = time.monotonic() + settings.timeout_s
        arrived = 0
        try:
            for promise in [client.publish(*message.parts[0], qos=settings.qos) for message in messages]:
                self._wait(client, promise, deadline_s)
                arrived += 1
        except (ValueError, RuntimeError, OSError) as error:
            self._drop()
            fault = self._fault(str(error))
            if arrived == 0:
                raise fault from error
            log.warning("%s", fault)
        return arrived

    def tick(self) -> None:
        """Connect, where there is no connection."""
        if self._client is not None and not self._client.is_connected():
            self._drop()
        if self._client is None:
            self._client = self._connect()

    def _wait(self, client: Any, promise: Any, deadline_s: float) -> None:
        """Wait for the broker's acknowledgement. Raise OSError when it is late, or the connection is gone."""
        while not promise.is_published():
            if not client.is_connected():
                raise ConnectionError("the connection is lost")
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(f"no acknowledgement within {self._settings.timeout_s:g} s")
            promise.wait_for_publish(min(left_s, 0.2))

    def _connect(self) -> Any:
        """A connected client of paho that never reconnects by itself. Raises SinkError."""
        settings, answered, answer = self._settings, threading.Event(), []
        client = self._paho.Client(
            self._paho.CallbackAPIVersion.VERSION2, settings.client_id, reconnect_on_failure=False, clean_session=True
        )

        def on_connect(client: Any, userdata: Any, flags: Any, reason: Any, properties: Any) -> None:
            answer.append(reason)
            answered.set()

        client.on_connect = on_connect
        client.connect_timeout = settings.timeout_s
        client.max_inflight_messages_set(IN_FLIGHT)
        client.will_set(settings.status_topic, OFFLINE, qos=1, retain=True)
        if settings.user is not None:
            client.username_pw_set(settings.user, self._password)
        try:
            if settings.tls:
                client.tls_set_context(tls_context(settings))
            client.connect(settings.host, settings.port, keepalive=settings.keepalive_s)
        except (OSError, ValueError) as error:
            let_go(client)
            raise self._fault(str(error)) from error
        client.loop_start()
        if not answered.wait(settings.timeout_s):
            let_go(client)
            raise self._fault(f"no answer within {settings.timeout_s:g} s")
        if answer[0].is_failure:
            let_go(client)
            raise self._fault(f"it answered {str(answer[0])!r}: check user, password and what they may do")
        client.publish(settings.status_topic, ONLINE, qos=1, retain=True)
        if settings.takes_orders:
            client.message_callback_add(f"{settings.prefix}/+/trigger", self._hear_order)
            client.message_callback_add(f"{settings.prefix}/recipe", self._hear_order)
            client.subscribe(
                [(f"{settings.prefix}/+/trigger", 0), (f"{settings.prefix}/recipe", 1)]
            )  # a trigger never twice
        if not self._awaits_leave:
            self._watch_status(client)
        log.info("connected to the MQTT broker %s", settings.where)
        return client

    def _hear_order(self, client: Any, userdata: Any, message: Any) -> None:
        """Pass a trigger or a recipe on to the line; one that the broker kept from before is none."""
        text, label = message.payload.decode(errors="replace").strip(), self._settings.label
        if message.retain:
            return
        try:
            if self._orders is None:
                raise SinkError("the line does not run")
            if message.topic == f"{self._settings.prefix}/recipe":
                self._orders.use_recipe(text, label)
                return
            if text and not (text.isascii() and text.isdecimal() and len(text) < 11):
                raise SinkError(f"{text[:40]!r} is no number")
            stream = unquote(message.topic.removeprefix(f"{self._settings.prefix}/").removesuffix("/trigger"))
            self._orders.trigger(stream, int(text) if text else None, label)
        except NnetEdgeError as error:
            log.warning("%s: what came on %s is refused: %s", label, message.topic[:100], error)

    def _watch_status(self, client: Any) -> None:
        """Listen on the status topic, where nobody but this line should write.

        A broker that lets nobody listen there says so, or hangs up: then it is not asked a second time.
        """
        topic, echoes, asked = self._settings.status_topic, [0], list[int]()

        def on_message(client: Any, userdata: Any, message: Any) -> None:
            if message.retain or (message.payload == ONLINE and echoes[0]):
                echoes[0] -= not message.retain
                return
            if not self._is_shared:
                log.warning("another program writes %s too: give each line a prefix of its own", topic)
            self._is_shared = True
            if message.payload == OFFLINE:
                echoes[0] += 1
                client.publish(topic, ONLINE, qos=1, retain=True)

        def on_subscribe(client: Any, userdata: Any, number: int, reasons: Any, properties: Any) -> None:
            if not asked or number == asked[0]:  # the answer is to this subscription
                self._awaits_leave = False

        self._awaits_leave = True
        client.on_message, client.on_subscribe = on_message, on_subscribe
        asked.append(client.subscribe(topic, qos=1)[1])

    def _drop(self) -> None:
        """Forget the connection and all that paho still holds: what was not acknowledged is sent again by the caller."""
        client, self._client = self._client, None
        if client is not None:
            let_go(client)

    def _fault(self, reason: str) -> SinkError:
        return SinkError(f"cannot publish to the MQTT broker {self._settings.where}: {reason}")


def topic_level(stream: str) -> str:
    """The stream's name as one level of a topic: what MQTT reserves is written as %XX."""
    return quote(stream, safe=" !\"$&'()*,-.:;<=>?@[]^_`{|}~") or "_"


class TlsSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails, which paho leaves to the garbage collector."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


def tls_context(settings: MqttSettings) -> ssl.SSLContext:
    """What the settings trust and show. Raises OSError (ssl.SSLError is one) for files that cannot be used."""
    context = ssl.create_default_context(cafile=None if settings.ca_file is None else str(settings.ca_file))
    context.sslsocket_class = TlsSocket
    if settings.certificate_file is not None:
        context.load_cert_chain(settings.certificate_file, settings.key_file)
    return context


def let_go(client: Any) -> None:
    """End the client's connection and its thread, within GOODBYE_LIMIT_S; a thread that hangs is left behind."""
    client.disconnect()
    ending = threading.Thread(target=client.loop_stop, name="end of an MQTT connection", daemon=True)
    ending.start()
    ending.join(GOODBYE_LIMIT_S)


def table_of(text: str, asked: Asked) -> dict[str, Any]:
    """What --mqtt asks for: every verdict and event to the broker at HOST or HOST:PORT."""
    found = re.fullmatch(r"(\[[^\]]+\]|[^:]*):([0-9]+)", text)
    host, port = found.groups() if found else (text, 0)
    return {"host": host.strip("[]"), "port": int(port)} | flag_defaults(asked, needs_queue=True)


FLAG = Flag("--mqtt", "Verdicts and events to this MQTT broker.", table_of, "text", "HOST[:PORT]")
SINKS.register(SinkKind("mqtt", MqttSettings, MqttSink, FLAG, needs={"paho": "mqtt"}))
