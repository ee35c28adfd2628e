"""All hub tags that all encoders take: frames are prepared as the library's own configuration of that tag says.

No weights are needed: a network of one number stands in for each."""

import json
import re

import numpy as np
import open_clip
import pytest
import timm
import torch
from torchvision.models import get_model_weights

from extractors import ENCODERS, EncoderError, FrameInput, encoder_class, fetch_weights, load_encoder


def tags(name):
    """The tags of an encoder, as the error for another one lists them."""
    with pytest.raises(EncoderError) as error:
        fetch_weights(name, "no_such_tag")
    listed = re.search(r"(?:choose one of|use) ([\w, ]+?), (?:a|or a) file", str(error.value))
    return listed[1].split(", ") if listed else []


ALL = [(name, tag) for name in ENCODERS for tag in tags(name)]
OF_IMAGES = [(name, tag) for name, tag in ALL if isinstance(ENCODERS[name].inputs[0], FrameInput)]
STATED = {  # of transformers, whose preprocessor_config.json is in the repositories
    ("videomae_b16", "kinetics400"): ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # MUSIC-AVQA's script has those of Kinetics in place of ImageNet's, as extractors/README.md says.
    ("resnet18_music_avqa", "torchvision"): ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
}


def published(name, tag):
    """Mean, deviation and the rest that the library says of a tag."""
    spec = ENCODERS[name]
    if (name, tag) in STATED:
        return *STATED[name, tag], {}
    if spec.loader.startswith("extractors.resnet"):
        preset = get_model_weights(spec.model)["IMAGENET1K_V1"].transforms()
        size = {"interpolation": preset.interpolation.value, "size": preset.crop_size[0]}
        return preset.mean, preset.std, size | {"short_side": preset.resize_size[0], "resize_mode": "shortest"}
    if spec.loader.startswith(("extractors.clip", "extractors.siglip")):
        entry = open_clip.pretrained.get_pretrained_cfg(spec.model, tag)
        return (
            entry["mean"],
            entry["std"],
            entry | {"size": open_clip.get_model_config(spec.model)["vision_cfg"]["image_size"]},
        )
    entry = timm.get_pretrained_cfg(f"{spec.model}.{tag}")
    size = {"interpolation": entry.interpolation, "size": entry.input_size[-1], "resize_mode": "shortest"}
    return entry.mean, entry.std, size | {"short_side": int(entry.input_size[-1] / entry.crop_pct)}


class Reached(Exception):
    """Carries the values that a network would have read."""


class Stub(torch.nn.Module):
    """Whatever part of it is called, it raises Reached."""

    def __init__(self, pretrained_cfg=None):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(1))
        self.pretrained_cfg = pretrained_cfg

    def __getattr__(self, name):
        return super().__getattr__(name) if name in (*vars(self), "number") else self

    def forward(self, values):
        raise Reached(values)


@pytest.fixture
def values_read(monkeypatch, tmp_path):
    """What the network of an encoder with a tag is given for frames."""

    def read(name, weights):
        kind = encoder_class(name)
        torch.save({"number": torch.zeros(1)}, tmp_path / "stub.pt")
        monkeypatch.setattr(timm, "create_model", lambda model, **_: Stub(timm.get_pretrained_cfg(model).to_dict()))
        if not name.startswith(("dino", "swin", "tome")):
            monkeypatch.setattr(kind, "build", lambda self: Stub())
        monkeypatch.setattr(kind, "fetch", lambda self, tag: tmp_path / "stub.pt")
        monkeypatch.setattr(kind, "adapt", lambda self, state: state)
        encoder = load_encoder(name, weights, dtype="float32")
        shape = encoder.spec.inputs[0].shape
        with pytest.raises(Reached) as reached:
            encoder.encode(np.full((1, *shape), 128, "uint8"))
        return reached.value.args[0]

    return read


