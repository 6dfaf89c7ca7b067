"""Settings that every sink has; each kind adds its own in its file and registers them in SINKS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from nnet_edge.errors import ConfigError
from nnet_edge.settings.reader import build, schema_of
from nnet_edge.settings.registry import SINKS
from nnet_edge.settings.runner import require_between, require_positive
from nnet_edge.settings.stream import require_name


@dataclass(frozen=True)
class SinkSettings:
    """Settings of every sink. Raises ConfigError for an invalid setting."""

    kind: ClassVar[str] = ""  # as TOML writes it

    name: str | None = None  # None: the kind
    queue: int = 256  # verdicts and events that wait for the sink; 0: the line writes them itself, and a fault ends it
    must_deliver: Path | None = None  # a folder to spool in: nothing is lost while the receiver is down
    spool_bytes: int = 1 << 30  # that the folder of must_deliver may take
    every_frame: bool = False  # the line waits for the sink, for a while, instead of losing what it cannot take
    retry_s: float = 60.0  # after that, what a failing sink was given is lost

    def __post_init__(self) -> None:
        if self.name is not None:
            require_name("a sink", self.name)
        require_between("queue", self.queue, 0, 1_000_000)
        if self.queue == 0 and self.must_deliver is not None:
            raise ConfigError("a sink that must deliver needs a queue: leave queue = 0 out, or must_deliver")
        require_between("spool_bytes", self.spool_bytes, 1 << 16, 1 << 50)
        require_positive("retry_s", self.retry_s)

    @classmethod
    def from_table(cls, table: Any, where: str, folder: Path) -> SinkSettings:
        """The settings of one [[sink]] table, of the class that its `kind` names. Raises ConfigError."""
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where} is {table!r}: it must be a table")
        if "kind" not in table:
            raise ConfigError(f"{where} lacks its kind: choose {', '.join(SINKS.names())}")
        settings = SINKS.find(table["kind"], where).settings
        found: SinkSettings = build(settings, {key: table[key] for key in table if key != "kind"}, where, folder)
        return found

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON schema of a [[sink]] table: one of the registered kinds."""
        kinds = []
        for kind in SINKS:
            schema = schema_of(kind.settings)
            schema["properties"] = {"kind": {"const": kind.name, "description": "Which kind of sink it is"}} | schema[
                "properties"
            ]
            kinds.append(schema | {"required": ["kind", *schema.get("required", [])]})
        return {"oneOf": kinds}

    @property
    def label(self) -> str:
        """The name for counts and events."""
        return self.name or self.kind

    @property
    def is_strict(self) -> bool:
        """Whether a receiver that closes for good ends the line, as a closed pipe does."""
        return False

    @property
    def asks_for_parts(self) -> bool:
        """Whether it triggers the one stream that it shows."""
        return False

    @property
    def shown_stream(self) -> str | None:
        """The only stream that the sink takes; None: all of them."""
        return None
