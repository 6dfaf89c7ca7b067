#!/usr/bin/env bash
# `pip download --python-version 3.10` takes wheels for Python 3.10, but decides by the environment markers of the Python that runs pip:
# what a package needs `; python_version < "3.11"` is not downloaded, and the set does not install on Python 3.10.
# exceptiongroup 1.3.0 needs typing-extensions below 3.13. pip 26.3, run by Python 3.13 or later, and by an older one the other way round.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q --disable-pip-version-check pip==26.3
mine=$("$folder/env/bin/python" -c 'import sys; print(sys.version_info >= (3, 13))')
other=$([ "$mine" = True ] && echo 3.12 || echo 3.13)
"$folder/env/bin/pip" download -q --disable-pip-version-check --only-binary :all: --implementation py --python-version "$other" \
    --dest "$folder/wheels" exceptiongroup==1.3.0
ls "$folder/wheels"
got=$(ls "$folder/wheels" | grep -c typing_extensions || true)
expected=$([ "$other" = 3.12 ] && echo 1 || echo 0)
echo "pip runs on $("$folder/env/bin/python" -V); for Python $other typing-extensions is needed: $expected, downloaded: $got"
[ "$got" != "$expected" ]
