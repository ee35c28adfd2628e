# The configuration as every rule uses it, and how rules call the pipeline's commands.

import functools
import json
import os
import re
import shlex
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from extractors import ENCODERS, is_hub_tag
from pipeline.cluster import Cluster
from pipeline.config import check_configs, is_trained, reads_prompts, text_encoders
from pipeline.errors import AVQAError
from pipeline.keys import source_files
from pipeline.paths import KEY, SHARD, NotMade, link_views, paths_of
from pipeline.storage.atomic import remove_abandoned
from pipeline.storage.lock import lock_file

try:
    CONFIGS = check_configs(config, ", ".join(map(str, workflow.configfiles)) or "configuration")
    PATHS = paths_of(CONFIGS)
    for files in PATHS.values():
        files.check()
except AVQAError as error:
    sys.exit(str(error))  # an exception would be shown with lines of this file

RESULTS = next(iter(CONFIGS.values()))["results"]
DATASET = f"{RESULTS}/{{dataset}}"  # questions, index, models, scores
COLLECTION = f"{RESULTS}/{{collection}}"  # shards and features: what belongs to the videos
TRAINED = [name for name, values in CONFIGS.items() if is_trained(values)]
COLLECTIONS = {}  # collection: the files of its data sets
for files in PATHS.values():
    COLLECTIONS.setdefault(files.collection.name, []).append(files)


wildcard_constraints:
    dataset="|".join(map(re.escape, CONFIGS)),
    trained_on="|".join(map(re.escape, CONFIGS)),
    collection="|".join(map(re.escape, COLLECTIONS)),
    key=KEY,
    shard=SHARD,
    folder="[^/]+",
    run="[^/]+",
    text="[^/]+",
    encoder="|".join(ENCODERS),
    model="|".join(dict.fromkeys(re.escape(name) for values in CONFIGS.values() for name in values["models"])),
    seed=r"\d+",


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


def made(name):
    """The files of a data set, once its questions and those of the data sets that its models are trained on are there."""
    for other in dict.fromkeys((name, *CONFIGS[name]["trained_on"])):
        try:
            PATHS[other].manifest
        except NotMade:
            checkpoints.manifest.get(dataset=other, key=PATHS[other].manifest_key.digits)
    return PATHS[name]


def settings(name, *sections, **parts):
    """The sections of a data set's configuration that a job needs, as JSON for `avqa --config`."""
    values = CONFIGS[name]
    return json.dumps({section: values[section] for section in sections if section in values} | parts, sort_keys=True)


def flags(**values):
    """Command line options of the values that are given."""
    words = []
    for name, value in values.items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            listed = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, listed)]
    return " ".join(shlex.quote(word) for word in words)


@functools.cache
def begin():
    """Before the first job, and never in a dry run: refuse a second run on the same results, and lead the names without
    keys to what is there already: where nothing is due, Snakemake calls no hook after it. Unlike Snakemake's own lock,
    these locks end with this process."""
    locks = []
    if workflow.dryrun or not workflow.executor_plugin or not workflow.is_main_process:
        return locks
    for name in sorted({*COLLECTIONS, *CONFIGS}):
        Path(RESULTS, name).mkdir(parents=True, exist_ok=True)
        try:
            locks.append(lock_file(f"{RESULTS}/{name}/.run.lock"))
        except BlockingIOError:
            raise WorkflowError(f"{RESULTS}/{name}: another run is at work here; wait for it to end, or stop it first")
    link_views(PATHS)
    return locks


def start_run():
    """Before the first job: refuse what cannot end well, as a run that no node of the cluster can do."""
    begin()
    if {"decode", "extract"} & {*workflow.dag_settings.until}:  # a shard is decoded when an earlier one has been read
        raise WorkflowError("--until: would leave out the shards after the first; name the target features in its place")
    if workflow.dag_settings.forcerun:
        raise WorkflowError("--forcerun: a file's name says what decided it; to have one made again, move it away")
    runs = [PATHS[name].one_model(model) for name in TRAINED for model in CONFIGS[name]["models"]]
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
    for name in (*COLLECTIONS, *CONFIGS):
        remove_abandoned(f"{RESULTS}/{name}")
    link_views(PATHS)
    if not well:
        return
    if not workflow.dag_settings.targets and not workflow.storage_settings.notemp:
        for name, listed in COLLECTIONS.items():
            listed[0].remove_read_segments(inputs_of(name), list(encoders_of(name)))
    for files in PATHS.values():
        try:
            print((files.report_dir / "summary.txt").read_text())
        except (NotMade, OSError):
            pass  # this run was not about scores
