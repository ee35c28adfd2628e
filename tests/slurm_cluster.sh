#!/usr/bin/env bash
# Starts a Slurm of one node on this machine, from Debian's slurm-wlm and munge: slurm_cluster.sh CPUS MEMORY_MB
# Without accounting; a job that takes more memory than it asked for is ended, and the partition's time is shorter than
# what training requests elsewhere.
set -euo pipefail
cpus=$1 memory=$2 host=$(hostname -s)
if [ -e /etc/slurm/slurm.conf ] && ! grep -q '^ClusterName=avqa$' /etc/slurm/slurm.conf; then
    echo "/etc/slurm/slurm.conf is another cluster's" >&2
    exit 1
fi
mkdir -p /run/munge /var/log/munge /var/lib/munge /var/spool/avqa-slurmctld /var/spool/avqa-slurmd /var/log/avqa-slurm
chown munge: /run/munge /var/log/munge /var/lib/munge
[ -s /etc/munge/munge.key ] || { dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 2> /dev/null; }
chown munge: /etc/munge/munge.key && chmod 400 /etc/munge/munge.key
pgrep -x munged > /dev/null || runuser -u munge -- /usr/sbin/munged
cat > /etc/slurm/slurm.conf << END
ClusterName=avqa
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=/var/spool/avqa-slurmctld
SlurmdSpoolDir=/var/spool/avqa-slurmd
SlurmctldLogFile=/var/log/avqa-slurm/slurmctld.log
SlurmdLogFile=/var/log/avqa-slurm/slurmd.log
SlurmctldPidFile=/run/avqa-slurmctld.pid
SlurmdPidFile=/run/avqa-slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
JobAcctGatherParams=OverMemoryKill
MpiDefault=none
ReturnToService=2
MinJobAge=600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=12:00:00 State=UP
END
pgrep -x slurmctld > /dev/null || slurmctld -c
pgrep -x slurmd > /dev/null || slurmd -c
for _ in $(seq 60); do
    sinfo -h -o %T 2> /dev/null | grep -q -E "idle|mixed|allocated" && exit 0
    sleep 1
done
sinfo; tail /var/log/avqa-slurm/*.log; exit 1
