"""The workflow through profiles/slurm on a real Slurm of one node, which this test starts on the machine.

It needs Debian's packages slurm-wlm and munge, and root: `make test-slurm`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from test_manifest import record

from pipeline.models.pooled.config import PooledSettings
from pipeline.scheduler import UNLIMITED, Node, check_requests, count_gpus, jobs_of, minutes_of, slurm_nodes

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("sbatch", "slurmctld", "slurmd", "munged")
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
SNAKEMAKE += ["--workflow-profile", str(ROOT / "profiles" / "slurm"), "--configfile", "c.yaml"]
# The first try has too little memory for the text encoder, the second has enough.
TOO_LITTLE = ["--set-resources", "text:mem_mb=500 * attempt ** 4"]
CONFIG = {
    "dataset": "tiny",
    "videos": {"collection": "clips", "folder": "data/videos"},
    "annotations": {split: f"data/{split}.json" for split in ("train", "val", "test")},
    "shard_size": 8,
    "decode": {"segments": 4},
    "encoders": {"resnet18": {"weights": "random", "outputs": ["pooled"]}, "vggish": {"weights": "random"}},
    "text": {"encoder": "clip_vit_b32", "weights": "random"},
    "models": {"pooled": {"audio": "vggish/embedding", "visual": "resnet18/pooled", "width": 16}},
    "train": {"epochs": 1, "threads": 1, "standardize": True},
}
MINUTES = 15


@pytest.mark.parametrize(("gres", "count"), [("(null)", 0), ("gpu:2", 2), ("gpu:a100:4(S:0-1),gpu:t4:1,shard:9", 5)])
def test_counting_gpus(gres, count):
    assert count_gpus(gres) == count


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("1-12:30:00", 2190), ("12:00:00", 720), ("30:00", 30), ("infinite", UNLIMITED), ("n/a", UNLIMITED)],
)
def test_time_limits(limit, minutes):
    assert minutes_of(limit) == minutes


def test_a_request_that_no_node_can_meet_is_named():
    nodes = [Node(4, 8000, 0, 60), Node(2, 64000, 1, UNLIMITED)]
    fits = {"decode": (Node(4, 8000, 0, 60), nodes), "train": (Node(2, 64000, 1, 1440), nodes)}
    check_requests(fits)
    check_requests({"anything": (Node(99, 99, 99, 99), [])})  # nothing is known about the cluster
    for need in (Node(4, 64000, 1, 60), Node(4, 8000, 0, 61)):
        with pytest.raises(
            Exception, match=f"no node of the cluster can run these rules:\n  train: {need}; nodes have 4 "
        ):
            check_requests(fits | {"train": (need, nodes)})


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A working folder, and stand-ins for commands of Slurm: nodes with 2 CPUs and 4,000 MB, an empty queue."""
    (tmp_path / "bin").mkdir()
    commands = {
        "sinfo": "echo '2 4000 infinite (null)'",
        "squeue": "true",
        "sbatch": f"touch {tmp_path}/submitted",
    }
    for name, text in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "data" / "videos").mkdir(parents=True)
    for split, path in CONFIG["annotations"].items():
        (tmp_path / path).write_text(json.dumps([record(split)]))
        (tmp_path / "data" / "videos" / f"{split}.mp4").write_bytes(b"x")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    return tmp_path


