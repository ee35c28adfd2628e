"""What `avqa plan` and `avqa doctor` say."""

import copy
import hashlib
import json
import math
import re
from pathlib import Path

import pytest
import yaml
from media.oracle import clip
from test_manifest import record

from extractors import ENCODERS
from pipeline.cli import main
from pipeline.config import check_config
from pipeline.manifest import build_manifest
from pipeline.plan import count_videos, plan

CONFIG = {
    "dataset": "mine",
    "videos": {"collection": "c", "folder": "v"},
    "annotations": {split: f"{split}.json" for split in ("train", "val", "test")},
    "encoders": {"clip_vit_l14": {"weights": "random"}, "vggish": {"weights": "random"}},
    "text": {"encoder": "clip_vit_l14", "weights": "random"},
    "models": {"pooled": {"audio": "vggish/embedding", "visual": "clip_vit_l14/cls"}},
    "shard_size": 100,
    "train": {"seeds": [0, 1]},
}


SCORED = CONFIG | {"card": "music_avqa_r", "trained_on": ["music_avqa"]}


def test_the_plan_of_music_avqa_from_its_card(tmp_path, monkeypatch):
    """9,288 videos of 60 s; sizes as README.md computes them."""
    monkeypatch.chdir(tmp_path)
    text = plan(check_config(CONFIG | {"card": "music_avqa", "decode": {"ahead": 4}}), calibrate=False)
    assert "9288 videos (card) of 60 s, 155 hours" in text and "93 decode and 186 extract, 2 models to train" in text
    small = plan(check_config(CONFIG | {"card": "music_avqa", "shard_size": 9288 * 2}), calibrate=False)
    whole = 2 * 9288 * 60 * (224 * 224 * 3 + 16000 * 4) / 1e9
    assert float(re.search(r"temporary disk: ([\d.]+) GB", small)[1]) == pytest.approx(whole, abs=0.1), "not two shards"
    assert "0 models to train" in plan(check_config(copy.deepcopy(SCORED)), calibrate=False)
    sizes = {name: float(size) for name, size in re.findall(r"^(\S+/\w+): ([\d.]+) GB", text, re.MULTILINE)}
    seconds = 9288 * 60
    assert sizes["clip_vit_l14/cls"] == pytest.approx(seconds * 768 * 2 / 1e9, abs=0.01)
    assert sizes["clip_vit_l14/patch"] == pytest.approx(seconds * 256 * 768 * 2 / 1e9, abs=0.01)
    temporary = float(re.search(r"temporary disk: ([\d.]+) GB", text)[1])
    assert temporary == pytest.approx(2 * 4 * 100 * 60 * (224 * 224 * 3 + 16000 * 4) / 1e9, abs=0.1)


@pytest.mark.parametrize("name", ENCODERS)
def test_outputs_that_are_made_on_request_count_where_they_are_requested(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)

    def sizes(**entry):
        config = CONFIG | {
            "encoders": CONFIG["encoders"] | {name: {"weights": "random", **entry}},
            "card": "music_avqa",
        }
        text = plan(check_config(copy.deepcopy(config)), calibrate=False)
        return {key: float(size) for key, size in re.findall(rf"^({name}/\w+): ([\d.]+) GB", text, re.MULTILINE)}

    spec = ENCODERS[name]
    whole = {f"{name}/{o}": 9288 * 60 * 2 * math.prod(shape) / 1e9 for o, shape in spec.outputs.items()}
    made = {key: size for key, size in whole.items() if key.split("/")[1] not in spec.on_request}
    assert sizes() == pytest.approx(made, abs=0.01) and made
    assert sizes(outputs=list(spec.outputs)) == pytest.approx(whole, abs=0.01)


def test_annotations_count_videos_before_there_is_a_manifest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "val", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps([record("a"), record(f"only {split}")]))
    assert count_videos(check_config(copy.deepcopy(CONFIG))) == (4, "annotations")


