#!/usr/bin/env bash
# genicam 1.6.0 (Linux x86-64 wheel from PyPI), the GenICam binding below harvesters, brings a whole GenTL producer: viky.cti beside
# the module, with three simulated cameras that draw a bouncing ball. Neither its README nor its metadata names it. A GenTL
# program is tested end to end without a maker's SDK and without a camera.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q harvesters==1.4.3 genicam==1.6.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
from importlib.metadata import distribution
from pathlib import Path

import genicam
from harvesters.core import Harvester

folder = Path(genicam.__file__).parent
texts = [(folder / "README.rst").read_text(), distribution("genicam").read_text("METADATA")]
assert not any("viky" in text.lower() for text in texts), "it is documented now"

harvester = Harvester()
harvester.add_file(str(folder / "viky.cti"), check_existence=True)
harvester.update()
cameras = [camera.id_ for camera in harvester.device_info_list]
print("cameras:", cameras)
assert len(cameras) == 3, "they are other cameras"
acquirer = harvester.create(0)
acquirer.start()
pictures = []
for _ in range(3):
    with acquirer.fetch(timeout=5) as buffer:
        component = buffer.payload.components[0]
        pictures.append(component.data.copy())
        print(f"{component.width} x {component.height} {component.data_format}")
changed = [int((after != before).sum()) for before, after in zip(pictures, pictures[1:], strict=False)]
print("values that change from picture to picture:", changed)
assert all(changed), "nothing moves"
harvester.reset()
PY
