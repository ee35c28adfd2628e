"""Merged tokens of a Vision Transformer (Bolya et al., 2023: "Token Merging: Your ViT But Faster"), as TSPM and
QA-TIGER read them: 14 rows of 1024 numbers per frame."""

from typing import Any

import timm
import torch
import torch.nn.functional as F

from extractors.timm_image import TimmImage

MERGED, LAYERS = 25, 23  # tokens merged in each of the first layers


class ToMe(TimmImage):
    """timm's ViT-L/16 at 384 pixels, in which the first 23 of 24 layers each merge 25 pairs of tokens, or as many as
    there are: 577 tokens become 14. Row 0 is the class token, which is never merged; the others stand in no order of
    space. They are after the last norm.

    A layer attends in proportion to how many patches a token stands for, and merges between attention and MLP by the
    mean of the keys over the heads (section 3 of the paper; the settings are those of TSPM's extract_tome14.py).
    """

    def filter(self, state: dict[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
        return timm.models.vision_transformer.checkpoint_filter_fn(state, network)

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, 384, 384, 3 uint8 frames to tokens B, 14, 1024."""
        net = self.network
        x = net.norm_pre(net._pos_embed(net.patch_embed(self.prepare(windows[0]))))
        size = torch.ones(*x.shape[:2], 1, device=x.device)  # patches per token
        for number, block in enumerate(net.blocks):
            attended, keys = attend(block.attn, block.norm1(x), size)
            x = x + block.ls1(attended)
            if number < LAYERS:
                x, size = merge(x, size, keys, MERGED)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        return {"tokens": net.norm(x)}


def attend(attention: Any, x: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Proportional attention, softmax(q kᵀ / √d + log size) v, of B, N, D; and the keys' mean over heads, B, N, d."""
    rows, tokens, width = x.shape
    q, k, v = attention.qkv(x).view(rows, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    bias = size.log().to(x.dtype).transpose(1, 2)[:, None].expand(-1, -1, tokens, -1)  # B, 1, N, N
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return attention.proj(mixed.transpose(1, 2).reshape(rows, tokens, width)), k.mean(1)


def merge(x: torch.Tensor, size: torch.Tensor, keys: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bipartite soft matching: the `count` most similar pairs of an even and an odd token become their mean.

    x is B, N, D, size B, N, 1, keys B, N, d. Each even token but the first, the class token, may merge with the odd
    token whose key is most similar (cosine). Returns x and size of N - count tokens: even ones in their order, then odd
    ones.
    """
    count = min(count, (x.shape[1] - 1) // 2)
    unit = F.normalize(keys.float(), dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    similarity[:, 0] = -torch.inf
    best, target = similarity.max(-1)
    order = best.argsort(-1, descending=True)
    merged, kept = order[:, :count], order[:, count:].sort(-1).values
    weighted = torch.cat([x.float() * size, size], dim=-1)  # B, N, D + 1: the sizes are summed with the rest
    even, odd = weighted[:, ::2], weighted[:, 1::2]
    width = (-1, -1, weighted.shape[-1])
    sources = even.gather(1, merged[..., None].expand(width))
    odd = odd.scatter_add(1, target.gather(1, merged)[..., None].expand(width), sources)
    result = torch.cat([even.gather(1, kept[..., None].expand(width)), odd], dim=1)
    size = result[..., -1:]
    return (result[..., :-1] / size).to(x.dtype), size
