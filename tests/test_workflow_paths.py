"""The real Snakefile with paths that a shell takes apart unless they are quoted, and with audio files."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
import yaml
from media.oracle import clip
from test_manifest import record
from test_workflow import CONFIG, ROOT

from extractors import ENCODERS, load_encoder
from pipeline.media.segments import read_segments

VGGISH = ENCODERS["vggish"]
IDS = ["a b", "it's; $(touch hacked) & `x`"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working directory with two clips, each with an audio file, and questions about them."""
    folder = tmp_path_factory.mktemp("with spaces") / "my $HOME 'project'"
    for n, video_id in enumerate(IDS):
        video = folder / "my data" / "the videos" / f"{video_id}.mp4"
        audio = folder / "my data" / "the audio" / f"{video_id}.wav"
        video.parent.mkdir(parents=True, exist_ok=True)
        audio.parent.mkdir(exist_ok=True)
        clip(video, "-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=2")
        clip(audio, "-f", "lavfi", "-i", f"sine={300 + 500 * n}:d=2:r=22050")
    questions = [record(video_id, answer) for video_id in IDS for answer in ("yes", "no")]
    for split in ("train", "val", "test"):
        (folder / "my data" / f"the {split}.json").write_text(json.dumps(questions))
    return folder


def run(place, config, *arguments, code=0):
    """Run the workflow in the folder `place` with a configuration whose own name has spaces; what it prints."""
    path = place / "my configuration & more.yaml"
    path.write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "2", *arguments]
    done = subprocess.run(
        [*command, "--configfile", path.name], cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == code, done.stdout
    return done.stdout


def configuration(**videos):
    shared = {name: value for name, value in CONFIG.items() if name != "synthesize"}
    return shared | {
        "results": "my results",
        "videos": {"collection": "clips", "folder": "my data"} | videos,
        "annotations": {split: f"my data/the {split}.json" for split in ("train", "val", "test")},
        "decode": {"segments": 2},
        "train": {"epochs": 1, "threads": 1},
    }


@pytest.mark.slow
def test_spaces_and_quotes_in_every_path(place):
    pattern, audio_pattern = "the videos/{video_id}.mp4", "the audio/{video_id}.wav"
    run(place, configuration(pattern=pattern, audio_pattern=audio_pattern))
    assert (place / "my results" / "tiny" / "report.html").exists()
    with h5py.File(place / "my results" / "tiny" / "features.h5") as features:
        assert sorted(features["video_id"].asstr()) == sorted(IDS)
        assert not features["status"][:].any() and features["has_audio"][:].all()
    assert not [path for path in place.rglob("*") if "hacked" in path.name and path.suffix not in (".mp4", ".wav")]


@pytest.mark.slow
def test_a_data_set_of_audio_alone(place):
    """As config/README.md describes it; no video file is read."""
    shutil.move(place / "my data" / "the videos", place / "elsewhere")
    config = configuration(collection="recordings", pattern=None, audio_pattern="the audio/{video_id}.wav")
    weights = place / "my weights" / "vgg ish.pt"
    weights.parent.mkdir()
    torch.save(load_encoder("vggish", "random", seed=7).network.float().state_dict(), weights)
    encoders = {"vggish": {"weights": "my weights/vgg ish.pt"}}
    config |= {"dataset": "recorded", "encoders": encoders}
    example = yaml.safe_load((ROOT / "config" / "README.md").read_text().split("```yaml\n")[-1].split("```")[0])
    assert example["videos"]["pattern"] is None
    config["models"] = {"av_master": CONFIG["models"]["av_master"] | example["models"]["av_master"]}
    run(place, config, "--notemp")
    assert json.loads((place / "my results/recorded/models/av_master/seed-0/scores.json").read_text())["overall"]
    with h5py.File(place / "my results" / "recordings" / "features" / "vggish" / "00000.h5") as features:
        assert features.attrs["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert "Nothing to be done" in run(place, config, "--dry-run")
    info = weights.stat()
    os.utime(weights, ns=(info.st_atime_ns, info.st_mtime_ns - 10**9))  # another file of the same size, and older
    planned = run(place, config, "--dry-run")
    assert re.search(r"^extract +1$", planned, re.MULTILINE) and not re.search("^text ", planned, re.MULTILINE), planned
    wrong = run(place, config | {"trian": {}}, "--dry-run", code=1)
    assert "'trian' was unexpected" in wrong and ".smk" not in wrong and "Traceback" not in wrong
    weights.unlink()
    refused = run(place, config, "--dry-run", code=1)
    assert "encoders.vggish.weights: my weights/vgg ish.pt: No such file" in refused and ".smk" not in refused
    with h5py.File(place / "my results" / "recordings" / "segments" / "audio-16000" / "00000.h5") as segments:
        assert "frames" not in segments
        for n, video_id in enumerate(segments["video_id"].asstr()):
            audio = place / "my data" / "the audio" / f"{video_id}.wav"
            want = read_segments(None, audio_path=audio, segments=2, inputs=VGGISH.inputs)
            np.testing.assert_array_equal(segments["audio/16000"][n], want.data["audio/16000"])
