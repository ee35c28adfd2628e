"""Jobs that an executor runs in processes of their own, as on a cluster: each plans anew, files may have changed."""

import json
import os
import shutil
import subprocess
import time

import yaml
from test_changes import CONFIG, SNAKEMAKE, TRAIN, changed

from pipeline.cli import main

SUBMIT = """#!/bin/sh
# Runs a job in the background and prints its number.
number=$(ls {queue} | wc -l)
cp "$1" {queue}/$number.sh
( bash {queue}/$number.sh > {folder}/$number.out 2>&1; echo $? > {folder}/$number.status ) > /dev/null 2>&1 &
echo $number
"""
STATUS = """#!/bin/sh
[ -e {folder}/$1.status ] || {{ echo running; exit; }}
[ "$(cat {folder}/$1.status)" = 0 ] && echo success || echo failed
"""


def test_a_run_ends_with_its_own_settings_and_videos(tmp_path, monkeypatch):
    """While it decodes, a video is added, another touched, and the configuration edited, for its jobs beyond repair."""
    monkeypatch.chdir(tmp_path)
    assert main(["synthesize", "--out", "data", "--clips", "16", "--seconds", "4"]) == 0
    (tmp_path / "queue").mkdir()
    for name, text in (("submit", SUBMIT), ("status", STATUS)):
        (tmp_path / name).write_text(text.format(queue=tmp_path / "queue", folder=tmp_path))
        (tmp_path / name).chmod(0o755)
    config = changed(CONFIG, "datasets", value={"tiny": {"annotations": TRAIN}})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    executor = ["--executor", "cluster-generic", "--jobs", "2", "--latency-wait", "5", "--configfile", "c.yaml"]
    for option in ("submit", "status"):
        executor += [f"--cluster-generic-{option}-cmd", str(tmp_path / option)]
    with open("log", "w") as log:
        run = subprocess.Popen([*SNAKEMAKE[:-2], *executor], stdout=log, stderr=subprocess.STDOUT)
    while not (tmp_path / "results" / "clips" / "shards").exists():
        assert run.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.05)
    shutil.copy("data/videos/synth00000.mp4", "data/videos/another.mp4")
    os.utime("data/videos/synth00001.mp4")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(changed(config, "train", "learning_rate", value="fast")))
    assert run.wait(timeout=600) == 0, (tmp_path / "log").read_text()
    assert len(list((tmp_path / "queue").iterdir())) >= 6, "jobs ran in processes of their own"
    described = yaml.safe_load((tmp_path / "results/tiny/models/pooled/seed-0/config.yaml").read_text())
    assert described["config"]["train"]["learning_rate"] == 0.0001
    assert json.loads((tmp_path / "results/tiny/models/pooled/seed-0/scores.json").read_text())["overall"]["count"]
    assert len(list((tmp_path / "results/tiny/manifests").iterdir())) == 1
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(config))
    planned = subprocess.run([*SNAKEMAKE, "--dry-run", "--configfile", "c.yaml"], capture_output=True, text=True)
    assert "checkpoint manifest" in planned.stdout, "a new run sees what has changed"
