"""QA-TIGER: question-aware Gaussian experts (Kim et al., CVPR 2025, arXiv:2503.04459).

The question's words are mixed into audio and frames first (question-aware fusion); each second then picks what it needs
from its patches; experts, each with a Gaussian over time, sum up the seconds (temporal integration); and the question
attends to the sums (question-guided reasoning).

Read beside the released code at github.com/AIM-SKKU/QA-TIGER: the comments name its modules in the order in which it
calls them. Shapes: B questions, V videos, T seconds, P patches, W words, D = `width`, E experts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models import counts, released
from pipeline.models.base import AVQAModel, Batch, select_rows
from pipeline.models.fast.attention import MultiHeadAttention
from pipeline.models.fast.dropout import add_dropped, drop
from pipeline.models.fast.linear import Linear
from pipeline.models.layers import Layer
from pipeline.models.qa_tiger.config import QATigerSettings

NARROWEST, SHARPEN = 0.09, 9  # a Gaussian's deviation is max(width, 0.09) / 9 of the video


def kaiming(layer: Linear) -> Linear:
    """All of the release's layers but attention start Kaiming-normal, with bias 0."""
    nn.init.kaiming_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """W₂ relu(W₁ x), D → D/2 → D."""

    def __init__(self, width: int):
        super().__init__()
        self.inner, self.outer = kaiming(Linear(width, width // 2)), kaiming(Linear(width // 2, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.relu(self.inner(x)))


class QuestionAwareFusion(Layer):
    """crs_attn: z = LN(x + own(x) + cross(x, y) + question(x, words)), x' = LN(z + W₂ relu(W₁ z)), for x audio and y
    visual and the other way round, with the same weights."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__(dropout)
        self.own, self.cross, self.question = (MultiHeadAttention(width, heads, dropout) for _ in range(3))
        self.inner, self.outer = kaiming(Linear(width, width)), kaiming(Linear(width, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, audio: Tensor, visual: Tensor, words: Tensor, videos: Tensor | None) -> tuple[Tensor, Tensor]:
        """audio and visual V,T,D, words B,W,D -> both B,T,D. All words of CLIP's 77 take part, padding too."""
        x, y = torch.cat([audio, visual]), torch.cat([visual, audio])
        z = add_dropped(add_dropped(x, self.own(x, x), self.rate), self.cross(x, y), self.rate)
        x, z = (torch.cat([select_rows(half, videos) for half in both.chunk(2)], 1) for both in (x, z))  # B,2T,D
        z = self.norm1(add_dropped(z, self.question(x, words), self.rate))
        hidden = drop(F.relu(self.inner(z)), self.rate)
        audio, visual = self.norm2(add_dropped(z, self.outer(hidden), self.rate)).chunk(2, 1)
        return audio, visual


class PatchSelection(Layer):
    """patch_selecter: each second's visual and audio vector attend to its patches p + own(p)."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__(dropout)
        self.own, self.cross = (MultiHeadAttention(width, heads, dropout) for _ in range(2))
        self.mlp = MLP(width)
        self.norm_visual, self.norm_audio = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, patch: Tensor, visual: Tensor, audio: Tensor, videos: Tensor | None) -> tuple[Tensor, Tensor]:
        """patch V,T,P,D, visual and audio B,T,D -> what visual and what audio select, B,T,D"""
        patch = patch.flatten(0, 1)
        patch = select_rows((patch + self.own(patch, patch)).unflatten(0, (-1, visual.shape[1])), videos)
        chosen = self.cross(torch.stack([visual, audio], 2).flatten(0, 1), patch.flatten(0, 1))
        by_visual, by_audio = self.mlp(drop(chosen, self.rate)).unflatten(0, visual.shape[:2]).unbind(2)
        return self.norm_visual(by_visual), self.norm_audio(by_audio)


class GaussianExperts(Layer):
    """at_aggregator and vt_aggregator: out = LN(Σ_j π_j Σ_t g_j(t) expert_j(x_t)) over the `top_k` experts j, for each
    of `streams` sequences x with a norm of its own."""

    def __init__(self, settings: QATigerSettings, streams: int):
        super().__init__(settings.dropout)
        width, self.top_k, self.mixes = settings.width, settings.top_k, settings.variant == "released"
        self.question = MultiHeadAttention(width, settings.heads, settings.dropout)
        self.gaussians, self.router = (kaiming(Linear(width, n * settings.experts)) for n in (2, 1))
        self.experts = nn.ModuleList(MLP(width) for _ in range(settings.experts))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(streams))

    def forward(self, query: Tensor, x: Tensor, streams: Sequence[Tensor]) -> list[Tensor]:
        """query B,D; x B,T,D, which the question weighs; each stream B,T,D -> one vector B,D each"""
        seen = self.question(query[:, None], x)[:, 0]
        weights = self.weights(self.router(seen).softmax(-1), self.curves(self.gaussians(seen), x.shape[1]))
        sums = self.integrate(torch.stack(list(streams)), weights)
        return [norm(y) for norm, y in zip(self.norms, sums, strict=True)]

    def curves(self, predicted: Tensor, seconds: int) -> Tensor:
        """Predicted shifts and widths B,2E -> g B,T,E, each with maximum 1 over the seconds. The maximum is taken of
        the exponents, since a narrow Gaussian between few seconds would be 0 everywhere."""
        count = len(self.experts)
        shift, width = predicted.unflatten(-1, (count, 2)).unbind(-1)
        margin = 1 / (2 * count)
        centres = torch.linspace(margin, 1 - margin, count, device=shift.device, dtype=shift.dtype)
        centre = (centres + margin * shift.tanh()).clamp(0, 1)
        deviation = width.sigmoid().clamp(min=NARROWEST) / SHARPEN
        time = torch.linspace(0, 1, seconds, device=shift.device, dtype=shift.dtype)[:, None]
        exponents = -(((time - centre[:, None]) / deviation[:, None]) ** 2) / 2
        return (exponents - exponents.amax(1, keepdim=True)).exp()

    def weights(self, probabilities: Tensor, curves: Tensor) -> Tensor:
        """Router's probabilities B,E and curves B,T,E -> π g of each expert at each second, B,T,E; 0 if not chosen."""
        top, chosen = probabilities.topk(self.top_k)
        top = top / top.sum(-1, keepdim=True)
        if not self.mixes:
            return torch.zeros_like(probabilities).scatter(1, chosen, top)[:, None] * curves
        batch, seconds, _ = curves.shape
        own = top[:, None] * curves.gather(2, chosen[:, None].expand(-1, seconds, -1))  # B,T,K
        row = torch.arange(batch * seconds, device=chosen.device).view(batch, seconds)
        return torch.zeros_like(curves).scatter(2, chosen[row % batch], own)

    def integrate(self, x: Tensor, weights: Tensor) -> Tensor:
        """x S,B,T,D and weights B,T,E -> Σ_e Σ_t w expert_e(x_t), S,B,D. An expert's second layer is linear, so that
        it comes after the sum over time: Σ_t w (W₂ h_t + b₂) = W₂ (Σ_t w h_t) + b₂ Σ_t w."""
        out = torch.zeros_like(x[:, :, 0])
        for expert, of_expert in zip(self.experts, weights.unbind(-1), strict=True):
            hidden = (of_expert[:, None] @ F.relu(expert.inner(x)))[..., 0, :]
            out = out + F.linear(hidden, expert.outer.weight) + of_expert.sum(1)[:, None] * expert.outer.bias
        return out


class Reasoning(Layer):
    """quest_grounding: LN(mean(d) + MLP(attention(q, d)))."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__(dropout)
        self.attention, self.mlp = MultiHeadAttention(width, heads, dropout), MLP(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, query: Tensor, *tokens: Tensor) -> Tensor:
        """query and each token B,D -> B,D"""
        tokens = torch.stack(tokens, 1)
        chosen = self.mlp(self.attention(query[:, None], tokens)[:, 0])
        return self.norm(add_dropped(tokens.mean(1), chosen, self.rate))


class QATiger(AVQAModel):
    """Equals the released model; the text encoder, which it holds frozen, is the feature extraction's here."""

    Settings = QATigerSettings
    released_prefix = ""  # and what the file lacks, its script leaves as it is
    settings: QATigerSettings

    def __init__(self, settings: QATigerSettings, shapes: dict[str, tuple[int, ...]], num_answers: int):
        super().__init__(settings, shapes, num_answers)
        self.unused: dict[str, Tensor] | None = None  # the released text encoder
        s, width = settings, settings.width
        self.fc_audio, self.fc_visual, self.fc_patch, self.fc_words, self.fc_sentence = (
            kaiming(Linear(shapes[name][-1], width))
            for name in ("audio", "visual", "patch", "words_unprojected", "sentence")
        )
        self.fusion = QuestionAwareFusion(width, s.heads, s.dropout)
        self.patches = PatchSelection(width, s.heads, s.dropout)
        self.audio_experts, self.visual_experts = GaussianExperts(s, 1), GaussianExperts(s, 2)
        self.reasoning = Reasoning(width, s.heads, s.dropout)
        self.answers = kaiming(Linear(width, num_answers))

    def forward(self, batch: Batch) -> Tensor:
        """audio B,T,…; visual B,T,…; patch B,T,P,…; words_unprojected B,W,…; sentence B,… -> logits B,num_answers"""
        dtype, videos = self.fc_audio.weight.dtype, batch.videos
        audio, visual, patch, words, query = (
            layer(source[name].to(dtype))
            for layer, source, name in (
                (self.fc_audio, batch.features, "audio"),
                (self.fc_visual, batch.features, "visual"),
                (self.fc_patch, batch.features, "patch"),
                (self.fc_words, batch.texts, "words_unprojected"),
                (self.fc_sentence, batch.texts, "sentence"),
            )
        )
        audio, visual = self.fusion(audio, visual, words, videos)
        by_visual, by_audio = self.patches(patch, visual, audio, videos)
        (of_audio,) = self.audio_experts(query, audio, [audio])
        of_visual = self.visual_experts(query, visual, [visual + by_audio, visual + by_visual])
        fused = self.reasoning(query, *of_visual)
        return self.answers(F.relu(self.reasoning(query, fused, of_audio)))

    @classmethod
    def from_released(cls, state_dict: dict[str, Tensor], **settings: Any) -> QATiger:
        """A model with the weights of a released checkpoint, in the released variant unless `settings` says otherwise.
        Sizes follow the tensors. Raises ValueError when a name is missing or unknown, or a shape does not fit."""
        width, audio = released.shape_of(state_dict, "audio_proj.proj.weight")
        dims = {
            name: released.shape_of(state_dict, f"{theirs}_proj.proj.weight")[1]
            for name, theirs in (("visual", "video"), ("patch", "patch"), ("words_unprojected", "words"),
                                 ("sentence", "quest"))
        } | {"audio": audio}  # fmt: skip
        experts = released.shape_of(state_dict, "at_aggregator.router.0.weight")[0]
        sizes = {"variant": "released", "width": width, "experts": experts, "top_k": min(7, experts)}
        inputs = (cls.Settings.features | cls.Settings.texts).items()
        shapes = {name: (*shape[:-1], dims[name]) for name, shape in inputs}
        answers = released.shape_of(state_dict, "head.weight")[0]
        model = cls(cls.Settings.from_dict(sizes | settings), shapes, answers)
        model.to(state_dict["head.weight"].dtype)
        model.unused = released.load(model, model.released_modules(), state_dict, frozen="quest_encoder.")
        return model

    def released_state_dict(self) -> dict[str, Tensor]:
        """The weights under the released names; the text encoder's too if it was in the checkpoint."""
        return released.save(self, self.released_modules(), self.unused)

    def released_modules(self) -> released.Modules:
        """Ours by released name."""

        def mlp(theirs: str, ours: str) -> released.Modules:
            return {f"{theirs}.0": f"{ours}.inner", f"{theirs}.2": f"{ours}.outer"}

        def aggregator(theirs: str, ours: str, *norms: str) -> released.Modules:
            modules: released.Modules = {f"{theirs}.{norm}": f"{ours}.norms.{n}" for n, norm in enumerate(norms)}
            modules |= {f"{theirs}.qst_attn": f"{ours}.question", f"{theirs}.gauss_pred.0": f"{ours}.gaussians"}
            modules |= {f"{theirs}.router.0": f"{ours}.router"}
            for n in range(self.settings.experts):
                modules |= mlp(f"{theirs}.experts.{n}", f"{ours}.experts.{n}")
            return modules

        return {
            "audio_proj.proj": "fc_audio",
            "video_proj.proj": "fc_visual",
            "patch_proj.proj": "fc_patch",
            "words_proj.proj": "fc_words",
            "quest_proj.proj": "fc_sentence",
            "crs_attn.qst_attn": "fusion.question",
            "crs_attn.crs_attn": "fusion.cross",
            "crs_attn.slf_attn": "fusion.own",
            "crs_attn.linear1": "fusion.inner",
            "crs_attn.linear2": "fusion.outer",
            "crs_attn.norm1": "fusion.norm1",
            "crs_attn.norm2": "fusion.norm2",
            "patch_selecter.vnorm": "patches.norm_visual",
            "patch_selecter.anorm": "patches.norm_audio",
            "patch_selecter.slf_attn": "patches.own",
            "patch_selecter.crs_attn": "patches.cross",
            **mlp("patch_selecter.mlp", "patches.mlp"),
            "quest_grounding.norm": "reasoning.norm",
            "quest_grounding.attn": "reasoning.attention",
            **mlp("quest_grounding.mlp", "reasoning.mlp"),
            **aggregator("at_aggregator", "audio_experts", "norm"),
            **aggregator("vt_aggregator", "visual_experts", "anorm", "vnorm"),
            "head": "answers",
        }

    def counted(self) -> dict[str, list[counts.Count]]:
        """The released code's layers without its text encoder, by the field's convention, for one sample."""
        d, experts, t = self.settings.width, self.settings.experts, self.shapes["audio"][0]
        rows = {name: t for name in ("audio", "visual")} | {"sentence": 1}
        rows |= {"patch": t * self.shapes["patch"][1], "words_unprojected": self.shapes["words_unprojected"][0]}

        def mlp(n: int) -> list[counts.Count]:
            return [counts.linear(d, d // 2, n), counts.linear(d // 2, d, n)]

        def aggregator(streams: int) -> list[counts.Count]:
            layers = [counts.linear(d, 2 * experts, 1), counts.linear(d, experts, 1), *[counts.norm(d, 1)] * streams]
            return layers + experts * mlp(streams * t)

        return {
            "input projections": [counts.linear(self.shapes[name][-1], d, n) for name, n in rows.items()],
            "question-aware fusion": [*[counts.linear(d, d, 2 * t)] * 2, *[counts.norm(d, 2 * t)] * 2],
            "patch selection": [*mlp(2 * t), *[counts.norm(d, t)] * 2],
            "Gaussian experts": aggregator(1) + aggregator(2),
            "reasoning": [*mlp(2), counts.norm(d, 2)],
            "answers": [counts.linear(d, self.num_answers, 1)],
        }

    @property
    def published(self) -> str:
        return "published: 63.09 M, 9.57 G (AV-Master's Table VII, with CLIP's text encoder)"
