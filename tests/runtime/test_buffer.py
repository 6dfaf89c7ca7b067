"""The buffer keeps order, keeps its bound, counts what it drops, and lets nobody wait for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnet_edge.config import WhenFull
from nnet_edge.errors import ConfigError, SourceError
from nnet_edge.frame import Frame
from nnet_edge.runtime.buffer import FrameBuffer

MakeFrame = Callable[..., Frame]
LIMIT_S = 1.0  # the promise: everything ends within a second


def indices(frames: list[Frame] | None) -> list[int]:
    assert frames is not None
    return [frame.index for frame in frames]


def test_frames_come_out_in_order_and_in_batches_up_to_the_limit(make_frame: MakeFrame) -> None:
    buffer = FrameBuffer(8, WhenFull.WAIT)
    for index in range(5):
        assert buffer.put(make_frame(index))
    buffer.close()
    assert [indices(buffer.take(limit=2)) for _ in range(4)] == [[0, 1], [2, 3], [4], []]
    assert buffer.dropped == 0


def test_a_full_buffer_drops_the_oldest_and_counts_it(make_frame: MakeFrame) -> None:
    buffer = FrameBuffer(3, WhenFull.DROP_OLDEST)
    for index in range(10):
        assert buffer.put(make_frame(index))
    assert indices(buffer.take(limit=8)) == [7, 8, 9]
    assert buffer.dropped == 7


def test_a_full_buffer_that_waits_takes_the_frame_when_there_is_room(make_frame: MakeFrame) -> None:
    buffer = FrameBuffer(1, WhenFull.WAIT)
    buffer.put(make_frame(0))
    thread = threading.Thread(target=buffer.put, args=(make_frame(1),))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    assert indices(buffer.take(limit=1)) == [0]
    thread.join(LIMIT_S)
    assert not thread.is_alive()
    assert indices(buffer.take(limit=1)) == [1]
    assert buffer.dropped == 0


def test_abandoning_frees_a_put_that_waits_and_counts_every_frame_left(make_frame: MakeFrame) -> None:
    buffer = FrameBuffer(1, WhenFull.WAIT)
    buffer.put(make_frame(0))
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(buffer.put(make_frame(1))))
    thread.start()
    thread.join(0.05)
    buffer.abandon()
    thread.join(LIMIT_S)
    assert answers == [False]
    assert buffer.dropped == 2
    assert buffer.take(limit=1) == []


def test_what_is_left_comes_out_before_the_error_of_the_source(make_frame: MakeFrame) -> None:
    buffer = FrameBuffer(4, WhenFull.WAIT)
    buffer.put(make_frame(0))
    buffer.close(SourceError("camera 0 stopped"))
    buffer.close()  # the first reason stays
    assert indices(buffer.take(limit=4)) == [0]
    with pytest.raises(SourceError, match="camera 0 stopped"):
        buffer.take(limit=4)


def test_closing_wakes_a_take_that_waits() -> None:
    buffer = FrameBuffer(4, WhenFull.WAIT)
    threading.Timer(0.05, buffer.close).start()
    start_s = time.monotonic()
    assert buffer.take(limit=4) == []
    assert time.monotonic() - start_s < LIMIT_S


def test_a_take_with_a_time_limit_tells_silence_from_the_end() -> None:
    buffer = FrameBuffer(4, WhenFull.WAIT)
    assert buffer.take(limit=1, timeout_s=0.01) is None
    buffer.close()
    assert buffer.take(limit=1, timeout_s=0.01) == []


def test_a_buffer_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="a buffer of 0 frames holds nothing"):
        FrameBuffer(0, WhenFull.WAIT)


@given(st.integers(1, 5), st.lists(st.sampled_from(["put", "take"]), max_size=40))
def test_every_frame_is_taken_or_counted_as_dropped(capacity: int, steps: list[str]) -> None:
    buffer = FrameBuffer(capacity, WhenFull.DROP_OLDEST)
    taken: list[int] = []
    captured = 0
    for step in steps:
        if step == "put":
            buffer.put(Frame(np.zeros((1, 1, 3), np.uint8), captured, 0.0))
            captured += 1
        else:
            taken += [frame.index for frame in buffer.take(limit=2, timeout_s=0) or []]
    buffer.abandon()
    assert taken == sorted(set(taken))
    assert len(taken) + buffer.dropped == captured
