#!/bin/sh
# A bare Debian in a folder, by debootstrap, with this machine's names and certificates; root only.
#     debian_root.sh make SUITE ROOT PACKAGES   writes ROOT.log too; MIRROR=URL
#     debian_root.sh run ROOT WORDS...          a command inside, with an environment of its own
set -eu
command=$1

fail() { printf 'debian_root: %s\n' "$1" >&2; exit 2; }

case $command in
make)
    suite=$2 root=$3
    [ "$(id -u)" = 0 ] || fail "only root can make a root folder of Debian; say sudo make ..."
    command -v debootstrap >/dev/null ||
        fail "no debootstrap on PATH; install it (Debian and Ubuntu: apt-get install debootstrap)"
    rm -rf --one-file-system "$root"
    mkdir -p "$(dirname "$root")"
    debootstrap --variant=minbase --include="$4" "$suite" "$root" ${MIRROR:+"$MIRROR"} \
        >"$root.log" 2>&1 || fail "debootstrap of $suite failed; see $root.log"
    # names and certificates are the machine's, as its network asks
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    # as Debian's installer writes them; torchrun asks for both
    printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$(uname -n)" >"$root/etc/hosts"
    ;;
run) # its own mounts, in a process space of its own: both end with it, whatever happens inside
    shift
    exec unshare --mount --pid --fork --kill-child sh "$0" inside "$@"
    ;;
inside)
    root=$2
    shift 2
    mount -t proc proc "$root/proc"
    mount --rbind /dev "$root/dev"
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        ${https_proxy:+https_proxy="$https_proxy"} ${http_proxy:+http_proxy="$http_proxy"} \
        ${PIP_INDEX_URL:+PIP_INDEX_URL="$PIP_INDEX_URL"} ${TESTS:+TESTS="$TESTS"} \
        chroot "$root" "$@"
    ;;
*) fail "'$command', wanted make or run" ;;
esac
