"""After any changes, what a run leaves is what a run from nothing makes, to the byte, and a second run makes nothing.

What "from nothing" cannot show, since it is the same code, is checked against the clips themselves (`Project.check`).
"""

import difflib
import json
import os
import pprint
import site
import subprocess
import venv
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from random_changes import CHANGES, cleaned, late_video
from small_project import Project, prepare
from tqdm import tqdm

import pipeline.storage.atomic
from pipeline.paths import paths_of
from pipeline.retry import retry
from pipeline.storage.hdf5 import ShardWriter

FAST, SLOW, OF_SNAKEMAKE = 3, 60, 2  # sequences
KILLED = 9
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def project(request, tmp_path, monkeypatch):
    prepare(monkeypatch, tmp_path)
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # no thread of it when this process is copied
    torch.set_num_threads(1)
    return Project(np.random.default_rng(request.param))


def differing(found: dict, expected: dict) -> dict[str, list[str]]:
    """What is not equal, and how."""
    names = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    texts = {
        name: [pprint.pformat(of.get(name, "missing"), width=200).splitlines() for of in (found, expected)]
        for name in names
    }
    return {name: [line[:300] for line in difflib.unified_diff(*both, n=0)][2:9] for name, both in texts.items()}


def compare(found: dict, expected: dict) -> None:
    if wrong := differing(found, expected):
        pytest.fail(pprint.pformat(wrong, width=200))


def run_until_killed(project: Project, writes: int, before: bool) -> bool:
    """A run in a copy of this process, which ends without a word at a write: before or after the file or the row gets
    its name. Whether it came so far."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    left = writes

    def counted(call):
        def of(*arguments):
            nonlocal left
            left -= 1
            if left < 0 and before:
                os._exit(KILLED)
            call(*arguments)
            if left < 0:
                os._exit(KILLED)

        return of

    pipeline.storage.atomic.publish = counted(pipeline.storage.atomic.publish)
    ShardWriter.write = counted(ShardWriter.write)
    try:
        project.run()
    finally:
        os._exit(0)


def check_nothing_is_made(project: Project) -> None:
    before = project.files()
    project.run()
    after = project.files()
    compare(after, before)


def try_again(project: Project) -> None:
    """What failed for a reason outside the file would not fail in a run from nothing."""
    if project.late:
        retry(paths_of(project.configs()))
        project.late.clear()
        project.run()
        project.check()


def sequence(project: Project, rng: np.random.Generator) -> None:
    """Changes, some of them at the same time, with a run after each, which may be killed first."""
    project.run()
    places = project.places()
    for _ in range(int(rng.integers(4, 9))):
        log = []
        for n in rng.permutation(len(CHANGES))[: int(rng.choice([1, 1, 1, 2]))]:
            log.append(CHANGES[n](project, rng) or "")
        if rng.random() < 0.3:
            writes, before = int(rng.integers(40)), bool(rng.integers(2))
            log.append(
                f"killed {'before' if before else 'after'} write {writes}: {run_until_killed(project, writes, before)}"
            )
        print("; ".join(filter(None, log)), flush=True)
        project.run()
        project.check()
        assert project.places().items() >= places.items(), "a video keeps its shard and row for ever"
        places = project.places()
        check_nothing_is_made(project)
        if rng.random() < 0.4:
            try_again(project)
            compare(project.outcome(), project.from_nothing(with_membership=True))
    try_again(project)
    compare(project.outcome(), project.from_nothing(with_membership=True))
    compare(project.values(), project.from_nothing(with_membership=False))


@pytest.mark.parametrize("project", range(FAST), indirect=True)
def test_a_sequence_of_changes_ends_in_what_a_run_from_nothing_makes(project):
    sequence(project, project.rng)


@pytest.mark.parametrize("project", [0], indirect=True)
def test_features_that_say_how_packets_were_chosen_are_good_beside_others(project):
    """As those of version 0.2.0 do."""
    project.run()
    for path in project.results.glob("clips/features/*/00000-*.h5"):
        with h5py.File(path, "r+") as file:
            config = json.loads(file.attrs["config"])
            file.attrs["config"] = json.dumps(config | {"decode": config["decode"] | {"selective": False}})
    project.add_video("v5")
    project.run()
    project.check()


@pytest.mark.parametrize("project", [0], indirect=True)
def test_an_output_fewer_is_read_from_the_files_that_have_more(project):
    """And the checks of all numbers expect no more than is kept."""
    project.run()
    before = set(project.results.glob("clips/features/*/*.h5"))
    project.config["encoders"]["toy_colour"]["outputs"] = ["mixed"]
    project.run()
    assert set(project.results.glob("clips/features/*/*.h5")) == before
    compare(project.outcome(), project.from_nothing(with_membership=True))


@pytest.mark.slow
@pytest.mark.parametrize("project", range(FAST, FAST + SLOW), indirect=True)
def test_many_sequences(project):
    sequence(project, project.rng)


def python_with_toys(folder: Path) -> Path:
    """A Python with all packages of this one and the toy encoders, in jobs of Snakemake too."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/*/site-packages")
    places = [*site.getsitepackages(), str(Path(__file__).parent), str(ROOT)]
    lines = ["import site; " + "; ".join(f"site.addsitedir({place!r})" for place in places)]
    lines.append("import extractors, toy_table; extractors.ENCODERS.update(toy_table.TOYS)")
    (packages / "toys.pth").write_text("\n".join([*lines, ""]))
    return folder / "bin" / "python"


@pytest.mark.slow
@pytest.mark.parametrize("project", range(100, 100 + OF_SNAKEMAKE), indirect=True)
def test_snakemake_makes_the_same_files(project, tmp_path):
    """The same names and bytes as this process does from nothing, and nothing after that."""
    python, rng = python_with_toys(tmp_path / "venv"), project.rng

    def snakemake() -> str:
        project.write_questions()
        Path("c.yaml").write_text(yaml.safe_dump(project.config, sort_keys=False))
        command = [
            python,
            "-m",
            "snakemake",
            "--snakefile",
            ROOT / "Snakefile",
            "--cores",
            "2",
            "--configfile",
            "c.yaml",
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, done.stdout[-5000:]
        return done.stdout

    snakemake()
    changes = [change for change in CHANGES if change not in (cleaned, late_video)]
    for _ in range(3):
        print("; ".join(changes[n](project, rng) or "" for n in rng.permutation(len(changes))[:2]), flush=True)
        snakemake()
        project.check()
        assert "Nothing to be done" in snakemake()
        outcomes = project.outcome(), project.from_nothing(with_membership=True)
        # Reports have times in them, and a shard's list that is lost is made again where it is read.
        compare(*({k: v for k, v in of.items() if "report.html" not in k and "/shards/" not in k} for of in outcomes))
