"""The frame buffer: bounded, fair, and every captured frame accounted for, by cause, at any moment."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nnet_edge.errors import ConfigError
from nnet_edge.frame import Frame
from nnet_edge.runtime.stream.buffer import FrameBuffer
from nnet_edge.runtime.stream.stream_queue import CAUSES
from nnet_edge.settings.policy import EVERY_FRAME, FRESHEST, Policy
from nnet_edge.settings.stream import BufferSettings

IMAGE = np.zeros((2, 2, 3), np.uint8)


def frame(stream: str, index: int, age_s: float = 0.0) -> Frame:
    return Frame(IMAGE, index, time.monotonic() - age_s, stream, session="s")


def buffer_of(*names: str, settings: BufferSettings | None = None) -> FrameBuffer:
    buffer = FrameBuffer()
    for name in names:
        buffer.add(name, settings or BufferSettings(FRESHEST, 4))
    return buffer


def settle(buffer: FrameBuffer, frames: list[Frame], cause: str | None = None) -> None:
    for one in frames:
        buffer.settle(one.stream, cause)


def require_balanced(buffer: FrameBuffer) -> None:
    for name, counts in buffer.all_counts().items():
        assert counts.is_balanced, (name, counts)
        assert set(counts.dropped) <= set(CAUSES)
    assert buffer.total().is_balanced


def test_a_full_queue_drops_its_oldest_and_says_so() -> None:
    buffer = buffer_of("a", settings=BufferSettings(FRESHEST, 2))
    assert all(buffer.put(frame("a", index)) for index in range(5))
    taken = [frame for _ in range(2) for frame in buffer.take(8) or []]
    assert [one.index for one in taken] == [3, 4]
    counts = buffer.counts("a")
    assert (counts.captured, counts.judged, counts.dropped, counts.queued) == (5, 0, {"full": 3}, 2)
    settle(buffer, taken)
    assert (buffer.counts("a").judged, buffer.counts("a").queued) == (2, 0)
    require_balanced(buffer)


def test_what_waits_without_a_batch_being_finished_is_stalled() -> None:
    buffer = buffer_of("a", "b")
    assert buffer.stalled_s() is None
    time.sleep(0.1)  # idle: nothing waits, nothing stalls
    buffer.put(frame("a", 0))
    buffer.put(frame("b", 0))
    assert buffer.stalled_s() < 0.1  # type: ignore[operator]
    taken = buffer.take(8) or []
    time.sleep(0.3)
    buffer.put(frame("a", 1))  # what comes does not hide that nothing goes
    assert buffer.stalled_s() >= 0.3  # type: ignore[operator]
    settle(buffer, taken[:1])
    assert buffer.stalled_s() < 0.3  # type: ignore[operator]
    settle(buffer, taken[1:], "failed")
    settle(buffer, buffer.take(8) or [])
    assert buffer.stalled_s() is None


def test_a_frame_older_than_the_stream_bears_is_dropped_as_stale() -> None:
    buffer = buffer_of("a", settings=BufferSettings(FRESHEST, 4, staleness_s=0.5))
    buffer.put(frame("a", 0, age_s=2.0))
    buffer.put(frame("a", 1))
    taken = buffer.take(8)
    assert taken is not None
    assert [one.index for one in taken] == [1]
    assert buffer.counts("a").dropped == {"stale": 1}
    require_balanced(buffer)


@pytest.mark.parametrize(
    ("rate_hz", "pace", "expected"), [(25, "paced:5", 50), (25, "paced:10", 100), (5, "paced:10", 50)]
)
def test_a_paced_lane_takes_so_many_frames_a_second(rate_hz: int, pace: str, expected: int) -> None:
    buffer = buffer_of("a", settings=BufferSettings(Policy.from_text(pace), 1000))
    for index in range(10 * rate_hz):  # ten seconds of the camera
        buffer.put(Frame(IMAGE, index, 1000.0 + index / rate_hz, "a", session="s"))
    counts = buffer.counts("a")
    assert counts.queued == pytest.approx(expected, abs=1)
    assert counts.dropped.get("paced", 0) == counts.captured - counts.queued


def test_a_batch_is_one_frame_of_each_camera_oldest_first_and_files_fill_it_up() -> None:
    buffer = buffer_of("a", "c")
    buffer.add("b", BufferSettings(EVERY_FRAME, 4))
    for name, age_s in (("b", 0.3), ("a", 0.2), ("c", 0.1)):
        for index in range(2):
            buffer.put(frame(name, index, age_s - index / 100))
    taken = buffer.take(4)
    assert taken is not None
    assert [(one.stream, one.index) for one in taken] == [("b", 0), ("a", 0), ("c", 0), ("b", 1)]


def test_no_stream_starves_when_cameras_in_step_want_more_than_a_batch_holds() -> None:
    names = [f"camera-{number}" for number in range(8)]
    buffer = buffer_of(*names, settings=BufferSettings(FRESHEST, 1))
    served: Counter[str] = Counter()
    for index in range(100):
        for number, name in enumerate(names):  # always in the same order: the first is always the oldest
            buffer.put(frame(name, index, age_s=(8 - number) / 1000))
        taken = buffer.take(3)
        assert taken is not None
        served.update(one.stream for one in taken)
        settle(buffer, taken)
    assert max(served.values()) - min(served.values()) <= 1
    require_balanced(buffer)


def test_crops_count_as_images_of_a_batch() -> None:
    buffer = FrameBuffer()
    buffer.add("three crops", BufferSettings(FRESHEST, 4, weight=3))
    buffer.add("plain", BufferSettings(FRESHEST, 4))
    for index in range(3):
        buffer.put(frame("three crops", index, age_s=1))
        buffer.put(frame("plain", index))
    taken = buffer.take(5)
    assert taken is not None
    assert [one.stream for one in taken] == ["three crops", "plain"]  # 4 images; the next has 3 and waits for its turn


def test_a_batch_waits_for_the_other_streams_until_the_deadline() -> None:
    buffer = buffer_of("a", "b")
    buffer.put(frame("a", 0))
    buffer.put(frame("b", 0))
    assert len(buffer.take(8) or []) == 2
    buffer.put(frame("a", 1))
    start_s = time.monotonic()
    assert len(buffer.take(8, deadline_s=0.1) or []) == 1  # b was active a moment ago, and does not come
    assert 0.09 < time.monotonic() - start_s < 0.5
    threading.Timer(0.03, buffer.put, [frame("b", 1)]).start()
    buffer.put(frame("a", 2))
    assert [one.stream for one in buffer.take(8, deadline_s=5.0) or []] == ["b", "a"]  # b was served longer ago


def test_a_file_waits_for_room_and_loses_nothing() -> None:
    buffer = buffer_of("file", settings=BufferSettings(EVERY_FRAME, 2))
    thread = threading.Thread(
        target=lambda: ([buffer.put(frame("file", index)) for index in range(50)], buffer.close("file"))
    )
    thread.start()
    seen: list[int] = []
    while taken := buffer.take(3):
        require_balanced(buffer)
        seen += [one.index for one in taken]
        settle(buffer, taken)
    thread.join(2)
    assert seen == list(range(50))
    assert buffer.counts("file").dropped == {}
    require_balanced(buffer)


def test_a_pause_drops_live_frames_and_holds_files() -> None:
    buffer = FrameBuffer()
    buffer.add("live", BufferSettings(FRESHEST, 2))
    buffer.add("file", BufferSettings(EVERY_FRAME, 2))
    buffer.put(frame("live", 0))
    buffer.put(frame("file", 0))
    buffer.pause("live")
    buffer.pause("file")
    buffer.put(frame("live", 1))
    waiting = threading.Thread(target=buffer.put, args=[frame("file", 1)])
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    assert buffer.counts("live").dropped == {"paused": 2}
    require_balanced(buffer)
    buffer.resume("file")
    waiting.join(2)
    assert not waiting.is_alive()
    assert buffer.counts("file").queued == 2
    require_balanced(buffer)


def test_a_removed_stream_is_accounted_for_and_its_name_may_come_again() -> None:
    buffer = buffer_of("a")
    for index in range(3):
        buffer.put(frame("a", index))
    taken = buffer.take(1)
    assert taken is not None
    buffer.remove("a")
    assert not buffer.put(frame("a", 3))
    buffer.add("a", BufferSettings(FRESHEST, 4))
    buffer.put(Frame(IMAGE, 0, time.monotonic(), "a", session="another"))
    settle(buffer, taken)
    counts = buffer.counts("a")
    assert (counts.captured, counts.judged, counts.dropped, counts.queued) == (5, 1, {"removed": 3}, 1)
    with pytest.raises(ConfigError, match="a stream called 'a' already"):
        buffer.add("a", BufferSettings())
    with pytest.raises(ConfigError, match="no stream called 'b': there are a"):
        buffer.pause("b")


def test_a_stop_frees_who_waits_and_counts_what_is_left() -> None:
    buffer = buffer_of("file", settings=BufferSettings(EVERY_FRAME, 1))
    buffer.put(frame("file", 0))
    results: list[bool] = []
    waiting = threading.Thread(target=lambda: results.append(buffer.put(frame("file", 1))))
    waiting.start()
    time.sleep(0.05)
    buffer.stop()
    waiting.join(2)
    assert results == [False]
    assert buffer.take(1) == []
    assert buffer.counts("file").dropped == {"stopped": 2}
    require_balanced(buffer)


def test_thousands_of_names_keep_the_memory_small_and_the_total_exact() -> None:
    buffer = FrameBuffer(keep_open=True)
    for number in range(1000):
        buffer.add(f"s{number}", BufferSettings())
        buffer.put(frame(f"s{number}", 0))
        buffer.remove(f"s{number}")
    assert len(buffer.all_counts()) <= 257
    assert buffer.total().captured == 1000
    assert buffer.total().dropped == {"removed": 1000}


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "take", "judge", "fail", "pause", "resume", "remove", "add", "close"]),
              st.sampled_from(["a", "b"])),
    max_size=60,
)  # fmt: skip


@given(STEPS)
@settings(max_examples=60, deadline=None)
def test_whatever_happens_in_whatever_order_every_frame_is_accounted_for(steps: list[tuple[str, str]]) -> None:
    buffer = FrameBuffer(keep_open=True)
    names: set[str] = set()
    taken: list[Frame] = []
    numbers: Iterator[int] = iter(range(1000))
    put = 0
    for step, name in steps:
        if step == "add" and name not in names:
            buffer.add(name, BufferSettings(FRESHEST, 2, staleness_s=10.0))
            names.add(name)
        elif step == "put":
            buffer.put(frame(name, next(numbers)))
            put += 1
        elif step == "take":
            taken += buffer.take(2, timeout_s=0.0) or []
        elif step in ("judge", "fail") and taken:
            settle(buffer, [taken.pop()], None if step == "judge" else "failed")
        elif step in ("pause", "resume", "remove") and name in names:
            getattr(buffer, step)(name)
            names -= {name} if step == "remove" else set()
        elif step == "close":
            buffer.close(name)
        require_balanced(buffer)
        assert buffer.total().captured == put
        assert buffer.total().queued == buffer.waiting() + len(taken)


def test_frames_that_did_not_arrive_whole_are_counted_by_cause() -> None:
    buffer = buffer_of("a")
    buffer.put(frame("a", 0))
    buffer.lose("a", "lost", 3)
    buffer.lose("a", "incomplete")
    counts = buffer.counts("a")
    assert (counts.captured, counts.dropped, counts.queued) == (5, {"lost": 3, "incomplete": 1}, 1)
    buffer.remove("a")
    buffer.lose("a", "incomplete")  # its reader has not heard of it yet
    require_balanced(buffer)
