"""AVAF-Net: audio-visual adaptive fusion based on contrastive learning.

Xujian Zhao, Yixin Wang, Peiquan Jin: Audio-Visual Adaptive Fusion Network for Question Answering Based on Contrastive
Learning. AAAI 2025. No code is published, and the paper states no parameter count.

Audio and the tokens of frames attend to the question's words (AVCM), the words attend to what they found, and weights
made from the question mix the two modalities (QOAF). Two losses align the modalities in time (TACL) and audio and
question with the right tokens in space (SACL).

Shapes: B samples, T seconds, N tokens per frame, M words, D = `width`. The table has what the paper leaves open, and
the reading here. APL is Object-Aware Adaptive-Positivity Learning (Li et al., AAAI 2024), the source of the spatial
loss.

| the paper | the reading |
|---|---|
| "512-D features" of CLIP-ViT | ViT-B/32 after the projection, CLS and 49 patches: N = 50, 1/N near φ = 0.019 |
| T; "a fixed number of frames" per segment | T = 60 with one frame per second ("1 fps") |
| words and sentence, "the [CLS] token" | CLIP's text rows up to the end of text, not further; the end-of-text row |
| no projection of words and sentence | none, unless `width` is not theirs |
| MultiHead, FFN | as in APL: z = LN(x + att), LN(z + W₂ relu(W₁ z)); 4 heads, hidden width 2048, dropout 0.1 |
| "interaction matrix … average it" | `vocal`: a second's tokens, weighted by their similarity to its audio |
| sim (Eqs. 1, 2) | cosine, as in Eq. 6 |
| L_d, "the L1 distance" | the absolute difference of two numbers |
| Eqs. 1 and 2 are of the sample at time i | the mean over i and the batch |
| K in the numerator of Eq. 8 | M, all positives: at φ = 0 the loss is 0, as Tables 3 and 4 agree |
| no positive token (φ > 1/N) | the numerator is at least 0.001, as in APL |
| α, τ | 0.2 (the best β) and 0.4 (APL's); the paper gives neither |
| one β for two spatial losses | yes (Eqs. 9, 14) |
| Weight (Eq. 12) | softmax of a linear layer, as in APL |
| "linear classification layer" on M rows | the mean over the question's words first; `pooling` has APL's attention |
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.avaf_net.config import AVAFNetSettings
from pipeline.models.base import AVQAModel, Batch
from pipeline.models.fast.attention import MultiHeadAttention
from pipeline.models.fast.dropout import add_dropped, drop
from pipeline.models.fast.linear import Linear

LEAST_POSITIVE = 1e-3  # of the numerator of Eq. 8
EPSILON = 1e-8  # least length of a vector in a cosine


class Output(NamedTuple):
    """Logits and what the losses compare."""

    logits: Tensor  # B,num_answers
    tokens: Tensor  # P: B,T,N,D
    audio: Tensor  # A: B,T,D
    token_clues: Tensor  # P' (Eq. 4): B,T,N,D
    audio_clues: Tensor  # A' (Eq. 5): B,T,D
    sentence: Tensor  # F_q: B,D
    weights: Tensor  # δ₁ of the tokens and δ₂ of the audio (Eq. 12): B,2


class Block(nn.Module):
    """FFN(MultiHead(x, memory, memory)) of Eqs. 4, 5, 10 and 11: z = LN(x + att), LN(z + W₂ relu(W₁ z))."""

    def __init__(self, settings: AVAFNetSettings):
        super().__init__()
        width = settings.width
        self.attention = MultiHeadAttention(width, settings.heads, settings.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.linear1, self.linear2 = Linear(width, settings.hidden), Linear(settings.hidden, width)

    def forward(self, x: Tensor, memory: Tensor, rate: float, mask: Tensor | None = None) -> Tensor:
        """x B,Q,D attends to memory B,K,D where `mask` B,K is true -> B,Q,D"""
        z = self.norm1(add_dropped(x, self.attention(x, memory, mask), rate))
        hidden = drop(F.relu(self.linear1(z)), rate)
        return self.norm2(add_dropped(z, self.linear2(hidden), rate))


class Fusion(nn.Module):
    """QOAF, Eqs. 10 to 13."""

    def __init__(self, settings: AVAFNetSettings):
        super().__init__()
        width, without = settings.width, settings.without
        has_blocks = "qoaf" not in without
        self.of_tokens, self.of_audio = (Block(settings) if has_blocks else None for _ in range(2))
        self.weigh = nn.Linear(width, 2) if has_blocks and "weights" not in without else None
        self.fc = Linear(2 * width, width)

    def forward(
        self, words: Tensor, sentence: Tensor, tokens: Tensor, audio: Tensor, rate: float
    ) -> tuple[Tensor, Tensor]:
        """words B,M,D, sentence B,D, P' B,T·N,D and A' B,T,D -> F_fuse B,M,D (B,1,D without Eqs. 10 and 11), δ B,2"""
        if self.of_tokens is None:
            tokens, audio = tokens.mean(1, keepdim=True), audio.mean(1, keepdim=True)
        else:
            tokens, audio = self.of_tokens(words, tokens, rate), self.of_audio(words, audio, rate)  # Eqs. 10, 11
        equal = torch.ones(len(sentence), 2, dtype=sentence.dtype, device=sentence.device)
        weights = equal if self.weigh is None else self.weigh(sentence).softmax(-1)  # Eq. 12
        first, second = weights[:, None].unsqueeze(-1).unbind(2)
        return self.fc(torch.cat([first * tokens, second * audio], -1)), weights  # Eq. 13


class AVAFNet(AVQAModel):
    """Audio, CLS and patch rows of frames, words and the sentence to an answer."""

    Settings = AVAFNetSettings
    score_fields = ("logits",)
    settings: AVAFNetSettings

    def __init__(self, settings: AVAFNetSettings, shapes: dict[str, tuple[int, ...]], num_answers: int):
        super().__init__(settings, shapes, num_answers)
        width, text_width = settings.width, shapes["words"][-1]
        self.fc_tokens, self.fc_audio = Linear(shapes["patch"][-1], width), Linear(shapes["audio"][-1], width)
        self.fc_text = Linear(text_width, width) if text_width != width else nn.Identity()
        has_avcm = "avcm" not in settings.without
        self.mine_tokens, self.mine_audio = (Block(settings) if has_avcm else None for _ in range(2))
        self.fusion = Fusion(settings)
        self.pool = None
        if settings.pooling == "attention":
            hidden, score = nn.Linear(width, width), nn.Linear(width, 1, bias=False)
            self.pool = nn.Sequential(hidden, nn.ReLU(), nn.Dropout(settings.dropout), score)
        self.answers = nn.Linear(width, num_answers)

    def forward(self, batch: Batch) -> Output:
        """audio B,T,…; visual B,T,…; patch B,T,N,…; words B,M,…; sentence B,…; length B, how many rows of
        words are the question's (0: all)."""
        rate = self.settings.dropout if self.training else 0.0
        words, sentence, mask = self.read_question(batch)
        audio, tokens = self.read_video(batch)
        b, t, n, width = tokens.shape
        token_clues, audio_clues = tokens.flatten(1, 2), audio
        if self.mine_tokens is not None:
            token_clues = self.mine_tokens(token_clues, words, rate, mask)  # Eq. 4
            audio_clues = self.mine_audio(audio, words, rate, mask)  # Eq. 5
        fused, weights = self.fusion(words, sentence, token_clues, audio_clues, rate)
        logits = self.answers(self.pooled(fused, mask))
        return Output(logits, tokens, audio, token_clues.view(b, t, n, width), audio_clues, sentence, weights)

    def read_question(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """words B,M,D, where M is the number of words of the batch's longest question; sentence B,D; and which rows
        are words of the question, B,M. Rows past the longest change nothing: no key, and no part of a mean."""
        length = batch.texts["length"]
        length = torch.where(length > 0, length, batch.texts["words"].shape[1])
        mask = torch.arange(int(length.max()), device=length.device) < length[:, None]
        dtype = self.answers.weight.dtype
        words, sentence = (batch.texts[name].to(dtype) for name in ("words", "sentence"))
        return self.fc_text(words[:, : mask.shape[1]]), self.fc_text(sentence), mask

    def read_video(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """A B,T,D and P B,T,N,D, of each video once and then of each question."""
        dtype = self.answers.weight.dtype
        audio, visual, tokens = (batch.features[name].to(dtype) for name in ("audio", "visual", "patch"))
        if self.settings.cls_token:
            tokens = torch.cat([visual[:, :, None], tokens], 2)
        return batch.per_question(self.fc_audio(audio)), batch.per_question(self.fc_tokens(tokens))

    def pooled(self, fused: Tensor, mask: Tensor) -> Tensor:
        """F_fuse B,M,D -> B,D"""
        if fused.shape[1] == 1:
            return fused[:, 0]
        if self.pool is None:
            share = mask / mask.sum(1, keepdim=True)
        else:
            share = self.pool(fused).squeeze(-1).masked_fill(~mask, -torch.inf).softmax(-1)
        return (share.to(fused.dtype).unsqueeze(1) @ fused).squeeze(1)

    def loss(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 14, and its terms by name before weighting."""
        s = self.settings
        terms = {"answer": F.cross_entropy(output.logits, batch.answer)}
        total = terms["answer"]
        if s.alpha:
            terms["temporal"] = temporal_alignment(output.tokens, output.audio, s.vocal)
            total = total + s.alpha * terms["temporal"]
        if s.beta:
            anchors = torch.stack([output.sentence[:, None].expand_as(output.audio_clues), output.audio_clues], 2)
            losses = spatial_alignment(output.token_clues, anchors, s.threshold, s.temperature, s.other_videos)
            terms["spatial"] = losses.sum()  # Eq. 9
            total = total + s.beta * terms["spatial"]
        return total, terms

    def scores(self, output: Output) -> Tensor:
        return output.logits


def temporal_alignment(tokens: Tensor, audio: Tensor, vocal: str = "attention") -> Tensor:
    """TACL, Eqs. 1 to 3: P B,T,N,D and A B,T,D -> L_Temp, the mean over the batch and its seconds."""
    voices = vocalization(tokens, audio, vocal)
    a, v, s = (F.normalize(x, dim=-1, eps=EPSILON) for x in (audio, tokens.mean(2), voices))
    of_audio, across, of_visual, of_voices = a @ a.mT, a @ v.mT, v @ v.mT, s @ s.mT
    first = (across - of_audio).abs().mean() + (across - of_visual).abs().mean()  # Eq. 1
    return first + (of_audio - of_voices).abs().mean()  # Eqs. 2, 3


def vocalization(tokens: Tensor, audio: Tensor, kind: str) -> Tensor:
    """F_s: P B,T,N,D and A B,T,D -> B,T,D, as `kind` says (AVAFNetSettings.vocal)."""
    if kind == "gate":
        return tokens.mean(2) * audio
    if kind == "product":
        weights = tokens @ audio.unsqueeze(-1) / tokens.shape[2]
    else:
        weights = cosines(tokens, audio.unsqueeze(2)).softmax(2)
    return (weights.mT @ tokens).squeeze(2)


def cosines(tokens: Tensor, anchors: Tensor) -> Tensor:
    """…,N,D and …,K,D -> …,N,K"""
    products = tokens @ F.normalize(anchors, dim=-1, eps=EPSILON).mT
    return products / tokens.norm(dim=-1, keepdim=True).clamp(min=EPSILON)


def spatial_alignment(
    tokens: Tensor, anchors: Tensor, threshold: float, temperature: float, other_videos: bool = False
) -> Tensor:
    """SACL, Eqs. 6 to 8, for K anchors per second: P' B,T,N,D and anchors B,T,K,D -> K losses, each the mean over the
    batch and its seconds. The threshold passes no gradient."""
    p = cosines(tokens, anchors).softmax(2)  # Eq. 6
    scaled = p / temperature
    positive = scaled.masked_fill(p <= threshold, -1e4).logsumexp(2)  # Eqs. 7, 8; of no positives about −10⁴
    least = torch.tensor(LEAST_POSITIVE, dtype=p.dtype, device=p.device).log()
    everything = scaled.logsumexp(2)
    if other_videos and len(tokens) > 1:
        everything = (everything.exp() + other_cosines(tokens, anchors)).log()
    return (everything - torch.maximum(positive, least)).mean((0, 1))


def other_cosines(tokens: Tensor, anchors: Tensor) -> Tensor:
    """B,T,K: the mean cosine of each anchor with the tokens of the same second of the batch's other samples."""
    means = F.normalize(tokens, dim=-1, eps=EPSILON).mean(2)
    others = (means.sum(0) - means) / (len(tokens) - 1)
    return (F.normalize(anchors, dim=-1, eps=EPSILON) @ others.unsqueeze(-1)).squeeze(-1)
