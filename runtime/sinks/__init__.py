"""Where predictions go: JSON lines, pictures of rejects, an annotated video, MQTT, a webhook, a function of yours."""

from nnet_edge.runtime.sinks.base import Message, MessageSink, RefusedError, Sink
from nnet_edge.runtime.sinks.callback import CallbackSink
from nnet_edge.runtime.sinks.fields import event_fields, event_id, to_fields, to_json, utc_text
from nnet_edge.runtime.sinks.json_lines import JsonLinesSettings, JsonLinesSink
from nnet_edge.runtime.sinks.mqtt import MqttSettings, MqttSink
from nnet_edge.runtime.sinks.pictures import PictureSettings, RejectPicturesSink
from nnet_edge.runtime.sinks.video import VideoSettings, VideoSink
from nnet_edge.runtime.sinks.video_file import fit
from nnet_edge.runtime.sinks.webhook import WebhookSettings, WebhookSink

__all__ = [
    "CallbackSink",
    "JsonLinesSettings",
    "JsonLinesSink",
    "Message",
    "MessageSink",
    "MqttSettings",
    "MqttSink",
    "PictureSettings",
    "RefusedError",
    "RejectPicturesSink",
    "Sink",
    "VideoSettings",
    "VideoSink",
    "WebhookSettings",
    "WebhookSink",
    "event_fields",
    "event_id",
    "fit",
    "to_fields",
    "to_json",
    "utc_text",
]
