"""PSTP-Net: progressive spatio-temporal perception (Li, Hou and Hu, ACM MM 2023, arXiv:2308.05421).

The question chooses the segments of the video that matter (TSSM, Eqs. 1 to 8), then the patches of their frames (SRSM,
Eqs. 9 to 11), to which the frames' audio attends (AVAM, Eqs. 12 and 13); audio and frames of the whole video attend to
each other (LGPM, Eqs. 14 and 15). All of it is fused with the question (Eqs. 16 and 17).

| | paper | released | concat_all |
|---|---|---|---|
| Eqs. 1 to 4, attention within segments | as printed, with the release's layer | not called | not called |
| Eqs. 10 and 11, patches | the m best of each frame | the last of sample 0's m best in frame 0, for all frames of all samples, m times | as released |
| Eqs. 12 and 13, audio-guided patches | one row for each patch | one row for each frame | as released |
| Eqs. 14 and 15, whole video | as printed, with the release's layer | computed, then the inputs are returned | as released |
| tokens that are fused | all modules' | audio, visual and words only | all modules' |
| K, k, m | 20, 7, 20 | 12, 2, 25 | 12, 2, 25 |

concat_all is the release with its commented-out concatenation, and gives the paper's parameter and operation counts.
Readings of the paper that leave a choice are marked "Reading". Shapes: B questions, V videos, T seconds, L seconds of a
segment, F frames of the chosen segments, N patches of a frame, W words, D = `width`.
"""  # noqa: E501

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models import counts, fast, released
from pipeline.models.base import AVQAModel, Batch, select_rows
from pipeline.models.fast.attention import MultiHeadAttention
from pipeline.models.fast.linear import Linear, linear
from pipeline.models.layers import CrossModalLayer, QueryLayer, SelfLayer
from pipeline.models.pstp_net.config import PSTPNetSettings

RELEASED = {"variant": "released", "segments": 12, "top_k": 2, "top_m": 25}


class SelectSegments(nn.Module):
    """TSSM after Eq. 4. What is chosen by rank has no gradient, so that these weights keep their initial values in
    training, in the release too."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.merge, self.attention = Linear(2 * width, width), MultiHeadAttention(width, 4, dropout)

    @torch.no_grad()
    def forward(self, query: Tensor, audio: Tensor, visual: Tensor, k: int) -> Tensor:
        """query B,D; audio and visual of segments B,S,L,D -> B,k segments in order of time"""
        means = torch.cat([audio.mean(2), visual.mean(2)], -1)
        weights = self.attention.weights(query[:, None], self.merge(means.tanh()))[:, 0]  # Eq. 5
        return weights.topk(k).indices.sort().values  # Eq. 6


class SelectPatches(nn.Module):
    """SRSM; without gradients like SelectSegments."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.attention = MultiHeadAttention(width, 4, dropout)

    @torch.no_grad()
    def forward(self, query: Tensor, patch: Tensor, m: int) -> Tensor:
        """query B,D and patch B,F,N,D -> B,F,m patches in rising order (Eqs. 9 and 10)"""
        frames = patch.shape[1]
        query = query.repeat_interleave(frames, 0)
        weights = self.attention.weights(query[:, None], patch.flatten(0, 1))[:, 0]
        return weights.topk(m).indices.sort().values.unflatten(0, (-1, frames))


class Tokens:
    """Rows B,n,D that are fused. Many of the release's are equal: with `merge`, such rows are kept once, with the
    number of their copies. Dropout takes each copy by itself, so that training does not merge."""

    def __init__(self, merge: bool):
        self.merge = merge
        self.rows: list[Tensor] = []  # B,n,D
        self.copies: list[Tensor] = []  # B,n, with `merge`

    def add(self, x: Tensor, copies: int = 1, of: Tensor | None = None, rows: Tensor | None = None) -> None:
        """Each row of x so often. `of` says that x B,n,D are `rows` B,n (or all) of what was added before."""
        if not self.merge:
            self.rows.append(x.repeat_interleave(copies, 1))
        elif of is None:
            self.rows.append(x)
            self.copies.append(x.new_full(x.shape[:2], copies))
        else:
            n = next(n for n, added in enumerate(self.rows) if added is of)
            more = x.new_ones(x.shape[:2])
            if rows is not None:
                more = torch.zeros_like(self.copies[n]).scatter(1, rows, more)
            self.copies[n] = self.copies[n] + more

    def all(self) -> tuple[Tensor, Tensor | None]:
        """All rows, and the number of copies of each; None if that is 1."""
        return torch.cat(self.rows, 1), torch.cat(self.copies, 1) if self.merge else None


