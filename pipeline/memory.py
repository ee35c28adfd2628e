"""The memory that this process may still take: of the machine, its control groups, and its Slurm job."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

# Version 2 and version 1 of control groups: limit, use, and the part of the use that the kernel gives back when needed.
_FILES = {
    "": ("memory.max", "memory.current", "inactive_file"),
    "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def available_memory(root: str | Path = "/") -> int:
    """Bytes, by the tightest of the limits; `root` is the folder that holds proc and sys."""
    root = Path(root)
    return max(0, min([psutil.virtual_memory().available, *_of_control_groups(root), *_of_slurm()]))


def _of_control_groups(root: Path) -> Iterator[int]:
    """What is left of the limit of each control group that this process is in, and of those around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return  # not Linux
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in {"", "memory"} & set(controllers.split(",")):
            top = root / "sys/fs/cgroup" / controller
            group = top / path.lstrip("/")
            # In a container the path may be that of the machine; its own group is then at the top.
            for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(top))):
                yield from _left(folder, *_FILES[controller])


def _left(folder: Path, limit: str, use: str, reclaimable: str) -> Iterator[int]:
    try:
        most, used = int((folder / limit).read_text()), int((folder / use).read_text())
        statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such group, or no limit: "max"
        return
    yield most - used + int(statistics.get(reclaimable, 0))


def _of_slurm() -> Iterator[int]:
    """What this process leaves of the job's memory on this node, which Slurm states in MiB."""
    if megabytes := _number("SLURM_MEM_PER_NODE"):
        limit = megabytes
    elif megabytes := _number("SLURM_MEM_PER_CPU"):
        limit = megabytes * (_number("SLURM_CPUS_ON_NODE") or 1)
    else:
        return
    yield limit * 2**20 - psutil.Process().memory_info().rss


def _number(variable: str) -> int | None:
    """The value of an environment variable; None if it is not there or not a number."""
    value = os.environ.get(variable, "")
    return int(value) if value.isdecimal() else None
