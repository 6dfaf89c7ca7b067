"""Predictions and events as JSON holds them: the same fields in the log, at the broker and at the webhook."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, fields
from functools import lru_cache

from nnet_edge.events import Event
from nnet_edge.frame import JudgedBy, Prediction, Region

SCHEMA = (
    1  # of the fields of verdicts and events: more may come; none goes or changes its meaning under the same number
)
VERDICTS = ("good", "anomalous")  # by whether it is
REGION_FIELDS = tuple(field.name for field in fields(Region))  # `asdict` takes five times as long
ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, default=str)  # `json.dumps` makes one for each call


def to_fields(prediction: Prediction) -> dict[str, object]:
    """The prediction as JSON holds it; the map stays behind. `time` is the moment of capture, UTC."""
    return changing_fields(prediction) | constant_fields(prediction.judged_by)


def to_json_line(prediction: Prediction) -> bytes:
    """`to_fields` as JSON, without a line's end; what all predictions of a model share is encoded once."""
    return to_json(changing_fields(prediction))[:-1] + constant_json(prediction.judged_by)


def constant_fields(judged_by: JudgedBy | None) -> dict[str, object]:
    """The fields that all predictions of one model share."""
    if judged_by is None:
        return {"schema": SCHEMA, "bundle": None, "bundle_id": None, "precision": None, "runner": None}
    named = {name: value for name, value in asdict(judged_by).items() if name != "preview" or value}
    return {"schema": SCHEMA, **named}


@lru_cache(maxsize=256)
def constant_json(judged_by: JudgedBy | None) -> bytes:
    """These fields as the end of a JSON object."""
    return b", " + to_json(constant_fields(judged_by))[1:]


def changing_fields(prediction: Prediction) -> dict[str, object]:
    """The fields that are a prediction's own."""
    frame, judged = prediction.frame, prediction.judged
    captured_ms = round(1e3 * (time.time() - (time.monotonic() - frame.captured_s)))
    return {
        "id": frame.id,
        "stream": frame.stream,
        "index": frame.index,
        "crop": None if frame.crop is None else asdict(frame.crop),
        "name": frame.name,
        "trigger": None if frame.trigger is None else frame.trigger.number,
        "recipe": frame.recipe,
        **({} if frame.trigger is None else {"triggered_by": frame.trigger.by, "part": VERDICTS[prediction.is_reject]}),
        "time": utc_text(captured_ms),
        "time_in_file_s": None if frame.in_file_s is None else round(frame.in_file_s, 3),
        **({} if frame.stamp is None else {"camera": asdict(frame.stamp)}),
        "score": prediction.image_score,
        "relative_score": prediction.relative_score,
        "threshold": prediction.threshold,
        "threshold_from": prediction.threshold_from,
        "verdict": VERDICTS[prediction.is_anomalous],
        "regions": [{name: getattr(region, name) for name in REGION_FIELDS} for region in prediction.regions],
        **(
            {}
            if judged is None
            else {"judged": {"x": judged.left, "y": judged.top, "width": judged.width, "height": judged.height}}
        ),
        "latencies_ms": {stage: round(latency_ms, 3) for stage, latency_ms in prediction.latencies_ms.items()},
    }


def event_fields(event: Event) -> dict[str, object]:
    """The event as JSON holds it; `time` is when it happened, UTC."""
    when = utc_text(round(1e3 * event.at))
    return {
        "id": event_id(event),
        "event": event.kind,
        "stream": event.stream,
        "time": when,
        "facts": dict(event.facts),
        "schema": SCHEMA,
    }


def event_id(event: Event) -> str:
    """The event's id, the same in every copy: kind, stream and moment in microseconds."""
    return f"event/{event.kind}/{event.stream or 'line'}/{round(1e6 * event.at)}"


def to_json(fields: Mapping[str, object]) -> bytes:
    """One line of JSON in UTF-8, without its end; what JSON cannot hold becomes text. Raises ValueError for a NaN."""
    return ENCODER.encode(fields).encode(errors="backslashreplace")


def utc_text(since_1970_ms: int) -> str:
    """A moment as ISO 8601 has it, UTC, to the millisecond."""
    seconds, rest_ms = divmod(since_1970_ms, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest_ms:03d}Z"
