#!/usr/bin/env bash
# `import onnxruntime` 1.32.0 (Linux wheel from PyPI) alone, without a session, writes a device id and an SQLite database of
# events below the user's cache folder. `disable_telemetry_events()`, which can only be called after the import, does not prevent
# it; ORT_DISABLE_TELEMETRY=1 in the environment before the import does.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q onnxruntime==1.32.0 numpy==2.4.6
unset ORT_DISABLE_TELEMETRY
written() {  # NAME CODE: the files that CODE leaves in an empty cache folder
    mkdir -p "$dir/$1"
    HOME="$dir/$1" XDG_CACHE_HOME="$dir/$1" "$dir/venv/bin/python" -c "$2" >/dev/null
    (cd "$dir/$1" && find . -type f | sort)
}
import=$(written import 'import onnxruntime')
late=$(written late 'import onnxruntime; onnxruntime.disable_telemetry_events()')
early=$(ORT_DISABLE_TELEMETRY=1 written early 'import onnxruntime')
printf 'import:\n%s\nimport, then disable_telemetry_events():\n%s\nORT_DISABLE_TELEMETRY=1 before:\n%s\n' "$import" "$late" "${early:-none}"
for files in "$import" "$late"; do
    grep -q 'onnxruntime/deviceid$' <<<"$files" && grep -q 'onnxruntime.db$' <<<"$files" || { echo "changed: it writes nothing" >&2; exit 1; }
done
[ -z "$early" ] || { echo "changed: it writes although told not to" >&2; exit 1; }
