#!/usr/bin/env bash
# submit.sh THREADS MEM_MB GPUS MINUTES SCRIPT: submits a job to Grid Engine and prints its number.
set -euo pipefail
threads=$1 mem_mb=$2 gpus=$3 minutes=$4 script=$5
mkdir -p .snakemake/job_logs
requests=(-l "h_vmem=$(((mem_mb + threads - 1) / threads))M")  # Grid Engine counts memory per slot
requests+=(-l "h_rt=$((60 * minutes))")
if [ "$gpus" -gt 0 ]; then
    requests+=(-l "gpu=$gpus")
fi
exec qsub -terse -cwd -pe smp "$threads" "${requests[@]}" -j y -o .snakemake/job_logs "$script"
