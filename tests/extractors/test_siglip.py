"""SigLIP against open_clip's own outputs, with a small text tower and a small tokenizer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from extractors import ENCODERS, EncoderError, fetch_weights
from extractors.siglip import SigLIP
from pipeline.media.transform import resize_and_crop

NAME = "small-SigLIP2"
TEXTS = ["Is it loud?", "Which clarinet makes the sound first?", "Is it loud? " * 40]
SPEC = replace(ENCODERS["siglip2_b16_256"], model=NAME)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published folder: weights, tokenizer.json and tokenizer_config.json. Its model is registered with open_clip."""
    folder = tmp_path_factory.mktemp("siglip")
    config = json.loads(Path(open_clip.__path__[0], "model_configs/ViT-B-16-SigLIP2-256.json").read_text())
    config["text_cfg"] |= {"vocab_size": 300, "width": 64, "heads": 4, "layers": 2}
    (folder / f"{NAME}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / f"{NAME}.json")
    words = sorted({word for text in TEXTS for word in text.lower().replace("?", "").split()})
    vocabulary = {"<pad>": 0, "<eos>": 1, "<unk>": 2} | {word: n + 3 for n, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    torch.manual_seed(0)
    model = open_clip.create_model(NAME, load_weights=False)
    torch.nn.init.normal_(model.visual.trunk.attn_pool.latent)
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder


@pytest.fixture(scope="module")
def reference(folder):
    model = open_clip.create_model(NAME, load_weights=False).eval()
    model.load_state_dict(torch.load(folder / "weights.pt"))
    return model


@pytest.fixture(scope="module")
def siglip(folder, reference):
    return SigLIP(SPEC, str(folder / "weights.pt"), None, 0, "float32")


def test_frames_give_what_encode_image_gives(siglip, reference):
    """Oracle: open_clip's transform with the published settings (resize_mode squash), and its encode_image."""
    settings = open_clip.pretrained.get_pretrained_cfg("ViT-B-16-SigLIP2-256", "webli")
    prepare = open_clip.image_transform(
        256, is_train=False, **{name: settings[name] for name in ("mean", "std", "interpolation", "resize_mode")}
    )
    images = np.random.default_rng(0).integers(0, 256, (2, 150, 333, 3), dtype="uint8")
    found = {}
    reference.visual.trunk.norm.register_forward_hook(lambda module, given, out: found.update(out=out))
    with torch.inference_mode():
        expected = reference.encode_image(torch.stack([prepare(Image.fromarray(image)) for image in images]))
    encoded = siglip.encode(np.stack([resize_and_crop(image, SPEC.inputs[0]) for image in images]))
    torch.testing.assert_close(encoded["pooled"], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(encoded["patch"], found["out"], rtol=1e-3, atol=1e-4)
    assert (encoded["pooled"][0] - encoded["pooled"][1]).abs().mean() > 1e-3


def test_texts_give_what_encode_text_gives(siglip, reference, folder):
    """Oracle: open_clip's tokenizer with the model's own settings, and its encode_text."""
    tokenizer = open_clip.tokenizer.HFTokenizer(str(folder), context_length=64, clean="canonicalize")
    tokens = tokenizer(TEXTS)
    with torch.inference_mode():
        expected = reference.encode_text(tokens)
    encoded = siglip.encode_text(TEXTS, "eot")
    torch.testing.assert_close(encoded["sentence"], expected, rtol=1e-4, atol=1e-5)
    assert encoded["length"].tolist() == (tokens != 0).sum(1).tolist() == [4, 7, 64]
    assert encoded["words"].shape == (3, 64, 768)
    torch.testing.assert_close(encoded["words"][:, -1], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(siglip.encode_text(TEXTS, "mean")["sentence"][0], encoded["words"][0, :4].mean(0))


def test_random_weights_read_bytes(siglip):
    """The tokenizer is part of the download: without it, different texts still differ."""
    encoder = SigLIP(SPEC, "random", None, 0, "float32")
    encoded = encoder.encode_text([*TEXTS, "Is it quiet?", ""], "eot")
    assert encoded["length"].tolist() == [12, 38, 64, 13, 1]
    assert torch.pdist(encoded["sentence"]).min() > 1e-3


def test_a_missing_tokenizer_is_named(folder, tmp_path):
    (tmp_path / "weights.pt").write_bytes((folder / "weights.pt").read_bytes())
    encoder = SigLIP(SPEC, str(tmp_path / "weights.pt"), None, 0, "float32")
    with pytest.raises(EncoderError, match=rf"{tmp_path}: has no tokenizer\.json and no .*; put tokenizer\.json"):
        encoder.encode_text(TEXTS, "eot")


@pytest.fixture
def cached(offline, folder, tmp_path, monkeypatch):
    """The repository of a hub tag in the cache, as a download leaves it; there is no network."""
    monkeypatch.setattr("extractors.siglip.hub_repository", lambda model, tag: "timm/small")
    repository = tmp_path / "hub/models--timm--small"
    snapshot = repository / "snapshots/123"
    for name in ("refs", "blobs", "snapshots/123"):
        (repository / name).mkdir(parents=True)
    (repository / "refs/main").write_text("123")
    safetensors.torch.save_file(torch.load(folder / "weights.pt"), repository / "blobs/0")
    (snapshot / "open_clip_model.safetensors").symlink_to("../../blobs/0")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (repository / "blobs" / name).write_bytes((folder / name).read_bytes())
        (snapshot / name).symlink_to(f"../../blobs/{name}")
    return snapshot


def test_a_download_has_the_tokenizer_and_then_nothing_needs_a_network(cached, offline, siglip, monkeypatch):
    monkeypatch.setitem(ENCODERS, "siglip2_b16_256", SPEC)
    files = fetch_weights("siglip2_b16_256", "webli")
    assert [file.name for file in files[1:]] == ["tokenizer.json", "tokenizer_config.json"]
    assert files[0].read_bytes() == (cached / "open_clip_model.safetensors").read_bytes()
    encoder = SigLIP(SPEC, "webli", None, 0, "float32")
    found, expected = (each.encode_text(TEXTS, "eot") for each in (encoder, siglip))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert offline == []


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_part_of_a_download_that_is_missing_is_named(cached, name, monkeypatch):
    monkeypatch.setitem(ENCODERS, "siglip2_b16_256", SPEC)
    (cached / name).unlink()
    with pytest.raises(EncoderError, match=rf"{name} of timm/small cannot be downloaded"):
        fetch_weights("siglip2_b16_256", "webli")


def test_a_tokenizer_that_cannot_be_read_is_named(folder, tmp_path):
    for name in ("weights.pt", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(EncoderError, match=rf"{tmp_path}: the tokenizer cannot be read"):
        SigLIP(SPEC, str(tmp_path / "weights.pt"), None, 0, "float32").encode_text(TEXTS, "eot")
