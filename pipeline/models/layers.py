"""The arithmetic that AV-Master's blocks share, each piece written for the least work that is still exact.

Shapes: B samples, N tokens, D features. A map is the (weight, bias) of a linear layer, weight out×in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Map = tuple[Tensor, Tensor | None]


def as_map(layer: nn.Linear) -> Map:
    return layer.weight, layer.bias


def compose(first: Map, second: Map) -> Map:
    """The one map that equals `first`, then `second`."""
    (a, b), (c, d) = first, second
    carried = None if b is None else F.linear(b, c, d)
    return c @ a, d if carried is None else carried


def composing_pays(rows: int, inner: int, middle: int, outer: int) -> bool:
    """Whether multiplying outer×middle by middle×inner first costs less than taking `rows` rows through both."""
    return inner * middle * outer < rows * (inner * middle + middle * outer - inner * outer)


def through(x: Tensor, *maps: Map) -> Tensor:
    """`x` (…,in) through consecutive maps, multiplying these with each other first wherever that is less work."""
    rows, maps = x.numel() // x.shape[-1], list(maps)
    while maps:
        first = maps.pop(0)
        while maps and composing_pays(rows, first[0].shape[1], first[0].shape[0], maps[0][0].shape[0]):
            first = compose(first, maps.pop(0))
        x = F.linear(x, *first)
    return x


class Attention(nn.Module):
    """The four maps of an attention, each D→D. Keys have no bias: it would move all scores of a softmax alike."""

    def __init__(self, width: int):
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        # As PyTorch starts the packed input projection of its own attention: 3·width outputs in one matrix.
        for layer in (self.query, self.key, self.value):
            nn.init.uniform_(layer.weight, -((1.5 / width) ** 0.5), (1.5 / width) ** 0.5)
        for layer in (self.query, self.value, self.out):
            nn.init.zeros_(layer.bias)


class OneHeadAttention(Attention):
    """Attention with a single head, where queries meet keys, and values meet `out`, with no head between them:
    query·key and out·value are products of two matrices, formed first when there are more rows than columns."""

    def forward(self, x: Tensor, memory: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """x B,N,D attends to memory B,M,D -> B,N,D and the weights B,N,M (before dropout)."""
        width = x.shape[-1]
        if x.numel() > width * width:
            key = F.linear(memory, self.query.weight.T @ self.key.weight)
            offset = memory @ (self.query.bias @ self.key.weight)
            scores = torch.baddbmm(offset[:, None], x, key.transpose(1, 2), beta=width**-0.5, alpha=width**-0.5)
            weights = scores.softmax(-1)
            values = F.linear(memory, *compose((self.value.weight, self.value.bias), (self.out.weight, None)))
            return F.dropout(weights, dropout) @ values + self.out.bias, weights
        scores = self.query(x) @ self.key(memory).transpose(1, 2) * width**-0.5
        weights = scores.softmax(-1)
        return self.out(F.dropout(weights, dropout) @ self.value(memory)), weights


class FeedForward(nn.Module):
    """x -> LN(x + W2 relu(W1 x)), D→D→D."""

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.outer, self.norm = nn.Linear(width, width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, dropout: float = 0.0) -> Tensor:
        hidden = F.dropout(F.relu(self.inner(x)), dropout)
        return self.norm(x + F.dropout(self.outer(hidden), dropout))
