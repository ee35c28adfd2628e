"""What is due after each kind of change: what Snakemake's own summary of a dry run lists."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline.config import check_configs
from pipeline.paths import paths_of

ROOT = Path(__file__).resolve().parent.parent
SNAKEMAKE = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
TRAIN = {split: f"data/{split}.json" for split in ("train", "val", "test")}
CONFIG = {
    "datasets": {
        "tiny": {"annotations": TRAIN},
        "tiny_r": {
            "annotations": {"test": {"head": "data/test-head.json", "tail": "data/test-tail.json"}},
            "trained_on": ["tiny"],
        },
    },
    "videos": {"collection": "clips", "folder": "data/videos"},
    "shard_size": 8,
    "decode": {"segments": 4, "ahead": 1},
    "encoders": {"resnet18": {"weights": "random", "outputs": ["pooled"]}, "vggish": {"weights": "random"}},
    "text": {"encoder": "clip_vit_b32", "weights": "random"},
    "models": {"pooled": {"audio": "vggish/embedding", "visual": "resnet18/pooled", "width": 16}},
    "train": {"epochs": 1, "threads": 1, "standardize": True},
}


LINKED = "results/tiny/features.h5"


def manifest(folder, name, config):
    """The folder of a data set's manifest."""
    with contextlib.chdir(folder):
        return folder / paths_of(check_configs(yaml.safe_load(yaml.safe_dump(config))))[name].manifest_dir


def snakemake(folder, config, *arguments, **environment):
    """Run the workflow with a configuration; both streams are in stdout."""
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return subprocess.run(
        [*SNAKEMAKE, *arguments, "--configfile", "c.yaml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        timeout=600,
        env=os.environ | environment,
    )


def due(folder, config=CONFIG, *arguments, **environment):
    """The rules that a dry run lists, and how many jobs of each, without the targets."""
    planned = snakemake(folder, config, "--dry-run", *arguments, **environment)
    assert planned.returncode == 0, planned.stdout
    if "Nothing to be done" in planned.stdout:
        return {}
    table = planned.stdout.split("Job stats:\n")[-1].split("\n\n")[0]
    counts = {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
    return {name: count for name, count in counts.items() if name not in ("all", "features", "total")}


def ran(output):
    """The rules that a run executed."""
    names = re.findall(r"^ *(?:local)?(?:rule|checkpoint) (\w+):", output, re.MULTILINE)
    return {name: names.count(name) for name in names if name not in ("all", "features")}


def changed(config, *path, value):
    """A configuration with one setting changed."""
    copy = json.loads(json.dumps(config))
    place = copy
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return copy


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which two data sets over one collection are finished."""
    folder = tmp_path_factory.mktemp("changes")
    made = subprocess.run(
        [sys.executable, "-m", "pipeline", "synthesize", "--out", "data", "--clips", "16", "--seconds", "4"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert made.returncode == 0
    done = snakemake(folder, CONFIG)
    assert done.returncode == 0, done.stdout
    (folder / "log").write_text(done.stdout)
    assert ran(done.stdout)["decode"] == 2 and ran(done.stdout)["extract"] == 4, "features of a collection are shared"
    return folder


@pytest.fixture
def place(finished, tmp_path):
    """A copy, for tests that change it; file times are kept."""
    shutil.copytree(finished, tmp_path / "w", symlinks=True)
    return tmp_path / "w"


def test_nothing_is_due_after_a_run(finished):
    assert due(finished) == {}


@pytest.mark.parametrize("rule", ["decode", "extract"])
def test_until_a_stage_of_shards_is_refused(finished, rule):
    """Decoding of a shard waits for an earlier one's features, so that it would come after that stage."""
    stopped = snakemake(finished, changed(CONFIG, "encoders", "vggish", "seed", value=1), "--until", rule)
    assert stopped.returncode == 1 and "name the target features" in stopped.stdout


def test_what_changes_no_result_makes_nothing_due(finished):
    other = changed(CONFIG, "encoders", "vggish", "batch_size", value=7)
    other = changed(other, "text", "batch_size", value=3)
    other = changed(other, "decode", value={"segments": 4, "ahead": 2, "workers": 1})
    other = changed(other, "train", "threads", value=2)
    assert due(finished, other) == {}


def test_an_encoder_whose_code_gives_other_numbers_is_due_as_with_other_settings(finished, tmp_path):
    """Its version is raised for the weights that are configured, then for others."""
    for weights, expected in (
        ("random", due(finished, changed(CONFIG, "encoders", "vggish", "seed", value=1))),
        ("another tag", {}),
    ):
        (tmp_path / "sitecustomize.py").write_text(
            "from dataclasses import replace\n"
            "from extractors import ENCODERS\n"
            f"ENCODERS['vggish'] = replace(ENCODERS['vggish'], versions={{{weights!r}: 2}})\n"
        )
        assert due(finished, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)])) == expected
        assert ("extract" in expected) == (weights == "random")


