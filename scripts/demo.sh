#!/bin/sh
# Make a few toy clips, classify them and write a report: `make demo`, or with avfs installed `sh scripts/demo.sh [DIR]`.
# Offline, about a minute. Run again, it keeps the clips and classifies them anew.
set -eu

if ! command -v avfs >/dev/null; then
  echo "error: avfs is not installed here; \`make demo\` installs it into .venv and runs this." >&2
  exit 2
fi
root=${1:-demo}

echo "== 1. Clips: eight samples, and three for each class of a small AVE"
# --force replaces clips of an earlier version; clips of this version are kept all the same.
avfs data toy --root "$root" --only ave --clips-per-class 3 --force
cd "$root"

echo
echo "== 2. What is seen and heard in the samples, second by second"
avfs zeroshot --labels labels.txt samples --segments --report report.html

echo
echo "== 3. From here"
echo "The report, with pictures and a timeline of each clip: $(pwd)/report.html (open it in a browser)"
activate=$(dirname "$(command -v avfs)")/activate
if [ -f "$activate" ]; then
  echo
  echo "  . $activate"
fi
cat <<EOF
  cd '$(pwd)'
  avfs zeroshot --labels labels.txt AVE                      # the other clips, which are harder: docs/toy-world.md
  avfs weights fetch base                                    # CLIP and CLAP for real clips: 2.5 GB, once
  avfs zeroshot --labels my-labels.txt my-clips --backbone base
  avfs data toy --root toy                                   # a toy world large enough to train in
  avfs --help

docs/toy-world.md tells what these clips are, README.md the rest.
EOF
