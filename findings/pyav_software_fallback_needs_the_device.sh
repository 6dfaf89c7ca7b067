#!/usr/bin/env bash
# PyAV 18.1.0: HWAccel("cuda", allow_software_fallback=True) falls back for a codec that the device does not decode, not for a device
# that is absent. Without NVIDIA's driver av.open raises PermissionError, "[Errno 1] Operation not permitted", whatever
# allow_software_fallback says, and hwdevices_available() names cuda all the same: it lists what FFmpeg was built with.
set -euo pipefail
if ldconfig -p | grep -q libcuda.so.1; then echo "this machine has libcuda.so.1: nothing to see here"; exit 1; fi
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q av==18.1.0 numpy==2.4.6
cat >"$dir/program.py" <<'PY'
import io

import av
import numpy as np
from av.codec.hwaccel import HWAccel, hwdevices_available

film = io.BytesIO()
with av.open(film, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=25)
    stream.height, stream.width, stream.pix_fmt = 256, 256, "yuv420p"
    container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((256, 256, 3), np.uint8), "bgr24")))
    container.mux(stream.encode())
print("available:", hwdevices_available())
for falls_back in (True, False):
    film.seek(0)
    try:
        av.open(film, hwaccel=HWAccel("cuda", allow_software_fallback=falls_back))
    except Exception as error:
        print(falls_back, type(error).__name__, error)
        if not isinstance(error, PermissionError):
            raise SystemExit("changed: another error") from error
    else:
        raise SystemExit(f"changed: it opens with allow_software_fallback={falls_back}")
PY
"$dir/venv/bin/python" "$dir/program.py"
# seen: True PermissionError [Errno 1] Operation not permitted, and the same with False
