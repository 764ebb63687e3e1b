#!/usr/bin/env bash
# Start workers of a study over ssh, on machines that share a folder. Give the same command again after a machine was
# away: workers more than cells do no harm. They stay until the last cell is done, whoever has it.
#   scripts/workers_ssh.sh big /shared/outputs /shared/venv/bin/peftbench "--workers 4" node1 node2 user@node3
set -euo pipefail
[ $# -ge 5 ] || { sed -n '2,4p' "$0"; exit 2; }
study=$1 outputs=$2 peftbench=$3 words=$4
shift 4
for host in "$@"; do
    log="$outputs/.ssh/$host.log"
    ssh -o BatchMode=yes "$host" "mkdir -p '$outputs/.ssh'; nohup '$peftbench' work '$study' --outputs '$outputs' --wait $words >> '$log' 2>&1 < /dev/null &" \
        && echo "$host: log $log" || echo "$host: not reached" >&2
done
echo "peftbench status $study --outputs $outputs --watch; peftbench stop $study --outputs $outputs"
