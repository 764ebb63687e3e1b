#!/usr/bin/env bash
# A Slurm cluster of this one machine, on loopback, to try workers and launchers on. As root, on Debian or Ubuntu:
#   scripts/slurm_one_node.sh start       installs slurm-wlm and munge if need be, starts the daemons
#   scripts/slurm_one_node.sh kill-node   kills the node's daemon; its jobs run on
#   scripts/slurm_one_node.sh start-node  starts it again
#   scripts/slurm_one_node.sh stop
set -euo pipefail
STATE=/var/tmp/peftbench-slurm
CONF=/etc/slurm/slurm.conf

start() {
    command -v slurmctld slurmd munged > /dev/null || DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge > /dev/null
    stop
    mkdir -p "$STATE"/{ctld,d} /etc/slurm /run/munge
    local host cores; host=$(hostname -s); cores=$(nproc)
    [ "$cores" -ge 4 ] || cores=4  # room for four workers, whatever the machine has
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
SlurmdParameters=config_overrides
KillWait=30
StateSaveLocation=$STATE/ctld
SlurmdSpoolDir=$STATE/d
SlurmctldLogFile=$STATE/slurmctld.log
SlurmdLogFile=$STATE/slurmd.log
SlurmctldPidFile=$STATE/slurmctld.pid
SlurmdPidFile=$STATE/slurmd.pid
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$(($(free -m | awk '/^Mem:/ {print $2}') * 9 / 10)) State=UNKNOWN
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

kill-node() { kill -9 "$(cat "$STATE/slurmd.pid")"; }

start-node() { slurmd; }

stop() {  # once the last jobs have said that they ended: else their own daemons would go on trying to
    timeout 30 sh -c 'while sinfo --noheader --format=%T | grep -Eq "alloc|mixed|compl"; do sleep 1; done' 2> /dev/null || true
    end slurmctld "$STATE/slurmctld.pid"
    end slurmd "$STATE/slurmd.pid"
    end munged /run/munge/munged.pid
    rm -rf "$STATE"
}

end() {  # the daemon of this name whose number is in a file; it writes its state as it leaves
    local pid; pid=$(cat "$2" 2> /dev/null) || return 0
    [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = "$1" ] || return 0
    kill "$pid"
    timeout 20 sh -c "while [ -d /proc/$pid ]; do sleep 0.2; done" || kill -9 "$pid"
}

case "${1:-}" in
    start | kill-node | start-node | stop) "$1" ;;
    *) sed -n '2,6p' "$0"; exit 2 ;;
esac
