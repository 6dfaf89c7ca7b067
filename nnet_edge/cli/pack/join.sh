#!/bin/sh
# Joins the pieces of a pack in this folder, each checked, to the folder @NAME@ beside them.
#
#   sh join.sh && sh @NAME@/install.sh
set -eu
cd "$(dirname "$0")"
fail() { echo "join.sh: error: $*" >&2; exit 1; }
[ ! -e "@NAME@" ] || fail "@NAME@ is there already: move it away"
sha256sum --check --strict --quiet PIECES >&2 || fail "a piece is damaged or missing: copy it again"
mkdir .joining
trap 'rm -rf .joining' EXIT
cat $(sed 's/^[0-9a-f]*  //' PIECES) | tar -x -C .joining || fail "the pieces are no whole archive, or the disk is full"
mv .joining/@NAME@ "@NAME@"
echo "joined: sh $(pwd)/@NAME@/install.sh"
