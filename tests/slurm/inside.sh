#!/usr/bin/env bash
# The first process of up.sh's namespaces: starts the daemons; when it ends, all of them end.
set -eu
dir=$1
export PATH=$PATH:/usr/sbin SLURM_CONF="$dir/slurm.conf"
mount --bind "$dir/hosts" /etc/hosts
munged --force --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --seed-file="$dir/munge.seed" --log-file="$dir/log/munged.log"
slurmctld
slurmd -N n1
slurmd -N n2
sleep "$2" &
wait $!
