#!/usr/bin/env bash
# harvesters 1.4.3: `import harvesters` runs `git rev-parse` and `git describe --dirty` in the folder where it is installed. In a
# virtual environment inside a checkout, ignored by git or not, `harvesters.__version__` is the tag of YOUR project ('1.4.2' outside
# of one), whatever the working directory. And the import takes the checkout's index.lock and writes its index anew when a file's
# time has changed, so a commit at that moment finds the lock taken.
set -euo pipefail
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
git init -q "$dir/line"
cd "$dir/line"
echo venv/ >.gitignore
git add .gitignore
git -c user.name=line -c user.email=line@localhost commit -qm "The line's program"
git tag press-7.3
for place in "$dir/alone" "$dir/line/venv"; do
    python3 -m venv "$place"
    "$place/bin/pip" install -q harvesters==1.4.3 genicam==1.6.0 numpy==2.4.6
done
cd /
version_in() { "$1/bin/python" -c 'import harvesters; print(harvesters.__version__)'; }
sleep 1.1
touch "$dir/line/.gitignore"
before=$(stat -c %i "$dir/line/.git/index")
alone=$(GIT_CEILING_DIRECTORIES="$dir" version_in "$dir/alone"); inside=$(version_in "$dir/line/venv")
after=$(stat -c %i "$dir/line/.git/index")
echo "harvesters.__version__ outside of a checkout: $alone; inside of one tagged press-7.3: $inside"
[ "$alone $inside" = "1.4.2 press-7.3" ] || { echo "changed: harvesters knows its own version" >&2; exit 1; }
echo "the checkout's index was file $before before the import, and is file $after"
[ "$before" != "$after" ] || { echo "changed: the index is left alone" >&2; exit 1; }