def test_too_large_requests_are_refused_before_anything_is_submitted_unless_the_user_sets_others(small):
    def run(*arguments):
        command = [*SNAKEMAKE[:-2], "manifests", *arguments, *SNAKEMAKE[-2:]]
        done = subprocess.run(command, cwd=small, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.returncode, done.stdout

    code, said = run()
    assert code != 0 and "no node of the cluster can run these rules" in said
    assert "extract: 2 CPUs, 8000 MB, 0 GPUs, 240 minutes" in said
    assert "nodes have 2 CPUs, 4000 MB, 0 GPUs, any time" in said
    assert not list(small.rglob("manifest.json")) and not (small / "submitted").exists()
    smaller = [f"{rule}:mem_mb=4000" for rule in ("decode", "extract", "train")]
    code, said = run("--set-resources", *smaller, "text:mem_mb=4001")
    assert code != 0 and "text: 2 CPUs, 4001 MB" in said and "train: " not in said
    code, said = run("--set-resources", *smaller, "text:mem_mb=900 * attempt")
    assert code == 0, said


def test_each_rule_is_checked_against_the_partition_of_its_own(small):
    (small / "bin" / "sinfo").write_text("""#!/bin/sh
case "$*" in *"-p gpus"*) echo "1 100 infinite gpu:1";; *"-p main"*) echo "8 64000 4:00:00 (null)";; esac
""")
    partitions = ["--default-resources", "slurm_partition=main", "--set-resources", "extract:slurm_partition=gpus"]
    command = [*SNAKEMAKE[:-2], "manifests", *partitions, *SNAKEMAKE[-2:]]
    said = subprocess.run(command, cwd=small, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    assert "extract: 1 CPUs, 8000 MB, 1 GPUs, 240 minutes; nodes have 1 CPUs, 100 MB, 1 GPUs, any time" in said
    assert "decode: " not in said and "text: " not in said and "train: " not in said


def test_training_requests_memory_by_its_batch(small):
    (small / "bin" / "sinfo").write_text("#!/bin/sh\necho '2 64000 infinite (null)'\n")

    def run(*arguments):
        command = [*SNAKEMAKE[:-2], *arguments, *SNAKEMAKE[-2:]]
        return subprocess.run(command, cwd=small, check=True, capture_output=True, text=True)

    def requests(batch_size):
        (small / "c.yaml").write_text(yaml.safe_dump(CONFIG | {"train": CONFIG["train"] | {"batch_size": batch_size}}))
        done = run("--dry-run", "tiny")
        blocks = re.split(r"\n *rule ", done.stdout + done.stderr)
        found = {}
        for rule in ("train", "evaluate", "explain"):
            (block,) = [block for block in blocks if block.startswith(f"{rule}:")]
            words = block.split("resources: ")[1].splitlines()[0].split(", ")
            found[rule] = {name: int(value) for name, value in (word.split("=") for word in words) if value.isdecimal()}
        return found

    run("manifests")
    few, many = requests(16), requests(64)
    per_question = (many["train"]["mem_mb"] - few["train"]["mem_mb"]) / 48
    assert per_question == pytest.approx(4 / 3 * PooledSettings.training_mb * CONFIG["decode"]["segments"], abs=0.1)
    assert many["evaluate"] == few["evaluate"]


@pytest.fixture(scope="module")
def cluster():
    """A Slurm on this machine with two processors and 16 GB."""
    if lacking := [name for name in PROGRAMS if not shutil.which(name) and not Path("/usr/sbin", name).exists()]:
        pytest.skip(f"Slurm is not installed (no {', '.join(lacking)}): apt-get install slurm-wlm munge")
    if os.geteuid():
        pytest.skip("starting Slurm needs root")
    settings = Path("/etc/slurm/slurm.conf")
    if settings.exists() and "ClusterName=avqa" not in settings.read_text():
        pytest.skip(f"{settings} is another cluster's, which this test leaves alone")
    subprocess.run(["bash", str(ROOT / "tests" / "slurm_cluster.sh"), "2", "16000"], check=True)
    return slurm_nodes()


@pytest.fixture
def place(cluster, tmp_path):
    """A working folder with clips, and no results yet."""
    command = [sys.executable, "-m", "pipeline", "synthesize", "--out", "data", "--clips", "16", "--seconds", "4"]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    yield tmp_path
    if left := jobs_of(str(tmp_path), "avqa"):
        subprocess.run(["scancel", *left])


def start(place, name):
    with open(place / name, "w") as log:
        return subprocess.Popen([*SNAKEMAKE[:-2], *TOO_LITTLE, *SNAKEMAKE[-2:]], cwd=place, stdout=log, stderr=log)


def running(place, rule):
    """The numbers of the running jobs of a rule; Slurm's comment of a job names it."""
    command = ["squeue", "--me", "--noheader", "--states=RUNNING", "--format", "%i|%Z|%k"]
    rows = [line.split("|") for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()]
    return [row[0] for row in rows if row[1] == str(place) and rule in row[2]]


def wait_for(what, process=None, minutes=MINUTES):
    """What `what` returns as soon as it is something."""
    until = time.monotonic() + 60 * minutes
    while not (found := what()):
        assert time.monotonic() < until, "waited too long"
        assert process is None or process.poll() is None, "the run ended early"
        time.sleep(0.5)
    return found


@pytest.mark.slow
def test_jobs_that_are_cancelled_or_lack_memory_and_a_coordinator_that_is_killed(place):
    first = start(place, "first.log")
    cancelled = wait_for(lambda: running(place, "rule_decode"), first)[0]
    subprocess.run(["scancel", cancelled], check=True)
    wait_for(lambda: running(place, "rule_extract"), first)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    second = start(place, "second.log")
    assert second.wait() != 0
    refused = (place / "second.log").read_text()
    assert "jobs of an earlier run in this folder are still in the queue" in refused and "scancel " in refused
    wait_for(lambda: not jobs_of(str(place), "avqa"))
    third = start(place, "third.log")
    assert third.wait(60 * MINUTES) == 0, (place / "third.log").read_text()
    logs = (place / "first.log").read_text() + (place / "third.log").read_text()
    assert "SLURM status is: 'CANCELLED'" in logs and "Trying to restart job" in logs
    tries = [path.read_text() for path in (place / ".snakemake" / "slurm_logs").glob("rule_text/*/*.log")]
    assert any("exceeded memory limit" in text for text in tries), "the first try had too little memory"
    assert (place / "results" / "tiny" / "summary.txt").exists()
    assert (
        place / "results" / "tiny" / "models" / "pooled" / "seed-0" / "checkpoint.safetensors"
    ).stat().st_mode & 0o040
    planned = subprocess.run([*SNAKEMAKE[:-2], "--dry-run", *SNAKEMAKE[-2:]], cwd=place, capture_output=True, text=True)
    assert "Nothing to be done" in planned.stdout + planned.stderr
