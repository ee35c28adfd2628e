"""AVST: spatio-temporal grounding, MUSIC-AVQA's own baseline (Li et al., CVPR 2022, arXiv:2203.14072).

Each second's audio attends to its frame's map (spatial grounding), is matched with frames of its own and of another
video (the match loss), and the question attends to audio and grounded frames over time (temporal grounding).

Read beside the released code, net_grd_avst/net_avst.py at github.com/GeWu-Lab/MUSIC-AVQA. Shapes: B questions,
V videos, T seconds, L tokens of a question, D = 512 channels of the map, S = 196 positions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models import counts, released
from pipeline.models.avst.config import AVSTSettings
from pipeline.models.base import AVQAModel, Batch, select_rows
from pipeline.models.fast.linear import Linear
from pipeline.models.layers import QueryLayer


class Output(NamedTuple):
    """Logits of the answers B,num_answers, and of the match of each second's audio with its frame and with one of
    another video, 2,B,T,2; None without negatives."""

    answers: Tensor
    match: Tensor | None


class QuestionEncoder(nn.Module):
    """question_encoder: an LSTM over all tokens, padding included; its last output and cell state are the feature."""

    def __init__(self, num_tokens: int, width: int):
        super().__init__()
        self.words = nn.Embedding(num_tokens, width)
        self.lstm, self.out = nn.LSTM(width, width, batch_first=True), Linear(2 * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """B,L int64 -> B,D"""
        _, (hidden, cell) = self.lstm(self.words(tokens).tanh())
        return self.out(torch.cat([hidden[0], cell[0]], -1).tanh())


class AVST(AVQAModel):
    """Equals the released model without the ResNet that it holds and never calls. Its width D is the map's channels."""

    Settings = AVSTSettings
    score_fields = ("answers",)
    settings: AVSTSettings

    def __init__(
        self,
        settings: AVSTSettings,
        shapes: dict[str, tuple[int, ...]],
        num_answers: int,
        *,
        num_tokens: int,
    ):
        super().__init__(settings, shapes, num_answers, num_tokens=num_tokens)
        self.unused: dict[str, Tensor] | None = None  # released tensors without use, by name
        width = self.width = shapes["map"][1]
        if width % 4:
            raise ValueError(f"map: its {width} channels are not a multiple of the 4 attention heads")
        self.fc_audio1, self.fc_audio2 = Linear(shapes["audio"][-1], width), Linear(width, width)
        self.ground = Linear(2 * width, width)
        sizes = (2 * width, width, width // 2, width // 4, 2)
        self.match = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))
        self.question = QuestionEncoder(num_tokens, width)
        self.on_audio, self.on_visual = (QueryLayer(width, settings.dropout) for _ in range(2))
        self.fuse, self.answers = Linear(2 * width, width), Linear(width, num_answers)

    @property
    def needs_negatives(self) -> bool:
        return self.settings.match_weight > 0 or self.settings.stage == "match"

    def forward(self, batch: Batch) -> Output:
        """audio B,T,…; map B,T,D,…; tokens B,L int64; of negatives the map. The match is computed with negatives."""
        dtype = self.answers.weight.dtype
        audio = batch.features["audio"].to(dtype)
        audio = self.fc_audio2(F.relu(self.fc_audio1(audio)))
        visual = self.attend(audio, batch.features["map"].to(dtype))
        match = None
        if batch.negatives is not None:
            other = self.attend(audio, batch.negatives["map"].to(dtype))
            match = torch.stack([torch.cat([audio, x], -1) for x in (visual, other)])
            for n, layer in enumerate(self.match):
                match = layer(F.relu(match) if n else match)
        audio, visual = select_rows(audio, batch.videos), select_rows(visual, batch.videos)
        query = self.question(batch.texts["tokens"])
        grounded = [
            layer(query[:, None], x)[:, 0] + x.mean(1)
            for layer, x in ((self.on_audio, audio), (self.on_visual, visual))
        ]
        fused = self.fuse(torch.cat(grounded, -1).tanh())
        return Output(self.answers((fused * query).tanh()), match)

    def attend(self, audio: Tensor, maps: Tensor) -> Tensor:
        """Spatial grounding of each second: audio V,T,D and maps V,T,D,… -> V,T,D.

        The release scales each position's vector m_s to length 1, u_s = m_s / |m_s|. Scores u_s·a = (m_s·a) / |m_s| and
        the sum Σ π_s u_s = Σ (π_s / |m_s|) m_s need no scaled copy of the map."""
        maps = maps.flatten(3)
        length = torch.linalg.vector_norm(maps, dim=2).clamp(min=1e-12)
        weights = ((F.normalize(audio, dim=-1)[:, :, None] @ maps)[:, :, 0] / length).softmax(-1)
        attended = (maps @ (weights / length)[..., None])[..., 0]
        return self.ground(torch.cat([maps.mean(-1), attended], -1).tanh())

    def loss(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """CE(answer) + λ CE(match), or the match alone in its stage; the terms by name before weighting."""
        terms = {"answer": F.cross_entropy(output.answers, batch.answer)} if self.settings.stage == "answer" else {}
        if output.match is not None:
            labels = torch.tensor([1, 0], device=output.match.device)[:, None, None].expand(output.match.shape[:3])
            terms["match"] = F.cross_entropy(output.match.flatten(0, 2), labels.flatten())
        if self.settings.stage == "match":
            return terms["match"], terms
        weights = {"answer": 1.0, "match": self.settings.match_weight}
        return sum(weights[name] * term for name, term in terms.items()), terms

    def scores(self, output: Output) -> Tensor:
        return output.answers

    @classmethod
    def from_released(cls, state_dict: dict[str, Tensor], **settings: Any) -> AVST:
        """A model with the weights of a released checkpoint; sizes follow the tensors. Raises ValueError when a name is
        missing or unknown, or a shape does not fit."""
        width, audio = released.shape_of(state_dict, "fc_a1.weight")
        tokens = released.shape_of(state_dict, "question_encoder.word2vec.weight")[0]
        answers = released.shape_of(state_dict, "fc_ans.weight")[0]
        shapes = {"audio": (10, audio), "map": (10, width, 14, 14), "tokens": (14,)}
        model = cls(cls.Settings.from_dict(settings), shapes, answers, num_tokens=tokens)
        model.to(state_dict["fc_ans.weight"].dtype)
        model.unused = released.load(model, model.released_modules(), state_dict, frozen="visual_net.")
        return model

    def released_state_dict(self) -> dict[str, Tensor]:
        """The weights under the released names; the ResNet's too if it was in the checkpoint."""
        return released.save(self, self.released_modules(), self.unused)

    def released_checkpoint(self) -> dict[str, Tensor]:
        """With a ResNet-18, which the released script needs there although no answer depends on it."""
        tensors = super().released_checkpoint()
        if any("visual_net." in name for name in tensors):
            return tensors
        from torchvision.models import resnet18

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            frozen = resnet18().state_dict() | {"conv1_a.weight": torch.zeros(64, 1, 7, 7)}
        return tensors | {f"{self.released_prefix}visual_net.{name}": tensor for name, tensor in frozen.items()}

    def released_modules(self) -> released.Modules:
        """Ours by released name."""
        d, audio = self.width, self.shapes["audio"][-1]
        return {
            "fc_a1": "fc_audio1",
            "fc_a2": "fc_audio2",
            "fc_a1_pure": lambda: nn.Linear(audio, d),
            "fc_a2_pure": lambda: nn.Linear(d, d),
            "fc_v": lambda: nn.Linear(2048, d),
            "fc_st": lambda: nn.Linear(d, d),
            "fc_fusion": "fuse",
            "fc": lambda: nn.Linear(2 * d, d),
            "fc_aq": lambda: nn.Linear(d, d),
            "fc_vq": lambda: nn.Linear(d, d),
            "linear11": "on_visual.feed_forward.inner",
            "linear12": "on_visual.feed_forward.outer",
            "linear21": "on_audio.feed_forward.inner",
            "linear22": "on_audio.feed_forward.outer",
            "norm1": "on_visual.feed_forward.norm",
            "norm2": "on_audio.feed_forward.norm",
            "norm3": lambda: nn.LayerNorm(d),
            "attn_a": "on_audio.attention",
            "attn_v": "on_visual.attention",
            "question_encoder.word2vec": "question.words",
            "question_encoder.lstm": "question.lstm",
            "question_encoder.fc": "question.out",
            "fc_ans": "answers",
            "fc_gl": "ground",
            **{f"fc{n + 1}": f"match.{n}" for n in range(4)},
        }

    def counted(self) -> dict[str, list[counts.Count]]:
        """The released code's layers by the field's convention, for one sample with its negative and without the
        ResNet. thop has a pooled value of S positions cost S + 1 operations, and knows no embeddings."""
        d, t = self.width, self.shapes["audio"][0]
        positions = self.shapes["map"][2] * self.shapes["map"][3]
        step = 4 * (2 * d * d + 3 * d) + 4 * d  # of the LSTM
        sizes = [(layer.in_features, layer.out_features) for layer in self.match]
        return {
            "question": [
                counts.Count(8 * d * d + 8 * d, step * self.shapes["tokens"][0]), counts.linear(2 * d, d, 1)
            ],
            "audio": [counts.linear(self.shapes["audio"][-1], d, t), counts.linear(d, d, t)],
            "spatial grounding": [counts.linear(2 * d, d, 2 * t), counts.Count(0, 2 * t * d * (positions + 1))],
            "match": [counts.linear(a, b, 2 * t) for a, b in sizes],
            "temporal grounding": [counts.feed_forward(d, 1)] * 2,
            "fusion and answers": [counts.linear(2 * d, d, 1), counts.linear(d, self.num_answers, 1)],
        }  # fmt: skip

    @property
    def published(self) -> str:
        return "published: 18.480 M, 3.188 G (PSTP-Net's Table 2, with a ResNet-18)"
