#!/usr/bin/env bash
# `import openvino` 2026.4.1 with openvino-telemetry 2025.2.0 (a hard requirement of the wheel) sends a message from a FORKED
# process, which it ends with SIGTERM after 3 s. The fork inherits the program's own SIGTERM handler: the handler runs in the
# child too, the child lives on, and the interpreter waits for it at its end. Here name resolution takes 20 s, as it can
# without a DNS server: `import` itself returns at once, the process ends after 20 s.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6
cat >"$dir/program.py" <<'PY'
import os
import signal
import socket
import time

PROGRAM, RESOLVER_S = os.getpid(), 20
signal.signal(signal.SIGTERM, lambda *_: print("handler ran in the", "program" if os.getpid() == PROGRAM else "child", flush=True))


def getaddrinfo(*_: object, **__: object) -> list[object]:
    """A resolver that nobody answers; nothing leaves this machine."""
    time.sleep(RESOLVER_S)
    raise socket.gaierror(socket.EAI_AGAIN, "no answer")


socket.getaddrinfo = getaddrinfo
start = time.monotonic()
import openvino  # noqa: E402, F401

print(f"import took {time.monotonic() - start:.1f} s", flush=True)
PY
start=$SECONDS
output=$(HOME="$dir" "$dir/venv/bin/python" "$dir/program.py" 2>&1); took=$((SECONDS - start))
printf '%s\nthe process ended after %d s\n' "$output" "$took"
grep -q 'handler ran in the child' <<<"$output" || { echo "changed: no handler ran in a child" >&2; exit 1; }
[ "$took" -ge 15 ] || { echo "changed: the process does not wait for the child" >&2; exit 1; }
