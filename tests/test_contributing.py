"""The walk-throughs of CONTRIBUTING.md, followed literally in a copy of the project: one file and one row each."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import pandas as pd
import pytest
import yaml
from media.oracle import clip

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
STEP = re.compile(
    r"Create `(?P<new>[^`]+)`:\n\n```python\n(?P<code>.*?)```"
    r"|Add a row to `(?P<table>\w+)` in `(?P<file>[^`]+)`.*?```python\n(?P<row>.*?)```"
    r"|```console\n(?P<commands>.*?)```",
    re.DOTALL,
)


@pytest.fixture
def project(tmp_path):
    """A copy of what is installed, and a folder to work in."""
    for name in ("pipeline", "extractors", "config", "manifests"):
        shutil.copytree(ROOT / name, tmp_path / "project" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "work").mkdir()
    return tmp_path


def python(project, *arguments):
    """Run Python with the copy, in the working folder."""
    environment = os.environ | {"PYTHONPATH": str(project / "project")}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=project / "work", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def follow(project, section):
    """Do what a section says; returns the files that it touches and what its commands print."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    touched, printed = [], []
    for step in STEP.finditer(text):
        if step["new"]:
            (project / "project" / step["new"]).write_text(step["code"])
            touched.append(step["new"])
        elif step["table"]:
            path = project / "project" / step["file"]
            before = path.read_text()
            after = re.sub(
                rf"^({step['table']}\b.* = \{{\n)", lambda m, s=step: m[1] + s["row"], before, flags=re.MULTILINE
            )
            assert after != before
            path.write_text(after)
            touched.append(step["file"])
        else:
            for command in step["commands"].splitlines():
                assert command.startswith("avqa ")
                printed.append(python(project, "-m", "pipeline", *command.split()[1:]))
    return touched, printed


def test_add_an_encoder(project):
    clip(project / "work" / "clip.mp4", "-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=2")
    touched, _ = follow(project, "Add an encoder")
    assert touched == ["extractors/mobilenet.py", "extractors/__init__.py"]
    with h5py.File(project / "work" / "features.h5") as features:
        assert features["mobilenet_v3/pooled"].shape == (1, 3, 576) and features["num_segments"][0] == 2
        assert features["mobilenet_v3/pooled"][0, 0].any()


def test_add_a_model(project):
    touched, printed = follow(project, "Add a model")
    assert touched == ["pipeline/models/audio_only.py", "pipeline/models/__init__.py"]
    assert "hidden" in printed[0] and "all" in printed[0]
    config = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    entry = re.search(r"`(audio_only: \{.*?\})`", PAGE)[1]
    (project / "work" / "c.yaml").write_text(yaml.safe_dump(config | {"models": yaml.safe_load(entry)}))
    checked = python(
        project, "-c", "from pipeline.config import load_config; print(load_config('c.yaml')['models']['audio_only'])"
    )
    assert "'width': 64" in checked and "'architecture': 'audio_only'" in checked


def test_add_a_format(project):
    touched, _ = follow(project, "Add a format or a data set")
    assert touched == ["pipeline/data/formats/pairs.py", "pipeline/data/formats/__init__.py"]
    work = project / "work"
    (work / "videos").mkdir()
    (work / "videos" / "a.mp4").write_bytes(b"x")
    (work / "train.json").write_text(json.dumps([{"video": "a", "question": "Is it loud?", "answer": "yes"}]))
    config = {
        "dataset": "mine",
        "videos": {"collection": "clips", "folder": "videos"},
        "annotations": {"train": "train.json"},
        "format": "pairs",
    }
    python(project, "-m", "pipeline", "manifest", "--config", json.dumps(config))
    table = pd.read_parquet(work / "results" / "mine" / "questions.parquet")
    assert table[["video_id", "question", "answer", "type"]].to_numpy().tolist() == [
        ["a", "Is it loud?", "yes", "Open"]
    ]
