"""The real Snakefile, from clips made on the spot to scores, in peace and under kill -9."""

import contextlib
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
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
CONFIG = {
    "dataset": "tiny",
    "synthesize": {"folder": "data", "clips": 16, "seconds": 4},
    "videos": {"collection": "clips", "folder": "data/videos"},
    "annotations": {split: f"data/{split}.json" for split in ("train", "val", "test")},
    "shard_size": 8,
    "decode": {"segments": 4},
    "encoders": {"clip_vit_b32": {"weights": "random", "outputs": ["cls"]}, "vggish": {"weights": "random"}},
    "text": {"encoder": "clip_vit_b32", "weights": "random"},
    "models": {
        "av_master": {
            "audio": "vggish/embedding",
            "visual": "clip_vit_b32/cls",
            "width": 32,
            "focus_width": 16,
            "heads": 4,
        }
    },
    "train": {"epochs": 3, "threads": 1, "standardize": True},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with a configuration, in which the workflow has run once."""
    folder = tmp_path_factory.mktemp("workflow")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    done = snakemake(folder)
    assert done.returncode == 0, done.stdout
    return folder


def command(folder, *arguments, config="tiny.yaml"):
    return [*SNAKEMAKE, *arguments, "--directory", str(folder), "--configfile", str(folder / config)]


def snakemake(folder, *arguments, **options):
    """Run the workflow; both streams are in stdout."""
    return subprocess.run(
        command(folder, *arguments, **options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
        timeout=400,
    )


def content(results):
    """All that matters of a run: every dataset of every file, and the scores, of all results."""
    found = {}
    for path in sorted(results.rglob("*.h5")):
        with h5py.File(path) as file:
            file.visititems(
                lambda name, item, path=path: (
                    found.update({f"{path.relative_to(results)}:{name}": item[:]})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
    for path in sorted(results.rglob("scores.json")) + sorted(results.rglob("history.csv")):
        found[str(path.relative_to(results))] = path.read_text()
    return found


def found(results):
    """The same of what the names without keys lead to."""
    numbers, run = {}, results / "tiny" / "models" / "av_master" / "seed-0"
    with h5py.File(results / "tiny" / "features.h5") as file:
        file.visititems(lambda n, item: numbers.update({n: item[:]}) if isinstance(item, h5py.Dataset) else None)
    return numbers | {name: (run / name).read_text() for name in ("scores.json", "history.csv")}


def assert_same(one, other):
    assert one.keys() == other.keys(), sorted(one.keys() ^ other.keys())
    for name, value in one.items():
        np.testing.assert_array_equal(value, other[name], err_msg=name)


def test_everything_comes_out(place):
    results, collection = place / "results" / "tiny", place / "results" / "clips"
    scores = json.loads((results / "models" / "av_master" / "seed-0" / "scores.json").read_text())
    assert scores["overall"]["count"] == len(json.loads((place / "data" / "test.json").read_text()))
    assert {"overall", "scenario", "types"} <= scores.keys()
    records = [record for path in (place / "data").glob("t*.json") for record in json.loads(path.read_text())]
    with h5py.File(results / "features.h5") as features:
        assert {r["video_id"] for r in records if "anser" in r} <= set(features["video_id"].asstr()[:])
        assert features["clip_vit_b32/cls"].shape[1:] == (4, 512)
        assert features["vggish/embedding"].shape[1:] == (4, 128)
        assert (features["status"][:] == 0).all()
    assert not list((collection / "segments").rglob("*.h5"))
    hidden = {path.name for path in place.rglob("results/**/.*")}
    assert hidden <= {".run.lock", ".run.json", ".shards.lock", ".lock"}, "nothing half-written is left"
    assert not [path for path in place.rglob("results/**/*") if not path.exists()], "links lead to what is there"
    for log in ("synthesize", "manifest/*", "text/clip_vit_b32-*", "index/*", "failures/*", "av_master-*/seed-0.train"):
        assert list((results / "logs").glob(f"{log}.log")), log
    for log in ("decode/audio-16000+frames-224-bicubic-*/00000-*", "vggish-embedding-*/00001-*"):
        assert list((collection / "logs").glob(f"{log}.log")), log
    assert "seeded random numbers" in (results / "report.html").read_text()


def test_the_report_has_the_run_time_of_every_stage(place):
    page = (place / "results" / "tiny" / "report.html").read_text()
    for stage in ("decode", "extract: clip_vit_b32", "extract: vggish", "text", "train: av_master"):
        assert f">{stage}</td>" in page
    assert "AVMaster does not offer" not in page and "no benchmark files" not in page
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)]
    parts = {tuple(row[:2]) for row in rows if len(row) == 6}
    for stage in ("extract: clip_vit_b32", "extract: vggish"):
        assert {(stage, part) for part in ("start", "reading", "encoder", "writing")} <= parts
    assert {("decode", part) for part in ("start", "decoders", "writing")} <= parts
    assert {("train: av_master", part) for part in ("start", "training", "waiting for data", "validation")} <= parts


def test_snakemakes_own_report_has_every_result(place, tmp_path):
    made = snakemake(place, "--report", str(tmp_path / "page.html"))
    assert made.returncode == 0, made.stdout
    page = (tmp_path / "page.html").read_text()
    for category in ("Report", "Scores", "Training", "Data set"):
        assert f'"{category}"' in page
    for result in ("report.html", "summary.txt", "scores.json", "explanation.json", "history.csv", "failures.tsv"):
        assert f"Adding {result}" in made.stdout
    assert "All results of the data set on one page" in page  # a caption


@pytest.mark.slow
def test_results_of_a_run_without_benchmark_files_stay_as_they_are(place):
    for folder in place.glob("results/*/benchmarks"):
        folder.rename(folder.with_name("kept"))
    again = snakemake(place, "--dry-run")
    for folder in place.glob("results/*/kept"):
        folder.rename(folder.with_name("benchmarks"))
    assert "Nothing to be done" in again.stdout


def test_a_second_run_has_nothing_to_do(place):
    again = snakemake(place)
    assert again.returncode == 0 and "Nothing to be done" in again.stdout


def test_a_replaced_video_makes_one_shard_due(place):
    (place / "own.yaml").write_text(yaml.safe_dump({k: v for k, v in CONFIG.items() if k != "synthesize"}))
    done = snakemake(place, "features", config="own.yaml")
    assert done.returncode == 0, done.stdout
    os.utime(sorted((place / "data" / "videos").glob("*.mp4"))[0])
    done = snakemake(place, "features", config="own.yaml")
    assert done.returncode == 0, done.stdout
    ran = re.findall(r"^local(?:rule|checkpoint) (\w+):", done.stdout, re.MULTILINE)
    assert sorted(ran) == [
        "decode",
        "extract",
        "extract",
        "failures",
        "features",
        "index",
        "manifest",
        "verify",
    ], done.stdout


@pytest.mark.parametrize("folder", ["tiny", "clips"])
def test_a_second_run_at_the_same_time_is_refused_and_changes_nothing(place, folder):
    (place / "faster.yaml").write_text(yaml.safe_dump(CONFIG | {"train": CONFIG["train"] | {"learning_rate": 0.5}}))
    before = state(place / "results")
    with open(place / "results" / folder / ".run.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = snakemake(place, config="faster.yaml")
        assert refused.returncode != 0 and "another run is at work here" in refused.stdout
    assert state(place / "results") == before


def test_a_dry_run_writes_nothing(place, tmp_path):
    (place / "faster.yaml").write_text(yaml.safe_dump(CONFIG | {"train": CONFIG["train"] | {"learning_rate": 0.5}}))
    before = state(place / "results")
    planned = snakemake(place, "--dry-run", config="faster.yaml")
    assert planned.returncode == 0 and "train" in planned.stdout
    assert state(place / "results") == before
    planned = snakemake(place, "--dry-run", "--config", f"results={tmp_path / 'new'}")
    assert planned.returncode == 0 and not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_job_uses_the_settings_of_its_run_whatever_happens_to_the_file(place):
    """The configuration file is changed, and a dry run made with it, while the run decodes; training comes later."""
    results = place / "during"
    (place / "changing.yaml").write_text(yaml.safe_dump(CONFIG | {"results": str(results)}))
    run = subprocess.Popen(
        command(place, config="changing.yaml"), cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    while not (results / "clips" / "shards").exists():
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.02)
    changed = CONFIG | {"results": str(results), "train": CONFIG["train"] | {"learning_rate": 0.5, "epochs": 1}}
    (place / "changing.yaml").write_text(yaml.safe_dump(changed))
    assert snakemake(place, "--dry-run", config="changing.yaml").returncode == 0
    output = run.communicate(timeout=400)[0]
    assert run.returncode == 0, output
    described = yaml.safe_load((results / "tiny" / "models" / "av_master" / "seed-0" / "config.yaml").read_text())
    assert described["config"]["train"]["learning_rate"] == 0.0001 and described["config"]["train"]["epochs"] == 3
    planned = snakemake(place, "--dry-run", config="changing.yaml")
    assert re.search(r"^train +1$", planned.stdout, re.MULTILINE), planned.stdout
    (place / "changing.yaml").write_text(yaml.safe_dump(CONFIG | {"results": str(results)}))
    assert "Nothing to be done" in snakemake(place, config="changing.yaml").stdout


def state(results):
    """Every file with its content."""
    return {p: p.read_bytes() for p in sorted(results.rglob("*")) if p.is_file()}


def test_what_is_not_the_runs_own_is_left_alone(place):
    """Segments that a user has asked for by name, and what a command that is running by hand has not finished."""
    collection = place / "results" / "clips"
    with contextlib.chdir(place):
        files = paths_of(check_configs(yaml.safe_load(yaml.safe_dump(CONFIG))))["tiny"]
        (shard, _) = files.manifest["shards"]
        segments = str(files.segments_file("audio-16000+frames-224-bicubic", shard))
    ended = subprocess.Popen(["true"])
    ended.wait()
    partial = ".00000.h5.{}.{}.partial"
    abandoned = collection / partial.format(socket.gethostname(), ended.pid)
    others = [
        collection / "segments" / partial.format(socket.gethostname(), os.getpid()),
        collection / "segments" / partial.format("another-machine", ended.pid),
        collection / "segments" / ".00001.h5.0123456789abcdef.parts" / "0-1.npz",
    ]
    for path in (abandoned, *others):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        for target in (segments, "features"):  # the second run may clear away after itself
            for path in (place / "results" / "tiny" / "data").glob("*/failures.tsv"):
                path.unlink()
            done = snakemake(place, target)
            assert done.returncode == 0, done.stdout
            assert (place / segments).exists(), f"{target}: {done.stdout}"
        assert not abandoned.exists() and all(path.exists() for path in others)
    finally:
        shutil.rmtree(collection / "segments")


SIGNS = {
    "decoding": "clips/segments/*/.*parts/*.npz",
    "extracting": "clips/features/clip_vit_b32-*/.*parts/*.npz",
    "training": "tiny/runs/av_master-*/seed-0/resume.pt",
}


@pytest.mark.parametrize("stages", [["extracting"], pytest.param(list(SIGNS), marks=pytest.mark.slow)])
def test_kill_9_changes_no_result(place, stages):
    results = place / f"again-{len(stages)}"
    arguments = command(place, "--config", f"results={results}")
    for stage in stages:
        sign = SIGNS[stage]
        process = subprocess.Popen(
            arguments, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while not list(results.glob(sign)):
            assert process.poll() is None, f"the run ended before {stage} could be disturbed"
            time.sleep(0.005)
        if stage == "extracting":  # only the workflow: what it started goes on and must not get in the way
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    last = snakemake(place, "--config", f"results={results}")
    both = place / "results", results
    assert last.returncode == 0, last.stdout
    assert_same(
        *({k: v for k, v in found(folder).items() if not k.endswith(("/files", "/sources"))} for folder in both)
    )


def test_a_damaged_shard_is_named_and_only_that_one_is_made_again(place):
    results = place / "results"
    (path,) = (results / "clips" / "features").glob("clip_vit_b32-*/00001-*.h5")
    before, file = content(results), str(path.relative_to(results))
    os.truncate(path, path.stat().st_size // 2)
    verified = avqa(place, "verify", "tiny.yaml")
    assert verified.returncode == 1 and verified.stdout.count(".h5:") == 1 and file in verified.stdout
    path.unlink()
    done = snakemake(place, "features")
    assert done.returncode == 0, done.stdout
    ran = re.findall(r"^ +output: (.*)$", done.stdout, re.MULTILINE)
    assert ran and not [names for names in ran if "00000" in names], ran
    assert_same(before, content(results))


@pytest.mark.slow
def test_a_table_of_the_paper_in_a_reduced_grid(place):
    shorter = {"ablations": {"tables": ["fig_5"]}, "train": CONFIG["train"] | {"epochs": 1, "seeds": [0, 1]}}
    (place / "grid.yaml").write_text(yaml.safe_dump(CONFIG | shorter))
    done = snakemake(place, "ablations", config="grid.yaml")
    assert done.returncode == 0, done.stdout
    made = pd.read_csv(place / "results" / "tiny" / "ablations" / "av_master" / "fig_5.csv")
    assert made["row"].tolist() == ["A+Q", "V+Q", "Q", "A+V+Q"]
    before = place / "results" / "tiny" / "models" / "av_master"
    found = place.glob("results/tiny/scores/tiny/av_master-*/seed-?/scores.json")
    runs = [json.loads(path.read_text()) for path in found if path.parent.parent != before.resolve()]
    runs = [run for run in runs if run["epochs"] == 1] if "epochs" in runs[0] else runs
    assert len(runs) >= 8
    means = pd.Series([run["overall"]["accuracy"] for run in runs]).mean()
    assert made["avg"].mean() == pytest.approx(100 * means, abs=0.01) and made["avg_sd"].notna().all()


def avqa(place, *arguments, largest=None):
    """Run a stage by hand; no file may become larger than `largest` bytes, which is how a full disk or quota feels."""
    limit = largest and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)))
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=place,
        # As many threads as the rules give: a sum's last digit depends on them.
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1" if arguments[0] == "train" else "2"},
        preexec_fn=limit,
    )


@pytest.mark.slow
def test_a_full_disk_loses_nothing_in_any_stage(place, tmp_path):
    whole, results = place / "results", tmp_path / "results"
    shutil.copytree(whole, results)
    tiny = results / "tiny"
    config, seed = tmp_path / "c.yaml", tiny / "models" / "av_master" / "seed-0"
    config.write_text(yaml.safe_dump(CONFIG | {"results": str(results)}))
    random = ["--weights", "random"]
    (shard,), questions = (results / "clips" / "shards").glob("00000-*.tsv"), tiny / "questions.parquet"
    folders = {path.name.split("-")[0]: path for path in (results / "clips" / "features").iterdir()}
    names = {"clip_vit_b32/cls": "clip_vit_b32", "vggish/embedding": "vggish"}
    (texts,) = (tiny / "text").glob("*.h5")
    index = ["index", "--manifest", tiny, "--collection", results / "clips", "--out", tmp_path / "data"]
    index += ["--features", json.dumps({name: [folders[encoder].name] for name, encoder in names.items()})]
    index += ["--texts", json.dumps({"clip_vit_b32": str(texts)})]
    segments, features = tmp_path / "segments.h5", tmp_path / "features.h5"
    text, sentences = tmp_path / "text.h5", ["text", questions, "--encoder", "clip_vit_b32"]
    clips, encoders = tmp_path / "clips", ["--encoder", "clip_vit_b32", "vggish"]
    stages = [
        (["synthesize", "--clips", 16, "--seconds", 4, "--out", clips], [clips / "train.json"], 3000),
        (["manifest", "--config", config], [tiny / "questions.parquet"], 3000),
        (["decode", shard, "--segments", 4, *encoders, "--out", segments], [segments], 100_000),
        (["decode", shard, "--segments", 4, *encoders, "--out", segments], [segments], 1_000_000),
        (["extract", segments, "--encoder", "clip_vit_b32", *random, "--out", features], [features], 3000),
        ([*sentences, *random, "--out", text], [text], 100_000),
        (index, [tmp_path / "data" / "features.h5"], 3000),
        (["train", "--config", config, "--out", seed], [seed / "checkpoint.safetensors", seed / "history.csv"], 20_000),
        (["evaluate", seed], [seed / "predictions.parquet", seed / "scores.json"], 3000),
        (["report", "--config", config], [tiny / "report.html"], 3000),
    ]
    for arguments, outputs, largest in stages:
        for path in outputs:
            path.unlink(missing_ok=True)
        failed = avqa(place, *arguments, largest=largest)
        assert failed.returncode == 1 and f"avqa {arguments[0]}: the disk is full" in failed.stdout, failed.stdout
        assert not any(path.exists() for path in outputs), arguments
        done = avqa(place, *arguments)
        assert done.returncode == 0 and all(path.exists() for path in outputs), done.stdout
    for name in ("scores.json", "history.csv"):
        assert (seed / name).read_text() == (whole / seed.relative_to(results) / name).read_text()
    assert_same(content(whole / "clips"), content(results / "clips"))
    with h5py.File(tmp_path / "data" / "features.h5") as made, h5py.File(whole / "tiny" / "features.h5") as expected:
        assert [*made] == [*expected]
        for name in names:
            np.testing.assert_array_equal(made[name], expected[name])
    with (
        h5py.File(features) as made,
        h5py.File(whole / "clips" / "features" / folders["clip_vit_b32"].name / f"{shard.stem}.h5") as expected,
    ):
        np.testing.assert_array_equal(made["clip_vit_b32/cls"], expected["clip_vit_b32/cls"])
    with h5py.File(text) as made, h5py.File(texts) as expected:
        np.testing.assert_array_equal(made["words"], expected["words"])


def test_a_missing_folder_is_named(place):
    missing = {k: v for k, v in CONFIG.items() if k != "synthesize"} | {
        "videos": {"collection": "clips", "folder": "no_such_folder"}
    }
    (place / "missing.yaml").write_text(yaml.safe_dump(missing | {"results": "missing"}))
    failed = snakemake(place, config="missing.yaml")
    assert failed.returncode != 0 and "no_such_folder" in failed.stdout


@pytest.fixture
def fake_conda(tmp_path):
    """Enough of conda to plan with: Snakemake queries its version before it plans."""
    script = tmp_path / "conda"
    info = {"platform": "linux-64", "conda_prefix": "/", "get": {"channel_priority": "strict"}}
    script.write_text(f"""#!/bin/sh
case "$*" in *--version*) echo conda 25.1.0;; *) echo '{json.dumps(info)}';; esac
""")
    script.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_every_rule_names_an_environment_and_conda_plans(place, fake_conda):
    for rules in (ROOT / "pipeline" / "rules").glob("*.smk"):
        text = rules.read_text()
        assert text.count("shell:") == text.count("conda:"), rules
        for name in re.findall(r'"(\.\./\.\./envs/.*)"', text):
            assert (rules.parent / name).exists()
    planned = subprocess.run(
        command(place, "--dry-run", "--use-conda", "--forceall"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=place,
        env=os.environ | fake_conda,
    )
    assert planned.returncode == 0, planned.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "envs").glob("*.yaml")), ids=lambda p: p.stem)
def test_environments_have_the_locked_versions(path):
    locked = set((ROOT / "constraints.txt").read_text().split())
    pinned = yaml.safe_load(path.read_text())["dependencies"][-1]["pip"]
    assert set(pinned) <= locked


@pytest.mark.parametrize("name", ["slurm", "generic"])
def test_cluster_profiles_plan(place, name):
    planned = snakemake(place, "--dry-run", "--forceall", "--workflow-profile", str(ROOT / "profiles" / name))
    assert planned.returncode == 0, planned.stdout


def test_too_many_failed_videos_stop_the_run_before_training(place, tmp_path):
    """Two of 16 videos are no videos: more than 1 %."""
    shutil.copytree(place / "data", tmp_path / "data")
    broken = sorted((tmp_path / "data" / "videos").glob("*.mp4"))[:2]
    for path in broken:
        path.write_bytes(b"no video")
    mine = {name: value for name, value in CONFIG.items() if name != "synthesize"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    done = snakemake(tmp_path, config="mine.yaml")
    assert done.returncode != 0
    assert "2 of 16 videos failed, more than max_failed_fraction (1.00%)" in done.stdout
    assert not list(tmp_path.rglob("failures.tsv")) and not list(tmp_path.rglob("checkpoint*"))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine | {"max_failed_fraction": 0.2}))
    done = snakemake(tmp_path, config="mine.yaml")
    assert done.returncode == 0, done.stdout
    assert "rule decode" not in done.stdout and "rule extract" not in done.stdout
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine | {"max_failed_fraction": 0.3}))
    listed = snakemake(tmp_path, "--dry-run", config="mine.yaml").stdout
    assert "rule failures" in listed and "rule extract" not in listed and "rule train" not in listed
