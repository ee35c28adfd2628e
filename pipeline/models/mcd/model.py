"""MCD: mutual correlation distillation.

Qilang Ye, Zitong Yu, Xin Liu: Answering Diverse Questions via Text Attached with Key Audio-Visual Clues.
arXiv:2403.06679, 2024. The repository that the paper names holds a README and a figure, no code.

Association blocks let audio and visual features gate each other; a shared aggregator picks the frames that matter to
the question and writes them into its vector as clues; local element fusion adds the text object (the question, its
keywords, its type) joined with the videos' means. The answer is read from the question's vector alone. Three
contrastive losses (semantic approximation) bring it near the video, and audio near visual.

Shapes: B samples, T seconds, k frames, D = `width`; f_a and f_v are rows in time, F_a and F_v their means. The reading
of what the paper leaves open, or states in a way that cannot be computed:

| the paper | the reading |
|---|---|
| question | as in AVST: q = fc(tanh([h ; c])) of an LSTM over tanh(embedding), all words and the padding |
| "tokens of the sentence, type, and keywords" | the same encoder for all three; keywords are what the question's template was filled with, type is its scenario and type: annotations, which are then read in the test as well |
| spectrogram of 128×1024 (III-A) or VGGish (IV-A) | VGGish, T×128 |
| heads, hidden width, dropout | one head ("√d"), 512, 0.1; bias-free W^Q, W^K, W^V and no output matrix, as in Eq. 1 |
| Dimension Compression | the mean over time |
| f_a × φ_cross, "matrix product", W^cross of D×D | f_a diag(φ_cross): the only W of D×D that a 1×D result gives; a gate |
| weights of a block | shared by both kinds of attention and both streams; each stream has its own BatchNorm, whose running statistics would else mix two modalities |
| BN over B,T,D | each channel over batch and time |
| ζ₁(F_j, f_q, f_q) | as written, one key: W^V f_q (`question_keys`) |
| ζ₂(f̄_q, f_{j,i}, f_{j,i}) of frame i | softmax over the k frames, terms not summed: h_i = ReLU(w_i W^V f_{j,i}); as written, one key, no question would be in it (`frame_weights`) |
| k; "randomly sampling" | all 60; fewer are random in training and evenly spaced in the test |
| "Top-k" of h | the k/2 frames of largest mean(h_i) (⌊k/2⌋, at least one) |
| Eqs. 7, 8 for two levels | low (f_j) and high (f̂_j after N blocks), the same aggregator, results added |
| ⊙, "dot product" | element by element, since the results are vectors |
| F_v, F_a in Eqs. 10 and 11 | of the low level, before the blocks (`element_level` for Eq. 10) |
| Θ(F_j) in Eq. 11, "projects the three feature embeddings" | Θ_q, Θ_v and Θ_a, three linear layers, as in the overview figure |
| Σ_k p^(k) in Eqs. 11, 13 | InfoNCE: anchor i against the k-th sample's video |
| Eq. 12: a sum; the text: the average | the average; its length does not matter to Eq. 13 |
| ‖m‖ in Eq. 13 | m / ‖m‖: the product of two lengths would compare nothing |
| τ | 0.07, usual for InfoNCE |
| several questions about a video in a batch | these samples are no negatives of each other (`mask_equal_videos`) |
| MLP of "a linear layer and a softmax" | ReLU, dropout, linear layer, as in the overview figure |

Table VIII claims 7.587 M parameters and 2.542 GFLOPs. No reading of the text gives them: this model has 10.115 M and
0.456 G multiply-adds. `avqa model mcd` prints both.
"""  # noqa: E501

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.base import AVQAModel, Batch, select_rows
from pipeline.models.fast.linear import Linear
from pipeline.models.mcd.config import BOTH, MCDSettings

# Table VIII: million parameters and billion FLOPs by the number of blocks. The field calls a multiply-add a FLOP.
CLAIMS = {1: (6.026, 2.173), 2: (7.587, 2.542), 3: (9.148, 2.850)}


