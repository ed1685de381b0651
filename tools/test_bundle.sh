#!/bin/sh
# The two lines of bundle/README.txt, in a copy of the last commit with the network closed; then the
# doctor and a pipeline of every stage once.
#     make test-bundle [CONFIG=configs/pipeline/quick.yaml]
# Needs unshare, and a bundle for this Python (make bundle); 6 GB in build/offline, removed at its end.
set -eu
: "${PYTHON:=python3}" "${CONFIG:=configs/pipeline/quick.yaml}"

fail() { printf 'test-bundle: %s\n' "$1" >&2; exit 2; }

if [ "${1:-}" = inside ]; then
    cd "$2"
    PATH=$2/bin:$PATH
    steps=$(sed -n 's/^    //p' bundle/README.txt | head -n 2)
    echo "$steps" | grep -q -- --no-index || fail "bundle/README.txt: no line with --no-index in it"
    begin=$(date +%s)
    eval "$steps"
    echo "installed after $(($(date +%s) - begin)) s, $(du -sm .venv | cut -f1) MB"
    ! python -m pip download -q --no-deps --retries 0 -d /tmp six 2>/dev/null ||
        fail "pip reached an index: the network is not closed"
    (cd / && python -c 'import detectron2, pipeline, pretrain, torch, torchvision, transfer')
    python tools/doctor.py
    python tools/install_detectron2.py
    python tools/make_digits.py
    python tools/run_pipeline.py run --config-file "$3"
    exit 0
fi

[ -f bundle/README.txt ] || fail "no bundle/ here; make bundle writes it"
unshare --net true || fail "this machine does not let unshare close the network; be root, or use another"
root=$PWD/build/offline
log=$root.log
rm -rf "$root"
git clone -q --no-hardlinks . "$root"
mkdir "$root/bin"
ln -s "$PWD/bundle" "$root/bundle"
# the Python of the bundle's first line
python=$("$PYTHON" -c 'import sys; print(sys._base_executable, "3.%d" % sys.version_info[1])')
ln -s "${python% *}" "$root/bin/python${python##* }"
begin=$(date +%s)
status=0
unshare --net env -i PATH="$PATH" HOME="$root" LANG=C.UTF-8 PIP_CONFIG_FILE=/dev/null \
    sh "$0" inside "$root" "$CONFIG" >"$log" 2>&1 || status=$?
grep -E '^(installed after|ok|absent|broken) ' "$log" || true
[ "$status" -eq 0 ] || { tail -n 20 "$log"; fail "exit $status; see $log, the copy is $root"; }
echo "test-bundle: installed and run without network in $(($(date +%s) - begin)) s"
rm -rf "$root"