def test_switching_conda_on_makes_nothing_due(finished, tmp_path):
    script = tmp_path / "conda"
    info = {"platform": "linux-64", "conda_prefix": "/", "get": {"channel_priority": "strict"}}
    script.write_text(
        f"#!/bin/sh\ncase \"$*\" in *--version*) echo conda 25.1.0;; *) echo '{json.dumps(info)}';; esac\n"
    )
    script.chmod(0o755)
    assert due(finished, CONFIG, "--use-conda", PATH=f"{tmp_path}:{os.environ['PATH']}") == {}


def test_an_added_encoder_runs_alone(finished):
    more = changed(CONFIG, "encoders", "clip_vit_b32", value={"weights": "random", "outputs": ["cls"]})
    listed = due(finished, more)
    assert listed == {"decode": 2, "extract": 2, "index": 2, "verify": 2, "failures": 2, "report": 2}


def test_a_changed_encoder_and_what_reads_it(finished):
    other = changed(CONFIG, "encoders", "vggish", "seed", value=1)
    listed = due(finished, other)
    assert listed["decode"] == 2 and listed["extract"] == 2 and listed["train"] == 1 and listed["score"] == 1
    assert "manifest" not in listed and "text" not in listed


def test_segments_that_are_still_there_are_not_decoded_again(place):
    made = re.findall(r"results/clips/segments/[^/]+/[^/]+\.h5", (place / "log").read_text())
    assert len(set(made)) == 2
    for name in set(made):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    listed = due(place, changed(CONFIG, "encoders", "vggish", "seed", value=1))
    assert listed["extract"] == 2 and "decode" not in listed


def test_an_added_model_makes_nothing_but_itself_due(finished):
    more = {"only_audio": {"architecture": "pooled", "audio": "vggish/embedding", "visual": "resnet18/pooled"}}
    listed = due(finished, changed(CONFIG, "models", value=CONFIG["models"] | more))
    assert listed == {"train": 1, "evaluate": 1, "explain": 1, "score": 1, "report": 2}


def test_prompts_are_encoded_when_a_model_that_reads_them_is_added(place):
    """No other model is trained again for it, and without such a model they are not encoded at all."""
    folder = place / "results" / "tiny"
    questions = pd.read_parquet(folder / "questions.parquet")
    prompts = set(questions["prompt"].dropna())
    assert prompts
    (before,) = (folder / "text").glob("clip_vit_b32-*.h5")
    with h5py.File(before) as file:
        assert set(file["text"].asstr()[:]) == set(questions["question"])
    reads = {"audio": "vggish/embedding", "visual": "resnet18/pooled", "patch": "resnet18/pooled"}
    more = changed(CONFIG, "models", value=CONFIG["models"] | {"tspm": reads})
    data = {name: 2 for name in ("text", "index", "verify", "failures")}
    models = {"train": 1, "evaluate": 1, "explain": 1, "score": 1, "report": 2}
    assert due(place, more) == data | models
    done = snakemake(place, more, "features")
    assert done.returncode == 0, done.stdout
    (after,) = {*(folder / "text").glob("clip_vit_b32-*.h5")} - {before}
    with h5py.File(after) as file:
        assert set(file["text"].asstr()[:]) == set(questions["question"]) | prompts
    assert due(place, more) == models


def test_both_an_added_encoder_and_other_training(finished):
    """What is due for two reasons at once is not lost."""
    both = changed(CONFIG, "encoders", "clip_vit_b32", value={"weights": "random", "outputs": ["cls"]})
    listed = due(finished, changed(both, "train", "epochs", value=2))
    assert listed["extract"] == 2 and listed["train"] == 1 and listed["evaluate"] == 1 and listed["score"] == 1


