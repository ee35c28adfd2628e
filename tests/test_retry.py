"""A video that failed for a reason outside its file: all encoders agree on it; `avqa retry` has it decoded again."""

import json
import os

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml
from small_project import Clip, DirectWorker, Project, prepare

from pipeline.cli import main
from pipeline.errors import AVQAError
from pipeline.manifest import read_membership
from pipeline.paths import paths_of
from pipeline.storage.retries import read_retries
from pipeline.storage.shard_list import Video, digest, read_shard_list, write_shard_list

LATE = "v1"  # the video that fails at first


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A run in which one video took too long, before which the machine has its speed back."""
    prepare(monkeypatch, tmp_path)
    project = Project(np.random.default_rng(0))
    DirectWorker.failing.add(str(project.path(LATE)))
    project.run()
    DirectWorker.failing.clear()
    DirectWorker.tried.clear()
    return project


def statuses(project):
    """Of each features file of the configuration, by encoder and shard: the videos that failed."""
    (files,) = paths_of(project.configs()).values()
    found = {}
    for encoder in files.config["encoders"]:
        for path in files.features_files(encoder):
            with h5py.File(path) as file:
                names = file["video_id"].asstr()[:][file["status"][:] != 0].tolist()
                found[encoder, path.stem] = names
    return found


def retry(project, capsys=None):
    with open("c.yaml", "w") as file:
        yaml.safe_dump(project.config, file, sort_keys=False)  # the order of files is a part of names
    return main(["retry", "--config", "c.yaml"])


def failed(files=None):
    return pd.read_csv("results/tiny/failures.tsv", sep="\t")["video_id"].tolist()


def test_a_failure_stays_until_it_is_asked_to_be_tried_again(project, capsys):
    before = project.files()
    project.run()
    assert project.files() == before and failed() == [LATE] and not DirectWorker.tried
    shards = {name for _, name in statuses(project)}
    assert retry(project) == 0
    assert LATE in capsys.readouterr().out and read_retries("results/clips") == {LATE: 1}
    project.run()
    assert failed() == [] and str(project.path(LATE)) in DirectWorker.tried
    assert not any(statuses(project).values())
    changed = {name for _, name in statuses(project)} ^ shards
    assert len(changed) == 2 and len({name.split("-")[0] for name in changed}) == 1, "one shard has another name"
    project.check()
    again = project.files()
    assert before.items() <= again.items() | {
        (k, v) for k, v in before.items() if k.endswith("videos.parquet") or k in again
    }
    project.run()
    assert project.files() == again


def test_after_a_retry_everything_is_as_if_the_video_had_never_failed(project):
    """But for the names of its shard, which say that there was another try."""
    retry(project)
    project.run()
    found = project.values()
    os.rename("results/clips/retries.json", "retries.json")
    assert found == project.from_nothing(with_membership=False)
    os.rename("retries.json", "results/clips/retries.json")


def test_encoders_that_are_added_later_agree_on_what_failed(project):
    """The other videos of the shard are decoded again for them, this one is not, until it is asked for."""
    project.config["encoders"]["toy_colour_2"] = {"weights": "random"}
    project.run()
    assert str(project.path(LATE)) not in DirectWorker.tried and DirectWorker.tried
    listed = statuses(project)
    assert {encoder for (encoder, _), names in listed.items() if names == [LATE]} == {*project.config["encoders"]}
    assert failed() == [LATE]
    retry(project)
    project.run()
    assert not any(statuses(project).values()) and failed() == []
    project.check()


def test_a_half_finished_shard_keeps_its_failures(tmp_path, monkeypatch):
    """One encoder has read the shard, the run ends, and the video could be decoded for the others."""
    prepare(monkeypatch, tmp_path)
    project = Project(np.random.default_rng(0))
    DirectWorker.failing.add(str(project.path(LATE)))
    extract, calls = __import__("pipeline.local").local.extract_shard, []

    def once(*arguments, **given):
        if calls:
            raise KeyboardInterrupt
        calls.append(given["encoder"])
        extract(*arguments, **given)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.local.extract_shard", once)
        project.run()
    for path in (tmp_path / "results" / "clips" / "segments").rglob("*.h5"):
        path.unlink()  # as a scheduler does that counts them as temporary
    DirectWorker.failing.clear()
    project.run()
    assert {tuple(names) for (_, shard), names in statuses(project).items() if shard.startswith("00000")} == {(LATE,)}
    assert json.loads((tmp_path / "results/tiny/verify.json").read_text())["errors"] == 0
    retry(project)
    project.run()
    assert not any(statuses(project).values())
    project.check()


def test_what_is_killed_between_a_table_and_its_segments_leaves_both_or_the_table(tmp_path, monkeypatch):
    """Never segments with failures that no table has: another encoder's would be made from another try."""
    prepare(monkeypatch, tmp_path)
    project = Project(np.random.default_rng(0))
    DirectWorker.failing.add(str(project.path(LATE)))
    publish = __import__("pipeline.storage.atomic").storage.atomic.publish

    def until_segments(partial, path):
        if "segments" in path.parts:
            raise KeyboardInterrupt
        publish(partial, path)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("pipeline.storage.atomic.publish", until_segments)
        project.run()
    (table,) = (tmp_path / "results/clips/failures").rglob("*.tsv")
    assert pd.read_csv(table, sep="\t")["video_id"].tolist() == [LATE]


