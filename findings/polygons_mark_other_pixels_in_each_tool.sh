#!/usr/bin/env bash
# One outline, three masks. Of a square from (10, 10) to (30, 30), and of a scratch 2 pixels wide from (10, 20) to (80, 40), as many pixels
# are marked by pycocotools 2.0.11 (COCO, CVAT, Datumaro): 400 and 140; by labelme 6.3.1 (Pillow's polygon, with its outline): 441 and 153;
# by opencv-python-headless 5.0.0.93's fillPoly (Supervisely, Ultralytics): 441 and 213. A set that moves from one tool to another
# by its polygons has other masks, and a thin defect has half as many pixels again; runs and bitmaps keep them.
# Beside it: in labelme, the width of a scratch depends on its direction (70 pixels along: 213 when it lies flat, 153 when it rises).
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q pycocotools==2.0.11 pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
"$dir/venv/bin/pip" install -q --no-deps labelme==6.3.1
"$dir/venv/bin/python" - <<'EOF'
import importlib.util
import sys
import types
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco

# labelme's own function, without its window: the module beside it that names a type asks for Qt
home = Path(next(iter(importlib.util.find_spec("labelme").submodule_search_locations)))
sys.modules["labelme"] = types.ModuleType("labelme")
sys.modules["labelme._label_file"] = types.SimpleNamespace(ShapeDict=dict)
spec = importlib.util.spec_from_file_location("shape", home / "utils/shape.py")
shape = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shape)

SIZE = (100, 120)
SHAPES = {
    "square": [(10, 10), (30, 10), (30, 30), (10, 30)],
    "scratch that rises": [(10, 20), (80, 40), (80, 42), (10, 22)],
    "scratch that lies flat": [(10, 20), (80, 20), (80, 22), (10, 22)],
}
EXPECTED = {"square": (400, 441, 441), "scratch that rises": (140, 153, 213), "scratch that lies flat": (140, 213, 213)}
found = {}
for name, points in SHAPES.items():
    filled = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(filled, [np.array(points, np.int32)], 1)
    runs = coco.frPyObjects([np.ravel(points).tolist()], *SIZE)
    found[name] = (int(coco.area(runs)[0]), int(shape.shape_to_mask(SIZE, points, "polygon").sum()), int(filled.sum()))
    print(f"{name:24} pycocotools {found[name][0]}, labelme {found[name][1]}, fillPoly {found[name][2]}")
sys.exit("changed: other pixels are marked" if found != EXPECTED else 0)
EOF
