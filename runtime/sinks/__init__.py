"""Where predictions go: JSON lines, pictures of rejects, an annotated video, MQTT, a webhook, a function of yours."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nnet_edge.runtime.sinks.base import Message, MessageSink, RefusedError, Sink
    from nnet_edge.runtime.sinks.callback import CallbackSink
    from nnet_edge.runtime.sinks.fields import event_fields, event_id, to_fields, to_json, utc_text
    from nnet_edge.runtime.sinks.json_lines import JsonLinesSettings, JsonLinesSink
    from nnet_edge.runtime.sinks.mqtt import MqttSettings, MqttSink
    from nnet_edge.runtime.sinks.queue import QueueSettings, SinkCounts
    from nnet_edge.runtime.sinks.queued import QueuedSink, serve
    from nnet_edge.runtime.sinks.rejects import RejectsSettings, RejectsSink
    from nnet_edge.runtime.sinks.video import VideoSettings, VideoSink
    from nnet_edge.runtime.sinks.webhook import WebhookSettings, WebhookSink

HOMES = {  # name -> its file, which is imported when the name is asked for: a sink's file alone stays light
    "CallbackSink": "callback", "JsonLinesSettings": "json_lines", "JsonLinesSink": "json_lines", "Message": "base",
    "MessageSink": "base", "MqttSettings": "mqtt", "MqttSink": "mqtt", "QueueSettings": "queue", "QueuedSink": "queued",
    "RefusedError": "base", "RejectsSettings": "rejects", "RejectsSink": "rejects", "Sink": "base", "SinkCounts": "queue",
    "VideoSettings": "video", "VideoSink": "video", "WebhookSettings": "webhook", "WebhookSink": "webhook",
    "event_fields": "fields", "event_id": "fields", "serve": "queued", "to_fields": "fields", "to_json": "fields",
    "utc_text": "fields",
}  # fmt: skip
__all__ = [
    "CallbackSink",
    "JsonLinesSettings",
    "JsonLinesSink",
    "Message",
    "MessageSink",
    "MqttSettings",
    "MqttSink",
    "QueueSettings",
    "QueuedSink",
    "RefusedError",
    "RejectsSettings",
    "RejectsSink",
    "Sink",
    "SinkCounts",
    "VideoSettings",
    "VideoSink",
    "WebhookSettings",
    "WebhookSink",
    "event_fields",
    "event_id",
    "serve",
    "to_fields",
    "to_json",
    "utc_text",
]


def __getattr__(name: str) -> object:
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
