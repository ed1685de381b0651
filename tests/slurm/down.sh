#!/usr/bin/env bash
# down.sh DIR: ends everything that up.sh DIR started, jobs included; the files stay.
set -u
pid=$(cat "$1/unshare.pid" 2>/dev/null) || exit 0
child=$(ps -o pid= --ppid "$pid" | head -n 1 | tr -d ' ')
if [ -n "$child" ] && tr '\0' ' ' <"/proc/$child/cmdline" | grep -qF "inside.sh $1"; then
    kill -KILL "$child"   # the first process of the namespace: the kernel ends all others in it
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
fi
rm -f "$1/unshare.pid"
