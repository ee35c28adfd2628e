# The configuration as every rule uses it, and how rules call the pipeline's commands.

import functools
import hashlib
import json
import os
import re
import shlex
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.io import IOFile
from snakemake.iocontainers import Wildcards
from snakemake.settings.types import DeploymentMethod

from extractors import ENCODERS, is_hub_tag
from pipeline.config import (
    annotation_files,
    check_configs,
    is_trained,
    reads_prompts,
    scores_dir,
    text_encoders,
    training,
    videos_fingerprint,
    weights_fingerprint,
)
from pipeline.errors import AVQAError
from pipeline.gpu import devices
from pipeline.models import entry_settings, settings_class
from pipeline.scheduler import Node, check_requests, jobs_of, slurm_nodes
from pipeline.storage.atomic import remove_abandoned, write_if_changed
from pipeline.storage.contract import DECODER_VERSION
from pipeline.storage.lock import lock_file

try:
    CONFIGS = check_configs(config, ", ".join(map(str, workflow.configfiles)) or "configuration")
except AVQAError as error:
    sys.exit(str(error))  # an exception would be shown with lines of this file

RESULTS = next(iter(CONFIGS.values()))["results"]
DATASET = f"{RESULTS}/{{dataset}}"  # questions, index, models, scores
COLLECTION = f"{RESULTS}/{{collection}}"  # shards and features: what belongs to the videos
SCRATCH = os.path.expandvars(next(iter(CONFIGS.values()))["scratch"]) or RESULTS
SEGMENTS = f"{SCRATCH}/{{collection}}/segments"  # there for as long as they are needed
TRAINED = [name for name, settings_of in CONFIGS.items() if is_trained(settings_of)]
ENCODERS_OF = {}  # collection: its encoders, with their settings
SETTINGS_OF = {}  # collection: the settings of its videos
for settings_of in CONFIGS.values():
    ENCODERS_OF.setdefault(settings_of["videos"]["collection"], {}).update(settings_of["encoders"])
    SETTINGS_OF.setdefault(settings_of["videos"]["collection"], settings_of)


wildcard_constraints:
    dataset="|".join(map(re.escape, CONFIGS)),
    trained_on="|".join(map(re.escape, CONFIGS)),
    collection="|".join(map(re.escape, ENCODERS_OF)),
    shard=r"\d{5}",
    inputs="[^/]+",
    use="training|all",
    encoder="|".join(ENCODERS),
    model="|".join(dict.fromkeys(re.escape(name) for each in CONFIGS.values() for name in each["models"])),
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


# Params decide what is due again: a file is made again when its inputs are newer or its params differ from those that
# Snakemake has recorded (profiles/*/config.yaml, rerun-triggers). A param whose function takes `threads` is not
# recorded; it is for what changes no result. Some inputs must be there first, but are no reason to run by being newer;
# a param says what in them matters. A job has such an input only if it is due. (`ancient` is not enough: Snakemake looks
# for no other reasons in what follows a job that is due, see `masked` in DAG.update_needrun.)


def is_current(path, inputs, params):
    """Whether a file is up to date by Snakemake's own rules, its inputs being as they are."""
    asked = workflow.dag_settings
    if asked.forceall or asked.forcetargets or asked.forcerun or not os.path.exists(path):
        return False
    made = os.stat(path).st_mtime
    if any(os.stat(name).st_mtime > made for name in inputs if os.path.exists(name)):
        return False
    recorded = workflow.persistence.params(IOFile(path))
    return recorded is None or recorded == sorted(map(repr, params))


def settings(*sections, **parts):
    """The sections of the data set's configuration that a job needs, as JSON for `avqa --config`."""

    def text(wildcards):
        own = CONFIGS[wildcards.dataset]
        return json.dumps({name: own[name] for name in sections if name in own} | parts, sort_keys=True)

    return text


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


def weights_flags(entry):
    """The settings of an encoder that decide its output."""
    return flags(**{name: value for name, value in entry.items() if name != "batch_size"})


def timing_in(path):
    """The file for the times of a job's parts, beside its benchmark file; no output, since no rule needs it."""
    return lambda wildcards, threads: path.format(**dict(wildcards.items()))


def manifest_of(wildcards):
    """manifest.json of the data set, once the manifest has made it."""
    return json.loads(Path(checkpoints.manifest.get(dataset=wildcards.dataset).output.manifest).read_text())


def from_manifest(*names):
    """What manifest.json says about the data set, as a param that makes due what a change concerns; null for what that
    of an earlier version does not say."""
    return lambda wildcards: json.dumps([manifest_of(wildcards).get(name) for name in names])


def questions(wildcards):
    """questions.parquet, once the manifest has made it."""
    return ancient(checkpoints.manifest.get(dataset=wildcards.dataset).output.questions)


def collection_of(wildcards):
    """The collection of the data set's videos."""
    return CONFIGS[wildcards.dataset]["videos"]["collection"]


def encoders_read(entry):
    """The encoders whose features a model reads."""
    return list(dict.fromkeys(entry[feature].split("/")[0] for feature in entry_settings(entry).features))


