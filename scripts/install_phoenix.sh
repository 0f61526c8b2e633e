#!/usr/bin/env bash
# Arize Phoenix in a virtual environment of its own; prints its folder. Needs python3 with venv.
# A finished install is left as it is, a half one is redone.
set -euo pipefail
version=20.26.1
cache="${XDG_CACHE_HOME:-$HOME/.cache}/entropy-chains"
folder="$cache/phoenix-$version"

mkdir -p "$cache"
exec 9>"$folder.lock"
flock 9 # a second process waits here, then finds the finished install
if [ -e "$folder/.complete" ]; then
  echo "$folder"
  exit
fi

echo "installing Phoenix $version into $folder (a few minutes) ..." >&2
rm -rf "$folder"
"${PYTHON:-python3}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check "arize-phoenix==$version" >&2
"$folder/bin/phoenix" --help >/dev/null # it must at least start
touch "$folder/.complete"
echo "$folder"
