"""A results folder that version 0.2.0 made, before names had keys, is taken over."""

import contextlib
import json
import os
import tarfile
from pathlib import Path

import h5py
import pytest
import yaml

from pipeline.adopt import adopt
from pipeline.config import load_configs
from pipeline.errors import AVQAError
from pipeline.local import run_workflow
from pipeline.paths import paths_of
from pipeline.storage.shard_list import read_shard_list

RESULTS = Path(__file__).parent / "data" / "results_0_2_0.tar.xz"
FEATURES = "results/clips/features"


@pytest.fixture
def former(tmp_path, monkeypatch):
    """The folder, with files in the videos' places: nothing is decoded."""
    with tarfile.open(RESULTS) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "results/clips/shards").glob("*.tsv"):
        for video in read_shard_list(path):
            Path(video.path).parent.mkdir(parents=True, exist_ok=True)
            with open(video.path, "wb") as file:
                file.truncate(video.size)
            os.utime(video.path, ns=(video.mtime_ns, video.mtime_ns))
    return tmp_path


@pytest.fixture
def today(former):
    """The libraries that are installed are those of the former results."""
    for files in paths_of(load_configs("c.yaml")).values():
        for encoder in files.config["encoders"]:
            key = files.encoding(encoder).parts
            libraries = {"decoder": key["decoder"], **key["libraries"], **key["encoder"]["libraries"]}
            for path in Path(FEATURES, encoder).glob("*.h5"):
                with h5py.File(path, "a") as file:
                    file.attrs["libraries"] = json.dumps(libraries)
    return former


def made():
    return sorted(path.parent.name.split("-")[0] for path in Path(FEATURES).glob("*/*.h5"))


def test_what_is_the_same_is_not_made_again(today):
    before = {path.name: path.read_bytes() for path in Path("results/tiny/models/pooled/seed-0").iterdir()}
    shards = sorted(path.read_bytes() for path in Path(FEATURES).rglob("*.h5"))
    with pytest.raises(AVQAError, match="avqa adopt"):
        run_workflow(load_configs("c.yaml"))
    lines = adopt(load_configs("c.yaml"))
    assert sorted(path.read_bytes() for path in Path(FEATURES).rglob("*.h5")) == shards
    if lines:  # the libraries are others than those that the training was made with
        assert [line for line in lines if "pooled/seed-0: not adopted, other settings" in line] == lines
        return
    assert adopt(load_configs("c.yaml")) == [], "a second time there is nothing to do"
    run_workflow(load_configs("c.yaml"))  # no video could be decoded
    run = Path("results/tiny/models/pooled/seed-0")
    assert (run / "checkpoint.safetensors").read_bytes() == before["checkpoint.safetensors"]
    scores, former_scores = json.loads((run / "scores.json").read_text()), json.loads(before["scores.json"])
    assert scores["overall"] == former_scores["overall"]
    assert (Path("results/tiny/former/summary.txt")).exists() and Path("results/tiny/report.html").exists()


@pytest.mark.parametrize(
    ("changes", "kept", "said"),
    [
        ({"decode": {"segments": 3}}, 0, "decode"),
        ({"encoders": {"vggish": {"weights": "random", "seed": 1}}}, 2, "weights"),
        ({"encoders": {"vggish": {"weights": "random", "dtype": "float32"}}}, 2, "dtype"),
        ({"encoders": {"resnet18": {"weights": "random", "outputs": ["map", "pooled"]}}}, 2, "outputs"),
        ({"encoders": {"vggish": {"weights": "random", "batch_size": 3}}}, 4, None),
    ],
)
def test_what_is_not_the_same_is_named_and_left(today, changes, kept, said):
    config = yaml.safe_load(Path("c.yaml").read_text())
    for name, value in changes.items():
        config[name] = config[name] | value
    Path("c.yaml").write_text(yaml.safe_dump(config))
    lines = adopt(load_configs("c.yaml"))
    assert len(made()) == kept
    assert sum(f"not adopted, other {said}" in line for line in lines) == 4 - kept
    left = list(Path("results/clips/former/features").rglob("*.h5"))
    assert len(left) == 4 - kept, "nothing is removed"


def test_the_shard_of_a_replaced_video_and_other_libraries_are_not_adopted(today):
    videos = read_shard_list("results/clips/shards/00001.tsv")
    os.utime(videos[0].path)
    with h5py.File(f"{FEATURES}/vggish/00000.h5", "a") as file:
        file.attrs["libraries"] = json.dumps(json.loads(file.attrs["libraries"]) | {"torch": "1.0"})
    lines = adopt(load_configs("c.yaml"))
    assert made() == ["resnet18"]
    assert sum("other videos" in line for line in lines) == 2 and sum("other libraries" in line for line in lines) == 1


@pytest.mark.parametrize("moment", [0, 1, 3, 6, 9, 12, 15, 17, 19])
def test_an_adoption_that_is_killed_goes_on(today, monkeypatch, moment):
    """At the n-th file that it moves; the libraries may be others than the training's, which is then not adopted."""
    moved, rename = [], os.rename

    def killed(source, target):
        if len(moved) == moment:
            raise KeyboardInterrupt
        moved.append(source)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.adopt.os.rename", killed)
        with contextlib.suppress(KeyboardInterrupt):
            adopt(load_configs("c.yaml"))
    lines = adopt(load_configs("c.yaml"))
    assert made() == ["resnet18"] * 2 + ["vggish"] * 2
    left = [p for p in Path("results/tiny").iterdir() if p.name in ("features.h5", "manifest.json", "models")]
    assert not left
    runs = list(Path("results/tiny/runs").glob("*/seed-0/*"))
    names = {"checkpoint.safetensors", "history.csv", "config.yaml"}
    assert lines or {path.name for path in runs} == names


def test_reasons_of_failures_go_along(today):
    Path("results/clips/failures/00000.tsv").write_text(
        "video_id\tstage\treason\tseconds\nsynth00012\tdecode\todd\t1\n"
    )
    adopt(load_configs("c.yaml"))
    (table,) = Path("results/clips/failures").glob("*/00000-*.tsv")
    assert "odd" in table.read_text()


def test_imported_features_are_left_alone(today):
    with h5py.File(f"{FEATURES}/vggish/00000.h5", "a") as file:
        file.attrs["imported"] = "from elsewhere"
    before = sorted(Path("results").rglob("*"))
    with pytest.raises(AVQAError, match="were imported"):
        adopt(load_configs("c.yaml"))
    assert sorted(Path("results").rglob("*")) == before
