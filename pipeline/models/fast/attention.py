"""Attention with a single head, for which consecutive matrices can be multiplied beforehand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models import fast
from pipeline.models.fast.dropout import drop
from pipeline.models.fast.linear import Linear, Memo, affine_map, chain_affine, linear


def packed_bound(layer: nn.Linear) -> float:
    """Xavier's bound for a D→D layer that is a third of nn.MultiheadAttention's packed 3D×D input projection."""
    return (6 / (4 * layer.in_features)) ** 0.5


class Attention(nn.Module):
    """The four matrices of nn.MultiheadAttention, each D→D, initialised as it does. Keys have no bias: it would add
    the same to all scores of a softmax."""

    def __init__(self, width: int):
        super().__init__()
        self.query = Linear(width, width)
        self.key = Linear(width, width, bias=False)
        self.value = Linear(width, width)
        self.out = Linear(width, width)
        for layer in (self.query, self.key, self.value):
            nn.init.uniform_(layer.weight, -packed_bound(layer), packed_bound(layer))
        for layer in (self.query, self.value, self.out):
            nn.init.zeros_(layer.bias)


class OneHeadAttention(Attention):
    """Equals nn.MultiheadAttention with one head. No head lies between query and key, nor between value and out, so
    query·key and out·value are two matrices, which only the memory has to pass. Forming them costs as much as
    D rows."""

    def __init__(self, width: int):
        super().__init__(width)
        self.products = Memo()

    def multiplied(self, layer: nn.Linear | None) -> tuple[Tensor, Tensor, Tensor]:
        """From the memory, or from what `layer` makes it of: keys and values as one affine map, and a vector whose
        product with the memory is added to the scores."""
        query_key = self.query.weight.T @ self.key.weight
        value_out, bias = chain_affine(affine_map(self.value), (self.out.weight, None))
        weight, bias = torch.cat([query_key, value_out]), F.pad(bias, (len(bias), 0))
        offset = self.query.bias @ self.key.weight
        if layer is not None:  # its bias adds the same to all scores of a softmax
            (weight, bias), offset = chain_affine(affine_map(layer), (weight, bias)), offset @ layer.weight
        return weight, bias, offset

    def forward(
        self, x: Tensor, memory: Tensor, dropout: float = 0.0, made: tuple[Tensor, nn.Linear] | None = None
    ) -> tuple[Tensor, Tensor]:
        """x B,N,D attends to memory B,M,D -> B,N,D and the weights B,N,M (before dropout). If the memory was `made`
        from a narrower sequence B,M,d by a layer, keys and values are made directly from that."""
        source, layer = made if made and made[0].shape[-1] < memory.shape[-1] else (memory, None)
        width, parameters = x.shape[-1], [*self.parameters(), *(layer.parameters() if layer else ())]
        scale = width**-0.5
        if not fast.enabled or (x.numel() < width * width and not self.products.applies(parameters)):
            weights = (self.query(x) @ self.key(memory).mT * scale).softmax(-1)
            return self.out(drop(weights, dropout) @ self.value(memory)), weights
        weight, bias, offset = self.products(lambda: self.multiplied(layer), parameters)
        key, values = linear(source, weight, bias).chunk(2, -1)
        scores = torch.baddbmm((source @ offset)[:, None], x, key.mT, beta=scale, alpha=scale)
        weights = scores.softmax(-1)
        return torch.baddbmm(self.out.bias, drop(weights, dropout), values), weights
