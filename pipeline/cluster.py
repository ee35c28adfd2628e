"""What the jobs of each rule request, in MB and minutes, and what the machines that run them have.

Memory as measured (bench/RESULTS.md, Memory of jobs): decode 1,200 with 8 workers, and up to 4,000 per worker for a
video that is hard to decode; ViT-L/14 at 224 and 336 px 3,500, its texts 3,100; evaluation 2,600; 400 more for
Snakemake itself. Host memory beside a GPU was not measured. A job that fails for want of memory or time requests more,
and training resumes.
"""

import os
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from pipeline.errors import AVQAError
from pipeline.gpu import devices
from pipeline.models import settings_class
from pipeline.scheduler import Node, check_requests, jobs_of, slurm_nodes

MEMORY = {
    "decode": 8000,
    "extract": 8000,
    "text": 8000,
    "train": 2500,
    "evaluate": 6000,
    "explain": 6000,
    "score": 6000,
}
MINUTES = {"decode": 240, "extract": 240, "text": 120, "train": 1200, "evaluate": 120, "explain": 120, "score": 120}
GROUP = ("train", "evaluate", "explain")  # one after the other in one job of the cluster; their times add up


class Cluster:
    """The requests of rules, as functions that Snakemake calls for each job.

    `workflow` is Snakemake's: it knows its executor only when it plans jobs, and not yet when it reads rules.
    `set_by_user(rule, resource, defaults)` gives a rule's resource as the command line or a profile has it, with
    `defaults` also as the resource of every rule, or None.
    """

    def __init__(self, workflow: Any, set_by_user: Callable[[str, str, bool], object]):
        self.workflow, self.set_by_user = workflow, set_by_user
        self.known: dict[object, list[Node]] = {}

    @property
    def executor(self) -> str:
        """The name of Snakemake's executor."""
        return getattr(self.workflow.executor_plugin, "name", "")

    @cached_property
    def gpus(self) -> int:
        """The GPUs of this machine."""
        return len(devices())

    def nodes(self, rule: str) -> list[Node]:
        """The kinds of nodes of the Slurm partition that a rule's jobs go to; none elsewhere."""
        if not self.executor.startswith("slurm"):
            return []
        partition = self.set_by_user(rule, "slurm_partition", True)
        if partition not in self.known:
            self.known[partition] = slurm_nodes(partition if isinstance(partition, str) else None)
        return self.known[partition]

    def threads(self, rule: str, wanted: int) -> int:
        """Threads for a job; on Slurm no more than its largest node has."""
        return min([wanted, max((node.cpus for node in self.nodes(rule)), default=wanted)])

    def extraction_threads(self, rule: str) -> Callable:
        """Beside a GPU the processors are for decoding the next shards."""
        return lambda wildcards: self.threads(rule, 2 if self._gpu(rule) else 8)

    def mem_mb(self, rule: str) -> Callable:
        """More with each attempt; on Slurm no more than its largest node has."""
        return lambda wildcards, attempt: self._memory(rule, MEMORY[rule] * attempt)

    def training_mem_mb(self, config: Mapping, attempt: int) -> int:
        """What training takes: more with the questions in a batch and their seconds. A quarter is for the features,
        those of patches first, of which as many are kept in memory as fit there. `config` is that of one model."""
        return self._memory("train", training_memory(config) * attempt)

    def _memory(self, rule: str, wanted: int) -> int:
        return min([wanted, max((node.mem_mb for node in self.nodes(rule)), default=wanted)])

    def runtime(self, rule: str) -> Callable:
        """More with each attempt; on Slurm no more than a partition allows, for all jobs of a group together."""
        usual = MINUTES[rule]
        together = sum(MINUTES[name] for name in GROUP) if rule in GROUP else usual

        def minutes(wildcards, attempt):
            wanted = usual * attempt
            allowed = (node.minutes * usual // together for node in self.nodes(rule))
            return min([wanted, max(allowed, default=wanted)])

        return minutes

    def gpu(self, rule: str) -> Callable:
        """One GPU for each job that can use it, where there are any."""
        return lambda wildcards: self._gpu(rule)

    def decode_gpu(self, backend: str) -> int:
        """One GPU for decoding on it, where there are any."""
        return self._gpu("decode") if backend == "nvdec" else 0

    def _gpu(self, rule: str) -> int:
        usual = self.gpus if self.workflow.local_exec else 1
        return min(max((node.gpus for node in self.nodes(rule)), default=usual), 1)

    def check(self, training: list[Mapping], workers: int, threads: int, overwritten: Mapping[str, int]) -> None:
        """Before anything is submitted to Slurm: that there are nodes for it, and that no jobs of an earlier run, whose
        own Snakemake was killed, are still writing the same files. Raises AVQAError."""
        if self.executor != "slurm" or not self.nodes("decode"):
            return
        prefix = getattr(self.workflow.executor_settings, "jobname_prefix", "")
        if earlier := jobs_of(os.getcwd(), prefix):
            raise AVQAError(
                "jobs of an earlier run in this folder are still in the queue; wait for them to end, or end them with\n"
                f"    scancel {' '.join(earlier)}"
            )
        wanted = {"decode": workers, "extract": 2 if self._gpu("extract") else 8, "text": 2 if self._gpu("text") else 8}
        wanted["train"] = threads
        memory = MEMORY | {"train": max(map(training_memory, training), default=0)}
        requests = {
            rule: Node(
                number_or(overwritten.get(rule), self.threads(rule, count)),
                number_or(self.set_by_user(rule, "mem_mb", False), memory[rule]),
                number_or(self.set_by_user(rule, "gpu", False), self._gpu(rule) if rule != "decode" else 0),
                number_or(self.set_by_user(rule, "runtime", False), self.runtime(rule)({}, 1)),
            )
            for rule, count in wanted.items()
        }
        check_requests({rule: (request, self.nodes(rule)) for rule, request in requests.items()})


def training_memory(config: Mapping) -> int:
    """The MB that training takes; `config` is that of one model."""
    schedule, (entry,) = config["train"], config["models"].values()
    questions = max(stage["batch_size"] for stage in (schedule, schedule["pretrain"]) if stage)
    per_second = settings_class(entry["architecture"]).training_mb
    return int(4 / 3 * (MEMORY["train"] + per_second * questions * config["decode"]["segments"]))


def number_or(given: object, usual: int) -> int:
    """A number that the user has set, or else the usual; 0 for an expression, which only a job can evaluate."""
    return usual if given is None else given if isinstance(given, int) else 0
