"""The verdict on a whole frame, whose crops may have one each, as the page shows it."""

from __future__ import annotations

from collections.abc import Sequence

from nnet_edge.frame import Prediction


def last_verdict(parts: Sequence[Prediction]) -> dict[str, object] | None:
    """The verdict of the newest frame: the worst of its crops; None before the first."""
    if not parts:
        return None
    worst = max(parts, key=lambda part: (part.is_anomalous, part.relative_score))
    return {
        "id": worst.id,
        "score": worst.image_score,
        "threshold": worst.threshold,
        "is_anomalous": worst.is_anomalous,
        "regions": len(worst.regions),
        "name": worst.frame.name,
    }
