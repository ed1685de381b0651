#!/bin/sh
# The README's lines for an environment of one's own: a Python with torch alone (links to that of
# .venv), over it `venv --system-site-packages`; torch, torchvision and numpy have to stay.
#     make test-own-environment
# Needs .venv and PyPI; 0.5 GB in build/own, removed at its end; tries the last commit.
set -eu
: "${PYTHON:=.venv/bin/python}"

fail() { printf 'test-own-environment: %s\n' "$1" >&2; exit 2; }

root=$PWD/build/own
log=$root.log
rm -rf "$root"
git clone -q --no-hardlinks . "$root"
"$PYTHON" - "$root/module" <<'PY'
"""A Python of its own with links to its library, and to torch, torchvision and what they need."""
import re
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

target = Path(sys.argv[1])
python = target / "bin" / f"python3.{sys.version_info.minor}"
library = Path(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}))
copy = target / library.relative_to(sys.base_prefix)
copy.mkdir(parents=True)
python.parent.mkdir()
shutil.copy(Path(sys._base_executable).resolve(), python)
for path in library.iterdir():
    if not path.name.endswith("-packages"):
        (copy / path.name).symlink_to(path)
(python.parent / "python3").symlink_to(python.name)
ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
site = Path(subprocess.check_output([python, "-c", ask], text=True).strip())
site.mkdir(parents=True, exist_ok=True)
todo, names = [("torch", ""), ("torchvision", "")], set()
while todo:
    name, extras = todo.pop()
    try:
        dist = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        continue  # of another platform
    if (dist.name, extras) in names:
        continue
    names.add((dist.name, extras))
    for need in dist.requires or []:
        extra = re.search(r"""extra == ['"]([\w-]+)""", need)
        if extra is None or extra[1] in extras.split(","):
            match = re.match(r"([\w.-]+)\s*(?:\[([\w,\s-]*)\])?", need)
            todo.append((match[1], (match[2] or "").replace(" ", "")))
    for top in {file.parts[0] for file in dist.files or () if ".." not in file.parts}:
        if top not in ("bin", "__pycache__") and not (site / top).exists():
            (site / top).symlink_to(dist.locate_file(top))
print(f"{site}: {', '.join(sorted({name for name, _ in names}))}")
PY
cd "$root"
versions='from importlib.metadata import version as v
import torch, torchvision, numpy
for each in (torch, torchvision, numpy): print(each.__name__, each.__version__, each.__file__)'
before=$(module/bin/python3 -c "$versions")
printf '%s\n' "$before"
# the README's four lines, but for the one of `conda`
steps=$(sed -n '/needs: torch of your own/,/^```$/p' README.md | grep -E '^python')
[ "$(printf '%s\n' "$steps" | wc -l)" -eq 4 ] || fail "README.md: no four lines under torch of your own"
begin=$(date +%s)
status=0
PATH=$root/module/bin:$PATH sh -euc "$steps" >"$log" 2>&1 || status=$?
grep -E '^(ok|absent|broken) ' "$log" || true
[ "$status" -eq 0 ] || { tail -n 20 "$log"; fail "exit $status; see $log, the folder is $root"; }
after=$(.venv/bin/python -c "$versions")
[ "$after" = "$before" ] || fail "torch is another one: $after"
du -sm .venv | sed 's/\t.*/ MB in the environment/'
.venv/bin/python tools/make_digits.py
.venv/bin/python tools/run_pipeline.py run --config-file configs/pipeline/quick.yaml >>"$log" 2>&1 ||
    fail "the pipeline failed; see $log"
echo "test-own-environment: torch stayed; installed and run in $(($(date +%s) - begin)) s"
cd / && rm -rf "$root"
