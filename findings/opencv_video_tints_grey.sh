#!/usr/bin/env bash
# opencv-python-headless 5.0.0.93: exactly grey frames (B = G = R) written by VideoWriter and read back by VideoCapture of the same
# wheel come back tinted: the green mean lies 1 to 4 levels above blue and red, with mp4v (.mp4) and with MJPG (.avi), while the
# brightness stays within 2 levels. Lossless FFV1 (.avi), which keeps BGR, gives the frames back as they were.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q opencv-python-headless==5.0.0.93 numpy==2.4.6
"$dir/venv/bin/python" - "$dir" <<'EOF'
import sys
import cv2
import numpy as np

def back(code, suffix, level):
    path = f"{sys.argv[1]}/grey{suffix}"
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*code), 10, (320, 240))
    assert writer.isOpened(), f"this wheel cannot write {code}"
    for _ in range(10):
        writer.write(np.full((240, 320, 3), level, np.uint8))
    writer.release()
    reader = cv2.VideoCapture(path)
    frames = []
    while (read := reader.read())[0]:
        frames.append(read[1])
    return np.mean(frames, axis=(0, 1, 2))  # blue, green, red

changed = False
for code, suffix in (("mp4v", ".mp4"), ("MJPG", ".avi"), ("FFV1", ".avi")):
    for level in (60, 128, 200):
        blue, green, red = back(code, suffix, level)
        print(f"{code} {level}: blue {blue:.1f} green {green:.1f} red {red:.1f}")
        if code == "FFV1":
            changed |= (blue, green, red) != (level, level, level)
        else:
            changed |= not (1 <= green - blue <= 4 and 1 <= green - red <= 4 and abs(green - level) <= 2)
sys.exit("changed: grey comes back otherwise" if changed else 0)
EOF
