"""Verdicts as the sinks' JSON has them, and histories that hold them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.runtime.history.database import Bounds, Entry, HistoryWriter
from nnet_edge.runtime.sinks.fields import utc_text


def make_fields(index: int, at_s: float | None = None, is_bad: bool = False, **more: Any) -> dict[str, Any]:
    """The fields of a verdict of the camera `left`, captured at `at_s` (None: now); a reject has a region in its middle."""
    stream = more.get("stream", "left")
    region = {"x": 310, "y": 230, "width": 20, "height": 20, "area": 300.0, "peak": 1.2}
    fields = {
        "id": f"{stream}/S/{index}", "stream": stream, "index": index, "crop": None, "name": None,
        "time": utc_text(round(1e3 * (time.time() if at_s is None else at_s))), "score": 1.2 if is_bad else 0.5,
        "threshold": 1.0, "threshold_from": "bundle", "verdict": "anomalous" if is_bad else "good",
        "regions": [region] if is_bad else [], "latencies_ms": {"total": 12.5}, "schema": 1, "bundle": "part",
        "bundle_id": "0123456789ab", "precision": "fp32", "runner": "openvino", "size": [480, 640],
    }  # fmt: skip
    return fields | more


@pytest.fixture(name="make_fields")
def make_fields_fixture() -> Callable[..., dict[str, Any]]:
    """The function `make_fields`."""
    return make_fields


@pytest.fixture
def make_history(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes these verdicts, dictionaries of fields, into a history and gives its path."""

    def make(*verdicts: dict[str, Any], pictures: dict[str, bytes] | None = None, **bounds: Any) -> Path:
        path = tmp_path / "history.db"
        writer = HistoryWriter(path, Bounds(**{"days": 90, "budget_bytes": 1 << 40, "good_pictures": 100} | bounds))
        writer.open()
        writer.add([Entry(fields, pictures or {}) for fields in verdicts])
        writer.close()
        return path

    return make