@pytest.mark.slow
def test_a_replaced_video_makes_one_shard_due(place):
    video = sorted((place / "data" / "videos").glob("*.mp4"))[0]
    os.utime(video)
    assert due(place)["manifest"] == 2, "the manifests say what else"
    assert snakemake(place, CONFIG, "manifests").returncode == 0
    listed = due(place)
    assert listed["decode"] == 1 and listed["extract"] == 2 and "text" not in listed


@pytest.mark.slow
def test_a_removed_video_leaves_a_hole(place):
    test = {record["video_id"] for record in json.loads((place / "data" / "test.json").read_text())}
    before = {path.stem: path.read_text() for path in (place / "results" / "clips" / "shards").glob("*.tsv")}
    lost = sorted(test)[0]
    (place / "data" / "videos" / f"{lost}.mp4").unlink()
    config = CONFIG | {"allow_missing": True}
    assert snakemake(place, config, "manifests").returncode == 0
    now = {path.stem: path.read_text() for path in (place / "results" / "clips" / "shards").glob("*.tsv")}
    (new,) = now.keys() - before.keys()
    (old,) = (name for name in before if name.split("-")[0] == new.split("-")[0])
    assert f"{lost}\t" in now[new] and len(now[new].splitlines()) == len(before[old].splitlines())
    listed = due(place, config)
    assert listed["decode"] == 1 and listed["extract"] == 2
    ledger = pd.read_csv(manifest(place, "tiny", config) / "absent.tsv", sep="\t")
    assert set(ledger["video_id"]) == {lost} and set(ledger["reason"]) == {"missing"}
    records = json.loads((place / "data" / "test.json").read_text())
    assert ledger["questions"].sum() == sum(record["video_id"] == lost for record in records)


def test_merged_answers_make_the_manifests_due(finished):
    assert due(finished, CONFIG | {"merge_answers": True})["manifest"] == 2


def test_annotations_that_are_replaced_by_an_older_file_are_detected(place):
    path = place / "data" / "train.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text)[1:]))
    os.utime(path, (1e9, 1e9))
    assert due(place)["manifest"] == 2, "the other data set has the numbers of this one's answers"
    path.write_text(text)
    os.utime(path, (1e9, 1e9))
    assert due(place) == {}


def test_other_test_questions_need_no_training(place):
    records = json.loads((place / "data" / "test.json").read_text())
    (place / "data" / "test.json").write_text(json.dumps(records[1:]))
    assert snakemake(place, CONFIG, "manifests").returncode == 0
    listed = due(place)
    assert listed["evaluate"] == 1 and "train" not in listed and "decode" not in listed and "score" not in listed


@pytest.mark.slow
def test_other_training_questions_need_no_extraction(place):
    records = json.loads((place / "data" / "train.json").read_text())
    (place / "data" / "train.json").write_text(json.dumps(records[1:]))
    assert snakemake(place, CONFIG, "manifests").returncode == 0
    listed = due(place)
    assert listed["train"] == 1 and listed["score"] == 1 and "decode" not in listed and "extract" not in listed


def test_a_new_data_set_on_known_videos_needs_no_decoding(place):
    own = {"annotations": {"test": "data/test.json"}, "trained_on": ["tiny"]}
    more = changed(CONFIG, "datasets", "other", value=own)
    assert snakemake(place, more, "manifests").returncode == 0
    listed = due(place, more)
    assert listed["score"] == 1 and listed["text"] == 1 and not {"decode", "extract", "train"} & listed.keys()


@pytest.mark.slow
def test_a_data_set_with_new_videos_decodes_those(place):
    """Two new videos: one shard with two rows; the shards that were there stay as they are."""
    records = json.loads((place / "data" / "test.json").read_text())[:2]
    for n, record in enumerate(records):
        shutil.copy(place / "data" / "videos" / f"{record['video_id']}.mp4", place / "data" / "videos" / f"new{n}.mp4")
        record["video_id"] = f"new{n}"
    (place / "data" / "new.json").write_text(json.dumps(records))
    own = {"annotations": {"test": "data/new.json"}, "trained_on": ["tiny"]}
    more = changed(CONFIG, "datasets", "new", value=own)
    assert snakemake(place, more, "manifests").returncode == 0
    (shard,) = (path.read_text().splitlines() for path in (place / "results" / "clips" / "shards").glob("00002-*.tsv"))
    assert [line.split("\t")[0] for line in shard[1:]] == ["new0", "new1"]
    listed = due(place, more)
    assert listed["decode"] == 1 and listed["extract"] == 2 and "train" not in listed


