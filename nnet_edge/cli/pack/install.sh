#!/bin/sh
# Installs nnet-edge on this machine from the folder that this file lies in, without a network.
#
#   sh install.sh [PREFIX]        default: /opt/nnet-edge
#   PYTHON=/usr/bin/python3.12 sh install.sh
#
# Leaves PREFIX/env (a virtual environment) and what the pack holds beside it: bundle/, or line/ with the line's file and bundles.
# Starts nothing: the last lines say what to type.
set -eu
umask 022
here=$(cd "$(dirname "$0")" && pwd)
prefix=${1:-/opt/nnet-edge}
python=${PYTHON:-python@PYTHON@}
fail() { echo "install.sh: error: $*" >&2; exit 1; }

[ "$(uname -sm)" = "Linux @MACHINE@" ] || fail "this pack is for Linux @MACHINE@, and this machine is $(uname -sm)"
command -v "$python" >/dev/null || fail "$python is not there: install Python @PYTHON@, or say PYTHON=/path/to/it sh install.sh"
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$found" = "@PYTHON@" ] || fail "$python is Python $found, and this pack is for @PYTHON@: say PYTHON=/path/to/it sh install.sh"
[ ! -e "$prefix/env" ] || fail "$prefix/env is there already: move it away, or name another folder: sh install.sh PREFIX"

cd "$here"
sha256sum --check --strict --quiet SHA256SUMS >&2 || fail "a file is damaged or missing: copy the whole pack again"
listed=$(grep -c '  wheels/' SHA256SUMS)
[ "$(find wheels -type f | wc -l)" -eq "$listed" ] || fail "wheels/ holds a file that SHA256SUMS does not list: copy the pack anew"
mkdir -p "$prefix" 2>/dev/null && [ -w "$prefix" ] || fail "$prefix cannot be written: run it as root, or name another folder"
trap 'rm -rf "$prefix/env"' EXIT  # what is only half installed goes

"$python" -m venv --without-pip @VENV@"$prefix/env" || fail "no virtual environment could be made: apt-get install python3-venv"
set -- "$here"/wheels/pip-*.whl
"$prefix/env/bin/python" "$1/pip" --isolated install --quiet --no-index --find-links "$here/wheels" --no-cache-dir \
    --disable-pip-version-check --no-warn-script-location "@WANTED@" || fail "the packages could not be installed, see above"
for part in bundle line; do
    [ -d "$part" ] || continue
    [ ! -e "$prefix/$part" ] || fail "$prefix/$part is there already: move it away, or name another folder"
    cp -R "$part" "$prefix/"
done
if [ -f nnet-edge.service ]; then sed "s|/opt/nnet-edge|$prefix|g" nnet-edge.service >"$prefix/nnet-edge.service"; fi
"$prefix/env/bin/nnet-edge" --version >/dev/null || fail "what was installed does not start, see above"
trap - EXIT
@HINT@echo "installed in $prefix; what now:"
if [ -d line ]; then
    "$prefix/env/bin/nnet-edge" config check "$prefix/line/line.toml"
    echo "  $prefix/env/bin/nnet-edge stream --config $prefix/line/line.toml"
    echo "  cp $prefix/nnet-edge.service /etc/systemd/system/ && systemctl enable --now nnet-edge"
else
    echo "  $prefix/env/bin/nnet-edge stream 0 --bundle $prefix/bundle"
fi
