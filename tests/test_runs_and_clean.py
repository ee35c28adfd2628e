"""`avqa runs` and `avqa clean`, on results that two configurations have made in turn."""

import re

import numpy as np
import pytest
import yaml
from small_project import Project, prepare

from pipeline.cli import main
from pipeline.local import run_workflow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("project")
        prepare(patch, folder)
        project = Project(np.random.default_rng(5))
        project.run()
        (folder / "first.yaml").write_text(yaml.safe_dump(project.config, sort_keys=False))
        project.config["train"]["learning_rate"] = 0.25
        project.run()
        (folder / "second.yaml").write_text(yaml.safe_dump(project.config, sort_keys=False))
        yield project


def said(capsys, *arguments):
    capsys.readouterr()
    status = main([*arguments])
    printed = capsys.readouterr()
    return status, printed.out or printed.err


def test_runs_that_differ_stand_side_by_side_with_what_differs(project, capsys):
    status, table = said(capsys, "runs", "--config", "second.yaml")
    assert status == 0
    header, *lines = table.splitlines()
    assert header.split() == ["model", "settings", "seeds", "accuracy", "trained", "minutes", "folder"]
    rates = sorted(re.findall(r"learning_rate=(\S+)", table))
    assert "0.25" in rates and len(set(rates)) == 2
    assert len(lines) == len(rates) and all("/runs/" in line for line in lines)
    assert all(re.search(r"\d+\.\d\d", line.split("learning_rate=")[1].split(None, 1)[1]) for line in lines), "scores"


def test_clean_lists_what_no_configuration_names_and_removes_it_when_told_to(project, capsys, tmp_path):
    status, listed = said(capsys, "clean", "first.yaml", "second.yaml")
    assert status == 0 and listed.startswith("0 files and folders"), listed
    status, listed = said(capsys, "clean", "second.yaml")
    paths = re.findall(r"MB  (\S+)", listed)
    assert paths and all(re.search(r"/(runs|scores|reports)/", path) for path in paths), "features serve both"
    before = project.files()
    assert said(capsys, "clean", "second.yaml")[1] == listed and project.files() == before, "nothing is removed"
    assert said(capsys, "clean", "second.yaml", "--yes")[0] == 0
    gone = before.keys() - project.files().keys()
    assert gone and all(any(str(path).find(folder) >= 0 for folder in paths) for path in gone)
    left = project.files()
    run_workflow(project.configs())
    assert project.files() == left, "what the configuration names is all there"


def test_clean_refuses_a_configuration_that_was_never_run(project, capsys):
    config = project.config | {"shard_size": 99}
    with open("never.yaml", "w") as file:
        yaml.safe_dump(config, file)
    assert main(["clean", "never.yaml", "--yes"]) == 1
    assert "run the workflow first" in capsys.readouterr().err
