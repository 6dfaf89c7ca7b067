#!/usr/bin/env bash
# PyNvVideoCodec 2.2.4 asks for NVIDIA's ENCODER library while it is imported, also by a program that only decodes: without
# libnvidia-encode.so.1 (no driver, or a container with the driver capability "compute" alone) the import ends in a RuntimeError. That is
# no ImportError, so the usual `try: import PyNvVideoCodec / except ImportError:` of an optional decoder does not catch it.
set -euo pipefail
if ldconfig -p | grep -q libnvidia-encode.so.1; then echo "this machine has libnvidia-encode.so.1: nothing to see here"; exit 1; fi
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q pynvvideocodec==2.2.4 numpy==2.4.6
cat >"$dir/program.py" <<'PY'
try:
    try:
        import PyNvVideoCodec  # noqa: F401
    except ImportError as error:
        raise SystemExit(f"changed: it is an ImportError now: {error}") from error
except RuntimeError as error:
    found = str(error).splitlines()[0]
else:
    raise SystemExit("changed: it is imported without the encoder's library")
print(f"RuntimeError: {found}")
if "libnvidia-encode.so.1" not in found:
    raise SystemExit("changed: another library is asked for")
PY
"$dir/venv/bin/python" "$dir/program.py"
# seen: RuntimeError: Failed to load NVENC library: libnvidia-encode.so.1: cannot open shared object file: No such file or directory
