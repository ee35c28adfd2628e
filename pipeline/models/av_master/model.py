"""AV-Master: dual-path perception for audio-visual question answering.

Two paths answer a question about a video. The temporal dynamic perception path (TDPP) passes over the seconds with a
few template rows per modality (focus capture, AVFC), and fuses the result with all features (key fusion, AVKF). The
global preference activation path (GPAP) lets each modality, on its own, attend to the question. Each path ends in
answer decoders, and a contrastive loss (DPCL) ties the two.

reference.py has the paper's citation, the equations one by one, and where the released implementation, which is
followed here, differs from the paper. Shapes: B samples, T seconds, W words, D = `width`, L template rows.
"""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.av_master import released
from pipeline.models.av_master.blocks import AnswerDecoder, FocusCapture, KeyFusion, Preference, mix_rows
from pipeline.models.av_master.config import ENHANCEMENTS, AVMasterSettings
from pipeline.models.base import AVQAModel, Batch, NotOffered, select_rows
from pipeline.models.counts import Count
from pipeline.models.fast.linear import Linear
from pipeline.models.fast.scan import run_step
from pipeline.models.released import load, save, shape_of

FUSED_AT_ONCE = 16  # samples


class Output(NamedTuple):
    """Logits B,num_answers of the three decoders, and the forward pass's other results. None where the model has no
    such path, or was given no negatives."""

    fused: Tensor | None = None
    audio: Tensor | None = None
    visual: Tensor | None = None
    contrastive_loss: Tensor | None = None
    focus_visual: Tensor | None = None  # B,L,D
    focus_audio: Tensor | None = None  # B,L,D
    attention: dict[str, Tensor] | None = None  # B,T,W of each modality's seconds on the words (Fig. 9)
    preferences: dict[str, Tensor] | None = None  # B,D of each modality, means over time (Fig. 7)


class Sequences(NamedTuple):
    """One modality of B samples (V videos): S sequences each, the sample's own and in training its negative."""

    features: Tensor  # B,S,T,d
    layer: nn.Linear  # d→D
    projected: Tensor  # B,S,T,D