def test_a_retry_that_fails_again_is_a_failure_again(project):
    DirectWorker.failing.add(str(project.path(LATE)))
    retry(project)
    project.run()
    assert failed() == [LATE]
    DirectWorker.failing.clear()
    assert retry(project) == 0 and read_retries("results/clips") == {LATE: 2}
    project.run()
    assert failed() == []


def test_a_retry_before_the_run_that_does_the_last_one_is_refused(project, capsys):
    assert retry(project) == 0
    assert retry(project) == 1
    assert "run the workflow first" in capsys.readouterr().err and read_retries("results/clips") == {LATE: 1}


def test_without_failures_a_retry_changes_no_name(project):
    retry(project)
    project.run()
    before = project.files()
    assert retry(project) == 0
    project.run()
    assert project.files() == before


def test_a_video_that_is_gone_is_not_tried(project):
    del project.clips["v5"]
    project.path("v5").unlink()
    project.run()
    retry(project)
    assert read_retries("results/clips") == {LATE: 1}


def test_failures_are_found_without_their_tables(project):
    for path in list(project.results.glob("clips/failures/*/*.tsv")):
        path.unlink()
    retry(project)
    assert read_retries("results/clips") == {LATE: 1}


def test_a_broken_video_of_the_shard_stays_a_failure(project):
    project.set_clip("v2", Clip(None, 0.5, 0))
    project.run()
    retry(project)
    project.run()
    assert failed() == ["v2"]
    project.check()


def test_lists_without_retries_are_as_they_always_were(tmp_path):
    videos = [Video("a", "a.mp4", 1, 2), Video("b", "b.mp4", 3, 4)]
    write_shard_list(tmp_path / "s.tsv", videos)
    assert (tmp_path / "s.tsv").read_text().splitlines()[0] == "video_id\tpath\tsize\tmtime_ns"
    again = [videos[0], videos[1]._replace(retries=1)]
    write_shard_list(tmp_path / "s.tsv", again)
    assert read_shard_list(tmp_path / "s.tsv") == again and digest(again) != digest(videos)


def test_a_table_of_videos_of_an_earlier_version_is_read(project):
    path = project.results / "clips" / "videos.parquet"
    listed = read_membership(path)
    pd.read_parquet(path).drop(columns="retries").to_parquet(path)
    assert read_membership(path) == listed


def test_a_damaged_list_of_retries_is_named(project):
    (project.results / "clips" / "retries.json").write_text("[1")
    with pytest.raises(AVQAError, match=r"retries\.json.*move it away"):
        project.run()