def test_every_encoder_has_its_tags():
    assert {name for name, _ in ALL} == ENCODERS.keys() - {"panns_cnn14"}
    assert len(ALL) > len(ENCODERS) and ("dinov3_l16", "sat493m") in ALL


def test_a_model_whose_tags_differ_reads_its_tag_beside_a_local_file():
    kinds = {name: {str(published(name, tag)[:2]) for _, tag in OF_IMAGES if _ == name} for name, _ in OF_IMAGES}
    assert {name for name, kind in kinds.items() if len(kind) > 1} == {n for n in kinds if ENCODERS[n].beside}


@pytest.mark.parametrize(("name", "tag"), OF_IMAGES)
def test_frames_are_normalised_as_the_tag_says(values_read, name, tag):
    mean, std, _ = published(name, tag)
    found = values_read(name, tag).movedim(2 if ENCODERS[name].inputs[0].fps > 1 else 1, -1).reshape(-1, 3)
    expected = (128 / 255 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=1e-5, atol=1e-6)


OTHERWISE = {  # as extractors/README.md says
    "dinov2_l14": {"size"},  # 224 in place of 518
    "tome_vit_l16_384": {"short_side"},  # TSPM's script
}


@pytest.mark.parametrize(("name", "tag"), [pair for pair in OF_IMAGES if pair not in STATED])
def test_frames_are_resized_as_the_tag_says(name, tag):
    (frames,) = ENCODERS[name].inputs
    *_, entry = published(name, tag)
    made = {
        "interpolation": frames.transform.filter,
        "size": frames.size,
        "resize_mode": "squash" if frames.transform.squash else "shortest",
        "short_side": frames.transform.short_side or frames.size,
    }
    wanted = {key: value for key, value in entry.items() if key in made.keys() - OTHERWISE.get(name, set())}
    if name == "dinov2_l14":
        wanted["short_side"] = frames.size
    assert {"interpolation", "resize_mode"} < wanted.keys()
    assert wanted == {key: made[key] for key in wanted}


@pytest.mark.parametrize(("name", "tag"), [pair for pair in ALL if pair[0].startswith("clip")])
def test_clips_activation_and_length_of_texts_are_the_tags(name, tag):
    """A tag without QuickGELU would need another network: every one of these is listed with it."""
    entry = open_clip.pretrained.get_pretrained_cfg(ENCODERS[name].model, tag)
    assert entry["quick_gelu"] is True
    length = open_clip.get_model_config(ENCODERS[name].model)["text_cfg"]["context_length"]
    assert length == ENCODERS[name].text_outputs["words"][0]


def test_a_local_file_of_a_model_whose_tags_differ_says_which_it_is(values_read, tmp_path):
    torch.save({"number": torch.zeros(1)}, tmp_path / "model.pt")
    weights = str(tmp_path / "model.pt")
    for content in (None, "{", "[]", '{"pretrained_cfg": {"tag": ["sat493m"]}}', '{"pretrained_cfg": {"tag": "x"}}'):
        if content is not None:
            (tmp_path / "config.json").write_text(content)
        with pytest.raises(EncoderError, match=r"model\.pt: frames for lvd1689m and sat493m .*config\.json"):
            load_encoder("dinov3_l16", weights)
    for tag in ("sat493m", "lvd1689m"):
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit", "pretrained_cfg": {"tag": tag}}))
        assert torch.equal(values_read("dinov3_l16", weights), values_read("dinov3_l16", tag))
    (tmp_path / "config.json").unlink()
    values_read("dinov2_l14", weights)  # its tags do not differ


def test_changed_numbers_have_a_version():
    """The weights whose features this version makes otherwise; the others' features stay as they are."""
    made = {(name, tag) for name, tag in ALL if ENCODERS[name].version(tag) != 1}
    assert made == {("dinov3_l16", "sat493m"), ("vggish_hop096_pca", "torchvggish")}
    assert load_encoder("vggish_hop096_pca", "random").provenance["libraries"]["encoder"] == 2
    assert "encoder" not in load_encoder("vggish", "random").provenance["libraries"]
