#!/usr/bin/env bash
# rich 15.0.0: when the stream behind a Console refuses a write (a full disk), `print` raises, and the text stays in the
# Console: the next print writes everything again and keeps it again. A program that goes on grows, and once there is room, all
# of it comes at once.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q rich==15.0.0
"$dir/venv/bin/python" - <<'PY'
import io

from rich.console import Console


class Disk(io.StringIO):
    """A stream that refuses as a full disk does."""

    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(text)


disk = Disk()
console = Console(file=disk)
for number in range(3):
    try:
        console.print(f"line {number}")
        raise SystemExit("changed: nothing was raised")
    except OSError as error:
        print(f"line {number}:", error)
disk.is_full = False
console.print("line 3")
print("written once there was room:", disk.getvalue().split("\n")[:-1])
assert disk.getvalue() == "line 0\nline 1\nline 2\nline 3\n", "rich forgets now"
PY
