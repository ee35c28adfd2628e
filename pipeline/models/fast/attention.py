"""Attention by fewer products: with a single head consecutive matrices are multiplied beforehand; with few queries
or few keys the projections of the longer side move to the shorter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models import fast
from pipeline.models.fast.dropout import drop
from pipeline.models.fast.linear import AffineMap, Linear, Memo, affine_map, chain_affine, linear


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


class MultiHeadAttention(nn.Module):
    """Equals nn.MultiheadAttention with batch_first=True: the same parameters, names and initialisation.

    Where queries are few, the projections of keys and values move from the memory, which has many rows, to the queries
    and the results: q·(W x) = (Wᵀ q)·x for each head, and Σ w (W x) = W Σ w x. Where keys are few, those of queries
    and the results move to the memory in the same way. With one head and many rows, query and key are multiplied
    beforehand, and so are value and output, as in OneHeadAttention."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0):
        super().__init__()
        self.heads, self.dropout, self.products = heads, dropout, Memo()
        self.in_proj_weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(3 * width, width)))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    @property
    def rate(self) -> float:
        """Of dropout of the weights: 0 outside training."""
        return self.dropout if self.training else 0.0

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None, copies: Tensor | None = None) -> Tensor:
        """x B,N,D attends to memory B,M,D where `mask` B,M is true (somewhere in each row; default: everywhere)
        -> B,N,D. `copies` B,M, in place of a mask, says how often each row of the memory counts."""
        if copies is None and fast.enabled and self.has_few_queries(x, memory):
            return self.out_proj(self.mix_memory(self.weights_by_head(x, memory, mask), memory))
        if copies is None and fast.enabled and self.has_few_keys(x, memory):
            return self.with_few_keys(x, memory, mask)
        where = mask if copies is None else copies.log()
        where = None if where is None else where[:, None, None]
        if self.heads == 1 and fast.enabled and self.merging_pays(x, memory):
            return self.with_merged_layers(x, memory, where)
        width = x.shape[-1]
        (of_query, of_memory), (query_bias, memory_bias) = (
            p.split([width, 2 * width]) for p in (self.in_proj_weight, self.in_proj_bias)
        )
        query, keys_values = linear(x, of_query, query_bias), linear(memory, of_memory, memory_bias)
        heads = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (query, *keys_values.chunk(2, -1)))
        values = F.scaled_dot_product_attention(*heads, attn_mask=where, dropout_p=self.rate)
        return self.out_proj(values.transpose(1, 2).flatten(2))

    def with_merged_layers(self, x: Tensor, memory: Tensor, where: Tensor | None) -> Tensor:
        """Of one head: the memory itself is compared with, and its values are the output's rows."""
        (of_query, query_bias), (of_value, value_bias) = self.products(self.merged, list(self.parameters()))
        query, values = linear(x, of_query, query_bias), linear(memory, of_value, value_bias)
        heads = (y[:, None] for y in (query, memory, values))
        return F.scaled_dot_product_attention(*heads, attn_mask=where, dropout_p=self.rate)[:, 0] + self.out_proj.bias

    def merged(self) -> tuple[AffineMap, AffineMap]:
        """Of one head: from queries to what the memory itself is compared with, and from the memory to the output."""
        query, key, value = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        out = self.out_proj.weight
        return (key.T @ query, query_bias @ key), (out @ value, out @ value_bias)

    def merging_pays(self, x: Tensor, memory: Tensor) -> bool:
        """Two products of D×D matrices in place of two projections; for frozen weights they are made once."""
        rows = x.shape[0] * (x.shape[1] + memory.shape[1])
        return rows >= 4 * x.shape[-1] or self.products.applies(list(self.parameters()))

    def weights(self, x: Tensor, memory: Tensor) -> Tensor:
        """The mean over the heads of the attention of x B,N,D on memory B,M,D: B,N,M. In training after dropout, as
        nn.MultiheadAttention returns them."""
        return self.weights_by_head(x, memory).mean(1)

    def has_few_queries(self, x: Tensor, memory: Tensor) -> bool:
        """Whether moving the projections at least halves the multiply-adds in front of the output layer."""
        queries, rows, width = x.shape[1], memory.shape[1], x.shape[2]
        return 2 * queries * (width + self.heads * rows) < rows * (width + queries)

    def has_few_keys(self, x: Tensor, memory: Tensor) -> bool:
        """Whether moving the projections of the queries and the results saves multiply-adds."""
        queries, rows, width = x.shape[1], memory.shape[1], x.shape[2]
        return rows * (2 * width + self.heads * queries) < queries * (width + rows) + rows * width

    def with_few_keys(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """As `forward`. With the blocks W_q, W_k and W_v (d×D) and W_o (D×d) of a head, its scores are x·(W_qᵀ W_k y)
        and its part of the output Σ w W_o W_v y: both are made for each row y of the memory."""
        of_query, of_keys, of_values = self.in_proj_weight.chunk(3)
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        key = linear(memory, of_keys).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # B,H,M,d
        value = linear(memory, of_values, value_bias).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        moved = key @ of_query.unflatten(0, (self.heads, -1))  # B,H,M,D
        offset = key @ query_bias.view(self.heads, -1, 1)  # B,H,M,1
        if mask is not None:
            offset = offset.masked_fill(~mask[:, None, :, None], -torch.inf)
        scores = (x @ moved.flatten(1, 2).mT + offset.flatten(1)[:, None]) * key.shape[-1] ** -0.5  # B,N,H·M
        weights = drop(scores.unflatten(-1, (self.heads, -1)).softmax(-1), self.rate).flatten(2)
        values = value @ self.out_proj.weight.T.unflatten(0, (self.heads, -1))  # B,H,M,D
        return torch.baddbmm(self.out_proj.bias, weights, values.flatten(1, 2))

    def weights_by_head(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        """B,H,N,M. The keys' bias is left out: it adds the same to all scores of a softmax."""
        width = x.shape[-1]
        query = linear(x, self.in_proj_weight[:width], self.in_proj_bias[:width]).unflatten(-1, (self.heads, -1))
        if fast.enabled and self.has_few_queries(x, memory):
            of_keys = self.in_proj_weight[width : 2 * width].unflatten(0, (self.heads, -1))
            moved = torch.einsum("bnhe,hed->bhnd", query, of_keys)
            scores = (moved.flatten(1, 2) @ memory.mT).unflatten(1, (self.heads, -1))
        else:
            key = linear(memory, self.in_proj_weight[width : 2 * width]).unflatten(-1, (self.heads, -1))
            scores = torch.einsum("bnhe,bmhe->bhnm", query, key)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        return drop((scores * (width // self.heads) ** -0.5).softmax(-1), self.rate)

    def mix_memory(self, weights: Tensor, memory: Tensor) -> Tensor:
        """The values B,N,D of weights B,H,N,M. They do not sum to 1 after dropout, so that the bias is weighed too."""
        width = memory.shape[-1]
        of_values = self.in_proj_weight[2 * width :].unflatten(0, (self.heads, -1))
        bias = self.in_proj_bias[2 * width :].unflatten(0, (self.heads, -1))
        mixed = (weights.flatten(1, 2) @ memory).unflatten(1, (self.heads, -1))
        values = torch.einsum("bhnd,hed->bnhe", mixed, of_values)
        return torch.addcmul(values, weights.sum(-1).mT[..., None], bias).flatten(2)
