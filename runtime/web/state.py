"""State of the line for the page and the health checks: plain values, ready for JSON, without passwords."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, TypeVar

from nnet_edge import __version__
from nnet_edge.errors import ConfigError
from nnet_edge.runtime.sinks import event_fields
from nnet_edge.runtime.stream.meters import TRIGGER, Percentiles
from nnet_edge.runtime.stream.report import StreamStatus
from nnet_edge.runtime.stream.watchdog import STALL_LIMIT_S
from nnet_edge.runtime.web.gallery import Gallery, Reject
from nnet_edge.runtime.web.pictures import last_verdict

if TYPE_CHECKING:
    from nnet_edge.runtime.stream.line import Line

Found = TypeVar("Found")
SHOWN_EVENTS = 60
SHOWN_NUMBERS = {field.name.removesuffix("_ms"): field.name for field in fields(Percentiles)}
SHOWN_STAGES = ("total", "queue", "resize", "inference", "verdict")


@dataclass(frozen=True)
class Health:
    """Whether a health check passes, and why not."""

    is_good: bool
    reasons: tuple[str, ...] = ()


def line_state(line: Line, gallery: Gallery) -> dict[str, object]:
    """Everything that the page shows except scores and pictures."""
    return {
        "version": __version__, "run": gallery.run, "bundle": line.model().facts(),
        "warnings": list(line.model().warnings),
        "streams": of_each(line, lambda status: stream_state(line, gallery, status)), "sinks": sink_states(line),
        "events": [event_fields(event) for event in line.events.newest(SHOWN_EVENTS)][::-1],
        "rejects_without_picture": gallery.missed_rejects, "faults": list(alive(line, False).reasons),
    }  # fmt: skip


def of_each(line: Line, make: Callable[[StreamStatus], Found]) -> list[Found]:
    """The results of `make` for each stream; a stream that is removed meanwhile is left out."""
    found = []
    for status in line.streams():
        with suppress(ConfigError):
            found.append(make(status))
    return found


def stream_state(line: Line, gallery: Gallery, status: StreamStatus) -> dict[str, object]:
    stages = SHOWN_STAGES if status.triggers is None else (TRIGGER, *SHOWN_STAGES)
    latencies = line.stream(status.name).meters.latencies(stages)
    camera, counts, drift = status.camera, status.counts, gallery.drift.now(status.name)
    verdict, frame = status.settings.verdict, line.latest_frame(status.name)
    return {
        "name": status.name,
        "what": status.what,
        "state": "paused" if status.is_paused else camera.state,
        "source_state": camera.state,
        "since_s": round(camera.since_s, 1),
        "reason": camera.reason,
        "frozen_s": None if camera.frozen_s is None else round(camera.frozen_s, 1),
        "asked": camera.asked.as_dict(),
        "got": None if camera.got is None else camera.got.as_dict(),
        "reconnects": camera.reconnects,
        "skipped": camera.skipped,
        "source_counts": dict(camera.counts),
        "is_paused": status.is_paused,
        "bundle": status.bundle,
        "threshold": status.threshold,
        "bundle_threshold": status.bundle_threshold,
        "threshold_from": status.threshold_from,
        "adapting": None if status.adapting is None else status.adapting.as_dict(),
        "smoothing": None if verdict.smoothing is None else [verdict.smoothing.n, verdict.smoothing.m],
        "captured": counts.captured,
        "judged": counts.judged,
        "dropped": dict(counts.dropped),
        "queued": counts.queued,
        "triggers": None if status.triggers is None else status.triggers.as_dict(),
        "triggered_by": None if status.settings.trigger is None else status.settings.trigger.by,
        "answers": {sink: numbers.as_dict() for sink, numbers in line.meters.answers(status.name).items()},
        "verdicts": status.verdicts,
        "rejected": status.rejected,
        "low_scores": status.low,
        "latency_ms": {
            stage: {name: getattr(numbers, field) for name, field in SHOWN_NUMBERS.items()}
            for stage, numbers in latencies.items()
        },
        "regions_of_interest": [list(map(list, polygon)) for polygon in verdict.regions_of_interest],
        "ignored": [list(map(list, polygon)) for polygon in verdict.ignored],
        "has_mask_picture": bool(verdict.interest_picture or verdict.ignored_picture),
        "scores_from": gallery.first(status.name),
        "size": None if frame is None else [frame.image.shape[1], frame.image.shape[0]],
        "drift": None if drift is None else drift.as_dict(),
        "last": last_verdict(line.latest_parts(status.name)),
    }


def sink_states(line: Line) -> list[dict[str, object]]:
    """Each sink that has a queue of its own: state and counts."""
    found = [asdict(sink.counts()) for sink in line.sinks if hasattr(sink, "counts")]
    return [{name: value for name, value in counts.items() if name != "recovered"} for counts in found]


def alive(line: Line, is_ended: bool) -> Health:
    """Whether the program works at all; restart it when it does not."""
    if is_ended:
        return Health(False, ("the line has ended",))
    stalled_s = line.stalled_s()
    if stalled_s is None or stalled_s <= STALL_LIMIT_S:
        return Health(True)
    reason = f"frames wait, and no batch was finished for {stalled_s:.0f} s: the runner hangs, restart the line"
    return Health(False, (reason,))


def ready(line: Line, is_ended: bool) -> Health:
    """Whether verdicts are to be expected: the line works, each stream gives new pictures, is paused or has ended well."""
    found = alive(line, is_ended)
    if not found.is_good:
        return found
    reasons = []
    for one in line.streams():
        if one.is_paused:
            continue
        if one.camera.state not in ("live", "ended"):
            reasons.append(f"stream {one.name}: its source is {one.camera.state}")
        elif one.camera.state == "live" and one.camera.frozen_s is not None:
            reasons.append(f"stream {one.name}: its picture has not changed for {one.camera.frozen_s:.0f} s")
    return Health(not reasons, tuple(reasons))


def reject_state(reject: Reject) -> dict[str, object]:
    """A reject in the gallery's list."""
    shown = ("id", "stream", "index", "name", "time", "score", "threshold")
    return {name: reject.fields[name] for name in shown} | {"key": reject.key}
