# The configuration as every rule sees it, and how rules call the pipeline's commands.

import fcntl
import re
import shlex
from pathlib import Path

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.settings.types import DeploymentMethod

from extractors import EncoderError, FrameInput, encoder_spec
from pipeline.config import videos_fingerprint
from pipeline.errors import AVQAError
from pipeline.storage.atomic import write_if_changed

try:
    config = check_config(config, ", ".join(map(str, workflow.configfiles)) or "configuration")
    INPUTS = {input for encoder in config["encoders"] for input in encoder_spec(encoder).inputs}
    FRAME_SIZES = sorted({input.size for input in INPUTS if isinstance(input, FrameInput)})
except (AVQAError, EncoderError) as error:
    raise WorkflowError(str(error))

RESULTS = str(results_dir(config))
CONFIG = f"{RESULTS}/config.yaml"

# Commands read the configuration as this run sees it, --config overrides included. It is no rule's input: what a
# job depends on is among its params, so that a change makes due what it concerns and nothing else.
write_if_changed(CONFIG, yaml.safe_dump(config, sort_keys=False))


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
LOG = "2>&1 | tee {log}"


def acquire_run_lock():
    """Refuse a second run on the same results. Unlike Snakemake's own lock this one ends with its process."""
    global RUN_LOCK
    RUN_LOCK = open(f"{RESULTS}/.run.lock", "w")
    try:
        fcntl.flock(RUN_LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise WorkflowError(f"{RESULTS}: another run is at work here; wait for it to end, or stop it first")


def remove_leftovers():
    """What a killed run could not take away: half-written files, and segments that all encoders have read."""
    for partial in Path(RESULTS).rglob(".*.partial"):
        partial.unlink(missing_ok=True)
    for segments in Path(RESULTS, "segments").glob("*.h5"):
        read = all(Path(RESULTS, encoder, segments.name).exists() for encoder in config["encoders"])
        if read and not workflow.storage_settings.notemp:
            segments.unlink()


def flags(**values):
    """Command line options of the values that are given."""
    words = []
    for name, value in values.items():
        if value is not None:
            listed = value if isinstance(value, list | tuple) else [value]
            words += [f"--{name.replace('_', '-')}", *map(str, listed)]
    return " ".join(shlex.quote(word) for word in words)
