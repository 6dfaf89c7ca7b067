"""A review proposes from labelled parts: a threshold with its price, masks that lose no defect, a training set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from nnet_edge.data.layouts import read_dataset
from nnet_edge.errors import ConfigError
from nnet_edge.evaluation.review import collect, export_parts, propose_masks, review_lines
from nnet_edge.evaluation.sweep import Costs
from nnet_edge.runtime.history.database import Bounds, Entry, HistoryWriter
from nnet_edge.runtime.history.labels import add_label
from nnet_edge.runtime.history.queries import History, Window
from nnet_edge.runtime.sinks.fields import utc_text

ALL = Window(0)
BUNDLE = "0123456789ab"
LEFT, MIDDLE = (slice(20, 40), slice(30, 60)), (slice(100, 120), slice(100, 130))  # rows and columns of a map
PICTURE = cv2.imencode(".png", np.full((480, 640, 3), 90, np.uint8))[1].tobytes()


def map_of(*places: tuple[slice, slice]) -> bytes:
    anomaly_map = np.full((256, 256), 9000, np.uint16)
    for place in places:
        anomaly_map[place] = 50_000
    return cv2.imencode(".png", anomaly_map)[1].tobytes()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes parts, (score, label, defect, places of its map), judged at 1.0, into a history."""

    def make(*parts: tuple[float, str | None, str | None, tuple[Any, ...]], **more: Any) -> Path:
        path = tmp_path / "history.db"
        writer = HistoryWriter(path, Bounds(1e4, 1 << 40, 1000))
        writer.open()
        for number, (score, _, _, places) in enumerate(parts):
            is_bad = score > 1
            fields = {
                "id": f"left/S/{number}", "stream": "left", "index": number, "time": utc_text(1_795_000_000_000 + number),
                "score": score, "threshold": 1.0, "verdict": "anomalous" if is_bad else "good", "regions": [],
                "bundle_id": BUNDLE, "size": [480, 640],
            } | more  # fmt: skip
            pictures = {"original": PICTURE, "map": map_of(*places)} if is_bad else {"accepted": PICTURE}
            writer.add([Entry(fields, pictures)])
        writer.close()
        for number, (_, label, defect, _) in enumerate(parts):
            if label is not None:
                add_label(path, number + 1, "Ann", label, defect)
        return path

    return make


def test_a_threshold_is_proposed_with_its_price(write: Callable[..., Path]) -> None:
    path = write(
        *((0.1 * n, None, None, ()) for n in range(1, 10)),  # accepted, not labelled
        (1.1, "false_alarm", None, (LEFT,)), (1.2, "false_alarm", None, (LEFT,)), (1.3, "true_defect", "dent", (MIDDLE,)),
        (2.0, "true_defect", "scratch", (MIDDLE,)), (0.95, "missed", "dent", ()), (1.5, None, None, ()),
    )  # fmt: skip
    with History(path) as history:
        review = collect(history, BUNDLE, ALL)
        lines = list(review_lines(review, propose_masks(history, review), Costs()))
    assert (len(review.good), len(review.bad), len(review.accepted), review.unlabelled_rejects) == (2, 3, 9, 1)
    now = review.step_at(1.0)
    assert (now.false_rejects, now.misses) == (2, 1)
    proposed = review.cheapest(Costs())
    assert proposed is not None
    assert 1.2 < proposed.threshold < 1.3
    assert (proposed.false_rejects, proposed.misses) == (0, 1)
    dear = review.cheapest(Costs(miss=10))
    assert dear is not None
    assert (dear.false_rejects, dear.misses) == (2, 0)
    assert 0.9 < dear.threshold < 0.95
    low = review.step_at(0.55)
    assert low.false_rejects == 2 + 4  # accepted parts count as good
    text = "\n".join(lines)
    assert "1 misses instead of 1, 0 false rejects instead of 2" in text
    assert "1 rejects have no label" in text
    assert "would have avoided 2 of 2 false alarms and lost none of 2 labelled defects" in text


def test_a_mask_never_covers_a_labelled_defect(write: Callable[..., Path]) -> None:
    path = write(
        (1.1, "false_alarm", None, (LEFT,)), (1.2, "false_alarm", None, (LEFT,)), (1.3, "false_alarm", None, (MIDDLE,)),
        (1.4, "false_alarm", None, (MIDDLE,)), (1.5, "true_defect", "dent", (MIDDLE,)),
    )  # fmt: skip
    with History(path) as history:
        (mask,) = propose_masks(history, collect(history, BUNDLE, ALL))
    ((x, y, width, height),) = mask.boxes
    assert x <= 30 * 2.5
    assert x + width >= 60 * 2.5
    assert y <= 20 * 1.875
    assert y + height >= 40 * 1.875
    assert (mask.avoided, mask.of, mask.defects) == (2, 4, 1)
    assert 0 < mask.share < 0.05
    assert mask.polygons == [[[x, y], [x + width, y], [x + width, y + height], [x, y + height]]]


def test_the_mask_of_a_crop_lies_in_the_camera_s_picture(write: Callable[..., Path]) -> None:
    crop = {"name": "lid", "x": 100, "y": 50, "width": 640, "height": 480}
    path = write((1.1, "false_alarm", None, (LEFT,)), (1.2, "false_alarm", None, (LEFT,)), crop=crop)
    with History(path) as history:
        (mask,) = propose_masks(history, collect(history, BUNDLE, ALL))
    assert mask.crop == "lid"
    assert mask.boxes[0][0] >= 100
    assert mask.boxes[0][1] >= 50


def test_one_false_alarm_and_scattered_ones_ask_for_no_mask(write: Callable[..., Path]) -> None:
    path = write((1.1, "false_alarm", None, (LEFT,)), (1.2, "false_alarm", None, (MIDDLE,)))
    with History(path) as history:
        review = collect(history, BUNDLE, ALL)
        assert propose_masks(history, review) == []
        text = "\n".join(review_lines(review, [], Costs()))
    assert "no proposal without a labelled defect" in text
    assert "masks: no place fires" in text


def test_labelled_parts_become_a_training_set(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(
        (1.1, "false_alarm", None, ()), (1.3, "true_defect", "dent / deep", ()), (0.5, "missed", None, ()),
        (0.4, "good", None, ()), (0.3, None, None, ()),
    )  # fmt: skip
    with History(path) as history:
        assert export_parts(history, collect(history, BUNDLE, ALL), tmp_path / "out") == (2, 2, 0)
    names = sorted(str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.png"))
    assert names == [
        "bad/defect/left-00000003.png", "bad/dent _ deep/left-00000002.png", "good/left-00000001.png", "good/left-00000004.png",
    ]  # fmt: skip
    assert (tmp_path / "out/labels.csv").read_text().count("\n") == 5
    dataset = read_dataset(tmp_path / "out")
    assert len(dataset.train) == 2
    assert {sample.defect for sample in dataset.test} == {"defect", "dent _ deep"}
    with History(path) as history, pytest.raises(ConfigError, match="holds something already"):
        export_parts(history, collect(history, BUNDLE, ALL), tmp_path / "out")


def test_parts_of_another_bundle_are_left_out(write: Callable[..., Path]) -> None:
    path = write((1.1, "false_alarm", None, ()))
    with History(path) as history, pytest.raises(ConfigError, match="1 were judged by other bundles"):
        collect(history, "another", ALL)
    with History(path) as history:
        assert collect(history, BUNDLE, ALL).other_bundles == 0