# What jobs request of a cluster, in MB and minutes. Memory as measured (bench/RESULTS.md, Memory of jobs): decode 1,200
# with 8 workers, and up to 4,000 per worker for a video that is hard to decode; ViT-L/14 at 224 and 336 px 3,500, its
# texts 3,100; evaluation 2,600; 400 more for Snakemake itself. Host memory beside a GPU was not measured. A job that
# fails for want of memory or time requests more, and training resumes.
REQUESTS = {
    "decode": {"mem_mb": 8000, "runtime": 240},
    "extract": {"mem_mb": 8000, "runtime": 240},
    "text": {"mem_mb": 8000, "runtime": 120},
    "train": {"mem_mb": 2500, "runtime": 1200},  # and what a batch takes
    "ablation": {"runtime": 1320},  # memory as for train
    "evaluate": {"mem_mb": 6000, "runtime": 120},
    "explain": {"mem_mb": 6000, "runtime": 120},
    "score": {"mem_mb": 6000, "runtime": 120},
}
TRAINING_RULES = ("train", "ablation")
GROUP = ("train", "evaluate", "explain")  # one after the other in one job of the cluster; their times add up


def nodes(rule):
    """The kinds of nodes of the Slurm partition that a rule's jobs go to; none elsewhere. Jobs come to the same answer."""
    if workflow.executor_plugin is None or not workflow.executor_plugin.name.startswith("slurm"):
        return []
    return nodes_of(set_by_user(rule, "slurm_partition"))


nodes_of = functools.cache(slurm_nodes)


def set_by_user(rule, resource, defaults=True):
    """The resource of a rule as the command line or a profile has it, a number or text; None if it is not there."""
    asked = workflow.resource_settings
    places = [asked.overwrite_resources.get(rule), asked.default_resources if defaults else None]
    found = next((place.get(resource) for place in places if place and resource in place), None)
    return getattr(found, "raw", found)


def threads_for(rule, wanted):
    """Threads for a job; on Slurm no more than its largest node has."""
    return min([wanted, max((node.cpus for node in nodes(rule)), default=wanted)])


def mem_mb(rule):
    """More with each attempt; on Slurm no more than its largest node has."""

    def asked(wildcards, attempt):
        wanted = (training_mem_mb(wildcards) if rule in TRAINING_RULES else REQUESTS[rule]["mem_mb"]) * attempt
        return min([wanted, max((node.mem_mb for node in nodes(rule)), default=wanted)])

    return asked


def training_mem_mb(wildcards):
    """What training takes: more with the questions in a batch and their seconds. A quarter is for the features, those
    of patches first, of which as many are kept in memory as fit there."""
    own = CONFIGS[wildcards.dataset]
    schedule = training(own, wildcards.model)
    questions = max(each["batch_size"] for each in (schedule, schedule["pretrain"]) if each)
    per_second = settings_class(own["models"][wildcards.model]["architecture"]).training_mb
    return int(4 / 3 * (REQUESTS["train"]["mem_mb"] + per_second * questions * own["decode"]["segments"]))