@pytest.mark.slow
def test_one_data_set_is_a_target(finished):
    more = changed(CONFIG, "train", "seeds", value=[0, 1])
    listed = due(finished, more, "tiny")
    assert listed["train"] == 1 and "score" not in listed


def test_the_second_data_set_is_scored_in_parts(finished):
    folder = finished / "results" / "tiny_r" / "trained_on" / "tiny" / "models" / "pooled" / "seed-0"
    scores = json.loads((folder / "scores.json").read_text())
    counts = {part: len(json.loads((finished / "data" / f"test-{part}.json").read_text())) for part in ("head", "tail")}
    assert {part: scores["parts"][part]["overall"]["count"] for part in counts} == counts
    table = pd.read_parquet(folder / "predictions.parquet")
    assert table["correct"].mean() == pytest.approx(scores["overall"]["accuracy"])
    assert scores["trained_on"] == "tiny"


@pytest.mark.slow
def test_models_of_two_data_sets_are_tested_on_both(place):
    """As with the splits of MUSIC-AVQA-v2.0: two sets of questions about the same videos, each of them trained on."""
    for split, path in TRAIN.items():
        records = json.loads((place / path).read_text())
        kept = [record for n, record in enumerate(records) if record["anser"] != "no" or n % 3 == 0]
        assert 0 < len(kept) < len(records)
        (place / "data" / f"biased-{split}.json").write_text(json.dumps(kept))
    names = ["tiny", "biased"]
    files = {"tiny": TRAIN, "biased": {split: f"data/biased-{split}.json" for split in TRAIN}}
    sets = {name: {"annotations": files[name], "trained_on": names} for name in names}
    done = snakemake(place, changed(CONFIG, "datasets", value=sets))
    assert done.returncode == 0, done.stdout
    assert ran(done.stdout)["train"] == 1 and ran(done.stdout)["score"] == 2, "tiny was trained already"
    assert not {"decode", "extract"} & ran(done.stdout).keys()
    summaries = [(place / "results" / name / "summary.txt").read_text() for name in names]
    for tested_on in names:
        for trained_on in names:
            own = place / "results" / tested_on / ("" if tested_on == trained_on else f"trained_on/{trained_on}")
            answered = pd.read_parquet(own / "models" / "pooled" / "seed-0" / "predictions.parquet")
            assert len(answered) == len(json.loads((place / files[tested_on]["test"]).read_text()))
            scores = json.loads((own / "models" / "pooled" / "seed-0" / "scores.json").read_text())
            assert scores["trained_on"] == trained_on
            for summary in summaries:
                header, *rows = summary.split("Trained on one data set, tested on each\n")[1].splitlines()
                column = re.findall(r"\w+: \S+|model|trained on", header).index(f"{tested_on}: all")
                row = next(row.split() for row in rows if row.split()[0] == trained_on)
                assert float(row[column]) == pytest.approx(100 * answered["correct"].mean(), abs=0.01)
    assert "Nothing to be done" in snakemake(place, changed(CONFIG, "datasets", value=sets)).stdout


def test_back_to_former_settings_nothing_is_due(place):
    """What other settings made stands beside what was there, and names without keys lead to the last one's."""
    scores = place / "results" / "tiny" / "models" / "pooled" / "seed-0" / "scores.json"
    before = scores.resolve()
    other = changed(CONFIG, "train", "epochs", value=2)
    done = snakemake(place, other)
    assert done.returncode == 0 and ran(done.stdout)["train"] == 1, done.stdout
    assert scores.resolve() != before and before.exists()
    again = snakemake(place, CONFIG)
    assert "Nothing to be done" in again.stdout and scores.resolve() == before
    assert due(place, other) == {}


