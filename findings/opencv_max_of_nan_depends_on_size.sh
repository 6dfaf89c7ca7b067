#!/usr/bin/env bash
# OpenCV 5.0.0: `cv2.max(a, 0)` keeps a NaN in a row of 4 values and gives 0 for it in a row of 64 (the other code path);
# `cv2.max(0, a)` does the opposite. `minMaxLoc` of 4 values with NaN first answers NaN at (-1, -1), of 64 values it skips the NaN;
# `norm(NORM_INF)` skips it at the front and keeps it at the end. No call reports it.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q opencv-python-headless==5.0.0.93 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import cv2
import numpy as np


def row(size: int, place: int) -> np.ndarray:
    values = np.linspace(0.1, 0.9, size, dtype=np.float32)[None].copy()
    values[0, place] = np.nan
    return values


for size, keeps_first in ((4, True), (64, False)):
    values, zeros = row(size, 0), np.zeros((1, size), np.float32)
    first, second = cv2.max(values, zeros)[0, 0], cv2.max(zeros, values)[0, 0]
    largest, where = cv2.minMaxLoc(values)[1::2]
    print(f"{size} values, NaN first: max(a, 0) {first}, max(0, a) {second}, minMaxLoc {largest} at {where}")
    assert np.isnan(first) == keeps_first and np.isnan(second) != keeps_first, "max changed"
    assert np.isnan(largest) == keeps_first, "minMaxLoc changed"
front, end = (cv2.norm(row(64, place), cv2.NORM_INF) for place in (0, 63))
print(f"norm(NORM_INF) of 64 values: NaN first {front}, NaN last {end}")
assert not np.isnan(front) and np.isnan(end), "norm changed"
PY
