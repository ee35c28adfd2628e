"""Protocols of published models, against plain restatements of what the released scripts do with a video."""

import numpy as np
import pytest
import torch
import yaml
from media.oracle import clip
from PIL import Image
from torchvision import transforms

from extractors import ENCODERS
from extractors.base import normalize
from pipeline.config import check_config, read_protocols
from pipeline.errors import AVQAError
from pipeline.media.segments import read_segments
from pipeline.media.transform import resize_and_crop

BICUBIC = transforms.InterpolationMode.BICUBIC
OPENAI = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
SCRIPTS = {  # encoder: the release's transform, restated, and its normalisation
    # clip_net/clip.py of PSTP-Net and TSPM, _transform(n_px)
    "clip_vit_b32": ([transforms.Resize(224, BICUBIC), transforms.CenterCrop(224)], OPENAI),
    "clip_vit_l14_336": ([transforms.Resize(336, BICUBIC), transforms.CenterCrop(336)], OPENAI),
    # extract_tome14.py of TSPM, TransformImage with input_size 384
    "tome_vit_l16_384": (
        [transforms.Resize(int((256 / 224) * 384), BICUBIC), transforms.CenterCrop(384)],
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
    ),
    # extract_14x14_feat.py of MUSIC-AVQA
    "resnet18_music_avqa": (
        [transforms.Resize([224, 224])],
        ([0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989]),
    ),
}
READS = {  # what the released models take, encoder -> rows per second
    "music_avqa_2022": {"resnet18_music_avqa/map": (512, 14, 14), "vggish/embedding": (128,)},
    "pstp_net": {"clip_vit_b32/cls": (512,), "clip_vit_b32/patch": (49, 512), "vggish/embedding": (128,)},
    "tspm": {"clip_vit_l14_336/cls": (768,), "tome_vit_l16_384/tokens": (14, 1024), "vggish/embedding": (128,)},
    "qa_tiger": {"clip_vit_l14_336/cls": (768,), "tome_vit_l16_384/tokens": (14, 1024), "vggish/embedding": (128,)},
    "av_master": {"clip_vit_l14_336/cls": (768,), "vggish/embedding": (128,)},
}
TEXTS = {
    "pstp_net": {"words": (77, 512), "sentence": (512,)},
    "tspm": {"sentence": (768,)},
    "qa_tiger": {"words_unprojected": (77, 768), "sentence": (768,)},
    "av_master": {"words": (77, 768), "sentence": (768,)},
}


def configured(**settings):
    config = {
        "dataset": "d",
        "videos": {"collection": "c", "folder": "v"},
        "annotations": {"train": "t.json", "val": "t.json", "test": "t.json"},
        "models": {"av_master": {"audio": "vggish/embedding", "visual": "clip_vit_l14_336/cls"}},
    }
    return config | settings


@pytest.mark.parametrize("name", READS)
def test_a_protocol_is_what_the_released_model_reads(name):
    models = {"av_master": {"audio": "vggish/embedding", "visual": "vggish/embedding"}}
    config = check_config(configured(protocol=name, models=models))
    kept = {f"{e}/{o}": ENCODERS[e].outputs[o] for e, entry in config["encoders"].items() for o in entry["outputs"]}
    assert kept == READS[name]
    texts = ENCODERS[config["text"]["encoder"]].text_outputs
    assert TEXTS.get(name, {}).items() <= texts.items() and config["text"]["sentence"] == "eot"
    dropped = config["text"].get("drop_last_character", False)  # the question mark, in these two releases' scripts
    assert dropped is (name in ("pstp_net", "qa_tiger"))
    assert config["decode"]["segments"] == 60 and config["decode"]["pad"] == "repeat"
    assert "random" not in {entry["weights"] for entry in [config["text"], *config["encoders"].values()]}


def test_the_list_is_complete():
    assert set(read_protocols()) == set(READS)
    assert {e for p in read_protocols().values() for e in p["encoders"]} == SCRIPTS.keys() | {"vggish"}


def test_own_settings_come_first():
    encoders = {"clip_vit_l14_336": {"weights": "random"}, "resnet18": {"weights": "random"}}
    config = check_config(configured(protocol="av_master", encoders=encoders, decode={"frame_at": 0.25}))
    assert (
        config["encoders"]["clip_vit_l14_336"] | {"weights": "random", "outputs": ["cls"]}
        == (config["encoders"]["clip_vit_l14_336"])
    )
    assert set(config["encoders"]) == {"clip_vit_l14_336", "resnet18", "vggish"}
    assert config["decode"]["frame_at"] == 0.25 and config["decode"]["segments"] == 60
    again = check_config(yaml.safe_load(yaml.safe_dump(config)))
    assert again == config


def test_unknown_protocols_are_named():
    with pytest.raises(AVQAError, match=r"protocol: 'avst' is not one of \['music_avqa_2022'"):
        check_config(configured(protocol="avst"))
    with pytest.raises(AVQAError, match="protocol"):
        check_config(configured(protocol=3))
    with pytest.raises(AVQAError, match="'encoders' is a required property"):
        check_config(configured())


@pytest.mark.parametrize("encoder", SCRIPTS)
@pytest.mark.parametrize("shape", [(270, 480), (337, 201), (96, 96)])
def test_frames_are_prepared_as_in_the_release(encoder, shape):
    steps, (mean, std) = SCRIPTS[encoder]
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype="uint8")
    expected = transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])(
        Image.fromarray(image)
    )
    found = resize_and_crop(image, ENCODERS[encoder].inputs[0])
    torch.testing.assert_close(normalize(torch.from_numpy(found.copy())[None], mean, std)[0], expected)


@pytest.mark.parametrize("rate", [10, 25, 30])
@pytest.mark.parametrize("name", READS)
def test_frames_are_chosen_as_in_the_release(tmp_path, name, rate):
    """extract_frames_adaptive.py of MUSIC-AVQA, restated: frame round((i + 0.5) * rate), 60 of them; a short video
    repeats its last second. Here it is the frame presented at i + 0.5: that one, or the one before."""
    seconds = 5
    source = f"nullsrc=s=32x32:r={rate}:d={seconds},geq=lum='16+N':cb=128:cr=128"
    clip(tmp_path / "numbered.mkv", "-f", "lavfi", "-i", source, "-c:v", "ffv1")
    decode = read_protocols()[name]["decode"]
    (frames,) = ENCODERS["clip_vit_b32"].inputs
    made = read_segments(tmp_path / "numbered.mkv", inputs=[frames], **decode)
    rows = made.data[frames.key]
    luma = rows.astype(float).mean((1, 2, 3)) * 219 / 255 + 16
    numbers = np.rint(luma - 16).astype(int)
    assert len(rows) == 60 and made.num_segments == seconds
    chosen = [round((1 / 2 + i) * rate) for i in range(seconds)]
    assert all(n in (c, c - 1) for n, c in zip(numbers, chosen, strict=False)), (numbers[:seconds], chosen)
    assert (numbers[seconds:] == numbers[seconds - 1]).all()
