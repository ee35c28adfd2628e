#!/usr/bin/env bash
# Prints running, success or failed for one Grid Engine job, as snakemake-executor-plugin-cluster-generic asks.
set -euo pipefail
if qstat -j "$1" > /dev/null 2>&1; then
    echo running
elif qacct -j "$1" 2> /dev/null | grep -q '^exit_status *0$'; then
    echo success
else
    echo failed
fi
