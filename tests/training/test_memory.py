"""The memory that a training is said to need, beside what it takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

TRAINING = """
import re, sys, tempfile
from dataclasses import replace
from pathlib import Path
import numpy as np, psutil, torch
from nnet_edge.geometry import Geometry
from nnet_edge.methods.base import METHODS
from nnet_edge.training.loop import TrainOptions, train
from nnet_edge.training.memory import needed_memory

torch.set_num_threads(1)
side = int(sys.argv[1])
settings = replace(METHODS.find("nnet").protocols["tuned"], input=Geometry(side, side), image_steps=8, look_every=0,
                   place_powers=(), augmentation_copies=0)
images = np.random.default_rng(0).integers(0, 255, (12, side, side, 3), np.uint8)
needed, before = needed_memory(settings, 12, 4 << 30), psutil.Process().memory_info().rss
with tempfile.TemporaryDirectory() as folder:
    options = TrainOptions(device="cpu", precision="fp32", teacher_weights="random")
    train(images[:8], images[8:], settings, Path(folder), options)
status = Path("/proc/self/status").read_text()
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status).group(1))  # ru_maxrss begins with the parent's
print(needed, 1024 * peak - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_the_estimate_is_what_a_training_takes() -> None:
    """Within 30 %, by a process of its own: what a test before it took counts there, too."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINING, "256"], capture_output=True, text=True, timeout=300, check=True
    )
    needed, taken = map(int, done.stdout.split())
    assert 0.7 < needed / taken < 1.3, (needed >> 20, taken >> 20)
