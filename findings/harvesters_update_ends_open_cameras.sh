#!/usr/bin/env bash
# harvesters 1.4.3: `Harvester.update()`, which its documentation asks for whenever a camera was plugged in, destroys every open
# acquirer at once ("eventually" obsolete, it says): a running camera is stopped without a word, and the next fetch()
# raises a bare IndexError ("list index out of range") instead of the documented buffer, None or TimeoutException.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q harvesters==1.4.3 genicam==1.6.0 numpy==2.4.6
"$dir/venv/bin/python" - <<'PY'
from pathlib import Path

import genicam
from harvesters.core import Harvester

harvester = Harvester()
harvester.add_file(str(Path(genicam.__file__).with_name("viky.cti")))  # simulated cameras, which come with genicam
harvester.update()
acquirer = harvester.create(0)
acquirer.start()
with acquirer.fetch(timeout=5):
    print("acquires:", acquirer.is_acquiring())
harvester.update()
print("after update() acquires:", acquirer.is_acquiring())
try:
    with acquirer.fetch(timeout=5):
        raise SystemExit("changed: the camera goes on")
except IndexError as error:
    print("fetch() raises IndexError:", error)
harvester.reset()
PY
