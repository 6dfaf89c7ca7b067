"""How the MQTT broker is reached and what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from nnet_edge.config import require_between, require_seconds
from nnet_edge.errors import ConfigError

PLAIN_PORT, TLS_PORT = 1883, 8883


@dataclass(frozen=True)
class MqttSettings:
    """A broker and the topics. Raises ConfigError for a setting that cannot be meant."""

    host: str
    port: int = 0  # 0: 1883, with TLS 8883
    prefix: str = "nnet-edge"  # the first levels of every topic
    qos: int = 1  # 0: nobody acknowledges, and what a broken connection swallows is lost; 1, 2: see MQTT
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    client_id: str = ""  # "": one that the library draws
    has_tls: bool = False
    ca_file: Path | None = None  # None: the system's authorities
    certificate_file: Path | None = None  # of this client, PEM
    key_file: Path | None = None  # of the certificate, where it is not in the same file
    keepalive_s: int = 30  # the broker says `offline` after 1.5 times this long without a sign
    timeout_s: float = 5.0  # to connect, and for the acknowledgement of a batch
    only_rejects: bool = False
    has_events: bool = True

    def __post_init__(self) -> None:
        if not self.host or "/" in self.host or "@" in self.host:
            raise ConfigError("the MQTT host must be a name or an address, without a scheme, a user or a path")
        if self.port == 0:
            object.__setattr__(self, "port", TLS_PORT if self.has_tls else PLAIN_PORT)
        require_between("MQTT port", self.port, 1, 65535)
        require_between("MQTT QoS", self.qos, 0, 2)
        require_between("MQTT keepalive in seconds", self.keepalive_s, 1, 65535)
        require_seconds("seconds that the MQTT broker has to answer", self.timeout_s, above=0.0)
        if not self.prefix.strip("/") or self.prefix != self.prefix.strip("/") or set("+#\0") & set(self.prefix):
            raise ConfigError(f"MQTT prefix {self.prefix!r}: give a topic without + and #, and without / at its ends")
        if self.password is not None and self.user is None:
            raise ConfigError("there is an MQTT password without a user: give both")
        if not self.has_tls and (self.ca_file or self.certificate_file or self.key_file):
            raise ConfigError("there are MQTT certificates without TLS: switch it on, or leave them out")
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
