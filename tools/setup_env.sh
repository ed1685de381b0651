#!/bin/sh
# Makes $VENV with everything the project needs. Safe to interrupt and to run again.
# Says in one line what is missing when something is. CONSTRAINTS: pins other than constraints.txt;
# EXTRAS: of pyproject.toml, all that tests and documents need unless given, none where empty.
set -eu
: "${CONSTRAINTS:=constraints.txt}" "${EXTRAS=dev,docs,hub,jpeg,peers,wandb,mlflow}"

fail() { printf 'setup: %s\n' "$1" >&2; exit 2; }

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    for name in "$PYTHON" python3 python3.12 python3.13 python3.14; do
        if is_recent "$name"; then echo "$name"; return; fi
    done
    fail "no Python 3.11 or newer found (tried $PYTHON, python3); install one, or say make PYTHON=/path/to/python3"
}

free_gb() { df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }'; }

python=$(find_python) || exit 2
if ! "$VENV/bin/python" -c 'import torch' 2>/dev/null && [ "$(free_gb .)" -lt 8 ]; then
    fail "only $(free_gb .) GB free on this disk, wanted 8 for the environment; free some and run again"
fi
[ -x "$VENV/bin/python" ] && is_recent "$VENV/bin/python" &&
    "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || {
    rm -rf "$VENV"
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        fail "$python has no venv module; install it (Debian and Ubuntu: apt-get install python3-venv)"
    "$python" -m venv "$VENV" || fail "cannot make $VENV here"
}

log="$VENV/install.log"
pip=
trap '[ -z "$pip" ] || kill "$pip" 2>/dev/null; echo "setup: interrupted; run the same command again" >&2; exit 130' INT TERM

# Installs quietly into the log, and shows that it is alive.
install() {
    "$VENV/bin/python" -m pip install --disable-pip-version-check -c "$CONSTRAINTS" "$@" >"$log" 2>&1 &
    pip=$!
    while kill -0 "$pip" 2>/dev/null; do
        sleep 1
        seconds=$((seconds + 1))
        [ $((seconds % 15)) -ne 0 ] ||
            echo "setup: ${seconds} s, $(du -sm "$VENV" 2>/dev/null | cut -f1) MB, $(tail -n 1 "$log" | cut -c 1-80)"
    done
    wait "$pip" || explain
    pip=
}

explain() {
    if grep -qE 'No space left|Errno 28' "$log"; then
        fail "the disk is full; free about 8 GB and run again"
    elif grep -qE 'Retrying|NewConnection|Temporary failure|ProxyError|timed out' "$log"; then
        fail "cannot get packages from PyPI (no network?); see $log"
    fi
    reason=$(grep ERROR "$log" | tail -n 1)
    fail "installing packages failed: ${reason:-unknown reason}; see $log"
}

seconds=0
echo "setup: packages into $VENV (about 7 GB once; see $log)"
install setuptools wheel
install --no-build-isolation -e ".${EXTRAS:+[$EXTRAS]}"
"$VENV/bin/python" tools/install_detectron2.py