def test_the_shards_of_several_data_sets_are_counted_whole(tmp_path, monkeypatch):
    """Extraction writes a row for each video of a shard, also for those of another data set and those that are gone."""
    monkeypatch.chdir(tmp_path)
    Path("v").mkdir()
    for n in range(7):
        Path(f"v/{n}.mp4").write_bytes(b"x")

    def made(name, ids):
        for split in ("train", "val", "test"):
            Path(f"{name}-{split}.json").write_text(json.dumps([record(str(n)) for n in ids]))
        files = {split: f"{name}-{split}.json" for split in ("train", "val", "test")}
        config = check_config(copy.deepcopy(CONFIG) | {"dataset": name, "annotations": files, "shard_size": 3})
        build_manifest(config)
        return config

    made("first", range(5))  # 0 1 2, 3 4
    second = made("second", (4, 5, 6))  # and 5 6: two of the three shards
    Path("v/3.mp4").unlink()
    text = plan(check_config(copy.deepcopy(second)), calibrate=False)
    assert "second: 3 videos (manifest) of 60 s" in text and "; their shards have 4, and" in text
    assert "jobs: 2 shards, 2 decode and 4 extract" in text
    size = float(re.search(r"clip_vit_l14/patch: ([\d.]+) GB", text)[1])
    assert size == pytest.approx(4 * 60 * 256 * 768 * 2 / 1e9, abs=0.005)


def test_hours_are_measured_on_the_videos_that_are_there(tmp_path, monkeypatch):
    """Three clips of four seconds, so large that decoding them takes more than starting."""
    monkeypatch.chdir(tmp_path)
    Path("v").mkdir()
    for n in range(3):
        clip(tmp_path / "v" / f"{n}.mp4", "-f", "lavfi", "-i", "testsrc2=s=1280x720:r=25:d=4", "-pix_fmt", "yuv420p")
    records = [record(str(n)) for n in range(3)]
    for split in ("train", "val", "test"):
        Path(f"{split}.json").write_text(json.dumps(records))
    encoders = {"resnet18": {"weights": "random", "outputs": ["pooled"]}, "vggish": {"weights": "random"}}
    models = {"pooled": {"audio": "vggish/embedding", "visual": "resnet18/pooled"}}
    config = check_config(CONFIG | {"encoders": encoders, "models": models, "decode": {"segments": 4}})
    build_manifest(config)
    text = plan(config)
    for name in ("decode", "resnet18", "vggish"):
        assert float(re.search(rf"^{name}: ([\d.]+) ms of CPU per second of video here", text, re.MULTILINE)[1]) > 0


def test_the_doctor_names_what_is_missing_and_what_mends_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lost = CONFIG | {"encoders": CONFIG["encoders"] | {"vggish": {"weights": "lost/vggish.pt"}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(lost))
    assert main(["doctor", "--config", "c.yaml"]) == 1
    said = capsys.readouterr()
    assert re.search(r"MISSING weights of vggish: lost/vggish.pt: No such file.*\n +give a path that exists", said.out)
    assert "ok      Python: 3." in said.out and "weights of vggish" in said.err
    assert not list(tmp_path.glob(".avqa-doctor*")), "nothing is left behind"


def test_the_doctor_examines_a_machine_without_ffmpeg(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "none"))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(CONFIG))
    assert main(["doctor", "--config", "c.yaml"]) == 1
    said = capsys.readouterr().out
    assert (
        re.search(r"MISSING ffmpeg: cannot be run .*none.*\n +pip install", said)
        and "ok      weights of vggish" in said
    )