class AVMaster(AVQAModel):
    """Equals reference.reference_av_master with the settings' defaults; other settings make the paper's tables.

    Released tensors that no output depends on are kept from `from_released` to `released_state_dict`, outside the
    parameters: fc_p, fc_spat_q, audio_fusion, visual_fusion, SM_fusion, fc_av_fusion, object_embeddings;
    GlobalSelf_Module's cm_attn and norm2, norm1 and norm2 of AP_Module and VP_Module; each fc_answer_pred's
    class_embedding, positional_embedding and memory_intermediate; queries and keys where all keys are equal
    (focus_capture's w and cross_attn, fc_answer_pred); and the biases that add the same to all scores of a softmax
    (keys', wo_v, wo_a).
    """

    Settings = AVMasterSettings
    score_fields = ("fused", "audio", "visual")
    parts: ClassVar = {
        "input projections": (("fc_",), ("fc_a.", "fc_v.", "fc_p.", "fc_word.", "fc_q.", "fc_spat_q.")),
        "focus capture": (("embed", "focus", "own_focus_audio", "bias_"), ("AugInformation", "bisa_v", "bias_a")),
        "key fusion": ((), ()),  # which is called in two halves
        "preferences": (("preference_",), ("AP_Module", "VP_Module")),
        "decoders": (("decode_",), ("fc_answer_pred",)),
    }
    settings: AVMasterSettings

    def __init__(self, settings: AVMasterSettings, shapes: dict[str, tuple[int, ...]], num_answers: int):
        super().__init__(settings, shapes, num_answers)
        s, width = settings, settings.width
        self.unused: dict[str, Tensor] | None = None  # released tensors that hold what has no use, by name
        self.fc_audio, self.fc_visual = Linear(shapes["audio"][-1], width), Linear(shapes["visual"][-1], width)
        # Key fusion and the preferences read the words; a model without either reads the sentence only.
        fuses = s.has_tdpp and "avkf" not in s.without
        self.fc_words = Linear(shapes["words"][-1], width) if s.has_gpap or fuses else None
        self.fc_sentence = Linear(shapes["sentence"][-1], width)
        self.embed = self.focus = self.own_focus_audio = self.bias_visual = self.bias_audio = None
        if s.has_tdpp and "avfc" not in s.without:
            self.embed = Linear(width, width)
            self.focus = FocusCapture(width, s.focus_width, s.heads)
            self.own_focus_audio = None if s.share_blocks else FocusCapture(width, s.focus_width, s.heads)
            self.bias_visual = nn.Parameter(torch.randn(s.visual_template, width))
            self.bias_audio = None if s.share_biases else nn.Parameter(torch.randn(s.audio_template, width))
        self.fusion = KeyFusion(width, gated=s.dynamic_fusion) if fuses else None
        self.preference_audio, self.preference_visual = (Preference(width) if s.has_gpap else None for _ in range(2))
        self.decode_fused = AnswerDecoder(width, s.heads, num_answers, one_token=True) if s.has_tdpp else None
        self.decode_audio, self.decode_visual = (
            AnswerDecoder(width, s.heads, num_answers) if s.has_gpap else None for _ in range(2)
        )

    @property
    def needs_negatives(self) -> bool:
        return self.settings.contrasts

    def forward(self, batch: Batch, attention: bool = False) -> Output:
        """audio B,T,…; visual B,T,…; words B,W,…; sentence B,…; any float type. Without negatives there is no
        contrastive loss. With `batch.videos`, work on a video is done once for all its questions.

        `attention` adds Fig. 9's maps and Fig. 7's preferences to the output. Raises ValueError if a batch has both
        negatives and `videos`."""
        if batch.videos is not None and batch.negatives is not None:
            raise ValueError("videos: negatives belong to questions, so give audio and visual for each question too")
        audio, visual = self.project("audio", self.fc_audio, batch), self.project("visual", self.fc_visual, batch)
        words, query = self.project_text(batch)
        out, fused = Output(), None
        if self.decode_fused is not None:
            fused, out = self.perceive(audio.projected[:, 0], visual.projected[:, 0], words, query, batch.videos)
        if self.preference_audio is None:
            return out
        audios, on_audio = self.preference_audio(*audio, words, self.rate, batch.videos)
        visuals, on_visual = self.preference_visual(*visual, words, self.rate, batch.videos)
        out = out._replace(
            audio=self.decode_audio(query, audios[:, 0], self.rate),
            visual=self.decode_visual(query, visuals[:, 0], self.rate),
            attention={"audio": on_audio[:, 0], "visual": on_visual[:, 0]} if attention else None,
            preferences={"audio": audios[:, 0].mean(1), "visual": visuals[:, 0].mean(1)} if attention else None,
        )
        if audios.shape[1] == 1:
            return out
        return out._replace(contrastive_loss=self.contrast(fused, audios.mean(2), visuals.mean(2)))

    @property
    def rate(self) -> float:
        """Of dropout: 0 outside training."""
        return self.settings.dropout if self.training else 0.0

    def readable(self, name: str, x: Tensor) -> Tensor:
        """In the model's type; zeros where `inputs` leaves this one out."""
        x = x.to(self.fc_audio.weight.dtype)
        return x if name in self.settings.inputs else torch.zeros_like(x)

    def project(self, name: str, layer: nn.Linear, batch: Batch) -> Sequences:
        """The features of one modality and, if they are to be contrasted, of the negatives."""
        sources = [batch.features, batch.negatives] if self.settings.contrasts and batch.negatives else [batch.features]
        features = self.readable(name, torch.stack([x[name].to(self.fc_audio.weight.dtype) for x in sources], 1))
        return Sequences(features, layer, layer(features))

    def project_text(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """words B,W,D, if anything reads them, and the sentence B,D: the query of the decoders."""
        query = self.fc_sentence(self.readable("question", batch.texts["sentence"]))
        if self.fc_words is None:
            return None, query
        return self.fc_words(self.readable("question", batch.texts["words"])), query

    def perceive(
        self, audio: Tensor, visual: Tensor, words: Tensor | None, query: Tensor, videos: Tensor | None
    ) -> tuple[Tensor, Output]:
        """TDPP: audio and visual B,T,D (V,T,D with `videos`), words B,W,D and query B,D -> the fused vector B,D, and
        an output with its logits and the focuses."""
        focus_visual = focus_audio = None
        if self.focus is not None:
            focus_visual, focus_audio = (select_rows(x, videos) for x in self.capture(visual, audio))
        audio, visual = select_rows(audio, videos), select_rows(visual, videos)
        guides = (visual, audio) if self.focus is None else (focus_visual, focus_audio)
        fused = self.fuse_in_parts(audio, visual, words, query, guides)
        logits = self.decode_fused(query, fused[:, None], self.rate)
        return fused, Output(fused=logits, focus_visual=focus_visual, focus_audio=focus_audio)

    def capture(self, visual: Tensor, audio: Tensor, every: bool = False) -> tuple[Tensor, Tensor]:
        """Features B,T,D -> focus of visual and audio, B,L,D, or after `every` second T,B,L,D; in one pass where they
        share blocks and length."""
        bias_audio = self.bias_visual if self.bias_audio is None else self.bias_audio
        if self.own_focus_audio is None and bias_audio.shape == self.bias_visual.shape:
            features, biases = torch.stack([visual, audio]), (self.bias_visual, bias_audio)
            return mix_rows(self.focus(features, self.embed, biases, self.rate, every)).unbind(-4)
        of_audio = self.own_focus_audio or self.focus
        focus_visual = self.focus(visual[None], self.embed, [self.bias_visual], self.rate, every)
        focus_audio = of_audio(audio[None], self.embed, [bias_audio], self.rate, every)
        return mix_rows(focus_visual.squeeze(-4)), mix_rows(focus_audio.squeeze(-4))

    def encode(self, audio: Tensor, visual: Tensor, words: Tensor, query: Tensor):
        """What key fusion computes without the focuses."""
        if self.fusion is None:
            return None
        return self.fusion.encode(torch.cat([audio, visual, words], dim=1), query, self.rate)

    def fuse(self, encoded, focus_visual: Tensor, focus_audio: Tensor) -> Tensor:
        """The fused vector, B,D."""
        if self.fusion is None:
            return torch.cat([focus_visual, focus_audio], dim=1).amax(1)
        return self.fusion(encoded, focus_visual, focus_audio)

    def fuse_in_parts(
        self, audio: Tensor, visual: Tensor, words: Tensor | None, query: Tensor, guides: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The fused vectors of all samples, B,D. On a CPU a few at a time: a tensor of over 32 MB is fetched from the
        system, page by page, whenever one is made."""
        if self.fusion is None:
            return self.fuse(None, *guides)
        count = FUSED_AT_ONCE if query.device.type == "cpu" else len(query)
        parts = zip(*(x.split(count) for x in (audio, visual, words, query, *guides)), strict=True)
        return torch.cat([self.fuse(self.encode(*part[:4]), *part[4:]) for part in parts])

    def contrast(self, fused: Tensor, audios: Tensor, visuals: Tensor) -> Tensor:
        """Equals reference.contrastive_loss (DPCL, Eq. 6), over all pairs of a batch: fused B,D; means over time of
        the preferences B,2,D, positive and negative."""
        fused = F.normalize(fused, dim=-1)
        positive, negative = (
            fused @ (F.normalize(audios[:, n], dim=-1) + F.normalize(visuals[:, n], dim=-1)).T
            / self.settings.temperature
            for n in range(2)
        )  # fmt: skip
        return F.softplus(negative - positive).mean()

    def loss(self, output: Output, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 7: the weighted sum, and its terms by name before weighting."""
        terms = {}
        for name in ("fused", "audio", "visual"):
            if getattr(output, name) is not None and self.weight(name):
                terms[name] = F.cross_entropy(getattr(output, name), batch.answer)
        if output.contrastive_loss is not None:
            terms["contrastive"] = output.contrastive_loss
        return sum(self.weight(name) * term for name, term in terms.items()), terms

    def weight(self, name: str) -> float:
        """Of a term of the loss."""
        return getattr(self.settings, f"{name}_weight")

    def scores(self, output: Output) -> Tensor:
        """B,num_answers; the answer is the largest. Preferences join in as `enhancement` and `combine` say."""
        combine, fused = self.settings.combine, output.fused if self.weight("fused") else None
        logits = [
            getattr(output, name)
            for name in ENHANCEMENTS[self.settings.enhancement]
            if getattr(output, name) is not None and self.weight(name)
        ]
        if combine == "mul" and logits:
            product = torch.stack(logits).log_softmax(-1).sum(0).exp()
            return product if fused is None else fused.softmax(-1) + product
        if combine == "w_add" and logits:
            share = torch.stack(logits).logsumexp(-1, keepdim=True).softmax(0)
            logits = list(share * torch.stack(logits))
        return sum(logits) if fused is None else sum(logits, fused)

    @torch.no_grad()
    def scores_by_second(self, batch: Batch) -> Tensor:
        """Fig. 6: the scores that the templates after each second would give, B,T,num_answers. Key fusion and the
        preferences always use the whole video: only the focus capture stops early. Raises NotOffered if the
        model has no focus capture."""
        if self.focus is None:
            raise NotOffered("without: accuracy by second needs avfc and tdpp; this model has no focus capture")
        out, videos = self(batch), batch.videos
        audio = self.project("audio", self.fc_audio, batch).projected[:, 0]
        visual = self.project("visual", self.fc_visual, batch).projected[:, 0]
        words, query = self.project_text(batch)
        encoded = self.encode(select_rows(audio, videos), select_rows(visual, videos), words, query)
        scores = []
        for focuses in zip(*self.capture(visual, audio, every=True), strict=True):
            fused = self.fuse(encoded, *(select_rows(x, videos) for x in focuses))
            logits = self.decode_fused(query, fused[:, None], self.rate)
            scores.append(self.scores(out._replace(fused=logits)))
        return torch.stack(scores, 1)

    @torch.no_grad()
    def word_attention(self, batch: Batch) -> dict[str, Tensor]:
        """Fig. 9: B,W of each modality, the mean over its seconds. Raises NotOffered if the model has no GPAP."""
        return {name: maps.mean(1) for name, maps in self._preferences(batch).attention.items()}

    @torch.no_grad()
    def preference_features(self, batch: Batch) -> dict[str, Tensor]:
        """Fig. 7: B,D of each modality, the mean over its seconds. Raises NotOffered if the model has no GPAP."""
        return self._preferences(batch).preferences

    def _preferences(self, batch: Batch) -> Output:
        if not self.settings.has_gpap:
            raise NotOffered("without: attention on words and preference features need gpap; this model has none")
        return self(batch, attention=True)

    def compile_loop(self) -> AVMaster:
        """From now on a step of the focus loop is one compiled region wherever there are no gradients. Compiled at the
        first pass of each batch size, which takes seconds, and needs what torch.compile needs: a C++ compiler, or
        Triton on a GPU."""
        for focus in (self.focus, self.own_focus_audio):
            if focus is not None:
                focus.runner = torch.compile(run_step, dynamic=False)
        return self

    @classmethod
    def from_released(cls, state_dict: dict[str, Tensor], **settings: Any) -> AVMaster:
        """A model with the weights of a released checkpoint, in its type; sizes follow the tensors. Raises ValueError
        when a name is missing or unknown, or a shape does not fit the others."""

        def size(name: str, dimension: int) -> int:
            return shape_of(state_dict, name)[dimension]

        sizes = {
            "width": size("fc_a.weight", 0),
            "focus_width": size("AugInformation.focus_capture.encoder.layers.0.linear1.weight", 0),
            "audio_template": size("bias_a.weight", 0),
            "visual_template": size("bisa_v.weight", 0),
        }
        layers = {"audio": "fc_a", "visual": "fc_v", "words": "fc_word", "sentence": "fc_q"}
        inputs = (cls.Settings.features | cls.Settings.texts).items()
        shapes = {name: (*shape[:-1], size(f"{layers[name]}.weight", 1)) for name, shape in inputs}
        model = cls(cls.Settings.from_dict(sizes | settings), shapes, size("fc_answer_pred.head.decoder.weight", 0))
        model.to(state_dict["fc_a.weight"].dtype)
        model.unused = load(model, released.modules(model.settings, shapes), state_dict)
        return model

    def released_state_dict(self) -> dict[str, Tensor]:
        """The model under the released names. Raises ValueError if it has other blocks than the released one."""
        return save(self, released.modules(self.settings, self.shapes), self.unused)

    def counted(self) -> dict[str, list[Count]]:
        return released.counted(self.settings, self.shapes, self.num_answers)
