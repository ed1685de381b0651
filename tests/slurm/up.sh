#!/usr/bin/env bash
# up.sh DIR: starts a two-node SLURM whose every file lies in DIR; use it with SLURM_CONF=DIR/slurm.conf.
#
# munge, slurmctld and two slurmd live in their own mount and process namespaces, where n1 and n2
# resolve; nothing outside DIR changes. down.sh DIR ends them, and so does the end of LIFETIME_S.
set -euo pipefail
fail() { echo "up.sh: $1" >&2; exit 2; }
dir=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
[ "$(id -u)" = 0 ] || fail "wants root, to be several nodes on one machine"
[ ${#dir} -lt 70 ] || fail "$dir: the path is too long for a socket; wanted less than 70 characters"
for program in munged slurmctld slurmd sbatch unshare nsenter; do
    PATH=$PATH:/usr/sbin command -v $program >/dev/null || fail "$program is missing; apt-get install slurmctld slurmd slurm-client munge"
done
base=$((17000 + RANDOM % 10000))

mkdir -p "$dir/state" "$dir/spool-n1" "$dir/spool-n2" "$dir/log"
chmod 755 "$dir"
head -c 1024 /dev/urandom >"$dir/munge.key"
chmod 400 "$dir/munge.key"
{ cat /etc/hosts; echo "127.0.0.1 n1 n2"; } >"$dir/hosts"
cat >"$dir/slurm.conf" <<CONF
ClusterName=two
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$base
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it starts again
AuthInfo=socket=$dir/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
KillWait=10
MessageTimeout=5
MinJobAge=3600
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((base + 1))-$((base + 2)) CPUs=4 RealMemory=8000
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n[1-2] MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
[ ! -f "$dir/accounting.conf" ] || cat "$dir/accounting.conf" >>"$dir/slurm.conf"

setsid unshare --mount --pid --fork --mount-proc --propagation private \
    bash "$here/inside.sh" "$dir" "${LIFETIME_S:-3600}" </dev/null >"$dir/log/inside.log" 2>&1 &
echo $! >"$dir/unshare.pid"
export SLURM_CONF="$dir/slurm.conf"
for _ in $(seq 150); do
    [ "$(timeout 5 sinfo -h -o %D -t idle 2>/dev/null)" = 2 ] && exit 0
    kill -0 "$(cat "$dir/unshare.pid")" 2>/dev/null || break
    sleep 0.2
done
tail -n 20 "$dir"/log/*.log >&2
"$here/down.sh" "$dir"
fail "the nodes did not come up within 30 s"
