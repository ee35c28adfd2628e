# The configuration as every rule uses it, and how rules call the pipeline's commands.

import functools
import os
import shlex
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from pipeline import paths
from pipeline.cluster import Cluster
from pipeline.config import check_configs
from pipeline.errors import AVQAError
from pipeline.jobs import Jobs, flags
from pipeline.keys import source_files
from pipeline.run_at_work import read_run, write_run
from pipeline.storage.atomic import remove_abandoned
from pipeline.storage.contract import MANIFEST
from pipeline.storage.lock import lock_file

try:
    CONFIGS, MANIFESTS = ({}, {}) if workflow.is_main_process else read_run(config)
    CONFIGS = CONFIGS or check_configs(config, ", ".join(map(str, workflow.configfiles)) or "configuration")
    JOBS = Jobs(
        CONFIGS,
        MANIFESTS,
        wait_for=lambda dataset, key: checkpoints.manifest.get(dataset=dataset, key=key),
        targets=lambda: workflow.dag_settings.targets,
    )
    for files in JOBS.paths.values():
        files.check()
except AVQAError as error:
    sys.exit(str(error))  # an exception would be shown with lines of this file

RESULTS = JOBS.results
DATASET = f"{RESULTS}/{{dataset}}"  # questions, index, models, scores
COLLECTION = f"{RESULTS}/{{collection}}"  # shards and features: what belongs to the videos


wildcard_constraints:
    **JOBS.names,
    key=paths.KEY,
    shard=paths.SHARD,
    folder="[^/]+",
    run="[^/]+",
    text="[^/]+",
    tag="[^/]+",
    seed=r"\d+",
    table=r"\w+",


# `avqa` in rules is the code beside this file, in the Python that runs Snakemake or that of the rule's conda
# environment. Progress goes to the console and into the job's log.
IN_CONDA = DeploymentMethod.CONDA in workflow.deployment_settings.deployment_method
PYTHON = "python" if IN_CONDA else shlex.quote(sys.executable)
shell.prefix(
    f"set -o pipefail; export PYTHONPATH={shlex.quote(str(workflow.basedir))} TQDM_MININTERVAL=5; "
    f'avqa() {{{{ {PYTHON} -m pipeline "$@"; }}}}; '
)
LOG = "2>&1 | tee {log:q}"


def set_by_user(rule, resource, defaults):
    """The resource of a rule as the command line or a profile has it, a number or text; None if it is not there."""
    given = workflow.resource_settings
    places = [given.overwrite_resources.get(rule), given.default_resources if defaults else None]
    found = next((place.get(resource) for place in places if place and resource in place), None)
    return getattr(found, "raw", found)


CLUSTER = Cluster(workflow, set_by_user)


def unless_made(outputs, inputs):
    """What a job reads, or nothing where its outputs are there: their names say what they were made from, so that a
    file that exists is right (pipeline/keys.py). With --forceall, everything is made again."""
    outputs = [outputs] if isinstance(outputs, str) else outputs

    def names(wildcards):
        made = all(os.path.exists(output.format(**dict(wildcards.items()))) for output in outputs)
        return [] if made and not workflow.dag_settings.forceall else inputs(wildcards)

    return names


@functools.cache
def begin():
    """Before the first job, and never in a dry run: refuse a second run on the same results, and lead the names without
    keys to what is there already: where nothing is due, Snakemake calls no hook after it. Unlike Snakemake's own lock,
    these locks end with this process."""
    locks = []
    if workflow.dryrun or not workflow.executor_plugin or not workflow.is_main_process:
        return locks
    for name in sorted({*JOBS.collections, *CONFIGS}):
        Path(RESULTS, name).mkdir(parents=True, exist_ok=True)
        try:
            locks.append(lock_file(f"{RESULTS}/{name}/.run.lock"))
        except BlockingIOError:
            raise WorkflowError(f"{RESULTS}/{name}: another run is at work here; wait for it to end, or stop it first")
    write_run(JOBS.paths)
    paths.link_views(JOBS.paths, remove=False)
    return locks


def planned(names, *of):
    """The input function of a target: `names(*of)`, before which the run begins."""

    def listed(wildcards):
        begin()
        return names(*of)

    return listed


def start_run():
    """Before the first job: refuse what cannot end well, as a run that no node of the cluster can do."""
    begin()
    if {"decode", "extract"} & {*workflow.dag_settings.until}:  # a shard is decoded when an earlier one has been read
        raise WorkflowError(
            "--until: would leave out the shards after the first; name the target features in its place"
        )
    if workflow.dag_settings.forcerun:
        raise WorkflowError("--forcerun: a file's name says what decided it; to have one made again, move it away")
    runs = [JOBS.paths[name].one_model(model) for name in JOBS.trained for model in CONFIGS[name]["models"]]
    workers = max(values["decode"]["workers"] for values in CONFIGS.values())
    threads = max(values["train"]["threads"] for values in CONFIGS.values())
    try:
        CLUSTER.check(runs, workers, threads, workflow.resource_settings.overwrite_threads)
    except AVQAError as error:
        raise WorkflowError(str(error))
    if workflow.local_exec and "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", CLUSTER.gpus)


def end_run(well):
    """Lead the names without keys to what this configuration names, remove what interrupted jobs left, and print."""
    for name in (*JOBS.collections, *CONFIGS):
        remove_abandoned(f"{RESULTS}/{name}")
    paths.link_views(JOBS.paths)
    if not well:
        return
    if not workflow.dag_settings.targets and not workflow.storage_settings.notemp:
        for name, listed in JOBS.collections.items():
            listed[0].remove_read_segments(JOBS.inputs(name), list(JOBS.encoders(name)))
    for files in JOBS.paths.values():
        try:
            print((files.report_dir / "summary.txt").read_text())
        except (paths.NotMade, OSError):
            pass  # this run was not about scores
