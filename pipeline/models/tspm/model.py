"""TSPM: temporal-spatial perception by key semantic-aware cues (Li, Du and Hu, ACM MM 2024, arXiv:2407.20693).

A declarative prompt made from the question chooses the seconds whose frames are closest to it; in each of these the
audio attends to the frame's patches; the question then attends to the chosen audio and to the result.

Read beside the released code at github.com/GeWu-Lab/TSPM: the comments name its modules in the order in which it calls
them. Shapes: B questions, V videos, T seconds, P patches, D = `width`, k = `top_k`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pipeline.models import counts, released
from pipeline.models.base import AVQAModel, Batch, select_rows
from pipeline.models.fast.attention import MultiHeadAttention
from pipeline.models.fast.linear import Linear
from pipeline.models.layers import CrossModalLayer, QueryLayer, SelfLayer
from pipeline.models.tspm.config import TSPMSettings


class SelectSeconds(nn.Module):
    """TemporalPerception: the k seconds to which the prompt attends most, in order of time. Nothing that is chosen by
    rank has a gradient, so that these weights keep their initial values in training, in the release too."""

    def __init__(self, prompt: int, width: int, dropout: float):
        super().__init__()
        self.prompt, self.attention = Linear(prompt, width), MultiHeadAttention(width, 4, dropout)

    @torch.no_grad()
    def forward(self, prompt: Tensor, visual: Tensor, k: int) -> Tensor:
        """prompt B,… and visual B,T,D -> B,k seconds"""
        weights = self.attention.weights(self.prompt(prompt)[:, None], visual)[:, 0]
        return weights.topk(k).indices.sort().values


class TSPM(AVQAModel):
    """Equals the released model, or the copy of it in QA-TIGER's repository, as `variant` says."""

    Settings = TSPMSettings
    settings: TSPMSettings

    def __init__(self, settings: TSPMSettings, shapes: dict[str, tuple[int, ...]], num_answers: int):
        super().__init__(settings, shapes, num_answers)
        width, dropout = settings.width, settings.dropout
        if shapes["audio"][0] < settings.top_k:
            raise ValueError(f"top_k: {settings.top_k} of {shapes['audio'][0]} seconds cannot be chosen")
        self.unused: dict[str, Tensor] | None = None  # released tensors without use, by name
        self.fc_audio, self.fc_visual, self.fc_patch, self.fc_sentence = (
            Linear(shapes[name][-1], width) for name in ("audio", "visual", "patch", "sentence")
        )
        self.exchange = CrossModalLayer(width, dropout)
        self.select = SelectSeconds(shapes["prompt"][-1], width, dropout)
        self.tokens, self.spatial = SelfLayer(width, dropout), QueryLayer(width, dropout)
        self.grounding = QueryLayer(width, dropout)
        self.fuse, self.answers = Linear(6 * width, width), Linear(width, num_answers)

    def forward(self, batch: Batch) -> Tensor:
        """audio B,T,…; visual B,T,…; patch B,T,P,…; sentence B,…; prompt B,… -> logits"""
        dtype, videos = self.fc_audio.weight.dtype, batch.videos
        audio, visual = (layer(batch.features[name].to(dtype))
                         for layer, name in ((self.fc_audio, "audio"), (self.fc_visual, "visual")))  # fmt: skip
        query = self.fc_sentence(batch.texts["sentence"].to(dtype))
        # AV_Attn, over all seconds; only its means over time are used
        means = self.exchange(torch.cat([audio, visual]), torch.cat([visual, audio])).mean(1)
        mean_audio, mean_visual = (select_rows(half, videos) for half in means.chunk(2))
        # TemporalPerception
        seconds = self.select(batch.texts["prompt"].to(dtype), select_rows(visual, videos), self.settings.top_k)
        row = torch.arange(len(query), device=query.device) if videos is None else videos
        chosen = audio[row[:, None], seconds]
        # SpatioPerception
        if self.settings.variant == "released":
            seconds = torch.arange(self.settings.top_k, device=seconds.device).expand_as(seconds)
        spatial = self.perceive(chosen, batch.features["patch"][row[:, None], seconds].to(dtype))
        # QstTempGrd_Module and fusion
        grounded = (self.grounding(query[:, None], x)[:, 0] for x in (chosen, spatial))
        parts = zip(grounded, (mean_audio, mean_visual), (chosen.mean(1), spatial.mean(1)), strict=True)
        fused = self.fuse(torch.cat([x for part in parts for x in part], -1).tanh())
        return self.answers((fused * query).tanh())

    def perceive(self, audio: Tensor, patch: Tensor) -> Tensor:
        """audio B,k,D of some seconds attends to the patches B,k,P,… of as many frames: B,k,D"""
        tokens = self.tokens(self.fc_patch(patch).flatten(0, 1))
        return self.spatial(audio.flatten(0, 1)[:, None], tokens)[:, 0].view_as(audio)

    @classmethod
    def from_released(cls, state_dict: dict[str, Tensor], **settings: Any) -> TSPM:
        """A model with the weights of a released checkpoint, in the released variant unless `settings` says otherwise.
        Sizes follow the tensors. Raises ValueError when a name is missing or unknown, or a shape does not fit."""
        layers = {"audio": "a", "visual": "v", "patch": "v_patch", "sentence": "qst", "prompt": "qst_prompt"}
        dims = {name: released.shape_of(state_dict, f"input_{layer}.weight")[1] for name, layer in layers.items()}
        answers, width = released.shape_of(state_dict, "answer_pred_fc.weight")
        inputs = (cls.Settings.features | cls.Settings.texts).items()
        shapes = {name: (*shape[:-1], dims[name]) for name, shape in inputs}
        model = cls(cls.Settings.from_dict({"variant": "released", "width": width} | settings), shapes, answers)
        model.to(state_dict["answer_pred_fc.weight"].dtype)
        model.unused = released.load(model, model.released_modules(), state_dict)
        return model

    def released_state_dict(self) -> dict[str, Tensor]:
        """The weights under the released names."""
        return released.save(self, self.released_modules(), self.unused)

    def released_modules(self) -> released.Modules:
        """Ours by released name."""
        width, temporal = self.settings.width, released.query("TemporalPerception", "")
        used = {"TemporalPerception.attn_qst_query": "select.attention"}
        tokens = released.cross_modal("SpatioPerception.TokensAttn", "tokens")
        del tokens["SpatioPerception.TokensAttn.cm_attn"]
        return {
            "input_a": "fc_audio",
            "input_v": "fc_visual",
            "input_v_patch": "fc_patch",
            "input_qst": "fc_sentence",
            "input_qst_prompt": "select.prompt",
            **released.cross_modal("AV_Attn.layers.0", "exchange"),
            **released.without_use({"AV_Attn.norm1": "", "AV_Attn.norm2": ""}, width),
            **(released.without_use(temporal, width) | used),
            **released.query("SpatioPerception", "spatial"),
            **tokens,
            **released.query("QstTempGrd_Module", "grounding"),
            "av_fusion_fc": "fuse",
            "answer_pred_fc": "answers",
        }

    def counted(self) -> dict[str, list[counts.Count]]:
        """The released code's layers by the field's convention, for one sample."""
        d, k, t, (frames, patches, _) = (
            self.settings.width,
            self.settings.top_k,
            self.shapes["audio"][0],
            self.shapes["patch"],
        )
        rows = {"audio": t, "visual": t, "patch": frames * patches, "sentence": 1, "prompt": 1}
        dims = {name: shape[-1] for name, shape in self.shapes.items()}
        return {
            "input projections": [counts.linear(dims[name], d, n) for name, n in rows.items()],
            "audio-visual attention": [counts.norm(d, 2 * t), counts.feed_forward(d, 2 * t)],
            "temporal perception": [counts.feed_forward(d, 1)],
            "spatial perception": [
                counts.norm(d, k * patches), counts.feed_forward(d, k * patches), counts.feed_forward(d, k)
            ],
            "question grounding": [counts.feed_forward(d, 2)],
            "fusion and answers": [counts.linear(6 * d, d, 1), counts.linear(d, self.num_answers, 1)],
        }  # fmt: skip

    @property
    def published(self) -> str:
        return "published: none known"
