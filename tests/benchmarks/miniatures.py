"""What the tests of accuracy and levers share: a tiny VisA, and settings that train on it in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from nnet_edge.benchmarks.accuracy.accuracy import AccuracySettings
from nnet_edge.geometry import Geometry
from nnet_edge.methods.nnet.settings import PAPER
from nnet_edge.settings.runner import RunnerSettings
from nnet_edge.training.loop import TrainOptions
from tests.conftest import bad_part, good_part

OPTIONS = TrainOptions(device="cpu", precision="fp32", teacher_weights="random")
TRAINING = replace(PAPER, epochs=1, batch=7, ema_decay=0.5, input=Geometry(64, 64))
TINY = AccuracySettings(TRAINING, OPTIONS, seeds=(3,), runner=RunnerSettings(threads=1))


def put(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), picture)


def make_visa(root: Path) -> Path:
    """VisA as it is unpacked: candle and pcb1, split_csv/1cls.csv, JPEGs, masks of 0 and 1."""
    lines = ["object,split,label,image,mask"]
    for category in ("candle", "pcb1"):
        for number in range(22):
            name = f"{category}/Data/Images/Normal/{number:04}.JPG"
            put(root / name, good_part(number))
            lines.append(f"{category},{'train' if number < 19 else 'test'},normal,{name},")
        for number in range(3):
            picture, mask = bad_part(50 + number)
            image, truth = (f"{category}/Data/{kind}/Anomaly/{number:03}" for kind in ("Images", "Masks"))
            put(root / f"{image}.JPG", picture)
            put(root / f"{truth}.png", mask.astype(np.uint8))
            lines.append(f"{category},test,anomaly,{image}.JPG,{truth}.png")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(lines) + "\n")
    return root
