#!/usr/bin/env bash
# NumPy 2.4.6: `import numpy` leaves numpy.ma alone, and the first np.median or np.quantile of a plain array imports it: 2 MB and
# 10 ms in whatever thread asks for it first, as one that has a camera's pictures waiting. np.sort, np.partition and np.mean import nothing.
# NumPy 1.26 imported numpy.ma with itself.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
for version in 1.26.4 2.4.6; do
    "$dir/venv/bin/pip" install -q "numpy==$version"
    for asked in median quantile partition; do
        "$dir/venv/bin/python" - "$asked" <<'PY'
import sys
import time

import numpy as np


def memory_kb() -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


asked, values = sys.argv[1], np.arange(8.0)
was_there, before_kb, start_s = "numpy.ma" in sys.modules, memory_kb(), time.perf_counter()
getattr(np, asked)(values, *{"median": (), "quantile": (0.5,), "partition": (4,)}[asked])
took_ms, more_kb, is_there = 1e3 * (time.perf_counter() - start_s), memory_kb() - before_kb, "numpy.ma" in sys.modules
print(f"NumPy {np.__version__}: numpy.ma before {asked} {was_there}, after {is_there}; it took {took_ms:.1f} ms and {more_kb} kB")
expected = (True, True) if np.__version__.startswith("1.") else (False, asked != "partition")
assert (was_there, is_there) == expected, "NumPy changed"
PY
    done
done
