"""Metrics of the inference server for Prometheus, from the counts that the bundles keep themselves."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from nnet_edge import __version__
from nnet_edge.runtime.stream.stream_queue import FrameCounts
from nnet_edge.runtime.web.metrics import BATCH_BOUNDS, LATENCY_BOUNDS_S, Family, exposition_of, family, histogram

if TYPE_CHECKING:
    from nnet_edge.runtime.serve.models import Models


class Metrics:
    """What is counted; a Listener of every bundle. Any thread may call any method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answers: Counter[tuple[str, str, str]] = Counter()  # model, action, status
        text = "Time of each stage of an image; total: from its place in the queue to its verdict."
        self._latency = histogram("serve_latency_seconds", text, ("model", "stage"), LATENCY_BOUNDS_S)
        self._batches = histogram("serve_batch_images", "Images in a batch.", ("model",), BATCH_BOUNDS)
        self.models: Models | None = None
        self.exposition = exposition_of(self)

    def batch(self, model: str, images: int, seconds: float) -> None:
        """A batch was computed."""
        self._batches.labels(model).observe(images)

    def took(self, model: str, stage: str, seconds: float) -> None:
        """A stage of an image took so long."""
        self._latency.labels(model, stage).observe(seconds)

    def answered(self, model: str, action: str, status: int) -> None:
        """A request was answered; `model` is empty for an unknown one."""
        with self._lock:
            self._answers[model, action if model else "", str(status)] += 1

    def collect(self) -> Iterator[Family]:
        """Every family; Prometheus' registry calls it."""
        with self._lock:
            answers = list(self._answers.items())
        yield family(
            "Counter", "serve_requests", "Requests by what became of them.", ("model", "action", "status"), answers
        )
        for one in (self._latency, self._batches):
            for found in one.collect():
                found.samples = [sample for sample in found.samples if not sample.name.endswith("_created")]
                yield found
        if self.models is not None:
            yield from self._of_models(self.models)
        yield family("Info", "serve_build", "Version.", (), [((), {"version": __version__})])

    def _of_models(self, models: Models) -> Iterator[Family]:
        rows = [(name, tally, models.loaded(name)) for name, tally in models.tallies.items()]
        counts = {
            name: tally.past + (FrameCounts() if served is None else served.counts()) for name, tally, served in rows
        }
        for kind, name, text, value in (
            ("Counter", "serve_images", "Images that came.", lambda one: one.captured),
            ("Counter", "serve_judged_images", "Images with a verdict.", lambda one: one.judged),
            ("Gauge", "serve_queued_images", "Images that wait or are under way.", lambda one: one.queued),
        ):  # fmt: skip
            yield family(kind, name, text, ("model",), [((model,), value(one)) for model, one in counts.items()])
        dropped = [((name, cause), n) for name, one in counts.items() for cause, n in one.dropped.items()]
        yield family(
            "Counter", "serve_dropped_images", "Images without a verdict, by cause.", ("model", "cause"), dropped
        )
        for kind, name, text, values in (
            ("Counter", "serve_rejects", "Verdicts that are anomalous.", [tally.rejects for _, tally, _ in rows]),
            ("Counter", "serve_loads", "Times that the bundle was loaded.", [tally.loads for _, tally, _ in rows]),
            ("Counter", "serve_closes", "Times that it was closed to make room.", [tally.closed for _, tally, _ in rows]),
            ("Gauge", "serve_loaded", "1 while it is loaded.", [float(served is not None) for *_, served in rows]),
            ("Gauge", "serve_model_bytes", "Memory that loading it took.", [tally.bytes for _, tally, _ in rows]),
        ):  # fmt: skip
            yield family(
                kind, name, text, ("model",), [((row[0],), value) for row, value in zip(rows, values, strict=True)]
            )
        yield family("Gauge", "serve_memory_bytes", "Memory of the server and its loaded bundles.", (),
                     [((), models.used_bytes)])  # fmt: skip
