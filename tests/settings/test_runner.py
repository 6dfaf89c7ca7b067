"""Settings that cannot be meant are refused where they are made."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from nnet_edge.errors import ConfigError
from nnet_edge.settings.runner import RunnerSettings, StreamSettings, WhenFull


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("kind", "tpu", "runner 'tpu' is unknown: choose auto, openvino, onnxruntime or tensorrt"),
        ("precision", "int8", "precision 'int8' is unknown: choose fp32 or bf16"),
        ("hint", "fast", "hint 'fast' is unknown"),
        ("threads", 0, "threads is 0: it must be a whole number from 1 to 1024"),
        ("max_batch", 0, "batch is 0: it must be a whole number from 1 to 256"),
        ("max_batch", 257, "batch is 257"),
        ("max_batch", 2.5, "batch is 2.5"),
        ("max_batch", True, "batch is True"),
    ],
)
def test_a_runner_setting_that_cannot_be_meant_is_refused(setting: str, value: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RunnerSettings(**{setting: value})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"threshold": 0.0}, "threshold is 0.0: it must be a finite number above 0"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": 1.0, "buffer_frames": 0}, "buffer is 0"),
        ({"threshold": 1.0, "min_area": -1.0}, "smallest area is -1.0"),
        ({"threshold": 1.0, "show_every_s": 0.0}, "seconds between two looks are 0.0"),
    ],
)
def test_a_stream_setting_that_cannot_be_meant_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        StreamSettings(**settings)


def test_files_wait_and_live_sources_drop_unless_the_user_says_otherwise() -> None:
    default = StreamSettings(threshold=1.0)
    assert default.policy(is_live=True) is WhenFull.DROP_OLDEST
    assert default.policy(is_live=False) is WhenFull.WAIT
    assert StreamSettings(1.0, when_full=WhenFull.WAIT).policy(is_live=True) is WhenFull.WAIT
    assert (default.buffer_size(True, 8), default.buffer_size(False, 8)) == (4, 16)
    assert StreamSettings(1.0, buffer_frames=3).buffer_size(False, 8) == 3


def test_settings_stay_as_they_were_made() -> None:
    with pytest.raises(FrozenInstanceError):
        RunnerSettings().threads = 3  # type: ignore[misc]
