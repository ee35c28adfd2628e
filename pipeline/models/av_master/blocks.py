"""AV-Master's blocks, in the order of the paper, each with the least work that is still exact.

Shapes: B samples, T seconds, W words, D width, L template rows. `reference` is reference.py beside this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.base import select_rows
from pipeline.models.fast.additive import additive_weights
from pipeline.models.fast.attention import Attention, OneHeadAttention, packed_bound
from pipeline.models.fast.dropout import add_dropped, drop
from pipeline.models.fast.linear import AffineMap, Linear, Memo, affine_map, chain_affine, linear
from pipeline.models.fast.scan import ApplyMap, run_step, scan


class FocusCapture(nn.Module):
    """Equals reference.focus_capture up to its mixing of rows (AVFC, Eqs. 1 and 2): template rows S that pass over the
    seconds one by one.

    A second has one feature, so the released attention over L copies of it is uniform: additive attention reduces to
    linear3(linear1(S) + linear2(f) + b), cross attention to out(value(f)). Both terms in f are computed for all
    seconds before the loop begins, and the loop holds only what S itself passes.
    """

    def __init__(self, width: int, focus_width: int, heads: int):
        super().__init__()
        self.heads, self.prepared, self.runner = heads, Memo(), run_step
        self.template_in = Linear(width, focus_width)
        self.frame_in = Linear(width, focus_width)
        self.energy_bias = nn.Parameter(torch.ones(focus_width))
        self.energy_out = Linear(focus_width, width)
        self.attention = Attention(width)
        self.cross_value, self.cross_out = Linear(width, width), Linear(width, width)
        self.inner, self.outer = Linear(width, focus_width), Linear(focus_width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """The release makes every matrix here Xavier-uniform. Queries, keys and values of its attention layers are one
        3D×D matrix, so that the bound of each is √(6 / 4D), not √(6 / 2D); `Attention` draws its own three so."""
        packed = (self.attention.query, self.attention.key, self.attention.value, self.cross_value)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in packed:
                nn.init.xavier_uniform_(module.weight)
        nn.init.uniform_(self.cross_value.weight, -packed_bound(self.cross_value), packed_bound(self.cross_value))
        for layer in (self.cross_value, self.cross_out):
            nn.init.zeros_(layer.bias)

    def forward(
        self, features: Tensor, embed: nn.Linear, biases: Sequence[Tensor], dropout: float = 0.0, every: bool = False
    ) -> Tensor:
        """features G,B,T,D of G modalities and their G biases L,D -> the templates after the last second, G,B,L,D,
        or after `every` second, T,G,B,L,D (no gradients)."""
        to_energy, to_crossed, shared, maps = self.prepared(
            lambda: self.prepare(embed, biases), [*self.parameters(), *embed.parameters(), *biases]
        )
        features = features.permute(2, 0, 1, 3)
        state = embed(features[0])[:, :, None].expand(-1, -1, len(biases[0]), -1).contiguous()
        inputs = linear(features, *to_energy), linear(features, *to_crossed)
        return scan(partial(self.step, dropout), state, inputs, shared, maps, every, self.runner)

    def step(
        self, dropout: float, apply_map: ApplyMap, shared: list[Tensor], state: Tensor, energy: Tensor, crossed: Tensor
    ) -> Tensor:
        """Eq. 2: equals reference.focus_sampling for one second. Templates G,B,L,D and the second's terms
        G,B,focus_width and G,B,D -> templates. The maps are numbered as `prepare` lists them."""
        shift, *norms = shared
        groups, batch, length, width = state.shape
        heads = (groups * batch, length, self.heads, width // self.heads)
        e = apply_map(0, state).add_(energy[:, :, None])
        qkv, s = apply_map(1, e).add_(shift[:, None]), apply_map(2, e)
        q, k, v = (x.reshape(heads).transpose(1, 2).flatten(0, 1) for x in qkv.split(width, -1))
        # Keys along the rows: a softmax over columns of eight is faster than over rows of eight.
        weights = torch.bmm(k, q.transpose(1, 2)).mul_((width // self.heads) ** -0.5).softmax(1)
        attended = torch.bmm(drop(weights, dropout).transpose(1, 2), v)
        attended = attended.unflatten(0, (-1, self.heads)).transpose(1, 2).reshape(state.shape)
        s = F.layer_norm(add_dropped(s, apply_map(3, attended), dropout), (width,), *norms[:2])
        frame = crossed[:, :, None]
        s = F.layer_norm(add_dropped(s, frame.expand_as(s) if dropout else frame, dropout), (width,), *norms[2:4])
        hidden = drop(F.gelu(apply_map(4, s)), dropout)
        s = F.layer_norm(add_dropped(s, apply_map(5, hidden), dropout), (width,), *norms[4:6])
        return F.layer_norm(s, (width,), *norms[6:])

    def prepare(
        self, embed: nn.Linear, biases: Sequence[Tensor]
    ) -> tuple[AffineMap, AffineMap, list[Tensor], list[AffineMap]]:
        """What follows from parameters alone: the maps from a feature to its two terms in the loop, and the tensors and
        maps of the loop itself. Consecutive maps are multiplied: with linear3 in the attention's projections, queries,
        keys and values are one map of the narrow e."""
        attention = self.attention
        packed = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        weight, bias = chain_affine(affine_map(self.energy_out), (packed, None))
        # Queries and keys are made of S' + P, values of S': with all biases, a constant of L rows per modality.
        shift = F.pad(F.linear(torch.stack(list(biases)), packed[: 2 * packed.shape[1]]), (0, packed.shape[1]))
        no_bias = torch.zeros_like(attention.query.bias)
        shift = shift + (bias + torch.cat([attention.query.bias, no_bias, attention.value.bias]))
        norms = [x for norm in (self.norm1, self.norm2, self.norm3, self.norm) for x in (norm.weight, norm.bias)]
        maps = [
            (self.template_in.weight, None),
            (weight, None),
            affine_map(self.energy_out),
            affine_map(attention.out),
            affine_map(self.inner),
            affine_map(self.outer),
        ]
        energy_weight, energy_bias = chain_affine(affine_map(embed), affine_map(self.frame_in))
        to_energy = energy_weight, energy_bias + self.template_in.bias + self.energy_bias
        to_crossed = chain_affine(affine_map(embed), affine_map(self.cross_value), affine_map(self.cross_out))
        return to_energy, to_crossed, [shift, *norms], maps


def mix_rows(state: Tensor) -> Tensor:
    """Equals the end of reference.focus_capture: rows (…,L,D) mixed by the tanh of their cosine similarities."""
    n = F.normalize(state, dim=-1)
    return torch.tanh(n @ n.transpose(-1, -2)) @ state


class FeedForward(nn.Module):
    """Equals reference.feed_forward: x -> LN(x + W2 relu(W1 x)), D→D→D."""

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.outer, self.norm = Linear(width, width), Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor, dropout: float = 0.0) -> Tensor:
        hidden = drop(F.relu(self.inner(x), inplace=True), dropout)
        return self.norm(add_dropped(x, self.outer(hidden), dropout))


class Guide(nn.Module):
    """Equals reference.guided_context: additive attention from each token of M to the rows of a focus."""

    def __init__(self, width: int):
        super().__init__()
        self.project = Linear(width, width)
        self.bias = nn.Parameter(torch.ones(width))
        self.score = Linear(width, 1, bias=False)

    def forward(self, m: Tensor, focus: Tensor) -> tuple[Tensor, Tensor]:
        """m B,N,D and focus B,L,D -> weights α B,N,L and the rows that they weigh, B,L,D. The reference's context is
        Σ_j α_j e_j = m + Σ_j α_j rows_j, since the weights of a token add up to one."""
        rows = self.project(focus) + self.bias
        return additive_weights(m, rows, self.score.weight[0]), rows


class KeyFusion(nn.Module):
    """Equals reference.key_fusion (AVKF, Eq. 3): one vector from both focuses and all tokens,
    M = [audio; visual; words].

    `gated` is Table VIII's "Dynamic Fus": the question weighs the two modalities' contexts. The paper says only
    that it is a question-oriented adaptive fusion at the fusion stage; here, a softmax over a linear map of the
    sentence, as in the fusion that it cites."""

    def __init__(self, width: int, gated: bool = False):
        super().__init__()
        self.attention, self.norm = OneHeadAttention(width), nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)
        self.visual, self.audio = Guide(width), Guide(width)
        self.merge = Linear(3 * width, width)
        self.gate = Linear(width, 2) if gated else None

    def encode(self, m: Tensor, query: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor, list[Tensor]]:
        """m B,N,D and the sentence B,D -> m encoded, its part of the merged tokens, and the visual and audio columns of
        merge, B,D,D or D,D. In merge([m; m + α rows; m + α' rows']) the three terms in m are one product."""
        m = self.norm(add_dropped(m, self.attention(m, m, dropout)[0], dropout))
        m = self.feed_forward(m, dropout)
        of_m, *of_contexts = self.merge.weight.chunk(3, dim=1)
        if self.gate is None:
            return m, linear(m, of_m + sum(of_contexts), self.merge.bias), of_contexts
        gates = self.gate(query).softmax(-1)
        of_contexts = [gate[:, None, None] * block for gate, block in zip(gates.unbind(1), of_contexts, strict=True)]
        return m, m @ (of_m + sum(of_contexts)).transpose(1, 2) + self.merge.bias, of_contexts

    def forward(
        self, encoded: tuple[Tensor, Tensor, list[Tensor]], focus_visual: Tensor, focus_audio: Tensor
    ) -> Tensor:
        """The result of `encode`, and focuses B,L,D -> B,D"""
        m, merged, (of_visual, of_audio) = encoded
        visual, visual_rows = self.visual(m, focus_visual)
        audio, audio_rows = self.audio(m, focus_audio)
        rows = torch.cat([visual_rows @ of_visual.mT, audio_rows @ of_audio.mT], dim=1)
        return torch.baddbmm(merged, torch.cat([visual, audio], -1), rows).amax(1)


class Preference(nn.Module):
    """Equals reference.preference (GPAP, Eq. 4) of one modality: cross attention to the words plus self attention."""

    def __init__(self, width: int):
        super().__init__()
        self.own, self.cross, self.norm = OneHeadAttention(width), OneHeadAttention(width), nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)

    def forward(
        self,
        features: Tensor,
        layer: nn.Linear,
        x: Tensor,
        words: Tensor,
        dropout: float = 0.0,
        videos: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """features B,S,T,d, the layer that they pass and its result x B,S,T,D: S sequences per sample, which share its
        words B,W,D -> B,S,T,D and the weights B,S,T,W on words. With `videos` B, each video is held once, V,S,T,…"""
        own = self.own(x.flatten(0, 1), x.flatten(0, 1), dropout, (features.flatten(0, 1), layer))[0].view_as(x)
        x, own = select_rows(x, videos), select_rows(own, videos)
        cross, weights = self.cross(x.flatten(1, 2), words, dropout)
        x = self.norm(add_dropped(add_dropped(x, cross.view_as(x), dropout), own, dropout))
        return self.feed_forward(x, dropout), weights.unflatten(1, x.shape[1:3])


class DecoderLayer(nn.Module):
    """Equals one layer of reference.answer, BERT's post-norm layer, for a single query token. A memory of one token
    has all the attention whatever its key, so that such a layer has no query and no key."""

    def __init__(self, width: int, heads: int, one_token: bool):
        super().__init__()
        self.heads, self.one_token = heads, one_token
        if not one_token:
            self.query, self.key = Linear(width, width), Linear(width, width, bias=False)
        self.value, self.out = Linear(width, width), Linear(width, width)
        self.inner, self.outer = Linear(width, width), Linear(width, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def attend(self, query: Tensor, memory: Tensor, dropout: float) -> Tensor:
        """Equals reference.attend after its projections: query B,D; memory B,K,D -> B,D. With one query, fewer products
        are needed if keys and values are not made: scores are (q W_key)·m, and values (Σ α m) W_value."""
        batch, width = query.shape
        if self.one_token:
            kept = drop(memory.new_ones(batch, self.heads, 1), dropout)
            return (self.value(memory[:, 0]).view(batch, self.heads, -1) * kept).flatten(1)
        by_head = (self.heads, width // self.heads, width)
        q = self.query(query).view(batch, self.heads, -1).transpose(0, 1)
        q = torch.bmm(q, self.key.weight.view(by_head)).transpose(0, 1)
        weights = (q @ memory.transpose(1, 2) * (width // self.heads) ** -0.5).softmax(-1)
        weights = drop(weights, dropout)
        context = torch.bmm((weights @ memory).transpose(0, 1), self.value.weight.view(by_head).transpose(1, 2))
        bias = self.value.bias.view(self.heads, -1) * weights.sum(-1, keepdim=True)
        return (context.transpose(0, 1) + bias).flatten(1)

    def forward(self, query: Tensor, memory: Tensor, dropout: float) -> Tensor:
        query = self.norm1(add_dropped(query, self.out(self.attend(query, memory, dropout)), dropout))
        return self.norm2(add_dropped(query, self.outer(F.gelu(self.inner(query))), dropout))


class AnswerDecoder(nn.Module):
    """Equals reference.answer: two layers and a head; the query is the sentence, the memory a path's features."""

    def __init__(self, width: int, heads: int, num_answers: int, one_token: bool = False):
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, one_token) for _ in range(2))
        self.dense, self.norm = Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.answers = Linear(width, num_answers)
        nn.init.zeros_(self.answers.bias)

    def forward(self, query: Tensor, memory: Tensor, dropout: float = 0.0) -> Tensor:
        """query B,D; memory B,K,D -> logits B,num_answers"""
        for layer in self.layers:
            query = layer(query, memory, dropout)
        return self.answers(self.norm(F.gelu(self.dense(query))))
