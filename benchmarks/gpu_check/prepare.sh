#!/bin/sh
# With network, in a checkout:  sh benchmarks/gpu_check/prepare.sh
# Makes .whl: what a machine with Python 3.12 and the usual packages lacks; docs/gpu-check.md lists both.
# PYTHON: an interpreter with pip, torch and setuptools.
set -eu
cd "$(dirname "$0")/../.."
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
mkdir -p .whl

pin() { grep -i "^$1==" constraints.txt | head -1; }
have() { ls .whl/"$(echo "$1" | sed 's/[=<>].*//; s/-/_/g')"-*.whl > /dev/null 2>&1; }
platforms=""
for tag in 2_28 2_27 2_17 2014 1; do
    case $tag in *_*) tag=_$tag ;; esac
    platforms="$platforms --platform manylinux${tag}_x86_64"
done
download() {
    have "$1" || "$python" -m pip download -q --disable-pip-version-check --no-deps \
        --only-binary=:all: --python-version 3.12 --implementation cp $platforms -d .whl "$1"
}

for name in pydantic omegaconf yacs pycocotools faster-coco-eval submitit termcolor; do
    download "$(pin $name)"
done
# pydantic_core must be the very version that pydantic asks for
download "$("$python" - <<'PY'
import re, zipfile
from pathlib import Path

with zipfile.ZipFile(next(Path(".whl").glob("pydantic-*.whl"))) as wheel:
    metadata = next(name for name in wheel.namelist() if name.endswith("METADATA"))
    text = wheel.read(metadata).decode()
print("pydantic_core==" + re.search(r"Requires-Dist: pydantic-core==(\S+)", text).group(1))
PY
)"
for name in typing-inspection annotated-types typing_extensions; do download "$name"; done
# these are published as source archives only
for name in "$(pin iopath)" "$(pin fvcore)" "antlr4-python3-runtime==4.9.3"; do
    have "$name" || "$python" -m pip wheel -q --disable-pip-version-check --no-deps \
        --no-build-isolation -w .whl "$name"
done
have detectron2 || "$python" - <<'PY'
import tempfile
from pathlib import Path

from transfer.detectron2_wheel.install import download_archive
from transfer.detectron2_wheel.wheel import build_wheel

with tempfile.TemporaryDirectory() as scratch:
    print(build_wheel(download_archive(Path(scratch)), Path(".whl").resolve()))
PY
number=$(ls .whl/*.whl | wc -l)
[ "$number" -eq 15 ] || { echo "prepare: $number wheels in .whl instead of 15"; ls .whl; exit 1; }
du -sh .whl
echo 'next, on the machine with a GPU, in a copy of this checkout with .whl: make gpu-check (8 minutes)'
