"""How many shards' segments may be on the disk at the same time, whatever a scheduler does."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_manifest import record
from test_workflow import ROOT

from pipeline.config import check_configs
from pipeline.paths import paths_of

SHARDS = 7
ENCODERS = ("resnet18", "vggish")
CONFIG = {
    "dataset": "tiny",
    "videos": {"collection": "clips", "folder": "videos"},
    "annotations": {split: f"{split}.json" for split in ("train", "val", "test")},
    "shard_size": 1,
    "encoders": {"resnet18": {"weights": "random", "outputs": ["pooled"]}, "vggish": {"weights": "random"}},
    "text": {"encoder": "clip_vit_b32", "weights": "random"},
    "models": {"pooled": {"audio": "vggish/embedding", "visual": "resnet18/pooled"}},
}


def snakemake(folder, config, *arguments, cores=2):
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", str(cores), *arguments]
    done = subprocess.run([*command, "--configfile", "c.yaml"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Seven shards of one video each; nothing is decoded in these tests, so that the files need no content."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "videos").mkdir()
    records = [record(f"v{n}") for n in range(SHARDS)]
    for n in range(SHARDS):
        (folder / "videos" / f"v{n}.mp4").write_bytes(b"x")
    for split in ("train", "val", "test"):
        (folder / f"{split}.json").write_text(json.dumps(records))
    snakemake(folder, CONFIG, "manifests")
    return folder


def jobs(output):
    """The planned jobs of decode and extract, (rule, encoder or "", shard), and those of them that each waits for."""
    blocks = re.findall(r"^rule (decode|extract):\n +input: (.*)\n +output: (\S+)", output, re.MULTILINE)
    made = {path: _job(path) for _, _, path in blocks}
    return {made[path]: {made[p] for p in inputs.split(", ") if p in made} for _, inputs, path in blocks}


def _job(path):
    kind, shard = Path(path).parent.name.split("-")[0], int(Path(path).stem.split("-")[0])
    return ("extract", kind, shard) if kind in ENCODERS else ("decode", "", shard)


def most_segments(planned):
    """The most shards that are decoded and not yet read, where decoding comes first whenever it may."""
    done, most = set(), 0
    while len(done) < len(planned):
        ready = sorted(job for job, needs in planned.items() if job not in done and needs <= done)
        assert ready, "jobs wait for each other"
        done.add(ready[0])  # "decode" < "extract"
        waiting = {shard for rule, _, shard in planned.keys() - done if rule == "extract"}
        most = max(most, len({shard for rule, _, shard in done if rule == "decode"} & waiting))
    return most


@pytest.mark.parametrize(
    ("ahead", "there"),
    [
        (1, []),
        (3, []),
        (9, []),
        (2, [("vggish", n) for n in range(SHARDS)]),  # one of two encoders has read all
        (2, [(name, n) for name in ENCODERS for n in (0, 1, 3)]),  # some shards are finished
        (1, [("vggish", 0), ("resnet18", 1), ("vggish", 4), ("resnet18", 4)]),
    ],
)
def test_no_more_segments_than_ahead_allows(place, ahead, there):
    with contextlib.chdir(place):
        files = paths_of(check_configs(yaml.safe_load(yaml.safe_dump(CONFIG))))["tiny"]
        made = [place / files.features_files(name)[n] for name, n in there]
    for path in made:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        planned = jobs(snakemake(place, CONFIG | {"decode": {"ahead": ahead}}, "--dry-run", "features"))
    finally:
        for path in made:
            path.unlink()
    due = {(name, n) for name in ENCODERS for n in range(SHARDS)} - set(there)
    assert {job[1:] for job in planned if job[0] == "extract"} == due
    assert {shard for rule, _, shard in planned if rule == "decode"} == {shard for _, shard in due}
    assert most_segments(planned) == min(ahead, len({shard for _, shard in due}))


def test_segments_that_are_there_are_not_decoded_again_but_still_waited_for(place):
    """Of shards 3 and 5, which an interrupted run has decoded; no encoder has read any shard."""
    config = CONFIG | {"decode": {"ahead": 1}}
    output = snakemake(place, config, "--dry-run", "features")
    inputs = Path(re.search(r"output: (\S+/segments/[^/]+)/", output)[1])
    lists = [next((place / "results" / "clips" / "shards").glob(f"{n:05d}-*.tsv")) for n in (3, 5)]
    there = [place / inputs / f"{path.stem}.h5" for path in lists]
    for path in there:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    try:
        planned = jobs(snakemake(place, config, "--dry-run", "features"))
    finally:
        for path in there:
            path.unlink()
    assert {shard for rule, _, shard in planned if rule == "decode"} == {0, 1, 2, 4, 6}
    for shard, before in ((4, 3), (6, 5)):
        assert planned["decode", "", shard] == {("extract", name, before) for name in ENCODERS}


def test_a_data_set_that_is_made_alone_waits_for_its_own_encoders(place):
    """The collection's other data set has an encoder more."""
    alone = {"vggish": CONFIG["encoders"]["vggish"]}
    own = {"encoders": alone, "models": {"pooled": {"audio": "vggish/embedding", "visual": "vggish/embedding"}}}
    common = {name: value for name, value in CONFIG.items() if name not in ("dataset", "encoders", "models")}
    both = {"encoders": CONFIG["encoders"], "models": CONFIG["models"]}
    config = common | {"decode": {"ahead": 1}, "datasets": {"tiny": own, "other": both}}
    planned = jobs(snakemake(place, config, "--dry-run", "tiny"))
    assert {name for rule, name, _ in planned if rule == "extract"} == {"vggish"}
    assert most_segments(planned) == 1
