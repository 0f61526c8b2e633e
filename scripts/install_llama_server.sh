#!/usr/bin/env bash
# llama.cpp's own llama-server, built from the sources in the llama-cpp-python sdist; prints its folder. Needs python3 with venv, and
# a C++ compiler. A finished install is left as it is, a half one is redone. JOBS: compilers at a time, all cores by default.
set -euo pipefail
version=0.3.36 # of llama-cpp-python; llama-server calls itself 0.5.0-dev
cache="${XDG_CACHE_HOME:-$HOME/.cache}/entropy-chains"
folder="$cache/llama-server-$version"

mkdir -p "$cache"
exec 9>"$folder.lock"
flock 9 # a second process waits here, then finds the finished install
if [ -e "$folder/.complete" ]; then
  echo "$folder"
  exit
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

echo "building llama-server for $folder (76 MB of sources, 3 to 10 minutes) ..." >&2
rm -rf "$folder"
"${PYTHON:-python3}" -m venv "$work/tools"
pip() { "$work/tools/bin/pip" "$@" --quiet --disable-pip-version-check >&2; }
export PATH="$PATH:$work/tools/bin"
for tool in cmake ninja; do
  command -v "$tool" >&2 || pip install "$tool"
done
pip download --no-deps --no-binary llama-cpp-python --dest "$work" "llama-cpp-python==$version"
tar --extract --gzip --directory "$work" --file "$work"/llama_cpp_python-*.tar.gz

# C++ without optimisation builds in half the time, and is fast enough for a small model. No web page, no TLS: nothing is downloaded.
source="$work/llama_cpp_python-$version/vendor/llama.cpp"
cmake -S "$source" -B "$work/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DCMAKE_CXX_FLAGS_RELEASE=-O0 -DCMAKE_C_FLAGS_RELEASE=-O2 -DBUILD_SHARED_LIBS=OFF -DLLAMA_OPENSSL=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_NUMBER=1 -DLLAMA_BUILD_COMMIT=sdist >&2
cmake --build "$work/build" --target llama-server --parallel "${JOBS:-$(nproc)}" >&2

mkdir "$folder"
cp "$work/build/bin/llama-server" "$folder/"
"$folder/llama-server" --version >&2 # it must at least start
touch "$folder/.complete"
echo "$folder"
