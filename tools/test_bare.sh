#!/bin/sh
# The README's commands on a bare Debian: only python3-venv, make and git, in a root by debootstrap.
#     make test-bare [SUITES="bookworm trixie"] [COMMANDS="demo test"] [MIRROR=URL]
# Needs root, debootstrap and network; tries the last commit; 7 GB a suite, removed at its end.
set -eu
: "${SUITES:=bookworm trixie}" "${COMMANDS:=demo test}"

fail() { printf 'test-bare: %s\n' "$1" >&2; exit 2; }

# Its own mounts, in a process space of its own: both end with it, whatever happens inside.
if [ "${1:-}" = inside ]; then
    root=$2
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        ${https_proxy:+https_proxy="$https_proxy"} ${http_proxy:+http_proxy="$http_proxy"} \
        ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} ${TESTS:+TESTS="$TESTS"} \
        chroot "$root" make -C /project "$3"
fi

[ "$(id -u)" = 0 ] || fail "only root can make a root folder of Debian; say sudo make test-bare"
command -v debootstrap >/dev/null ||
    fail "no debootstrap on PATH; install it (Debian and Ubuntu: apt-get install debootstrap)"
mkdir -p build/bare
for suite in $SUITES; do
    root=$PWD/build/bare/$suite
    log=$PWD/build/bare/$suite.log
    rm -rf --one-file-system "$root"
    debootstrap --variant=minbase --include=python3-venv,make,git,ca-certificates \
        "$suite" "$root" ${MIRROR:+"$MIRROR"} >"$log" 2>&1 || fail "debootstrap of $suite failed; see $log"
    # names and certificates are the machine's, as its network asks
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    git clone -q --no-hardlinks . "$root/project"
    for command in $COMMANDS; do
        begin=$(date +%s)
        status=0
        unshare --mount --pid --fork --kill-child sh "$0" inside "$root" "$command" >>"$log" 2>&1 || status=$?
        line="$suite: make $command: exit $status after $(($(date +%s) - begin)) s"
        echo "$line" | tee -a "$log"
        [ "$status" -eq 0 ] || { tail -n 20 "$log"; fail "$line; see $log, the root is $root"; }
    done
    rm -rf --one-file-system "$root"
done
