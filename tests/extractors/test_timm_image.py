"""Encoders through timm against timm's own preprocessing, loading and outputs, on the families' smaller members."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from extractors import ENCODERS, FrameInput
from extractors.timm_image import DINO, Swin
from pipeline.media.transform import resize_and_crop

CASES = {  # name: class, small model, size of the published weights, size here
    "swinv2": (Swin, "swinv2_tiny_window8_256", 256, 256),
    "dinov2": (DINO, "vit_small_patch14_dinov2", 518, 224),
    "dinov2_registers": (DINO, "vit_small_patch14_reg4_dinov2", 518, 224),
    "dinov3": (DINO, "vit_small_patch16_dinov3", 256, 256),
}


def fill(network, seed=0):
    """Random numbers for all tensors, so that no output hangs on layers that begin as nearly nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            fan = tensor[0].numel() if tensor.ndim > 1 else 100
            tensor.copy_(noise / fan**0.5 + (1 if "norm" in name and name.endswith("weight") else 0))
    return network.eval()


def images(count=2):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (count, 9, 13, 3), dtype="uint8")
    return [np.asarray(Image.fromarray(block).resize((391, 270), Image.Resampling.BICUBIC)) for block in blocks]


@pytest.mark.parametrize("case", CASES)
def test_outputs_are_timms(case, tmp_path):
    """Oracle: timm's transform, its loader of published weights (which interpolates positions), its forward pass."""
    kind, model, trained, size = CASES[case]
    published = fill(timm.create_model(model, num_classes=5, img_size=trained))
    torch.save(published.state_dict(), tmp_path / "published.pt")
    file = {"file": str(tmp_path / "published.pt"), "num_classes": 5}
    reference = timm.create_model(model, True, pretrained_cfg_overlay=file, num_classes=5, img_size=size).eval()
    settings = timm.data.resolve_data_config({"input_size": (3, size, size)}, model=reference)
    prepare = timm.data.create_transform(**settings)
    pictures = images()
    with torch.inference_mode():
        rows = reference.forward_features(torch.stack([prepare(Image.fromarray(image)) for image in pictures]))
        pooled = reference.forward_head(rows, pre_logits=True)

    frames = FrameInput(size, transform=replace(ENCODERS["swinv2_l_192"].inputs[0].transform, short_side=None))
    assert settings["crop_pct"] in (1.0, 0.9)
    if settings["crop_pct"] == 0.9:
        frames = FrameInput(size, transform=replace(frames.transform, short_side=int(size / 0.9)))
    names = {"pooled": (), "map": ()} if kind is Swin else {"cls": (), "patch": ()}
    spec = replace(ENCODERS["swinv2_l_192"], model=model, inputs=(frames,), outputs=names)
    encoder = kind(spec, str(tmp_path / "published.pt"), None, 0, "float32")
    encoded = encoder.encode(np.stack([resize_and_crop(image, frames) for image in pictures]))
    if kind is Swin:
        expected = {"pooled": pooled, "map": rows.permute(0, 3, 1, 2)}
    else:
        expected = {"cls": rows[:, 0], "patch": rows[:, -((size // reference.patch_embed.patch_size[0]) ** 2) :]}
    for name, values in expected.items():
        torch.testing.assert_close(encoded[name], values, rtol=1e-3, atol=1e-3)
    assert (encoded["map" if kind is Swin else "patch"][0] - encoded["map" if kind is Swin else "patch"][1]).std() > 0.1


@pytest.mark.parametrize("name", ["swinv2_l_192", "swinv2_l_384", "dinov2_l14", "dinov3_l16", "tome_vit_l16_384"])
def test_frames_are_prepared_as_timm_configures(name):
    """The size of DINOv2 and the resize of the merged tokens are chosen otherwise, as their pages say."""
    spec = ENCODERS[name]
    (frames,) = spec.inputs
    config = timm.get_pretrained_cfg(spec.model)
    assert frames.transform.filter == config.interpolation and not frames.transform.squash
    if name != "dinov2_l14":
        assert config.input_size == (3, frames.size, frames.size)
    if name == "tome_vit_l16_384":
        assert frames.transform.short_side == int(256 / 224 * 384)  # TSPM's extract_tome14.py
    elif config.crop_pct != 1:
        assert frames.transform.short_side == int(frames.size / config.crop_pct)
    else:
        assert frames.transform.short_side is None
