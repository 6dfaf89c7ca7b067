"""Invalid settings are refused where they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.settings.policy import EVERY_FRAME, FRESHEST
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.settings.stream import BufferSettings, VerdictSettings


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("kind", "tpu", "runner 'tpu' is unknown: choose auto, openvino, onnxruntime, tensorrt or cuda"),
        ("precision", "int8", "precision 'int8' is unknown: choose fp32 or bf16"),
        ("hint", "fast", "hint 'fast' is unknown"),
        ("threads", 0, "threads is 0: it must be a whole number from 1 to 1024"),
        ("max_batch", 0, "batch is 0: it must be a whole number from 1 to 256"),
        ("max_batch", 257, "batch is 257"),
        ("max_batch", 2.5, "batch is 2.5"),
        ("max_batch", True, "batch is True"),
    ],
)
def test_an_invalid_setting_of_a_runner_is_refused(setting: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunnerSettings(**{setting: value})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: VerdictSettings(threshold=0.0), "threshold is 0.0: it must be a finite number above 0"),
        (lambda: VerdictSettings(threshold=float("nan")), "threshold is nan"),
        (lambda: BufferSettings(capacity=0), "capacity, frames that wait, is 0"),
        (lambda: VerdictSettings(min_area=-1.0), "smallest area is -1.0"),
    ],
)
def test_an_invalid_setting_of_a_stream_is_refused(make: Callable[[], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make()


def test_files_wait_and_live_sources_drop_unless_the_user_says_otherwise() -> None:
    default = BufferSettings()
    live, files = default.resolved(is_live=True, max_batch=8), default.resolved(is_live=False, max_batch=8)
    assert (live.policy, live.capacity, files.policy, files.capacity) == (FRESHEST, 2, EVERY_FRAME, 16)
    assert BufferSettings(EVERY_FRAME).resolved(is_live=True, max_batch=8).policy is EVERY_FRAME
    assert BufferSettings(capacity=3).resolved(is_live=False, max_batch=8).capacity == 3


def test_settings_stay_as_they_were_made() -> None:
    with pytest.raises(FrozenInstanceError):
        RunnerSettings().threads = 3  # type: ignore[misc]