def test_the_doctor_looks_at_the_weights_of_all_data_sets(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = {name: value for name, value in CONFIG.items() if name != "dataset"}
    own = {"videos": {"collection": "other"}, "encoders": {"vggish": {"weights": "lost/vggish.pt"}}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(common | {"datasets": {"first": {}, "second": own}}))
    assert main(["doctor", "--config", "c.yaml"]) == 1
    said = capsys.readouterr().out
    assert "MISSING weights of vggish: lost/vggish.pt" in said and said.count("weights of clip_vit_l14") == 1


def test_the_doctor_compares_checksums_and_knows_what_is_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("vggish.pt").write_bytes(b"numbers")
    digest = hashlib.sha256(b"numbers").hexdigest()
    Path("results/weights/clip_vit_l14").mkdir(parents=True)
    listed = {"path": f"{tmp_path}/vggish.pt", "bytes": 7, "sha256": digest}
    Path("results/weights/clip_vit_l14/openai.json").write_text(json.dumps({"files": [listed]}))
    for sha256, line in ((digest, f"ok      weights of vggish: vggish.pt, sha256 {digest}\n"), ("0" * 64, "MISSING")):
        encoders = {"clip_vit_l14": {"weights": "openai"}, "vggish": {"weights": "vggish.pt", "sha256": sha256}}
        text = {"encoder": "clip_vit_b32", "weights": "openai"}
        Path("c.yaml").write_text(yaml.safe_dump(CONFIG | {"encoders": encoders, "text": text}))
        main(["doctor", "--config", "c.yaml"])
        said = capsys.readouterr().out
        assert line in said and ("fetch the file again" in said) == (sha256 != digest)
        assert f"ok      weights of clip_vit_l14: hub tag openai, in {tmp_path}/vggish.pt\n" in said
        assert "weights of clip_vit_b32: hub tag openai; the workflow downloads them" in said


RECORDS = {  # what is wrong with a record of a download, or with a file that it lists
    "lists no files": "",
    "openai.json lists no files": json.dumps({"files": []}),
    "json lists no files": "/home/someone/.cache/file\n",
    "No such file": json.dumps({"files": [{"path": "gone.safetensors", "sha256": "0" * 64}]}),
    "is not the file that was downloaded": json.dumps({"files": [{"path": "cut.safetensors", "sha256": "0" * 64}]}),
}


@pytest.mark.parametrize("wrong", RECORDS)
def test_the_doctor_looks_at_downloaded_weights_and_not_at_their_record_alone(tmp_path, monkeypatch, capsys, wrong):
    monkeypatch.chdir(tmp_path)
    Path("cut.safetensors").write_bytes(b"numb")
    Path("results/weights/clip_vit_b32").mkdir(parents=True)
    record = Path("results/weights/clip_vit_b32/openai.json")
    record.write_text(RECORDS[wrong])
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump(CONFIG | {"text": {"encoder": "clip_vit_b32", "weights": "openai"}})
    )
    assert main(["doctor", "--config", "c.yaml"]) == 1
    said = capsys.readouterr().out
    assert re.search(rf"MISSING weights of clip_vit_b32: hub tag openai: .*{wrong}", said)
    assert f"avqa weights --encoder clip_vit_b32 --weights openai --out {record}" in said


def test_the_hours_are_those_of_an_earlier_run(tmp_path, monkeypatch):
    """Jobs of 10 s, 4 s of them start, for 600 s of video; nothing is measured again, so neither encoder is loaded."""
    monkeypatch.chdir(tmp_path)
    parts = {"start": 4.0, "encoder": 5.5, "writing": 1.0}
    for folder in ("decode/frames", "clip_vit_l14", "vggish"):
        (tmp_path / "results/c/benchmarks" / folder).mkdir(parents=True)
        for shard in ("00000", "00001"):
            timing = {"items": 600, "wall": 10.0, "jobs": 1, "parts": parts}
            (tmp_path / "results/c/benchmarks" / folder / f"{shard}.json").write_text(json.dumps(timing))
    monkeypatch.setattr("pipeline.plan.load_encoder", None)
    lines = plan(check_config(CONFIG | {"card": "music_avqa", "shard_size": 10})).splitlines()
    (vggish,) = [line for line in lines if line.startswith("vggish: ")]
    # 929 jobs of 4 s and 557,280 seconds of video at 10 ms each; 6 s of work are 85 % at a start of 1.06 s
    assert "10.0 ms per second of video in 2 jobs of an earlier run, limited by encoder" in vggish
    assert "start of a job 4.0 s, 40.0% of a full shard's job; 2.6 hours" in vggish
    size = int(re.search(r"shard_size: (\d+) would make the start 15%", vggish)[1])
    assert 4 / (4 + (size - 1) * 60 * 0.01) > 0.15 >= 4 / (4 + size * 60 * 0.01)
    assert sum("in 2 jobs of an earlier run" in line for line in lines) == 3
    assert "shard_size" not in "".join(plan(check_config(CONFIG | {"card": "music_avqa", "shard_size": 100})))