def runtime(rule):
    """More with each attempt; on Slurm no more than a partition allows, for all jobs of a group together."""
    usual = REQUESTS[rule]["runtime"]
    together = sum(REQUESTS[name]["runtime"] for name in GROUP) if rule in GROUP else usual

    def asked(wildcards, attempt):
        wanted = usual * attempt
        return min([wanted, max((node.minutes * usual // together for node in nodes(rule)), default=wanted)])

    return asked


# On this machine: the GPUs that there are, each for one job at a time, unless `--resources gpu=` says otherwise. On a
# cluster every job that can use a GPU asks for one, unless Slurm has none.
GPUS = len(devices())


def gpu(rule):
    def asked(wildcards):
        usual = GPUS if workflow.local_exec else 1
        return min(max((node.gpus for node in nodes(rule)), default=usual), 1)

    return asked


def extraction_threads(rule):
    """Beside a GPU the processors are for decoding the next shards."""
    return lambda wildcards: threads_for(rule, 2 if gpu(rule)(wildcards) else 8)


def requested(rule, resource, usual):
    """How much of a resource the jobs of a rule request, as the user has set it or else as usual."""
    return number_or(set_by_user(rule, resource, defaults=False), usual)


def number_or(given, usual):
    """A number that the user has set, or else the usual; 0 for an expression, which only a job can evaluate."""
    return usual if given is None else given if isinstance(given, int) else 0


def check_cluster():
    """Before anything is submitted to Slurm: that there are nodes for it, and that no jobs of an earlier run, whose own
    Snakemake was killed, are still writing the same files."""
    earlier = jobs_of(os.getcwd(), workflow.executor_settings.jobname_prefix)
    if earlier:
        raise WorkflowError(
            f"jobs of an earlier run in this folder are still in the queue; wait for them to end, or end them with\n"
            f"    scancel {' '.join(earlier)}"
        )
    threads = {"decode": max(own["decode"]["workers"] for own in CONFIGS.values())}
    threads |= {name: extraction_threads(name)({}) for name in ("extract", "text")}
    threads["train"] = max(own["train"]["threads"] for own in CONFIGS.values())
    models = [Wildcards(fromdict={"dataset": n, "model": model}) for n in TRAINED for model in CONFIGS[n]["models"]]
    memory = {name: REQUESTS[name]["mem_mb"] for name in threads}
    memory["train"] = max(map(training_mem_mb, models), default=0)
    requests = {
        name: Node(
            number_or(workflow.resource_settings.overwrite_threads.get(name), threads_for(name, count)),
            requested(name, "mem_mb", memory[name]),
            requested(name, "gpu", gpu(name)({}) if name != "decode" else 0),
            requested(name, "runtime", runtime(name)({}, 1)),
        )
        for name, count in threads.items()
    }
    try:
        check_requests({name: (request, nodes(name)) for name, request in requests.items()})
    except AVQAError as error:
        raise WorkflowError(str(error))


def start_run():
    """Before the first job, and never in a dry run: refuse a second run on the same results, then say what this run's
    configuration is. Unlike Snakemake's own lock, the locks end with this process."""
    global RUN_LOCKS
    RUN_LOCKS = []
    for name in sorted({*ENCODERS_OF, *CONFIGS}):
        Path(RESULTS, name).mkdir(parents=True, exist_ok=True)
        try:
            RUN_LOCKS.append(lock_file(f"{RESULTS}/{name}/.run.lock"))
        except BlockingIOError:
            raise WorkflowError(f"{RESULTS}/{name}: another run is at work here; wait for it to end, or stop it first")
    if {"decode", "extract"} & {*workflow.dag_settings.until}:  # a shard is decoded when an earlier one has been read
        raise WorkflowError(
            "--until: would leave out the shards after the first; name the target features in its place"
        )
    if nodes("decode") and workflow.executor_plugin.name == "slurm":
        check_cluster()
    if workflow.local_exec and "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", GPUS)
    for name in CONFIGS:
        write_if_changed(f"{RESULTS}/{name}/config.yaml", effective_config(name))
    for line in replaced_for_others():
        print(f"WARNING: {line}", file=sys.stderr)
    for collection in ENCODERS_OF:
        folder = SEGMENTS.format(collection=collection)
        asked = [name for name in workflow.dag_settings.targets if name.startswith(f"{folder}/")]
        if asked:
            with open(f"{RESULTS}/{collection}/{KEPT}", "a") as file:
                file.writelines(f"{name}\n" for name in asked)


def replaced_for_others():
    """Sentences about data sets of other configurations, with the same results and collection, whose features this run
    makes again because its videos or their decoding are others."""
    for path in sorted(Path(RESULTS).glob("*/config.yaml")):
        if path.parent.name in CONFIGS:
            continue
        theirs = yaml.safe_load(path.read_text())
        own = SETTINGS_OF.get(theirs.get("videos", {}).get("collection"))
        differing = [name for name in ("videos", "decode") if own and deciding(own[name]) != deciding(theirs[name])]
        if differing:
            yield (
                f"{path.parent} has the collection {own['videos']['collection']} too, with other settings of "
                f"{' and '.join(differing)}: its features become this run's. For other videos, name another collection"
            )


def deciding(section):
    """What in a section decides a segment."""
    return {name: value for name, value in section.items() if name not in ("workers", "ahead")}


def effective_config(name):
    """A data set's configuration with command line changes and defaults, as text."""
    return yaml.safe_dump(CONFIGS[name], sort_keys=False)


# Jobs on a cluster parse the configuration files again, when they start.
for name in CONFIGS if not workflow.is_main_process else ():
    path = Path(RESULTS, name, "config.yaml")
    if path.exists() and path.read_text() != effective_config(name):
        raise WorkflowError(
            f"the configuration is no longer that of this run, {path}; start the workflow again to use it"
        )

KEPT = ".kept_segments"  # lists the segments files that a user has asked for by name


def kept_segments(collection):
    """The segments files that a user has requested by name and not removed since."""
    listed = Path(RESULTS, collection, KEPT)
    names = listed.read_text().split("\n") if listed.exists() else []
    return [name for name in names if name and Path(name).exists()]


def remove_leftovers():
    """What an interrupted run could not remove: half-written files, and segments that all encoders have read."""
    for name in (*ENCODERS_OF, *CONFIGS):
        remove_abandoned(f"{RESULTS}/{name}")
    for collection, encoders in ENCODERS_OF.items():
        kept = kept_segments(collection)
        for segments in Path(SEGMENTS.format(collection=collection)).glob("*/*.h5"):
            done = all(Path(RESULTS, collection, "features", name, segments.name).exists() for name in encoders)
            if done and str(segments) not in kept and not workflow.storage_settings.notemp:
                segments.unlink()


def print_summaries():
    """The scores of each data set that has been scored."""
    for summary in (Path(RESULTS, name, "summary.txt") for name in CONFIGS):
        if summary.exists():
            print(summary.read_text())
