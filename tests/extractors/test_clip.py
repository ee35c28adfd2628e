"""CLIP against open_clip's own outputs."""

import numpy as np
import open_clip
import torch
from PIL import Image

from extractors import ENCODERS, load_encoder

TEXTS = ["Which clarinet makes the sound first?", "Is it loud?"]


def test_frames_give_what_encode_image_gives(clip, open_clips, frames):
    """Oracle: open_clip's own preprocessing and encode_image of the same model."""
    preprocess = open_clip.image_transform(224, is_train=False)
    batch = torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])
    with torch.inference_mode():
        expected = open_clips.encode_image(batch)
    torch.testing.assert_close(clip.encode(frames)["cls"], expected, rtol=1e-4, atol=1e-5)


def test_patch_rows_are_normalised_and_projected_like_cls(clip, open_clips, frames):
    """Oracle: the raw tokens of open_clip's transformer, then ln_post and the projection by hand."""
    raw, visual = {}, open_clips.visual
    hook = visual.transformer.register_forward_hook(lambda module, given, out: raw.update(out=out))
    preprocess = open_clip.image_transform(224, is_train=False)
    with torch.inference_mode():
        open_clips.encode_image(torch.stack([preprocess(Image.fromarray(frame)) for frame in frames]))
        unprojected = visual.ln_post(raw["out"])
        expected = unprojected @ visual.proj
    hook.remove()
    encoded = clip.encode(frames)
    torch.testing.assert_close(encoded["patch"], expected[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded["patch_unprojected"], unprojected[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded["cls"], expected[:, 0], rtol=1e-4, atol=1e-5)


def test_sentences_give_what_encode_text_gives(clip, open_clips):
    """Oracle: open_clip's own encode_text, and the output of its last norm."""
    encoded, found = clip.encode_text(TEXTS, "eot"), {}
    hook = open_clips.ln_final.register_forward_hook(lambda module, given, out: found.update(out=out))
    with torch.inference_mode():
        expected = open_clips.encode_text(open_clip.tokenize(TEXTS))
        words = found["out"] @ open_clips.text_projection
    hook.remove()
    torch.testing.assert_close(encoded["words_unprojected"], found["out"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded["words"], words, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoded["sentence"], expected, rtol=1e-4, atol=1e-5)
    for name, shape in clip.spec.text_outputs.items():
        assert encoded[name].shape == (2, *shape)
    assert encoded["length"].tolist() == [(row != 0).sum() for row in open_clip.tokenize(TEXTS)]
    first, mean = (clip.encode_text(TEXTS, kind)["sentence"] for kind in ("first", "mean"))
    torch.testing.assert_close(first, encoded["words"][:, 0])
    torch.testing.assert_close(mean[1], encoded["words"][1, : encoded["length"][1]].mean(0))


def test_bfloat16_stays_close_to_float32(clip, frames):
    half = load_encoder("clip_vit_b32", "random", seed=3, dtype="bfloat16").encode(frames)
    full = clip.encode(frames)
    for name in ("cls", "patch"):
        assert torch.nn.functional.cosine_similarity(half[name], full[name], dim=-1).min() > 0.999


def test_weights_under_openais_names(clip, open_clips, frames, tmp_path):
    """OpenAI's release has three entries more, which describe the model; QuickGELU is used whatever the source."""
    state = {name: tensor.clone() for name, tensor in open_clips.state_dict().items()}
    extra = {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77), "vocab_size": torch.tensor(1)}
    torch.save(state | extra, tmp_path / "openai.pt")
    loaded = load_encoder("clip_vit_b32", str(tmp_path / "openai.pt"), dtype="float32")
    torch.testing.assert_close(loaded.encode(frames)["cls"], clip.encode(frames)["cls"])
    torch.testing.assert_close(loaded.encode_text(TEXTS, "eot"), clip.encode_text(TEXTS, "eot"))
    assert all("quickgelu" in spec.model for name, spec in ENCODERS.items() if name.startswith("clip"))


def test_one_video_of_a_batch_does_not_change_another(clip, frames):
    alone = torch.cat([clip.encode(frames[n : n + 1])["cls"] for n in range(3)])
    torch.testing.assert_close(clip.encode(frames)["cls"], alone, rtol=1e-4, atol=1e-5)
    assert not np.allclose(alone[0], alone[1], rtol=1e-3)
