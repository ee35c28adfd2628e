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
        assert features["text/words"].shape == (1, 77, 768)
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
