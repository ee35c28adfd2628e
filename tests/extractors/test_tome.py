"""Merged tokens against a plain restatement of the paper, one token at a time."""

import math
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from extractors import ENCODERS, load_encoder
from extractors.tome import LAYERS, MERGED, ToMe, merge


def plain_merge(tokens, sizes, keys, count):
    """Section 3 of the paper, step by step: lists of vectors of one image; token 0 is the class token."""
    a, b = list(range(0, len(tokens), 2)), list(range(1, len(tokens), 2))
    edges = []
    for i in a[1:]:
        likeness = [float(keys[i] @ keys[j] / keys[i].norm() / keys[j].norm()) for j in b]
        best = int(np.argmax(likeness))
        edges.append((likeness[best], i, b[best]))
    edges.sort(reverse=True)
    merged = {i: j for _, i, j in edges[: min(count, (len(tokens) - 1) // 2)]}
    members = {j: [j] for j in b}
    for i, j in merged.items():
        members[j].append(i)
    kept = [(tokens[i], sizes[i]) for i in a if i not in merged]
    means = [
        (sum(tokens[i] * sizes[i] for i in group) / sum(sizes[i] for i in group), sum(sizes[i] for i in group))
        for group in members.values()
    ]
    tokens, sizes = zip(*(kept + means), strict=True)
    return list(tokens), list(sizes)


def plain_forward(model, image, layers, count):
    """A ViT of timm on one image 3, S, S, with a softmax over heads written out."""
    x = model.patch_embed(image[None])[0]
    tokens = [*(torch.cat([model.cls_token[0], x]) + model.pos_embed[0])]
    sizes = [1.0] * len(tokens)
    for number, block in enumerate(model.blocks):
        rows = torch.stack(tokens)
        qkv = block.attn.qkv(block.norm1(rows)).view(len(tokens), 3, block.attn.num_heads, -1)
        weights = torch.tensor(sizes).log()
        heads = []
        for head in range(block.attn.num_heads):
            q, k, v = qkv[:, 0, head], qkv[:, 1, head], qkv[:, 2, head]
            heads.append(torch.softmax(q @ k.T / math.sqrt(q.shape[-1]) + weights, dim=-1) @ v)
        rows = rows + block.attn.proj(torch.cat(heads, dim=-1))
        if number < layers:
            tokens, sizes = plain_merge([*rows], sizes, [*qkv[:, 1].mean(1)], count)
            rows = torch.stack(tokens)
        tokens = [*(rows + block.mlp(block.norm2(rows)))]
    return model.norm(torch.stack(tokens))


def test_tokens_are_the_papers(tmp_path):
    """ViT-Ti/16 at 96 pixels, 37 tokens, whose layers merge until two are left; in the type in which the encoder
    computes unless told otherwise: in bfloat16, rounding decides which tokens merge."""
    model, size = "vit_tiny_patch16_384", 96
    torch.manual_seed(0)
    reference = timm.create_model(model, num_classes=3, img_size=size).eval()
    for name, tensor in reference.state_dict().items():
        if "norm" not in name:
            torch.nn.init.normal_(tensor, std=0.15)
    torch.save(reference.state_dict(), tmp_path / "vit.pt")
    frames = replace(ENCODERS["tome_vit_l16_384"].inputs[0], size=size)
    spec = replace(ENCODERS["tome_vit_l16_384"], model=model, inputs=(frames,), outputs={"tokens": ()})
    encoder = ToMe(spec, str(tmp_path / "vit.pt"), None, 0, spec.dtype)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype="uint8")
    found = encoder.encode(images)["tokens"]
    assert found.shape == (2, 2, 192)
    with torch.inference_mode():
        for row, image in zip(found, images, strict=True):
            values = (torch.from_numpy(image).permute(2, 0, 1) / 255 - 0.5) / 0.5
            torch.testing.assert_close(row, plain_forward(reference, values, LAYERS, MERGED), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("tokens", "count"), [(17, 3), (17, 25), (6, 2), (2, 25)])
def test_a_merge_is_the_papers(tokens, count):
    generator = torch.Generator().manual_seed(tokens)
    x, keys = torch.randn(2, 3, tokens, 8, generator=generator)
    size = torch.randint(1, 5, (3, tokens, 1), generator=generator).float()
    merged, sizes = merge(x, size, keys, count)
    assert torch.equal(sizes.sum(1), size.sum(1)) and torch.allclose(merged[:, 0], x[:, 0])
    for n in range(3):
        rows, weights = plain_merge([*x[n]], size[n, :, 0].tolist(), [*keys[n]], count)
        torch.testing.assert_close(merged[n], torch.stack(rows), rtol=1e-5, atol=1e-5)
        assert sizes[n, :, 0].tolist() == weights


def test_577_tokens_become_14():
    tokens = 577
    for _ in range(LAYERS):
        tokens -= min(MERGED, (tokens - 1) // 2)
    assert tokens == 14 == ENCODERS["tome_vit_l16_384"].outputs["tokens"][0]


@pytest.mark.slow
def test_bfloat16_keeps_the_class_token():
    frames = np.random.default_rng(0).integers(0, 256, (1, 384, 384, 3), dtype="uint8")
    full, half = (
        load_encoder("tome_vit_l16_384", "random", dtype=dtype).encode(frames)["tokens"]
        for dtype in ("float32", "bfloat16")
    )
    assert torch.nn.functional.cosine_similarity(full[0, 0], half[0, 0], dim=0) > 0.99
