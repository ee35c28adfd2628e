# The configuration as every rule uses it, and how rules call the pipeline's commands.

import json
import re
import shlex
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from pipeline.config import check_config, collection_dir, dataset_dir, videos_fingerprint, weights_fingerprint
from pipeline.errors import AVQAError
from pipeline.storage.atomic import remove_abandoned, write_if_changed
from pipeline.storage.lock import lock_file

try:
    config = check_config(config, ", ".join(map(str, workflow.configfiles)) or "configuration")
except AVQAError as error:
    sys.exit(str(error))  # an exception would be shown with lines of this file

COLLECTION = str(collection_dir(config))  # shards and features: what belongs to the videos
DATASET = str(dataset_dir(config))  # index, models, scores: what belongs to the questions
CONFIG = f"{DATASET}/config.yaml"


wildcard_constraints:
    shard=r"\d{5}",
    encoder="|".join(config["encoders"]),
    model="|".join(map(re.escape, config["models"])),
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


def settings(*sections, **parts):
    """The sections of the configuration that a job needs, as JSON for `avqa --config`. They are among the job's params:
    a job uses the settings that Snakemake records for it, and a change makes due what it concerns and nothing else."""
    text = json.dumps({name: config[name] for name in sections} | parts, sort_keys=True)
    return lambda wildcards: text  # Snakemake would take the braces of a plain text for wildcards


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


def state_of_videos(wildcards):
    """What makes the manifest due when a video appears, vanishes or is replaced."""
    if "synthesize" in config:
        return "synthesized"  # they change with the annotations that come with them
    try:
        return videos_fingerprint(config["videos"])
    except OSError as error:
        sys.exit(f"videos.folder: {error}; see README.md for what goes there")


def state_of_weights(field, entry):
    """What makes features due when a weights file is replaced."""
    try:
        return weights_fingerprint(entry)
    except OSError as error:
        sys.exit(f"{field}.weights: {entry['weights']}: {error.strerror}; give a file, a hub tag, or random")


def questions(wildcards):
    """questions.parquet, once the manifest has made it."""
    checkpoints.manifest.get()
    return f"{DATASET}/questions.parquet"


def shards(wildcards):
    """The names of the shards that hold the data set's videos, once the manifest has made them."""
    return Path(checkpoints.manifest.get().output[0]).read_text().split()


def training_settings(wildcards):
    """Which other models and seeds there are, and the number of threads, is no reason to train again."""
    schedule = {name: value for name, value in config["train"].items() if name not in ("seeds", "threads")}
    models = {wildcards.model: config["models"][wildcards.model]}
    return settings("results", "dataset", models=models, train=schedule)(wildcards)


def ablation_settings(wildcards):
    """The first model of the configuration, with what the row of a table changes in it."""
    chosen = (GRID["table"] == wildcards.table) & (GRID["row"] == int(wildcards.row))
    changes = json.loads(GRID.loc[chosen, "settings"].item())
    model = next(iter(config["models"]))
    schedule = {name: value for name, value in config["train"].items() if name not in ("seeds", "threads")}
    models = {model: config["models"][model] | changes}
    return settings("results", "dataset", models=models, train=schedule)(wildcards)


def start_run():
    """Before the first job, and never in a dry run: refuse a second run on the same results, then say what this run's
    configuration is. Unlike Snakemake's own lock, the locks end with this process."""
    global RUN_LOCKS
    RUN_LOCKS = []
    for folder in sorted({COLLECTION, DATASET}):
        Path(folder).mkdir(parents=True, exist_ok=True)
        try:
            RUN_LOCKS.append(lock_file(f"{folder}/.run.lock"))
        except BlockingIOError:
            raise WorkflowError(f"{folder}: another run is at work here; wait for it to end, or stop it first")
    write_if_changed(CONFIG, effective_config())
    requested = [name for name in workflow.dag_settings.targets if name.startswith(f"{COLLECTION}/segments/")]
    if requested:
        with open(KEPT, "a") as file:
            file.writelines(f"{name}\n" for name in requested)


def effective_config():
    """The configuration with command line changes and defaults, as text."""
    return yaml.safe_dump(config, sort_keys=False)


# Jobs on a cluster parse the configuration files again, when they start.
if not workflow.is_main_process and Path(CONFIG).exists() and Path(CONFIG).read_text() != effective_config():
    raise WorkflowError(
        f"the configuration is no longer that of this run, {CONFIG}; start the workflow again to use it"
    )

KEPT = f"{COLLECTION}/.kept_segments"  # lists the segments files that a user has requested by name


def kept_segments():
    """The segments files that a user has requested by name and not removed since."""
    listed = Path(KEPT).read_text().split("\n") if Path(KEPT).exists() else []
    return [name for name in listed if name and Path(name).exists()]


def remove_leftovers():
    """What an interrupted run could not remove: half-written files, and segments that all encoders have read."""
    for folder in (COLLECTION, DATASET):
        remove_abandoned(folder)
    kept = kept_segments()
    for segments in Path(COLLECTION, "segments").glob("*.h5"):
        done = all(Path(COLLECTION, "features", encoder, segments.name).exists() for encoder in config["encoders"])
        if done and str(segments) not in kept and not workflow.storage_settings.notemp:
            segments.unlink()