class PSTPNet(AVQAModel):
    """Equals the released model in its variants `released` and `concat_all`."""

    Settings = PSTPNetSettings
    settings: PSTPNetSettings

    def __init__(self, settings: PSTPNetSettings, shapes: dict[str, tuple[int, ...]], num_answers: int):
        super().__init__(settings, shapes, num_answers)
        s, width, dropout = settings, settings.width, settings.dropout
        self.unused: dict[str, Tensor] | None = None  # released tensors without use, by name
        self.check_sizes()
        paper = s.variant == "paper"
        self.fc_audio, self.fc_visual, self.fc_sentence = (
            Linear(shapes[name][-1], width) for name in ("audio", "visual", "sentence")
        )
        self.fc_words = Linear(shapes["words"][-1], width) if s.fusion == "attention" else None
        self.fc_patch = Linear(shapes["patch"][-1], width) if s.has("srsm") else None
        self.exchange = CrossModalLayer(width, dropout) if s.has("tssm") and paper else None
        self.select_segments = SelectSegments(width, dropout) if s.has("tssm") else None
        self.select_patches = SelectPatches(width, dropout) if s.has("srsm") else None
        self.guide = QueryLayer(width, dropout) if s.has("avam") else None
        self.perceive_globally = CrossModalLayer(width, dropout) if s.has("lgpm") and paper else None
        self.fuse = SelfLayer(width, dropout) if s.fusion == "attention" else None
        self.answers = Linear(width, num_answers)

    def check_sizes(self) -> None:
        """Raises ValueError if there are fewer seconds or patches than are to be chosen from."""
        s, seconds, patches = self.settings, self.shapes["audio"][0], self.shapes["patch"][1]
        if s.has("tssm") and seconds < s.segments:
            raise ValueError(f"segments: {seconds} seconds cannot be cut into {s.segments}")
        if s.has("srsm") and patches < s.top_m:
            raise ValueError(f"top_m: {s.top_m} of {patches} patches cannot be chosen")

    def forward(self, batch: Batch) -> Tensor:
        """audio B,T,…; visual B,T,…; patch B,T,N,…; words B,W,…; sentence B,… -> logits B,num_answers"""
        dtype, videos = self.fc_audio.weight.dtype, batch.videos
        audio, visual = (select_rows(layer(batch.features[name].to(dtype)), videos)
                         for layer, name in ((self.fc_audio, "audio"), (self.fc_visual, "visual")))  # fmt: skip
        query = self.fc_sentence(batch.texts["sentence"].to(dtype))
        tokens = Tokens(merge=fast.enabled and not self.training)
        tokens.add(audio)
        tokens.add(visual)
        if self.settings.variant != "released":
            seconds, of_audio, of_visual = self.select(query, audio, visual, tokens)
            self.perceive_frames(batch, query, seconds, of_audio, of_visual, tokens)
        if self.settings.has("lgpm"):
            self.perceive_video(audio, visual, tokens)
        if self.fc_words is not None:
            tokens.add(self.fc_words(batch.texts["words"].to(dtype)))
        return self.answers((self.pool(tokens) * query).tanh())  # Eq. 17

    def select(self, query: Tensor, audio: Tensor, visual: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor]:
        """TSSM: the chosen seconds B,F, and their audio and visual rows B,F,D. Without it, all seconds.

        Reading: the fused visual rows F_TSSM are those of Eq. 4, so that Eqs. 1 to 4 are trained; the audio rows, which
        Eq. 8 selects "from F_a", are those before Eq. 3."""
        if self.select_segments is None:
            every = torch.arange(audio.shape[1], device=audio.device).expand(len(query), -1)
            return every, audio, visual
        length = audio.shape[1] // self.settings.segments
        count = audio.shape[1] // length  # more than K where K does not divide T
        cut = [x[:, : count * length].unflatten(1, (count, length)) for x in (audio, visual)]
        if self.exchange is not None:  # Eqs. 1 to 4
            x, y = (x.flatten(0, 1) for x in cut)
            cut = [z.unflatten(0, (-1, count)) for z in self.exchange(torch.cat([x, y]), torch.cat([y, x])).chunk(2)]
        chosen = self.select_segments(query, *cut, self.settings.top_k)
        seconds = (chosen[..., None] * length + torch.arange(length, device=chosen.device)).flatten(1)
        row = torch.arange(len(query), device=query.device)[:, None]
        of_audio, of_visual = audio[row, seconds], cut[1].flatten(1, 2)[row, seconds]
        tokens.add(of_audio, of=audio, rows=seconds)
        tokens.add(of_visual, of=None if self.exchange else visual, rows=seconds)
        return seconds, of_audio, of_visual

    def perceive_frames(
        self, batch: Batch, query: Tensor, seconds: Tensor, audio: Tensor, visual: Tensor, tokens: Tokens
    ) -> None:
        """SRSM and AVAM on the chosen seconds B,F with their audio and visual rows B,F,D."""
        copies, patch = 1, visual[:, :, None]
        if self.fc_patch is not None:
            row = torch.arange(len(query), device=query.device) if batch.videos is None else batch.videos
            patch = self.chosen_patches(query, batch.features["patch"], row[:, None], seconds)
            copies = self.settings.top_m // patch.shape[2]
            tokens.add(patch.flatten(1, 2), copies=copies)
        if self.guide is None:
            return
        memory = patch.flatten(0, 1)
        if self.training:  # dropout takes each copy by itself
            memory = memory.repeat_interleave(copies, 1)
        if self.settings.variant == "paper":
            guided = self.guide_patches(audio.flatten(0, 1), memory).unflatten(0, audio.shape[:2]).flatten(1, 2)
        else:
            guided = self.guide(audio.flatten(0, 1)[:, None], memory).view_as(audio)
        tokens.add(guided)

    def chosen_patches(self, query: Tensor, patch: Tensor, row: Tensor, seconds: Tensor) -> Tensor:
        """SRSM, Eqs. 9 to 11: patch V,T,N,… and seconds B,F of videos `row` B,1 -> B,F,m,D; where the m are equal,
        as in the release, B,F,1,D."""
        dtype, m = self.fc_patch.weight.dtype, self.settings.top_m
        if self.settings.variant == "paper":
            patch = self.fc_patch(patch[row, seconds].to(dtype))
            best = self.select_patches(query, patch, m)
            return patch.take_along_dim(best[..., None], 2)
        # The release overwrites all m places by each of sample 0's best patches in frame 0, so that the last remains.
        first = self.fc_patch(patch[row[0], seconds[0, :1]].to(dtype))
        last = self.select_patches(query[:1], first[None], m)[0, 0, -1]
        return self.fc_patch(patch[row, seconds, last].to(dtype))[:, :, None]

    def guide_patches(self, audio: Tensor, patch: Tensor) -> Tensor:
        """AVAM, Eqs. 12 and 13: audio n,D and patch n,m,D of n frames -> n,m,D. Reading: a query gives one row, while
        the paper has m, each "updated from" its patch; they are the m terms of the attention's sum, kept apart."""
        attention = self.guide.attention
        weights = attention.weights_by_head(audio[:, None], patch)[:, :, 0].mT  # n,m,H
        width = patch.shape[-1]
        values = linear(patch, attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
        terms = values.unflatten(-1, (attention.heads, -1)) * weights[..., None]
        return self.guide.feed_forward(attention.out_proj(terms.flatten(2)))

    def perceive_video(self, audio: Tensor, visual: Tensor, tokens: Tokens) -> None:
        """LGPM, Eqs. 14 and 15. The release returns what it was given."""
        if self.perceive_globally is None:
            tokens.add(audio, of=audio)
            tokens.add(visual, of=visual)
            return
        both = self.perceive_globally(torch.cat([audio, visual]), torch.cat([visual, audio]))
        for half in both.chunk(2):
            tokens.add(half)

    def pool(self, tokens: Tokens) -> Tensor:
        """One vector B,D of all tokens: Eq. 16 and the mean, or the release's attention in place of ReLU."""
        x, copies = tokens.all()
        x = F.relu(x) if self.fuse is None else self.fuse(x, copies)
        return x.mean(1) if copies is None else (copies[:, None] @ x)[:, 0] / copies.sum(1, keepdim=True)

    @classmethod
    def from_released(cls, state_dict: dict[str, Tensor], **settings: Any) -> PSTPNet:
        """A model with the weights of a released checkpoint, in the released variant, K, k and m unless `settings` says
        otherwise. Sizes follow the tensors. Raises ValueError when a name is missing or unknown, or a shape does not
        fit."""
        layers = {"audio": "fc_a", "visual": "fc_v", "patch": "fc_p", "words": "fc_word", "sentence": "fc_q"}
        dims = {name: released.shape_of(state_dict, f"{layer}.weight")[1] for name, layer in layers.items()}
        answers, width = released.shape_of(state_dict, "fc_answer_pred.weight")
        inputs = (cls.Settings.features | cls.Settings.texts).items()
        shapes = {name: (*shape[:-1], dims[name]) for name, shape in inputs}
        model = cls(cls.Settings.from_dict(RELEASED | {"width": width} | settings), shapes, answers)
        model.to(state_dict["fc_answer_pred.weight"].dtype)
        model.unused = released.load(model, model.released_modules(), state_dict)
        return model

    def released_state_dict(self) -> dict[str, Tensor]:
        """The weights under the released names. Raises ValueError if the model has no attention before the mean."""
        return released.save(self, self.released_modules(), self.unused)

    def released_modules(self) -> released.Modules:
        """Ours by released name, or a maker of what this variant does not have."""
        if self.fuse is None:
            raise ValueError("fusion: the released names need attention")
        d, dims = self.settings.width, {name: shape[-1] for name, shape in self.shapes.items()}
        temporal, spatial = "TempSegsSelect_Module", "SpatRegsSelect_Module"
        either = {
            **released.query(temporal, ""),
            **released.cross_modal(f"{temporal}.clip_attn", "exchange"),
            f"{temporal}.clip_fc": "select_segments.merge",
            **released.query(spatial, ""),
            f"{spatial}.patch_fc": "",
            **released.query("AudioGuidedVisualAttn", "guide", "audio"),
            **released.cross_modal("GlobalLocal_Module.layers.0", "perceive_globally"),
            "GlobalLocal_Module.norm1": "",
            "GlobalLocal_Module.norm2": "",
            **released.cross_modal("GlobalSelf_Module.layers.0", "fuse"),
            "GlobalSelf_Module.norm2": "",
        }
        makers = released.without_use(either, d)
        makers[f"{temporal}.clip_fc"] = lambda: nn.Linear(2 * d, d)
        either |= {f"{temporal}.attn_qst_query": "select_segments.attention"}
        either |= {f"{spatial}.attn_qst_query": "select_patches.attention", "GlobalSelf_Module.layers.0.cm_attn": ""}
        has = dict(self.named_modules()).keys() - {""}
        return {
            "fc_a": "fc_audio",
            "fc_v": "fc_visual",
            "fc_p": "fc_patch" if "fc_patch" in has else lambda: nn.Linear(dims["patch"], d),
            "fc_word": "fc_words",
            "fc_q": "fc_sentence",
            "fc_spat_q": lambda: nn.Linear(dims["sentence"], d),
            **{theirs: ours if ours in has else makers[theirs] for theirs, ours in either.items()},
            "audio_fusion": lambda: nn.Linear(d, d),
            "visual_fusion": lambda: nn.Linear(d, d),
            "SM_fusion": lambda: nn.Linear(2 * d, d),
            "fc_av_fusion": lambda: nn.Linear(2 * d, d),
            "fc_answer_pred": "answers",
        }

    def counted(self) -> dict[str, list[counts.Count]]:
        """The released code's layers by the field's convention, for one sample: what is called is counted, whether it
        is used or not. For the variant `paper`, its own layers by the same convention."""
        s, d, t, patches = self.settings, self.settings.width, self.shapes["audio"][0], self.shapes["patch"][1]
        has = {name: name not in s.without for name in ("tssm", "srsm", "avam", "lgpm")}
        paper, length, words = s.variant == "paper", t // s.segments, self.shapes["words"][0]
        f = s.top_k * length if has["tssm"] else t
        rows = {"audio": t, "visual": t, "words": words * (s.fusion == "attention"), "sentence": 1}
        rows |= {"patch": (f if paper else t) * patches} if has["srsm"] else {}
        guided = f * (s.top_m if paper and has["srsm"] else 1)
        tokens = 2 * t + words if s.fusion == "attention" else 2 * t
        if s.variant != "released":
            tokens += 2 * f * has["tssm"] + f * s.top_m * has["srsm"] + guided * has["avam"] + 2 * t * has["lgpm"]
        both = [counts.norm(d, 2 * t), counts.feed_forward(d, 2 * t)]
        parts = {"input projections": [counts.linear(self.shapes[name][-1], d, n) for name, n in rows.items() if n]}
        if has["tssm"]:
            segments = t // length
            parts["TSSM"] = [counts.linear(2 * d, d, segments)] + (both if paper else [counts.feed_forward(d, 1)])
        if has["srsm"] and not paper:
            parts["SRSM"] = [counts.feed_forward(d, f)]
        if has["avam"]:
            parts["AVAM"] = [counts.feed_forward(d, guided)]
        if has["lgpm"]:
            parts["LGPM"] = both
        fuse = [counts.norm(d, tokens), counts.feed_forward(d, tokens)] if s.fusion == "attention" else []
        return parts | {"fusion and answers": [*fuse, counts.linear(d, self.num_answers, 1)]}

    @property
    def published(self) -> str:
        return "published: 4.297 M, 1.223 G (Table 2, with 50 rows of patches, CLS among them)"
