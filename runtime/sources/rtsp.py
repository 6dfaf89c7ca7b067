"""Network cameras by RTSP, and other network video: RTMP, UDP, TCP."""

from __future__ import annotations

from dataclasses import dataclass, field

from nnet_edge.runtime.sources.addresses import has_scheme, shown_and_opened
from nnet_edge.runtime.sources.colour import ColourOptions
from nnet_edge.runtime.sources.video import VideoSource
from nnet_edge.settings.camera import CommonSettings
from nnet_edge.settings.registry import SOURCES, SourceKind
from nnet_edge.settings.runner import require_choice

TRANSPORTS = ("tcp", "udp")


@dataclass(frozen=True)
class RtspOptions(ColourOptions):
    """What only RTSP cameras have."""

    transport: str = field(default="tcp", metadata={"page": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("transport", self.transport, TRANSPORTS)


def open_network(settings: CommonSettings, options: ColourOptions) -> VideoSource:
    shown, address = shown_and_opened(settings)
    transport = options.transport if isinstance(options, RtspOptions) else None
    return VideoSource(address, shown, shown, settings, transport, options.colour_matrix)


SOURCES.register(
    SourceKind(
        "rtsp", "an rtsp:// address", has_scheme("rtsp", "rtsps"), open_network, RtspOptions, page="rtsp", order=40
    )
)
OTHERS = "an rtmp://, udp:// or tcp:// address"
SOURCES.register(
    SourceKind("network", OTHERS, has_scheme("rtmp", "udp", "tcp"), open_network, ColourOptions, page="pipeline")
)
