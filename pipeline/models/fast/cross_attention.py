"""Attention between two sequences of very different length."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.models import fast
from pipeline.models.fast.attention import Attention
from pipeline.models.fast.dropout import drop


class CrossAttention(Attention):
    """Equals nn.MultiheadAttention, for queries and keys of very different number.

    Let H heads have d features each, with blocks W_q, W_k, W_v (d×D) and W_o (D×d) of the four matrices. A score is
    (W_q x)·(W_k y), and an output Σ_heads W_o Σ_y w(x,y) W_v y. With few keys y, W_qᵀ W_k y and W_o W_v y are made for
    each key and head, and no long sequence x passes a D×D matrix; with few queries x, W_kᵀ W_q x is made for each query
    and head, and the matrices W_v act on the weighted means of y."""

    def __init__(self, width: int, heads: int):
        super().__init__(width)
        self.heads = heads

    def forward(self, x: Tensor, memory: Tensor, dropout: float = 0.0, mask: Tensor | None = None) -> Tensor:
        """x B,Q,D attends to memory B,K,D where `mask` B,K is true (somewhere in each row) -> B,Q,D"""
        (queries, width), keys = x.shape[-2:], memory.shape[1]
        # Products with D×D matrices for (queries + keys) rows, against twice the fewer, and H times the scores.
        if not fast.enabled or queries * keys * (self.heads - 1) >= abs(queries - keys) * width:
            return self.plain(x, memory, dropout, mask)
        if keys < queries:
            return self.with_few_keys(x, memory, dropout, mask)
        return self.with_few_queries(x, memory, dropout, mask)

    def plain(self, x: Tensor, memory: Tensor, dropout: float, mask: Tensor | None) -> Tensor:
        q, k, v = (self.split(y) for y in (self.query(x), self.key(memory), self.value(memory)))
        mask = None if mask is None else mask[:, None, None]
        return self.out(F.scaled_dot_product_attention(q, k, v, mask, dropout).transpose(1, 2).flatten(2))

    def with_few_keys(self, x: Tensor, memory: Tensor, dropout: float, mask: Tensor | None) -> Tensor:
        query, out = self.by_head(self.query.weight), self.by_head(self.out.weight.T)  # H,d,D
        key, value = self.split(self.key(memory)), self.split(self.value(memory))  # B,H,K,d
        scale = key.shape[-1] ** -0.5
        offset = (key @ self.by_head(self.query.bias)).mT * scale  # B,H,1,K
        if mask is not None:
            offset = offset.masked_fill(~mask[:, None, None], -torch.inf)
        scores = x @ (key @ query).flatten(1, 2).mT  # B,Q,H·K
        weights = torch.add(offset.flatten(1)[:, None], scores, alpha=scale)
        weights = weights.unflatten(-1, (self.heads, -1)).softmax(-1).flatten(2)
        return torch.baddbmm(self.out.bias, drop(weights, dropout), (value @ out).flatten(1, 2))

    def with_few_queries(self, x: Tensor, memory: Tensor, dropout: float, mask: Tensor | None) -> Tensor:
        query = self.split(self.query(x)) @ self.by_head(self.key.weight)  # B,H,Q,D
        scores = (query.flatten(1, 2) @ memory.mT) * (memory.shape[-1] // self.heads) ** -0.5  # B,H·Q,K
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None], -torch.inf)
        weights = drop(scores.softmax(-1), dropout)
        means, total = weights @ memory, weights.sum(-1, keepdim=True)  # dropped weights do not sum to 1
        values = means.unflatten(1, (self.heads, -1)) @ self.by_head(self.value.weight).mT  # B,H,Q,d
        values = values + total.unflatten(1, (self.heads, -1)) * self.by_head(self.value.bias).mT
        return self.out(values.transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """B,N,D -> B,H,N,d"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def by_head(self, x: Tensor) -> Tensor:
        """D,… -> H,d,… (a vector: H,d,1)"""
        x = x.unflatten(0, (self.heads, -1))
        return x.unsqueeze(-1) if x.dim() == 2 else x
