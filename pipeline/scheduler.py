"""What Slurm says about its nodes and its queue, so that mistakes are found before jobs are submitted."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from typing import NamedTuple

from pipeline.errors import AVQAError

UNLIMITED = 10**9  # minutes


class Node(NamedTuple):
    """A kind of node, or what a job requests: processors, memory in MB, number of GPUs, minutes."""

    cpus: int
    mem_mb: int
    gpus: int
    minutes: int

    def __str__(self) -> str:
        time = "any time" if self.minutes == UNLIMITED else f"{self.minutes} minutes"
        return f"{self.cpus} CPUs, {self.mem_mb} MB, {self.gpus} GPUs, {time}"


def slurm_nodes(partition: str | None = None) -> list[Node]:
    """The kinds of nodes of a partition (default: of all); none where Slurm does not answer."""
    chosen = ["-p", partition] if partition else []
    lines = _lines(["sinfo", "--noheader", "--Format", "cpus:20,memory:20,time:20,gres:200", *chosen])
    rows = [line.split(maxsplit=3) for line in lines]
    return [Node(int(c.rstrip("+")), int(m.rstrip("+")), count_gpus(gres), minutes_of(t)) for c, m, t, gres in rows]


def count_gpus(gres: str) -> int:
    """`gpu:tesla:2(S:0-1),shard:4` has 2."""
    return sum(int(n) for n in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))


def minutes_of(limit: str) -> int:
    """A time limit in Slurm's words: `1-12:00:00`, `12:00:00`, `30:00`, `infinite`."""
    days, _, clock = limit.rpartition("-")
    if not re.fullmatch(r"(\d+:)?\d+:\d+", clock):
        return UNLIMITED
    hours, minutes, _ = [0, *map(int, clock.split(":"))][-3:]
    return 1440 * int(days or 0) + 60 * hours + minutes


def check_requests(requests: Mapping[str, tuple[Node, list[Node]]]) -> None:
    """Raise AVQAError naming the rules that no kind of node can run, of those where their jobs go: Slurm would let them
    wait for ever. Where nothing is known about the nodes, nothing is checked."""
    lines = [
        f"  {rule}: {need}; nodes have {' or '.join(map(str, sorted(set(kinds), reverse=True)))}"
        for rule, (need, kinds) in requests.items()
        if kinds and not any(all(has >= wants for has, wants in zip(kind, need, strict=True)) for kind in kinds)
    ]
    if lines:
        raise AVQAError(
            "no node of the cluster can run these rules:\n"
            + "\n".join(lines)
            + "\nAsk for less with --set-threads and "
            "set-resources (profiles/slurm/config.yaml), or name another partition there"
        )


def jobs_of(folder: str, prefix: str) -> list[str]:
    """The numbers of this user's jobs that were submitted from `folder` and whose name begins with `prefix`, without
    the one that this process is part of."""
    lines = _lines(["squeue", "--me", "--noheader", "--Format", "jobid:30,name:200,workdir:1000"])
    rows = [line.split(maxsplit=2) for line in lines]
    rows = [row for row in rows if len(row) == 3 and row[0] != os.environ.get("SLURM_JOB_ID")]
    return [number for number, name, workdir in rows if name.startswith(prefix) and workdir == folder]


def _lines(command: list[str]) -> list[str]:
    """What a command of Slurm prints; nothing where there is none, or none that answers."""
    if not shutil.which(command[0]):
        return []
    done = subprocess.run(command, capture_output=True, text=True)
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
