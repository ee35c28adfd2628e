"""Frozen encoders against their libraries' own outputs, and where weights may come from."""

import hashlib

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvggish import vggish_input

from extractors import ENCODERS, EncoderError, load_encoder


@pytest.fixture(scope="module")
def clip():
    return load_encoder("clip_vit_b32", "random", seed=3, dtype="float32")


@pytest.fixture(scope="module")
def vggish():
    return load_encoder("vggish", "random", dtype="float32")


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype="uint8")


def test_frames_give_what_encode_image_gives(clip, frames):
    """Oracle: open_clip's own preprocessing and encode_image of the same model."""
    preprocess = open_clip.image_transform(224, is_train=False)
    batch = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
    clip.network.visual.output_tokens = False
    with torch.inference_mode():
        expected = clip.network.encode_image(batch)
    clip.network.visual.output_tokens = True
    encoded = clip.encode(frames)
    torch.testing.assert_close(encoded["cls"], expected, rtol=1e-4, atol=1e-5)
    assert encoded["patch"].shape == (3, 49, 512)


def test_patch_rows_are_normalised_and_projected_like_cls(clip, frames):
    """Oracle: the transformer's raw tokens, then ln_post and the projection by hand."""
    raw = {}
    hook = clip.network.visual.transformer.register_forward_hook(lambda module, given, out: raw.update(out=out))
    encoded = clip.encode(frames)
    hook.remove()
    visual = clip.network.visual
    with torch.inference_mode():
        expected = visual.ln_post(raw["out"]) @ visual.proj
    torch.testing.assert_close(encoded["patch"], expected[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded["cls"], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_sentences_give_what_encode_text_gives(clip):
    texts = ["Which clarinet makes the sound first?", "Is it loud?"]
    encoded = clip.encode_text(texts, "eot")
    with torch.inference_mode():
        expected = clip.network.encode_text(open_clip.tokenize(texts))
    torch.testing.assert_close(encoded["sentence"], expected, rtol=1e-4, atol=1e-5)
    assert encoded["words"].shape == (2, 77, 512)
    assert encoded["length"].tolist() == [(row != 0).sum() for row in open_clip.tokenize(texts)]
    first, mean = (clip.encode_text(texts, kind)["sentence"] for kind in ("first", "mean"))
    torch.testing.assert_close(first, encoded["words"][:, 0])
    torch.testing.assert_close(mean[1], encoded["words"][1, : encoded["length"][1]].mean(0))


def test_a_batch_changes_nothing(clip, vggish, frames):
    alone = torch.cat([clip.encode(frames[n : n + 1])["cls"] for n in range(3)])
    torch.testing.assert_close(clip.encode(frames)["cls"], alone, rtol=1e-4, atol=1e-5)
    sound = np.random.default_rng(0).standard_normal((3, 16000)).astype("float32") / 5
    alone = torch.cat([vggish.encode(sound[n : n + 1])["embedding"] for n in range(3)])
    torch.testing.assert_close(vggish.encode(sound)["embedding"], alone, rtol=1e-4, atol=1e-5)


def test_embeddings_are_torchvggishs_own(vggish):
    sound = (np.random.default_rng(1).standard_normal((2, 16000)) / 5).astype("float32")
    with torch.inference_mode():
        expected = torch.cat([vggish.network(vggish_input.waveform_to_examples(s, 16000)) for s in sound])
    torch.testing.assert_close(vggish.encode(sound)["embedding"], expected, rtol=1e-4, atol=1e-5)


def test_random_vggish_tells_sounds_apart(vggish):
    """Random weights are of use only if different sounds stay different on their way through nine layers."""
    time = np.arange(16000) / 16000
    sounds = np.stack([np.sin(2 * np.pi * f * time) / 2 for f in (220, 440, 1760)] + [np.zeros(16000)])
    embedding = torch.nn.functional.normalize(vggish.encode(sounds.astype("float32"))["embedding"], dim=-1)
    likeness = embedding @ embedding.T
    assert likeness.fill_diagonal_(0).max() < 0.99


def test_bfloat16_stays_close_to_float32(clip, frames):
    half = load_encoder("clip_vit_b32", "random", seed=3, dtype="bfloat16").encode(frames)
    full = clip.encode(frames)
    for name in ("cls", "patch"):
        assert torch.nn.functional.cosine_similarity(half[name], full[name], dim=-1).min() > 0.999


def test_random_weights_are_a_matter_of_their_seed(clip, frames):
    again = load_encoder("clip_vit_b32", "random", seed=3, dtype="float32")
    assert again.provenance == clip.provenance
    assert again.provenance["pretrained"] is False and "random" in again.provenance["weights"]
    torch.testing.assert_close(again.encode(frames)["cls"], clip.encode(frames)["cls"])


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file(vggish, tmp_path, suffix):
    state = {name: tensor.clone() for name, tensor in vggish.network.state_dict().items()}
    path = tmp_path / f"mine{suffix}"
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_encoder("vggish", str(path), sha256=digest, seed=99, dtype="float32")
    assert loaded.provenance == {"weights": path.name, "weights_sha256": digest, "pretrained": True}
    sound = np.random.default_rng(1).standard_normal((2, 16000)).astype("float32")
    torch.testing.assert_close(loaded.encode(sound), vggish.encode(sound))
    with pytest.raises(EncoderError, match="sha256 is"):
        load_encoder("vggish", str(path), sha256="0" * 64)


def test_clip_weights_in_openais_names(clip, frames, tmp_path):
    """OpenAI's release has three entries more, which describe the model; QuickGELU is used whatever the source."""
    state = {name: tensor.clone() for name, tensor in clip.network.state_dict().items()}
    extra = {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77), "vocab_size": torch.tensor(1)}
    torch.save(state | extra, tmp_path / "openai.pt")
    loaded = load_encoder("clip_vit_b32", str(tmp_path / "openai.pt"), dtype="float32")
    torch.testing.assert_close(loaded.encode(frames)["cls"], clip.encode(frames)["cls"])
    assert type(loaded.network.visual.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert all("quickgelu" in spec.model for spec in ENCODERS.values() if spec.model.startswith("ViT"))


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_weights_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Bomb()}, "bomb.pt")
    with pytest.raises(EncoderError, match=r"bomb\.pt"):
        load_encoder("vggish", str(tmp_path / "bomb.pt"))
    assert not (tmp_path / "exploded").exists()


def test_wrong_weights_are_refused_by_name(tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(EncoderError, match=r"other\.pt: not a state dict of vggish"):
        load_encoder("vggish", str(tmp_path / "other.pt"))
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(EncoderError, match=r"broken\.safetensors: cannot be read"):
        load_encoder("vggish", str(tmp_path / "broken.safetensors"))
    with pytest.raises(EncoderError, match=r"gone\.pt: no such file"):
        load_encoder("vggish", str(tmp_path / "gone.pt"))
    with pytest.raises(EncoderError, match="no such tag"):
        load_encoder("vggish", "laion2b")
    with pytest.raises(EncoderError, match="no such tag"):
        load_encoder("clip_vit_b32", "no_such_tag")
    with pytest.raises(EncoderError, match="clip_vit_l14"):
        load_encoder("resnet", "random")