def test_records_and_times_are_of_no_use(place):
    shutil.rmtree(place / ".snakemake")
    assert due(place) == {}
    for path in (place / "results").rglob("*"):
        os.utime(path, (1e9, 1e9), follow_symlinks=False)
    assert due(place) == {}
    for path in sorted((place / "results").rglob("*"))[::2]:
        os.utime(path, follow_symlinks=False)
    assert due(place) == {}
    for path in (place / "data").glob("*.json"):
        os.utime(path)
    assert due(place) == {}


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "scores.json", "explanation.json"])
def test_what_is_removed_is_due(place, name):
    path = place / "results" / "tiny" / "models" / "pooled" / "seed-0" / name
    path.resolve().unlink()
    rule = {"checkpoint.safetensors": "train", "scores.json": "evaluate", "explanation.json": "explain"}[name]
    assert due(place) == {rule: 1}


def test_a_lost_list_of_a_shard_is_made_again_where_it_is_needed(place):
    for path in (place / "results" / "clips" / "shards").glob("*.tsv"):
        path.unlink()
    assert due(place) == {}
    listed = due(place, changed(CONFIG, "encoders", "vggish", "seed", value=1))
    assert listed["shard_list"] == 2 and listed["extract"] == 2 and "manifest" not in listed


def test_what_changes_no_number_of_an_encoder(place):
    """The digest that is checked, the order of outputs, an output fewer, how packets are chosen."""
    other = changed(CONFIG, "decode", "selective", value=False)
    assert due(place, other) == {}
    more = changed(CONFIG, "encoders", "resnet18", "outputs", value=["map", "pooled"])
    assert due(place, more)["extract"] == 2
    done = snakemake(place, more, "features")
    assert done.returncode == 0, done.stdout
    assert "extract" not in due(place, changed(more, "encoders", "resnet18", "outputs", value=["pooled", "map"]))
    for path in (place / "results" / "clips" / "features").glob("resnet18-pooled-*/*.h5"):
        path.unlink()
    assert "extract" not in due(place), "the features that have the output beside another one serve"


def test_two_configurations_in_turn_over_one_collection(place):
    """Each has features, models and scores of its own; neither takes the other's for its own."""
    other = changed(CONFIG, "decode", "frame_at", value=0.25)
    assert snakemake(place, other).returncode == 0
    with h5py.File(place / "results" / "tiny" / "features.h5") as file:
        theirs = file["resnet18/pooled"][:]
    assert "Nothing to be done" in snakemake(place, CONFIG).stdout
    with h5py.File(place / "results" / "tiny" / "features.h5") as file:
        assert not np.array_equal(file["resnet18/pooled"][:], theirs)
    assert due(place, other) == {}


@pytest.mark.slow
def test_work_results_and_segments_on_other_file_systems_than_the_code(finished, tmp_path):
    """The working folder and the results in memory, the segments on the disk that $MY_SCRATCH names."""
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev in (ROOT.stat().st_dev, tmp_path.stat().st_dev):
        pytest.skip("/dev/shm is no file system of its own here")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        work, results = Path(folder, "work"), Path(folder, "results")
        work.mkdir()
        data = str(finished / "data")
        annotations = {split: f"{data}/{split}.json" for split in TRAIN}
        other = {name: value for name, value in CONFIG.items() if name != "datasets"}
        other |= {
            "dataset": "tiny",
            "annotations": annotations,
            "videos": CONFIG["videos"] | {"folder": f"{data}/videos"},
        }
        other |= {"results": str(results), "scratch": "$MY_SCRATCH"}
        segments = tmp_path / "segments"
        kept = snakemake(work, other, "features", "--notemp", MY_SCRATCH=str(segments))
        assert kept.returncode == 0, kept.stdout
        made = sorted(path.name.split("-")[0] for path in segments.rglob("*.h5"))
        assert made == ["00000", "00001"] and not list(results.rglob("segments"))
        done = snakemake(work, other, MY_SCRATCH=str(segments))
        assert done.returncode == 0, done.stdout
        assert not {"decode", "extract"} & ran(done.stdout).keys()
        assert not list(segments.rglob("*.h5")), "read by all encoders"
        with h5py.File(results / "tiny" / "features.h5") as here, h5py.File(finished / LINKED) as there:
            for name in ("vggish/embedding", "resnet18/pooled"):
                np.testing.assert_array_equal(here[name], there[name])
        assert (results / "tiny" / "summary.txt").exists() and due(work, other, MY_SCRATCH=str(segments)) == {}
