"""The workflow on real clips with the full-size ViT-L/14: the longest test, and the closest to real use."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import imageio_ffmpeg
import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image

from extractors import ENCODERS, AudioInput

ROOT = Path(__file__).resolve().parent.parent
CLIPS = {"walk": "v_GGSY1Qvo990.mp4", "cut": "vid2.mp4", "pancake": "flipping_a_pancake.mkv"}
SECONDS = 3
CONFIG = {
    "dataset": "real",
    "videos": {"collection": "clips", "folder": "videos"},
    "annotations": {"train": "train.json", "val": "train.json", "test": "train.json"},
    "decode": {"segments": SECONDS},
    "encoders": {"clip_vit_l14": {"weights": "random"}, "vggish": {"weights": "random"}},
    "text": {"encoder": "clip_vit_l14", "weights": "random"},
    "models": {
        "av_master": {
            "audio": "vggish/embedding",
            "visual": "clip_vit_l14/cls",
            "width": 32,
            "focus_width": 16,
            "heads": 4,
        }
    },
    "train": {"epochs": 1, "threads": 2},
}


def questions():
    for n, (video_id, answer) in enumerate({"walk": "yes", "cut": "no", "pancake": "yes"}.items()):
        yield {
            "video_id": video_id,
            "question_id": n,
            "type": '["Audio-Visual", "Existential"]',
            "question_content": "Is the <Object> in the video always playing?",
            "templ_values": '["pan"]',
            "anser": answer,
        }


@pytest.mark.slow
def test_real_clips_through_vit_l14(shared, tmp_path):
    (tmp_path / "videos").mkdir()
    for video_id, name in CLIPS.items():  # the container is recognised from the content, not from the name
        shutil.copy(shared / "videos" / name, tmp_path / "videos" / f"{video_id}.mp4")
    (tmp_path / "train.json").write_text(json.dumps(list(questions())))
    (tmp_path / "real.yaml").write_text(yaml.safe_dump(CONFIG))
    workflow = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(tmp_path / "real.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", *workflow, "--cores", "2", "--directory", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout
    results = tmp_path / "results" / "real"
    scores = json.loads((results / "models" / "av_master" / "seed-0" / "scores.json").read_text())
    assert scores["overall"]["count"] == 3 and not scores["encoders"]["clip_vit_l14"]["pretrained"]
    with h5py.File(results / "features.h5") as features:
        assert features["clip_vit_l14/patch"].shape == (3, SECONDS, 256, 768)
        assert features["vggish/embedding"].shape == (3, SECONDS, 128)
        assert features["text/words"].shape == (2, 77, 768)  # the question, and its statement for models with a prompt
        assert features["has_audio"][:].all() and (features["num_segments"][:] == SECONDS).all()
        pancake = list(features["video_id"].asstr()).index("pancake")
        cls = torch.from_numpy(features["clip_vit_l14/cls"][pancake]).float()

    # Oracle: the frame as the ffmpeg program outputs it, open_clip's own preparation and encode_image in float32.
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-L-14-quickgelu", load_weights=False).eval()
    prepare = open_clip.image_transform(224, is_train=False)
    frames = []
    for i in range(SECONDS):
        frame_file = tmp_path / f"{i}.png"
        # The frame that is presented at i + 0.5: the last one with a timestamp up to then.
        chosen = ["-vf", f"select=lte(t\\,{i + 0.5})", "-fps_mode", "passthrough", "-update", "1"]
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", str(shared / "videos" / CLIPS["pancake"])]
        subprocess.run([*command, *chosen, "-y", str(frame_file)], check=True)
        frames.append(prepare(Image.open(frame_file).convert("RGB")))
    with torch.inference_mode():
        expected = model.encode_image(torch.stack(frames))
    likeness = torch.nn.functional.cosine_similarity(cls, expected, dim=-1).numpy()
    others = torch.nn.functional.cosine_similarity(cls, expected.roll(1, 0), dim=-1).numpy()
    assert np.all(likeness > 0.999) and np.all(likeness > others), (likeness, others)


@pytest.mark.slow
def test_eight_encoders_from_one_decoding(shared, tmp_path):
    """All clips of the folder, images, video and audio of four sample rates and three frame sizes."""
    encoders = ["clip_vit_b32", "resnet18", "resnet18_music_avqa", "videomae_b16"]
    encoders += ["vggish", "vggish_hop096", "panns_cnn14", "clap_htsat"]
    (tmp_path / "videos").mkdir()
    clips = sorted(path for path in (shared / "videos").iterdir() if path.suffix in (".mp4", ".mkv", ".avi"))
    for path in clips:
        shutil.copy(path, tmp_path / "videos" / f"{path.stem}.mp4")
    asked = [dict(question, video_id=path.stem) for path, question in zip(clips, [*questions()] * 3, strict=False)]
    (tmp_path / "train.json").write_text(json.dumps(asked))
    config = CONFIG | {
        "decode": {"segments": 1},
        "encoders": {name: {"weights": "random"} for name in encoders},
        "text": {"encoder": "clip_vit_b32", "weights": "random"},
        "models": {"av_master": {"audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}},
    }
    (tmp_path / "eight.yaml").write_text(yaml.safe_dump(config))
    workflow = ["--snakefile", str(ROOT / "Snakefile"), "--configfile", str(tmp_path / "eight.yaml")]
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "features", *workflow, "--cores", "2", "--directory", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("\nrule decode:") + done.stdout.count("\nlocalrule decode:") == 1, done.stdout
    with h5py.File(tmp_path / "results/real/features.h5") as features:
        assert (features["status"][:] == 0).all() and len(features["video_id"]) == len(clips) >= 9
        for name in encoders:
            for output in ENCODERS[name].default_outputs:
                rows = features[f"{name}/{output}"][:].astype("float32")
                assert rows.shape == (len(clips), 1, *ENCODERS[name].outputs[output])
                assert np.isfinite(rows).all() and rows.std() > 0, name
                audible = features["has_audio"][:]
                if isinstance(ENCODERS[name].inputs[0], AudioInput):  # all silent tracks are alike, all others differ
                    rows = rows[:, 0].reshape(len(clips), -1)
                    assert len(np.unique(rows[~audible], axis=0)) == 1 < audible.sum()
                    assert len(np.unique(rows[audible], axis=0)) == audible.sum()
                else:
                    assert len(np.unique(rows.reshape(len(clips), -1), axis=0)) == len(clips)
