"""One job on each GPU, with simulated devices."""

import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_temporary_disk import CONFIG, place, snakemake  # noqa: F401

from pipeline.gpu import claim, devices

ROOT = Path(__file__).resolve().parent.parent
CODE = "import sys, pipeline.gpu as gpu; print(gpu.claim(sys.argv[1]), flush=True); sys.stdin.read()"


def job(folder, visible="0,1,2,3"):
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": visible},
    )


@pytest.fixture
def jobs():
    started = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def test_four_jobs_have_four_slots_and_a_killed_one_frees_its_own(tmp_path, jobs):
    jobs += [job(tmp_path) for _ in range(4)]
    slots = [process.stdout.readline().strip() for process in jobs]
    assert sorted(slots) == ["0", "1", "2", "3"]
    fifth = job(tmp_path)
    jobs.append(fifth)
    assert not select.select([fifth.stdout], [], [], 5)[0], "all slots are taken, so the fifth waits"
    jobs[2].send_signal(signal.SIGKILL)
    assert fifth.stdout.readline().strip() == slots[2]


def test_only_the_devices_that_a_scheduler_gave_are_used(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert claim(tmp_path) == "5" and os.environ["CUDA_VISIBLE_DEVICES"] == "5"


@pytest.mark.parametrize(("visible", "found"), [("", []), ("-1", []), ("2, 3", ["2", "3"]), ("GPU-ab/1", ["GPU-ab/1"])])
def test_devices(monkeypatch, visible, found, tmp_path):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices() == found
    assert claim(tmp_path) == (found[0] if found else None)


@pytest.mark.parametrize(("visible", "gpu", "threads"), [("0,1", 1, 2), ("", 0, 8)])
def test_beside_a_gpu_extraction_leaves_the_processors_to_decoding(place, monkeypatch, visible, gpu, threads):  # noqa: F811
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    planned = snakemake(place, CONFIG, "--dry-run", "features", cores=16)
    jobs = re.findall(r"^rule extract:\n(?: +.*\n)+", planned, re.MULTILINE)
    assert len(jobs) == 14
    for job in jobs:
        assert re.search(rf"^ +threads: {threads}$", job, re.MULTILINE), job
        assert f"gpu={gpu}" in job
