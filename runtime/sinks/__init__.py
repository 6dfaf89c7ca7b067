"""Where predictions go: JSON lines, pictures of rejects, an annotated video, MQTT, a webhook, a function of yours."""

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
