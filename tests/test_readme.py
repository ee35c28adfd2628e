"""Every command of README.md and config/README.md, literally, in a copy of the project; workflows as dry runs.

The commands of CONTRIBUTING.md are run by test_contributing.py. Of commands that need other people's files only the
arguments are checked: the benchmarks' annotations, published arrays. test_changes.py, test_plan.py, test_compare.py and
test_export.py run these.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from made_results import make_index
from media.oracle import AUDIO, VIDEO, X264, clip
from test_learning import make_features
from test_manifest import record
from test_workflow import fake_conda

from pipeline.cli import build_parser
from pipeline.config import check_config

ROOT = Path(__file__).resolve().parent.parent
PAGES = [(ROOT / name).read_text() for name in ("README.md", "config/README.md")]
FENCE = re.compile(r"^( *)```console\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
OTHERS = re.compile(r"benchmarks\.yaml| verify | compare | provenance | export | import |-checkpoint ")
INDENTED = re.compile(r"^    ((?:snakemake|python|make|avqa|\.venv/bin/\w+) .*)$", re.MULTILINE)


def commands():
    """The commands of the fenced blocks and of the indented lines that begin like one, without comments."""
    found = []
    for page in PAGES:
        lines = [line for block in FENCE.finditer(page) for line in block[2].splitlines()]
        lines += INDENTED.findall(FENCE.sub("", page))
        found += [re.sub(r"\s+# .*", "", line).strip() for line in lines]
    return list(dict.fromkeys(line for line in found if line))


def program(command):
    return Path(shlex.split(command)[0]).name


def of(*programs):
    return pytest.mark.parametrize("command", [command for command in commands() if program(command) in programs])


def test_no_command_is_left_out():
    assert {program(command) for command in commands()} == {"make", "snakemake", "avqa", "python"}
    assert len(commands()) >= 20


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the data that the pages speak of."""
    folder = tmp_path_factory.mktemp("readme") / "project"
    names = ("pipeline", "extractors", "config", "manifests", "profiles", "envs")
    for name in names:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Snakefile", "Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name, module in {"snakemake": "snakemake", "avqa": "pipeline", "python": ""}.items():
        script = folder / ".venv" / "bin" / name
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {f"-m {module}" if module else ""} "$@"\n')
        script.chmod(0o755)
    for data in ("data/music_avqa", "data/demo"):
        (folder / data / "videos").mkdir(parents=True)
        clip(folder / data / "videos" / "00000093.mp4", "-t", 2, *VIDEO, "-t", 2, *AUDIO, *X264, "-c:a", "aac")
        for split in ("train", "val", "test"):
            prefix = "avqa-" if "music" in data else ""
            (folder / data / f"{prefix}{split}.json").write_text(json.dumps([record("00000093")]))
    (folder / "config" / "mine.yaml").write_text("allow_missing: true\n")
    shutil.copy(folder / "data" / "demo" / "videos" / "00000093.mp4", folder / "VIDEO.mp4")
    (folder / "questions.txt").write_text("Is it loud?\n")
    return folder


def run(project, command, **variables):
    """The command in a shell, in the project's folder, with the programs of its environment."""
    paths = f"{project}/.venv/bin:{variables.pop('PATH', os.environ['PATH'])}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=project,
        env=os.environ | {"PATH": paths, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@of("make")
def test_make(project, command):
    run(project, f"{command} --dry-run")


@of("snakemake")
def test_workflows(project, command, fake_conda):
    if OTHERS.search(command):
        assert (project / re.search(r"--configfile (\S+)", command)[1]).exists()
        return
    printed = run(project, command if "--dry-run" in command else f"{command} --dry-run", **fake_conda)
    assert "manifest" in printed and not (project / "results").exists()


def test_stages(project):
    """In the order of the page; training has features that are made up."""
    stages = [command for command in commands() if program(command) == "avqa" and not OTHERS.search(command)]
    assert [shlex.split(stage)[1] for stage in stages][:4] == ["manifest", "decode", "extract", "text"]
    for stage in stages:
        if " train " in stage:
            shutil.rmtree(project / "results")
            make_features(project / "results" / "demo", project / "results" / "demo_videos")
            encoders = ["clip_vit_b32", "vggish"]
            make_index(project / "results" / "demo", project / "results" / "demo_videos", encoders, encoders[0])
        run(project, stage)
    made = ("segments.h5", "clip.h5", "text.h5", "runs/mine/checkpoint.safetensors", "runs/mine/scores.json")
    assert all((project / name).exists() for name in made)
    shutil.rmtree(project / "results")


@pytest.mark.parametrize("command", [each for each in commands() if program(each) == "avqa"])
def test_arguments(command):
    build_parser().parse_args(shlex.split(command)[1:])


@of("python")
def test_openais_archive_becomes_a_state_dict(project, command):
    torch.jit.script(torch.nn.Linear(2, 3)).save(project / "ViT-L-14.pt")
    run(project, command)
    assert torch.load(project / "ViT-L-14-state.pt", weights_only=True)["weight"].shape == (3, 2)


def test_configurations_are_valid():
    """The first one of config/README.md is complete; the others change it."""
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGES[1], re.DOTALL)]
    assert len(blocks) == 3
    for block in blocks:
        check_config(json.loads(json.dumps(blocks[0])) | block)


__all__ = ["fake_conda"]
