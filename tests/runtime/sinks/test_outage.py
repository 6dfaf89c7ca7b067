"""Broker and webhook receiver are down, both at once, while verdicts come: none is lost, and nobody waits.

For a minute and with the sinks' usual patience where `make faults` asks; else for six seconds with a tenth of that patience,
so that sinks are called dead and pauses have grown to the longest by the same share of the outage.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.benchmarks.line.faults import ROWS_FILE
from nnet_edge.runtime.sinks import MqttSettings, MqttSink, QueuedSink, QueueSettings, WebhookSettings, WebhookSink
from nnet_edge.runtime.sinks.spool import SpoolSettings

log = logging.getLogger(__name__)

SHARE = 1.0 if ROWS_FILE in os.environ else 0.1
OUTAGE_S = 60.0 * SHARE
BEFORE_S = 1.0
USUAL = QueueSettings()
PATIENCE: dict[str, Any] = {
    "longest_pause_s": SHARE * USUAL.longest_pause_s,
    "dead_after_s": SHARE * USUAL.dead_after_s,
}
RATE_HZ = 40  # verdicts a second, as 4 cameras of 10 frames/s give them
LONGEST_PUT_S = (
    2.0  # of one verdict, on a machine whose cores are shared; one that waited for the broker took the outage
)


@pytest.mark.slow
def test_an_outage_costs_nothing(
    make_broker: Callable[..., Any],
    listen: Callable[..., Any],
    receiver: Any,
    until: Callable[..., None],
    make_prediction: Callable[..., Any],
    tmp_path: Path,
    note_fault: Callable[..., None],
) -> None:
    broker = make_broker("allow_anonymous true", "max_inflight_messages 1")  # or its own queue comes out of order
    listener = listen(broker)
    sinks = {
        "mqtt": MqttSink(MqttSettings(host="127.0.0.1", port=broker.port)),
        "webhook": WebhookSink(WebhookSettings(url=receiver.place, only_rejects=False)),
    }
    sent, longest_put_s, back_s = 0, 0.0, 0.0
    caught_up_s: dict[str, float] = {}
    with ExitStack() as stack:
        queued_sinks = [
            stack.enter_context(
                QueuedSink(sink, QueueSettings(must_deliver=SpoolSettings(tmp_path / name), **PATIENCE), name=name)
            )
            for name, sink in sinks.items()
        ]
        began_s = time.monotonic()
        is_down, was_down = False, False
        while (passed_s := time.monotonic() - began_s) < BEFORE_S + OUTAGE_S + 1:
            if passed_s > BEFORE_S and not was_down:
                broker.stop()
                receiver.stop()
                is_down = was_down = True
            if passed_s > BEFORE_S + OUTAGE_S and is_down:
                assert {queued.counts().state for queued in queued_sinks} == {"dead"}
                broker.start()
                receiver.start()
                is_down = False
                back_s = time.monotonic()
            for queued in queued_sinks:
                put_s = time.monotonic()
                queued.write(make_prediction(sent))
                longest_put_s = max(longest_put_s, time.monotonic() - put_s)
                assert queued.counts().is_balanced
                if not is_down and was_down and queued.counts().spooled <= 1:
                    caught_up_s.setdefault(queued.name, time.monotonic() - back_s)
            sent += 1
            time.sleep(max(0.0, sent / RATE_HZ - (time.monotonic() - began_s)))
        until(lambda: all(queued.counts().delivered == sent for queued in queued_sinks), 30)
        for queued in queued_sinks:
            caught_up_s.setdefault(queued.name, time.monotonic() - back_s)
    wanted = [f"test/{index}" for index in range(sent)]
    until(lambda: len(set(listener.payloads("nnet-edge/test/verdict"))) == sent)
    by_mqtt = [json.loads(payload)["id"] for payload in listener.payloads("nnet-edge/test/verdict")]
    by_webhook = [body["id"] for body in receiver.posted]
    for name, arrived, queued in zip(sinks, (by_mqtt, by_webhook), queued_sinks, strict=True):
        assert list(dict.fromkeys(arrived)) == wanted  # none lost, in order; a copy has the same id
        assert queued.counts().is_balanced
        assert (queued.counts().dropped, queued.counts().spooled) == ({}, 0)
        copies = len(arrived) - sent
        log.warning("%s: %d sent, %d copies, longest put %.1f ms", name, sent, copies, 1e3 * longest_put_s)
        fault = {"mqtt": "broker down for a minute", "webhook": "webhook receiver down for a minute"}[name]
        recovered = f"{caught_up_s[name]:.1f} s until all was delivered, {copies} copies"
        note_fault(fault, sent, queued.counts().delivered, queued.counts().dropped, recovered, "verdicts")
    assert longest_put_s < LONGEST_PUT_S
