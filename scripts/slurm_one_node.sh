#!/usr/bin/env bash
# A Slurm cluster of this one machine, on loopback, to try `hydra/launcher=slurm` on. As root, on Debian or Ubuntu:
#   scripts/slurm_one_node.sh start    installs slurm-wlm and munge if need be, starts the daemons
#   scripts/slurm_one_node.sh stop
set -euo pipefail
STATE=/var/tmp/peftbench-slurm
CONF=/etc/slurm/slurm.conf

start() {
    command -v slurmctld slurmd munged > /dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge > /dev/null
    stop
    mkdir -p "$STATE"/{ctld,d} /etc/slurm /run/munge
    local host; host=$(hostname -s)
    cat > "$CONF" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=30
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/d
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$(($(free -m | awk '/^Mem:/ {print $2}') * 9 / 10)) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    chown -R munge: /run/munge 2> /dev/null || true
    su -s /bin/sh munge -c munged
    slurmctld
    slurmd
    for _ in $(seq 60); do
        sinfo --noheader --format=%T 2> /dev/null | grep -q idle && { sinfo; return; }
        sleep 1
    done
    echo "the node did not come up; see $STATE/*.log" >&2
    exit 1
}

stop() {
    for name in slurmctld slurmd; do
        [ -f "$STATE/$name.pid" ] && kill "$(cat "$STATE/$name.pid")" 2> /dev/null || true
    done
    for name in slurmctld slurmd; do  # they write their state as they leave
        timeout 20 sh -c "while pgrep -x $name > /dev/null; do sleep 0.2; done" || pkill -9 -x $name || true
    done
    pkill -x munged 2> /dev/null || true
    rm -rf "$STATE"
}

case "${1:-}" in
    start | stop) "$1" ;;
    *) sed -n '2,4p' "$0"; exit 2 ;;
esac
