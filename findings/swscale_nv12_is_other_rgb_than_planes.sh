#!/usr/bin/env bash
# FFmpeg's swscale (PyAV 18.1.0, libswscale 9.5) makes other RGB of the same 4:2:0 numbers when they lie as NV12 than when they lie in
# planes: from yuv420p of the same size it takes a path of its own that repeats each chroma sample, from NV12 the general one, which
# interpolates chroma. At edges of colour the two are more than 100 of 256 levels apart, also with BICUBIC, and the conversion from NV12
# to planes is exact. So a film decoded by NVDEC, VAAPI or QSV, which give NV12, has other RGB than the same film decoded on the
# processor (and than OpenCV's VideoCapture, which converts planes with BICUBIC), although the decoders agree to the last bit.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q av==18.1.0 numpy==2.4.6
cat >"$dir/program.py" <<'PY'
import av
import numpy as np

blocks = np.random.default_rng(0).integers(0, 255, (12, 16, 3), np.uint8).repeat(8, 0).repeat(8, 1)
planes = av.VideoFrame.from_ndarray(np.roll(blocks, 3, 1), "bgr24").reformat(format="yuv420p")
mixed = planes.reformat(format="nv12")
assert (mixed.reformat(format="yuv420p").to_ndarray() == planes.to_ndarray()).all(), "changed: NV12 does not hold the same numbers"
off = {}
for how in ("BILINEAR", "BICUBIC"):
    one, other = (frame.reformat(format="bgr24", interpolation=how).to_ndarray().astype(int) for frame in (planes, mixed))
    off[how] = int(np.abs(one - other).max())
print(off)
if min(off.values()) < 50:
    raise SystemExit("changed: NV12 and planes give the same colours")
PY
"$dir/venv/bin/python" "$dir/program.py"
# seen: {'BILINEAR': 140, 'BICUBIC': 60}
