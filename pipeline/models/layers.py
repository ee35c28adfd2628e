"""Layers that several of the field's models are made of."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.fast.attention import MultiHeadAttention
from pipeline.models.fast.dropout import add_dropped, drop
from pipeline.models.fast.linear import Linear


class Layer(nn.Module):
    """A module with a rate of dropout."""

    def __init__(self, dropout: float):
        super().__init__()
        self.dropout = dropout

    @property
    def rate(self) -> float:
        """Of dropout: 0 outside training."""
        return self.dropout if self.training else 0.0


class FeedForward(Layer):
    """LN(x + W₂ relu(W₁ x)), with dropout after relu and after W₂."""

    def __init__(self, width: int, dropout: float):
        super().__init__(dropout)
        self.inner, self.outer, self.norm = Linear(width, width), Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = drop(F.relu(self.inner(x)), self.rate)
        return self.norm(add_dropped(x, self.outer(hidden), self.rate))


class CrossModalLayer(Layer):
    """FF(LN(x + own(x, x) + cross(x, y))), one head each: two modalities look at themselves and each other."""

    def __init__(self, width: int, dropout: float):
        super().__init__(dropout)
        self.own, self.cross = (MultiHeadAttention(width, 1, dropout) for _ in range(2))
        self.norm, self.feed_forward = nn.LayerNorm(width), FeedForward(width, dropout)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x B,N,D and the other modality y B,M,D -> B,N,D"""
        x = add_dropped(add_dropped(x, self.cross(x, y), self.rate), self.own(x, x), self.rate)
        return self.feed_forward(self.norm(x))


class SelfLayer(Layer):
    """FF(LN(x + own(x, x))), one head."""

    def __init__(self, width: int, dropout: float):
        super().__init__(dropout)
        self.own, self.norm = MultiHeadAttention(width, 1, dropout), nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, dropout)

    def forward(self, x: Tensor, copies: Tensor | None = None) -> Tensor:
        """B,N,D -> B,N,D. `copies` B,N says how often each row is there; the results of equal rows are equal."""
        return self.feed_forward(self.norm(add_dropped(x, self.own(x, x, copies=copies), self.rate)))


class QueryLayer(Layer):
    """FF(attention of a query on a memory), four heads; the query itself is not added."""

    def __init__(self, width: int, dropout: float):
        super().__init__(dropout)
        self.attention, self.feed_forward = MultiHeadAttention(width, 4, dropout), FeedForward(width, dropout)

    def forward(self, query: Tensor, memory: Tensor) -> Tensor:
        """query B,N,D and memory B,M,D -> B,N,D"""
        return self.feed_forward(self.attention(query, memory))
