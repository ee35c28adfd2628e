"""What is in the key of each kind of file: every setting that changes a number, and nothing else."""

import json
import os
import shutil
from dataclasses import replace

import pytest
import yaml

from extractors import ENCODERS
from pipeline import keys
from pipeline.config import NEUTRAL, SCHEMA, check_config, of_one_model

MANIFEST = {name: name for name in ("questions", "absent", "training", "training_videos", "test", "test_videos")}
MANIFEST |= {
    "texts": "texts",
    "prompts": "prompts",
    "numbering": "numbering",
    "left_out": "left_out",
    "shards": {"00000-0123456789": "a"},
}
CONFIG = {
    "dataset": "tiny",
    "results": "results",
    "videos": {"collection": "clips", "folder": "videos"},
    "annotations": {split: f"{split}.json" for split in ("train", "val", "test")},
    "encoders": {"resnet18": {"weights": "random"}, "vggish": {"weights": "random"}},
    "text": {"encoder": "clip_vit_b32", "weights": "random"},
    "models": {"pooled": {"audio": "vggish/embedding", "visual": "resnet18/pooled"}},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "videos").mkdir()
    for n in range(2):
        (tmp_path / "videos" / f"v{n}.mp4").write_bytes(b"x" * (n + 1))
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.json").write_text("[]")
    return tmp_path


def all_keys(config):
    """The digest of each kind of file that a configuration names."""
    config = check_config(json.loads(json.dumps(config)))
    run = keys.run(one := of_one_model(config, "pooled"), MANIFEST)
    found = {f"features of {name}": keys.encoding(config, name) for name in config["encoders"]}
    found |= {"manifest": keys.manifest(config), "decoding": keys.decoding(config), "run": run}
    found |= {"texts": keys.texts(config, "clip_vit_b32", MANIFEST), "data": keys.data(config, MANIFEST)}
    found |= {"scores": (scores := keys.scores(one, run, MANIFEST))}
    found |= {"report": keys.report(config, found["data"], [scores.digest])}
    return {name: key.digest for name, key in found.items()}


def changed(*path, value):
    config = json.loads(json.dumps(CONFIG))
    place = config
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = value
    return config


def differing(one, other):
    return {name for name in one if one[name] != other[name]}


ALL = {"manifest", "decoding", "features of resnet18", "features of vggish", "texts", "data", "run", "scores", "report"}
READ_ON = {"data", "run", "scores", "report"}  # what reads features


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("decode", "segments"), 7, ALL - {"manifest", "texts"}),
        (("decode", "frame_at"), 0.25, ALL - {"manifest", "texts"}),
        (("decode", "frame_selection"), "keyframe", ALL - {"manifest", "texts"}),
        (("decode", "pad"), "zero", ALL - {"manifest", "texts"}),
        (("encoders", "vggish", "seed"), 1, READ_ON | {"features of vggish"}),
        (("encoders", "vggish", "dtype"), "float32", READ_ON | {"features of vggish"}),
        (("text", "seed"), 1, READ_ON | {"texts"}),
        (("models", "pooled", "width"), 7, {"run", "scores", "report"}),
        (("models", "pooled", "train"), {"epochs": 3}, {"run", "scores", "report"}),
        (("train", "learning_rate"), 0.5, {"run", "scores", "report"}),
        (("train", "seeds"), [0, 5], {"report"}),
        (("max_failed_fraction",), 0.5, {"data", "report"}),
        (("allow_missing",), True, {"manifest", "report"}),
        (("merge_answers",), True, {"manifest", "report"}),
        (("shard_size",), 7, {"manifest", "report"}),
    ],
)
def test_what_a_setting_decides(folder, path, value, expected):
    assert differing(all_keys(CONFIG), all_keys(changed(*path, value=value))) == expected


OTHER_VALUES = {"workers": 3, "ahead": 3, "selective": False, "batch_size": 3, "sha256": "0" * 64, "threads": 3}


@pytest.mark.parametrize("section", ["decode", "encoders", "text", "train"])
def test_what_changes_no_number_is_in_no_key(folder, section):
    names = NEUTRAL["weights" if section in ("encoders", "text") else section]
    names = [name for name in names if name not in ("outputs", "seeds")]  # which are asked for
    assert names
    for name in names:
        path = (section, "vggish", name) if section == "encoders" else (section, name)
        assert differing(all_keys(CONFIG), all_keys(changed(*path, value=OTHER_VALUES[name]))) == set(), name


