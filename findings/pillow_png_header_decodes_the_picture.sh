#!/usr/bin/env bash
# Pillow 13.0.0: asking a PNG for its EXIF decodes the whole picture. `Image.open(png).getexif()` of a file without EXIF calls load(), for
# the chunk might lie behind the pixels. So a program that only wants sizes and orientations pays for all pixels (half a
# second in place of 0.02 ms for 2000 x 1500 pixels of noise), and a PNG whose pixels are cut off raises "image file is truncated", although its header is whole. A JPEG costs nothing.
# The way round: ask only when the bytes b"eXIf" stand in the file.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q pillow==13.0.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'EOF'
import io
import sys
import time

import numpy as np
from PIL import Image

noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), np.uint8))


def seconds(data, ask):
    started = time.perf_counter()
    ask(Image.open(io.BytesIO(data)))
    return time.perf_counter() - started


times = {}
for kind in ("PNG", "JPEG"):
    file = io.BytesIO()
    noise.save(file, kind)
    data = file.getvalue()
    times[kind] = [min(seconds(data, ask) for _ in range(5)) for ask in (lambda one: one.size, lambda one: one.getexif())]
    print(f"{kind}: size {1e3 * times[kind][0]:.2f} ms, EXIF {1e3 * times[kind][1]:.2f} ms")
    if kind == "PNG":
        cut = Image.open(io.BytesIO(data[: len(data) // 2]))
        try:
            cut.getexif()
            told = "nothing"
        except OSError as error:
            told = str(error)
        print(f"cut off: size {cut.size}, EXIF: {told}")
slow = times["PNG"][1] > 20 * times["PNG"][0] and times["JPEG"][1] < times["PNG"][1] / 5
sys.exit(0 if slow and told == "image file is truncated" else "changed: the EXIF of a PNG costs no pixels")
EOF
