#!/usr/bin/env bash
# Aravis 0.8.26 (Debian 12): `arv_camera_new` of a GigE Vision camera that another program controls succeeds without an error, and
# reads work; only `arv_gv_device_is_controller` tells. The first write then fails, with Aravis's own fake camera as a "timeout",
# the words for a bad cable; creating a stream names the missing privilege. Needs Debian 12's package index, the libraries that
# libaravis-0.8-0 and aravis-tools depend on (`apt-get install aravis-tools`), and user namespaces or root: the network is its own.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
(cd "$dir" && apt-get download -qq libaravis-0.8-0=0.8.26-1 aravis-tools=0.8.26-1 2>"$dir/apt" || { cat "$dir/apt" >&2; exit 1; })
for package in "$dir"/*.deb; do dpkg-deb -x "$package" "$dir/root"; done
cat >"$dir/program.py" <<'PY'
import ctypes
import subprocess
import sys
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_int64, c_uint32, c_void_p
from pathlib import Path


class GError(Structure):
    _fields_ = [("domain", c_uint32), ("code", c_int), ("message", c_char_p)]


aravis = ctypes.CDLL(next(Path(sys.argv[1]).rglob("libaravis-0.8.so.0")))


def call(name: str, result: type | None, *arguments: object) -> tuple[object, str]:
    """What the function answers, and the message of its error."""
    function, error = getattr(aravis, name), POINTER(GError)()
    function.restype = result
    answer = function(*arguments, byref(error))
    return answer, error.contents.message.decode() if error else ""


def is_controller() -> bool:
    aravis.arv_camera_get_device.restype = c_void_p
    return bool(aravis.arv_gv_device_is_controller(c_void_p(aravis.arv_camera_get_device(camera))))


is_first = len(sys.argv) == 2
opened, problem = call("arv_camera_new", c_void_p, b"127.0.0.1")
camera = c_void_p(opened)
print("first" if is_first else "second", "program: opened:", bool(opened), "- error:", problem or "none", "- controls:", is_controller(), flush=True)
assert opened, "opening fails"
assert not problem, "opening tells"
assert is_controller() == is_first, "the other one controls"
if is_first:
    sys.exit(subprocess.run([sys.executable, *sys.argv, "second"]).returncode)
width, problem = call("arv_camera_get_integer", c_int64, camera, b"Width")
print("reads its width:", width, "- error:", problem or "none")
assert width > 0, "reading fails"
_, problem = call("arv_camera_set_integer", None, camera, b"Width", c_int64(256))
print("writes its width - error:", problem)
assert "timeout" in problem, "the error of a write names the cause"
_, problem = call("arv_camera_create_stream", c_void_p, camera, None, None)
print("creates a stream - error:", problem)
assert "privilege" in problem, "the error of a stream does not name the cause"
PY
cat >"$dir/alone.sh" <<'SH'
ip link set lo up
"$1/usr/bin/arv-fake-gv-camera-0.8" -i 127.0.0.1 >/dev/null 2>&1 & camera=$!
trap 'kill $camera' EXIT
until grep -q '0100007F:0F74' /proc/net/udp; do kill -0 $camera; sleep 0.1; done
timeout 60 python3 "$1/../program.py" "$1"
SH
LD_LIBRARY_PATH=$(dirname "$(find "$dir/root" -name libaravis-0.8.so.0)") unshare --map-root-user --net bash -e "$dir/alone.sh" "$dir/root"