def test_every_setting_of_decoding_and_training_is_known_here():
    """A new one decides numbers until it is listed as one that does not; the list names real settings."""
    text = json.dumps(yaml.safe_load(SCHEMA.read_text()))
    for section, names in NEUTRAL.items():
        assert all(f'"{name}"' in text for name in names), section


def test_weights_files_count_by_what_is_in_them(folder):
    (folder / "w.pth").write_bytes(b"weights")
    config = changed("encoders", "vggish", value={"weights": "w.pth"})
    before = all_keys(config)
    os.utime(folder / "w.pth")
    shutil.copy(folder / "w.pth", folder / "copy.pth")
    assert all_keys(config) == before
    other = all_keys(changed("encoders", "vggish", value={"weights": "copy.pth", "seed": 3}))
    assert differing(before, other) == {"report"}, "which shows the configuration"
    with_beside = [name for name, spec in ENCODERS.items() if spec.beside]
    assert with_beside
    entry = changed("encoders", with_beside[0], value={"weights": "w.pth"})
    alone = keys.encoding(check_config(entry), with_beside[0]).digest
    beside = folder / ENCODERS[with_beside[0]].beside
    beside.write_bytes(b"more")
    first = keys.encoding(check_config(entry), with_beside[0]).digest
    beside.write_bytes(b"other")
    assert len({alone, first, keys.encoding(check_config(entry), with_beside[0]).digest}) == 3
    (folder / "w.pth").write_bytes(b"others!")
    assert differing(before, all_keys(config)) == READ_ON | {"features of vggish"}


def test_versions_that_change_numbers(folder, monkeypatch):
    before = all_keys(CONFIG)
    monkeypatch.setitem(ENCODERS, "vggish", replace(ENCODERS["vggish"], versions={"random": 2}))
    assert differing(before, all_keys(CONFIG)) == READ_ON | {"features of vggish"}
    monkeypatch.undo()
    os.chdir(folder)
    keys.release.cache_clear()
    monkeypatch.setattr(keys, "major_minor", lambda name: "0.1" if name == "torch" else "9.9")
    other = differing(before, all_keys(CONFIG))
    keys.release.cache_clear()
    assert other == ALL - {"manifest"}


def test_without_a_package_its_locked_version_counts(monkeypatch):
    """As where Snakemake alone is installed and jobs run in conda environments, which have the locked versions."""
    installed = {name: keys.release(name) for name in ("torch", "av", "pillow")}

    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(keys, "major_minor", missing)
    keys.release.cache_clear()
    assert {name: keys.release(name) for name in installed} == installed and keys.release("no_such_package") == ""
    keys.release.cache_clear()


@pytest.mark.parametrize("change", ["content", "added", "removed", "time", "annotations"])
def test_videos_and_annotations_are_in_the_manifests_key(folder, change):
    before = all_keys(CONFIG)
    match change:
        case "content":
            (folder / "videos" / "v0.mp4").write_bytes(b"other")
        case "added":
            (folder / "videos" / "v2.mp4").write_bytes(b"x")
        case "removed":
            (folder / "videos" / "v1.mp4").unlink()
        case "time":
            os.utime(folder / "videos" / "v0.mp4", ns=(0, 0))
        case "annotations":
            (folder / "train.json").write_text("[1]")
    assert differing(before, all_keys(CONFIG)) == {"manifest"}, "the manifest says what else"


@pytest.mark.parametrize("name", MANIFEST)
def test_what_the_manifest_says_is_in_what_reads_it(folder, monkeypatch, name):
    expected = {
        "questions": {"data", "report"},
        "absent": {"data", "report"},
        "numbering": {"data", "report"},
        "left_out": {"data", "report"},
        "shards": {"data", "report"},
        "training": {"run", "scores", "report"},
        "training_videos": {"run", "scores", "report"},
        "test": {"scores", "report"},
        "test_videos": {"scores", "report"},
        "texts": {"texts", "data", "report"},
        "prompts": set(),  # no model reads them
    }[name]
    before = all_keys(CONFIG)
    monkeypatch.setitem(MANIFEST, name, {"other": "b"} if name == "shards" else "other")
    assert differing(before, all_keys(CONFIG)) == expected