class Output(NamedTuple):
    """Logits, and what the losses compare. None in the plain network."""

    logits: Tensor  # B,num_answers
    embedding: Tensor | None = None  # f̂_q: B,D
    means: Tensor | None = None  # F_a and F_v: 2,B,D
    crosses: Tensor | None = None  # m_a and m_v (Eq. 12): 2,B,D; None without cross-attention


class QuestionEncoder(nn.Module):
    """AVST's: fc(tanh([h ; c])) of an LSTM over tanh(embedding); of two LSTMs with `bilstm`."""

    def __init__(self, settings: MCDSettings, num_tokens: int):
        super().__init__()
        width, twice = settings.width, settings.question_encoder == "bilstm"
        self.embedding = nn.Embedding(num_tokens, width)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=twice)
        self.fc = Linear(4 * width if twice else 2 * width, width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """B,L int64 -> B,D and the states after each word, B,L,D (B,L,2D with `bilstm`)"""
        states, last = self.lstm(torch.tanh(self.embedding(tokens)))
        return self.fc(torch.tanh(torch.cat(last).transpose(0, 1).flatten(1))), states


class Attention(nn.Module):
    """Eq. 1: softmax(Q Kᵀ / √D) V with W^Q, W^K and W^V, one head."""

    def __init__(self, width: int, memory_width: int | None = None):
        super().__init__()
        self.query = Linear(width, width, bias=False)
        self.key, self.value = (Linear(memory_width or width, width, bias=False) for _ in range(2))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x …,Q,D attends to memory …,K,M -> …,Q,D"""
        return F.scaled_dot_product_attention(self.query(x), self.key(memory), self.value(memory))


class AssociationBlock(nn.Module):
    """Eqs. 2 to 5, both streams at once."""

    def __init__(self, settings: MCDSettings):
        super().__init__()
        width = settings.width
        self.has_self = [name in settings.self_attention for name in BOTH]
        self.has_cross = [name in settings.cross_attention for name in reversed(BOTH)]  # queried by the other one
        separate = settings.separate_attention and any(self.has_cross)
        shared = any(self.has_self) or (any(self.has_cross) and not separate)
        self.attention = Attention(width) if shared else None
        self.cross_attention = Attention(width) if separate else None
        attends = [own or cross for own, cross in zip(self.has_self, self.has_cross, strict=True)]
        self.norm1 = nn.ModuleList(nn.BatchNorm1d(width) if attended else None for attended in attends)
        self.norm2 = nn.ModuleList(nn.BatchNorm1d(width) for _ in BOTH)
        self.linear1, self.linear2 = Linear(width, settings.hidden), Linear(settings.hidden, width)

    def forward(self, streams: Tensor) -> tuple[Tensor, Tensor | None]:
        """f_a and f_v 2,B,T,D -> f̂_a and f̂_v 2,B,T,D and the means over time of the cross-features, 2,B,D"""
        means = streams.mean(2)
        attended, gates = self.attend(streams, means.flip(0).unsqueeze(2))
        united = torch.stack([self.unite(n, streams, attended, gates) for n in range(2)])
        refined = self.linear2(F.relu(self.linear1(united)))
        refined = torch.stack([normalize(norm, x) for norm, x in zip(self.norm2, refined, strict=True)])
        return united + refined, None if gates is None else means * gates.squeeze(2)

    def attend(self, streams: Tensor, other_means: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """φ_self of Eqs. 2 and 3, 2,B,T,D, and φ_cross, 2,B,1,D, where a stream has one. Self-attention and
        cross-attention with the same weights and keys are one attention with one more query."""
        attended = gates = None
        if self.cross_attention is not None:
            gates = self.cross_attention(other_means, streams)
            attended = self.attention(streams, streams) if any(self.has_self) else None
        elif any(self.has_self) and any(self.has_cross):
            both = self.attention(torch.cat([streams, other_means], 2), streams)
            attended, gates = both[:, :, :-1], both[:, :, -1:]
        elif any(self.has_self):
            attended = self.attention(streams, streams)
        elif any(self.has_cross):
            gates = self.attention(other_means, streams)
        return attended, gates

    def unite(self, n: int, streams: Tensor, attended: Tensor | None, gates: Tensor | None) -> Tensor:
        """u = f + BN(f₂) of stream n, with the terms of f₂ (Eqs. 2, 3) that it has: B,T,D"""
        x, terms = streams[n], []
        if self.has_self[n]:
            terms.append(attended[n])
        if self.has_cross[n]:
            terms.append(x * gates[n])
        return x + normalize(self.norm1[n], sum(terms)) if terms else x


def normalize(norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
    """B,T,D: each of D over B and T; a last batch of one question and one second, by the running statistics."""
    rows = x.flatten(0, 1)
    if norm.training and len(rows) == 1:
        return F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps).view_as(x)
    return norm(rows).view_as(x)


class Aggregator(nn.Module):
    """Eqs. 6 to 9: the clues of several sequences, each by itself, written into the question's vector."""

    def __init__(self, settings: MCDSettings):
        super().__init__()
        width, twice = settings.width, settings.question_encoder == "bilstm"
        self.weighs, self.reads_words = settings.frame_weights == "softmax", settings.question_keys == "words"
        self.value = Linear(width, width, bias=False)  # ζ₂
        self.query = self.key = self.question = None
        if self.weighs:
            self.query, self.key = (Linear(width, width, bias=False) for _ in range(2))
        if self.weighs and self.reads_words:  # ζ₁
            self.question = Attention(width, 2 * width if twice else width)
        elif self.weighs:
            self.question = Linear(width, width, bias=False)

    def forward(self, question: Tensor, states: Tensor, frames: Tensor, means: Tensor, videos: Tensor | None) -> Tensor:
        """f_q B,D; the states after its words B,L,…; S sequences of k frames B,S,k,D and their means over all time
        B,S,D (V,… with `videos`) -> f̂_jq B,S,D"""
        values, kept = F.relu(self.value(frames)), max(1, frames.shape[2] // 2)
        heights = select_rows(values.mean(-1), videos)
        values = select_rows(values, videos)
        weights = torch.ones_like(heights)
        if self.weighs:
            weights = self.weights(question, states, select_rows(frames, videos), select_rows(means, videos))
        # A weight is positive, so that h_i = ReLU(w_i W^V f_i) is w_i ReLU(W^V f_i).
        chosen = (weights * heights).topk(kept, dim=-1).indices
        weights = torch.zeros_like(weights).scatter(-1, chosen, weights.gather(-1, chosen))
        clues = (weights.unsqueeze(2) @ values).squeeze(2)
        return question[:, None] * (kept + clues)  # Σ f_q + h ⊙ f_q

    def weights(self, question: Tensor, states: Tensor, frames: Tensor, means: Tensor) -> Tensor:
        """Of ζ₂ over the frames: B,S,k"""
        found = self.question(means, states) if self.reads_words else self.question(question)[:, None]  # ζ₁
        asked = question[:, None] + found
        # One query per sequence: W_kᵀ W_q f̄_q is made once, and no frame passes W_k.
        scores = frames @ (self.query(asked) @ self.key.weight).unsqueeze(-1)
        return (scores.squeeze(-1) * frames.shape[-1] ** -0.5).softmax(-1)


class Combination(nn.Module):
    """Local element fusion (Eq. 10) and the combinatorial question embedding f̂_q."""

    def __init__(self, settings: MCDSettings):
        super().__init__()
        self.settings, width = settings, settings.width
        self.text = Linear(3 * width, width) if settings.has_text_object else None
        self.dropout = nn.Dropout(settings.dropout)
        self.refine = Linear(width, width) if settings.elements else None
        self.mix = nn.ModuleList(Linear(width, width, bias=False) for _ in range(3 if settings.elements else 2))  # M
        self.fc = Linear(len(self.mix) * width, width)

    def forward(self, texts: list[Tensor], means: Tensor, clues: Tensor) -> Tensor:
        """The vectors of question, keywords and type, each B,D; F_a and F_v 2,B,D; f̂_aq and f̂_vq 2,B,D -> B,D"""
        parts = list(clues)
        if self.refine is not None:
            parts.append(self.refine(self.dropout(self.fuse(texts, means))))
        return self.fc(torch.cat([m(part) for m, part in zip(self.mix, parts, strict=True)], -1))

    def fuse(self, texts: list[Tensor], means: Tensor) -> Tensor:
        """g̃ of Eq. 10: B,D"""
        elements = [mean for name, mean in zip(BOTH, means, strict=True) if name in self.settings.elements]
        if self.text is None:
            return sum(elements)
        text = self.text(torch.cat(texts, -1))
        total = sum(elements, text)
        return text * total if self.settings.element_fusion == "multiply" else total


class LateFusion(nn.Module):
    """Fig. 4(b): audio-visual features join the question's vector before the answer."""

    def __init__(self, settings: MCDSettings):
        super().__init__()
        width = settings.width
        self.settings, self.dropout = settings, nn.Dropout(settings.dropout)
        self.fc = Linear((1 + len(settings.late_inputs)) * width if settings.late_fusion == "concat" else width, width)

    def forward(self, embedding: Tensor, means: Tensor) -> Tensor:
        """f̂_q B,D and the means of f̂_a and f̂_v 2,B,D -> B,D"""
        parts = [embedding, *(means[BOTH.index(name)] for name in self.settings.late_inputs)]
        joined = torch.cat(parts, -1) if self.settings.late_fusion == "concat" else sum(parts)
        return self.dropout(self.fc(joined))


class MCD(AVQAModel):
    """Audio, visual features and the numbers of the question's words to an answer."""

    Settings = MCDSettings
    score_fields = ("logits",)
    settings: MCDSettings

    def __init__(
        self,
        settings: MCDSettings,
        shapes: dict[str, tuple[int, ...]],
        num_answers: int,
        num_tokens: int | None = None,
    ):
        super().__init__(settings, shapes, num_answers, num_tokens=num_tokens)
        if num_tokens is None:
            raise ValueError("num_tokens: this model reads tokens and needs the size of their vocabulary")
        s, width = settings, settings.width
        reads = s.inputs if s.network == "mlp" else ("question", *BOTH)
        self.question = QuestionEncoder(s, num_tokens) if "question" in reads else None
        self.fc_audio, self.fc_visual = (
            Linear(shapes[name][-1], width) if name in reads else None for name in BOTH
        )  # fmt: skip
        self.blocks = self.aggregator = self.combination = self.late = self.distill = self.hidden = None
        self.dropout, self.answers = nn.Dropout(s.dropout), nn.Linear(width, num_answers)
        if s.network == "mlp":
            self.hidden = Linear(len(reads) * width, width)
            return
        self.blocks = nn.ModuleList(AssociationBlock(s) for _ in range(s.blocks))
        self.aggregator, self.combination = Aggregator(s), Combination(s)
        self.late = LateFusion(s) if s.late_fusion != "none" else None
        if s.distilled:
            self.distill = nn.ModuleDict({name: Linear(width, width) for name in ("question", *s.distilled)})  # Θ

    def forward(self, batch: Batch) -> Output:
        """audio B,T,… and visual B,T,…; tokens B,L, keywords B,… and type B,… int64."""
        if self.hidden is not None:
            return Output(self.plain_logits(batch))
        low = torch.stack([self.project(name, batch) for name in BOTH])
        high, crosses = low, []
        for block in self.blocks:
            high, cross = block(high)
            crosses.append(cross)
        means, high_means = low.mean(2), high.mean(2)
        question, states = self.question(batch.texts["tokens"])
        frames = self.sample(torch.cat([low, high]).transpose(0, 1))
        all_means = torch.cat([means, high_means]).transpose(0, 1)
        clues = self.aggregator(question, states, frames, all_means, batch.videos)  # Eqs. 6 to 9
        clues = clues.unflatten(1, (2, 2)).sum(1).transpose(0, 1)  # both levels; f̂_aq and f̂_vq
        means, high_means = (self.per_question(x, batch) for x in (means, high_means))
        texts = [question, *self.read_text_object(batch)]
        elements = means if self.settings.element_level == "low" else high_means
        embedding = self.combination(texts, elements, clues)
        answering = embedding if self.late is None else self.late(embedding, high_means)
        logits = self.answers(self.dropout(F.relu(answering)))
        if not self.settings.coordinates:
            return Output(logits, embedding, means)
        return Output(logits, embedding, means, self.per_question(torch.stack(crosses).mean(0), batch))  # Eq. 12

    def plain_logits(self, batch: Batch) -> Tensor:
        """Table II: B,num_answers"""
        parts = [] if self.question is None else [self.question(batch.texts["tokens"])[0]]
        present = [name for name in BOTH if name in self.settings.inputs]
        parts += [batch.per_question(self.project(name, batch).mean(1)) for name in present]
        return self.answers(self.dropout(F.relu(self.hidden(torch.cat(parts, -1)))))

    def project(self, name: str, batch: Batch) -> Tensor:
        """f_j: B,T,D"""
        return getattr(self, f"fc_{name}")(batch.features[name].to(self.answers.weight.dtype))

    def sample(self, frames: Tensor) -> Tensor:
        """k of T frames, B,S,T,D -> B,S,k,D, in order; the same of a sample's sequences."""
        (samples, _, seconds, _), k = frames.shape, self.settings.frames
        if k >= seconds:
            return frames
        if not self.training:
            return frames[:, :, torch.linspace(0, seconds - 1, k, device=frames.device).round().long()]
        chosen = torch.rand(samples, seconds, device=frames.device).topk(k).indices.sort().values
        return frames.take_along_dim(chosen[:, None, :, None], 2)

    def read_text_object(self, batch: Batch) -> list[Tensor]:
        """The vectors of keywords and type, each B,D, if they are used."""
        if not self.settings.has_text_object:
            return []
        return [self.question(batch.texts[name])[0] for name in ("keywords", "type")]

    def per_question(self, x: Tensor, batch: Batch) -> Tensor:
        """2,V,D -> 2,B,D"""
        return x if batch.videos is None else x.index_select(1, batch.videos)

    def loss(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 14, and its terms by name before weighting."""
        s = self.settings
        terms = {"answer": F.cross_entropy(output.logits, batch.answer)}
        total = terms["answer"]
        if not s.distilled and not s.coordinates:
            return total, terms
        equal = equal_videos(batch) if s.mask_equal_videos else None
        for name in s.distilled:  # Eq. 11
            anchor, video = self.distill["question"](output.embedding), output.means[BOTH.index(name)]
            terms[f"question_{name}"] = contrast(anchor, self.distill[name](video), s.temperature, equal)
        if s.coordinates:
            audio, visual = output.crosses
            terms["audio_visual"] = contrast(visual, audio, s.temperature, equal)  # Eq. 13
        for name in list(terms)[1:]:  # in this order in every process
            total = total + getattr(s, f"{name}_weight") * terms[name]
        return total, terms

    def scores(self, output: Output) -> Tensor:
        return output.logits

    @property
    def published(self) -> str:
        """What the paper claims for this number of blocks, below the columns of the counts."""
        if self.settings.network == "mlp" or self.settings.blocks not in CLAIMS:
            return ""
        parameters, flops = CLAIMS[self.settings.blocks]
        claim = f"{'paper, Table VIII':<18}{parameters:>14.3f}{1000 * flops:>14.3f}"
        return f"{claim}  (in multiply-adds, half a FLOP; no reading of the paper gives these)"


def contrast(anchors: Tensor, others: Tensor, temperature: float, equal: Tensor | None = None) -> Tensor:
    """InfoNCE, Eqs. 11 and 13: anchors B,D and others B,D, of which number i is anchor i's positive and the rest are
    its negatives, save those where `equal` B,B is true. The mean over the anchors."""
    similar = F.normalize(anchors, dim=-1) @ F.normalize(others, dim=-1).T / temperature
    if equal is not None:
        similar = similar.masked_fill(equal, -torch.inf)
    return F.cross_entropy(similar, torch.arange(len(similar), device=similar.device))


def equal_videos(batch: Batch) -> Tensor:
    """B,B: whether two different samples are about the same video. Training batches do not name their videos; equal
    ones have equal features."""
    rows = batch.videos
    if rows is None:
        rows = torch.cat([batch.features[name].float().mean(1) for name in BOTH], -1)
    rows = rows.view(len(rows), -1)
    return (rows[:, None] == rows).all(-1).fill_diagonal_(False)
