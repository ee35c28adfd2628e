#!/usr/bin/env bash
# status.sh JOB: prints running, success or failed, as snakemake-executor-plugin-cluster-generic wants it.
set -euo pipefail
job=$1
state=$(qstat 2> /dev/null | awk -v job="$job" '$1 == job {print $5; exit}')
case $state in
    *E*) echo failed; exit ;;  # Eqw: it could not be started, and would wait for ever
    ?*) echo running; exit ;;
esac
# The accounting record is written some time after the job has left the queue.
for _ in $(seq "${ACCOUNTING_SECONDS:-60}"); do
    if record=$(qacct -j "$job" 2> /dev/null); then
        if grep -q '^failed *0 *$' <<< "$record" && grep -q '^exit_status *0 *$' <<< "$record"; then
            echo success
        else
            echo failed
        fi
        exit
    fi
    sleep 1
done
echo failed
