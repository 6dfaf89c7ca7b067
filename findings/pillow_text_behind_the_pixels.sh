#!/usr/bin/env bash
# Pillow 13.0.0: a PNG whose pixels are whole is refused on load() because of a TEXT chunk behind them: one compressed text that
# inflates to 3 MiB (limit 1 MiB), as an editor's or a camera's notes can be. OpenCV 5.0.0 and libpng's rules read the picture;
# `PngImagePlugin.MAX_TEXT_CHUNK` is for the whole process.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q pillow==13.0.0 opencv-python-headless==5.0.0.93 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
import io
import struct
import zlib

import cv2
import numpy as np
from PIL import Image

file = io.BytesIO()
Image.fromarray(np.full((48, 64, 3), 90, np.uint8)).save(file, "PNG")
plain = file.getvalue()
body = b"zTXtComment\0\0" + zlib.compress(b"note " * (3 * 2**20 // 5))
chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
noted = plain[:-12] + chunk + plain[-12:]  # before IEND, behind the pixels
print("OpenCV reads", cv2.imdecode(np.frombuffer(noted, np.uint8), cv2.IMREAD_COLOR).shape)
try:
    Image.open(io.BytesIO(noted)).load()
    raise SystemExit("changed: Pillow reads it")
except ValueError as error:
    print("Pillow:", error)
PY
