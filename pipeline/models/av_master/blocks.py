"""AV-Master's blocks, in the order of the paper. Shapes: B samples, T seconds, W words, D width, L template rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.fast.layers import (
    Apply,
    Attention,
    FeedForward,
    Linear,
    Map,
    Memo,
    OneHeadAttention,
    add_dropped,
    additive_weights,
    as_map,
    compose,
    drop,
    linear,
    run_step,
    scan,
    select_rows,
)


class FocusCapture(nn.Module):
    """AVFC (Eqs. 1 and 2): template rows S that pass over the seconds one by one.

    A second has one feature, so the released attention over L copies of it is uniform: additive attention comes
    to linear3(linear1(S) + linear2(f) + b), cross attention to out(value(f)). Both terms in f are known for all
    seconds before the loop begins, and the loop holds no more than what S itself goes through.
    """

    def __init__(self, width: int, focus_width: int, heads: int):
        super().__init__()
        self.heads, self.prepared, self.take = heads, Memo(), run_step
        self.template_in = Linear(width, focus_width)
        self.frame_in = Linear(width, focus_width)
        self.energy_bias = nn.Parameter(torch.ones(focus_width))
        self.energy_out = Linear(focus_width, width)
        self.attention = Attention(width)
        self.cross_value, self.cross_out = Linear(width, width), Linear(width, width)
        self.inner, self.outer = Linear(width, focus_width), Linear(focus_width, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        packed = (self.attention.query, self.attention.key, self.attention.value)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module not in packed:
                nn.init.xavier_uniform_(module.weight)
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
        return scan(partial(self.step, dropout), state, inputs, shared, maps, every, self.take)

    def step(
        self, dropout: float, apply: Apply, shared: list[Tensor], state: Tensor, energy: Tensor, crossed: Tensor
    ) -> Tensor:
        """One second: templates G,B,L,D and the frame's terms G,B,focus_width and G,B,D -> templates."""
        shift, *norms = shared
        groups, batch, length, width = state.shape
        heads = (groups * batch, length, self.heads, width // self.heads)
        e = apply(0, state).add_(energy[:, :, None])
        qkv, s = apply(1, e).add_(shift[:, None]), apply(2, e)
        q, k, v = (x.reshape(heads).transpose(1, 2).flatten(0, 1) for x in qkv.split(width, -1))
        # Keys along the rows: a softmax over columns of eight is faster than over rows of eight.
        weights = torch.bmm(k, q.transpose(1, 2)).mul_((width // self.heads) ** -0.5).softmax(1)
        attended = torch.bmm(drop(weights, dropout).transpose(1, 2), v)
        attended = attended.unflatten(0, (-1, self.heads)).transpose(1, 2).reshape(state.shape)
        s = F.layer_norm(add_dropped(s, apply(3, attended), dropout), (width,), *norms[:2])
        frame = crossed[:, :, None]
        s = F.layer_norm(add_dropped(s, frame.expand_as(s) if dropout else frame, dropout), (width,), *norms[2:4])
        hidden = drop(F.gelu(apply(4, s)), dropout)
        s = F.layer_norm(add_dropped(s, apply(5, hidden), dropout), (width,), *norms[4:6])
        return F.layer_norm(s, (width,), *norms[6:])

    def prepare(self, embed: nn.Linear, biases: Sequence[Tensor]) -> tuple[Map, Map, list[Tensor], list[Map]]:
        """Everything that is made from parameters alone: maps from a feature to its terms in the loop, and the loop's
        own. Consecutive maps are multiplied: with linear3 in the attention's projections, queries, keys and values are
        one map of the narrow e."""
        attention = self.attention
        packed = torch.cat([attention.query.weight, attention.key.weight, attention.value.weight])
        weight, bias = compose(as_map(self.energy_out), (packed, None))
        # Queries and keys see S' + P, values S': with all biases, a constant of L rows a modality.
        shift = F.pad(F.linear(torch.stack(list(biases)), packed[: 2 * packed.shape[1]]), (0, packed.shape[1]))
        no_bias = torch.zeros_like(attention.query.bias)
        shift = shift + (bias + torch.cat([attention.query.bias, no_bias, attention.value.bias]))
        norms = [x for norm in (self.norm1, self.norm2, self.norm3, self.norm) for x in (norm.weight, norm.bias)]
        maps = [
            (self.template_in.weight, None),
            (weight, None),
            as_map(self.energy_out),
            as_map(attention.out),
            as_map(self.inner),
            as_map(self.outer),
        ]
        energy_weight, energy_bias = compose(as_map(embed), as_map(self.frame_in))
        to_energy = energy_weight, energy_bias + self.template_in.bias + self.energy_bias
        to_crossed = compose(as_map(embed), as_map(self.cross_value), as_map(self.cross_out))
        return to_energy, to_crossed, [shift, *norms], maps


def mix_rows(state: Tensor) -> Tensor:
    """Rows (…,L,D) mixed by the tanh of their cosine similarities."""
    n = F.normalize(state, dim=-1)
    return torch.tanh(n @ n.transpose(-1, -2)) @ state


class Guide(nn.Module):
    """Additive attention of key fusion: which rows of a focus each token of M leans on."""

    def __init__(self, width: int):
        super().__init__()
        self.project = Linear(width, width)
        self.bias = nn.Parameter(torch.ones(width))
        self.score = Linear(width, 1, bias=False)

    def forward(self, m: Tensor, focus: Tensor) -> tuple[Tensor, Tensor]:
        """m B,N,D and focus B,L,D -> weights B,N,L and the rows they weigh, B,L,D. The released context
        Σ_j α e_j = m + Σ_j α rows_j, since the weights of a token add up to one."""
        rows = self.project(focus) + self.bias
        return additive_weights(m, rows, self.score.weight[0]), rows


class KeyFusion(nn.Module):
    """AVKF (Eq. 3): one vector from both focuses and all tokens M = [audio; visual; words].

    With `gated`, Table VIII's "Dynamic Fus": the question weighs the two modalities' contexts. The paper says only
    that it is a question-oriented adaptive fusion at the fusion stage; here, a softmax over a linear map of the
    sentence, as in the fusion it cites."""

    def __init__(self, width: int, gated: bool = False):
        super().__init__()
        self.attention, self.norm = OneHeadAttention(width), nn.LayerNorm(width)
        self.feed_forward = FeedForward(width)
        self.visual, self.audio = Guide(width), Guide(width)
        self.merge = Linear(3 * width, width)
        self.gate = Linear(width, 2) if gated else None

    def encode(self, m: Tensor, query: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor, list[Tensor]]:
        """m B,N,D and the sentence B,D -> m encoded, what it adds to the merged tokens, and merge's visual and audio
        blocks, B,D,D or D,D. merge([m; m + α rows; m + α' rows']) is summed with m taken out of the brackets."""
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
        """What `encode` gave, and focuses B,L,D -> B,D"""
        m, merged, (of_visual, of_audio) = encoded
        visual, visual_rows = self.visual(m, focus_visual)
        audio, audio_rows = self.audio(m, focus_audio)
        rows = torch.cat([visual_rows @ of_visual.mT, audio_rows @ of_audio.mT], dim=1)
        return torch.baddbmm(merged, torch.cat([visual, audio], -1), rows).amax(1)


class Preference(nn.Module):
    """GPAP (Eq. 4) of one modality: cross attention to the words and self attention, side by side."""

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
        """features B,S,T,d, the layer that they pass and x B,S,T,D, what it gives: S sequences a sample that share its
        words B,W,D -> B,S,T,D and the weights B,S,T,W on words. With `videos` B, each video is there once, V,S,T,…."""
        own = self.own(x.flatten(0, 1), x.flatten(0, 1), dropout, (features.flatten(0, 1), layer))[0].view_as(x)
        x, own = select_rows(x, videos), select_rows(own, videos)
        cross, weights = self.cross(x.flatten(1, 2), words, dropout)
        x = self.norm(add_dropped(add_dropped(x, cross.view_as(x), dropout), own, dropout))
        return self.feed_forward(x, dropout), weights.unflatten(1, x.shape[1:3])


class DecoderLayer(nn.Module):
    """BERT's post-norm layer for a single query token. One memory token takes all the attention whatever its key,
    so that layer has no query and no key."""

    def __init__(self, width: int, heads: int, one_token: bool):
        super().__init__()
        self.heads, self.one_token = heads, one_token
        if not one_token:
            self.query, self.key = Linear(width, width), Linear(width, width, bias=False)
        self.value, self.out = Linear(width, width), Linear(width, width)
        self.inner, self.outer = Linear(width, width), Linear(width, width)
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def attend(self, query: Tensor, memory: Tensor, dropout: float) -> Tensor:
        """query B,D; memory B,K,D -> B,D. With one query it is cheaper to bring it to the memory than to make
        keys and values of every memory token: scores are (q W_key)·m, and values (Σ α m) W_value."""
        batch, width = query.shape
        if self.one_token:
            kept = drop(memory.new_ones(batch, self.heads, 1), dropout)
            return (self.value(memory[:, 0]).view(batch, self.heads, -1) * kept).flatten(1)
        by_head = (self.heads, width // self.heads, width)
        q = self.query(query).view(batch, self.heads, -1).transpose(0, 1)
        q = torch.bmm(q, self.key.weight.view(by_head)).transpose(0, 1)
        weights = (q @ memory.transpose(1, 2) * (width // self.heads) ** -0.5).softmax(-1)
        weights = drop(weights, dropout)
        seen = torch.bmm((weights @ memory).transpose(0, 1), self.value.weight.view(by_head).transpose(1, 2))
        bias = self.value.bias.view(self.heads, -1) * weights.sum(-1, keepdim=True)
        return (seen.transpose(0, 1) + bias).flatten(1)

    def forward(self, query: Tensor, memory: Tensor, dropout: float) -> Tensor:
        query = self.norm1(add_dropped(query, self.out(self.attend(query, memory, dropout)), dropout))
        return self.norm2(add_dropped(query, self.outer(F.gelu(self.inner(query))), dropout))


class AnswerDecoder(nn.Module):
    """Two layers and a head: the sentence asks, the memory answers."""

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
