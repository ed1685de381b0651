#!/bin/sh
# The README's commands on a bare Debian: only python3-venv, make and git, in a root by debootstrap.
#     make test-bare [SUITES="bookworm trixie"] [COMMANDS="demo test"] [MIRROR=URL]
# Needs root, debootstrap and network; tries the last commit; 7 GB a suite, removed at its end.
set -eu
: "${SUITES:=bookworm trixie}" "${COMMANDS:=demo test}"

fail() { printf 'test-bare: %s\n' "$1" >&2; exit 2; }

for suite in $SUITES; do
    root=$PWD/build/bare/$suite
    log=$root.log
    sh tools/debian_root.sh make "$suite" "$root" python3-venv,make,git,ca-certificates
    git clone -q --no-hardlinks . "$root/project"
    for command in $COMMANDS; do
        begin=$(date +%s)
        status=0
        sh tools/debian_root.sh run "$root" make -C /project "$command" >>"$log" 2>&1 || status=$?
        line="$suite: make $command: exit $status after $(($(date +%s) - begin)) s"
        echo "$line" | tee -a "$log"
        [ "$status" -eq 0 ] || { tail -n 20 "$log"; fail "$line; see $log, the root is $root"; }
    done
    rm -rf --one-file-system "$root"
done
