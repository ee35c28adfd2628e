"""AV-Master: dual-path perception for audio-visual question answering.

Two paths answer a question about a video. The temporal dynamic perception path (TDPP) walks through the seconds
with a few template rows a modality (focus capture, AVFC), and fuses what they found with everything that is
known (key fusion, AVKF). The global preference activation path (GPAP) lets each modality, on its own, listen to
the question. Each path ends in answer decoders, and a contrastive loss (DPCL) ties the two.

The numbers are those of the implementation that the authors released, not of the paper's prose where the two
differ. Shapes: B samples, T seconds, W words, D = `width`, L template rows.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.av_master import released
from pipeline.models.av_master.blocks import AnswerDecoder, FocusCapture, KeyFusion, Preference, mix_rows
from pipeline.models.fast.layers import Linear, run_step, select_rows

COMPONENTS = ("avfc", "avkf", "dpcl", "gpap", "tdpp")
INPUTS = ("audio", "visual", "question")
LOSSES = ("fused", "audio", "visual", "contrastive")
ENHANCEMENTS = {"avpe": ("audio", "visual"), "ape": ("audio",), "vpe": ("visual",), "none": ()}
COMBINATIONS = ("add", "mul", "w_add")
FUSED_AT_ONCE = 16  # samples


class Output(NamedTuple):
    """Logits B,num_answers of the three decoders, and what else the forward pass found. A path that was taken
    out of the model leaves None."""

    fused: Tensor | None
    audio: Tensor | None
    visual: Tensor | None
    contrastive_loss: Tensor | None
    focus_visual: Tensor | None
    focus_audio: Tensor | None
    attention: dict[str, Tensor] | None = None


def check_choice(field: str, value: object, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{field}: {value!r} is not one of {', '.join(allowed)}")


def check(settings: dict) -> None:
    """ValueError naming the first field whose value AVMaster cannot take."""
    for name, value in settings.items():
        if name.endswith(("_dim", "_template", "width", "heads", "answers")) and (type(value) is not int or value < 1):
            raise ValueError(f"{name}: {value!r} is not a whole number from 1 on")
        if name.endswith("_weight") and not value >= 0:
            raise ValueError(f"{name}: {value!r} is not 0 or more")
    for name in ("share_blocks", "share_biases", "dynamic_fusion"):
        if type(settings[name]) is not bool:
            raise ValueError(f"{name}: {settings[name]!r} is not one of True, False")
    for name, allowed in (("without", COMPONENTS), ("inputs", INPUTS)):
        if isinstance(settings[name], str):
            raise ValueError(f"{name}: {settings[name]!r} is not a list; its items are of {', '.join(allowed)}")
        for item in settings[name]:
            check_choice(name, item, allowed)
    check_choice("enhancement", settings["enhancement"], ENHANCEMENTS)
    check_choice("combine", settings["combine"], COMBINATIONS)
    without, gated = settings["without"], settings["dynamic_fusion"]
    if settings["width"] % settings["heads"]:
        raise ValueError(f"heads: {settings['heads']} does not divide the width, {settings['width']}")
    if not settings["inputs"]:
        raise ValueError(f"inputs: empty; give some of {', '.join(INPUTS)}")
    if not settings["temperature"] > 0:
        raise ValueError(f"temperature: {settings['temperature']!r} is not above 0")
    if not 0 <= settings["dropout"] < 1:
        raise ValueError(f"dropout: {settings['dropout']!r} is not from 0 to below 1")
    if settings["share_biases"] and settings["audio_template"] != settings["visual_template"]:
        raise ValueError("share_biases: audio_template and visual_template differ; a shared bias needs them equal")
    if "tdpp" in without and "gpap" in without:
        raise ValueError("without: tdpp and gpap together leave no path to an answer")
    if gated and ("tdpp" in without or "avkf" in without):
        raise ValueError("dynamic_fusion: weighs modalities in key fusion, so it needs tdpp and avkf")
    fused, gpap = "tdpp" not in without, "gpap" not in without and not gated
    if not ((fused and settings["fused_weight"]) or (gpap and (settings["audio_weight"] or settings["visual_weight"]))):
        raise ValueError("fused_weight, audio_weight, visual_weight: no decoder of this model is trained")
    heard = {name for name in ENHANCEMENTS[settings["enhancement"]] if gpap and settings[f"{name}_weight"]}
    if not ((fused and settings["fused_weight"]) or heard):
        raise ValueError(f"enhancement: {settings['enhancement']!r} leaves this model without a decoder to answer")


class AVMaster(nn.Module):
    """The model. A field's default is the released model; others make the paper's tables.

    num_answers, audio_dim, visual_dim, text_dim: the data's (Table XII: any encoders).
    width D, focus_width, heads: sizes; `heads` divides `width`.
    audio_template, visual_template: rows of the templates (Table X, A-L and V-L).
    share_blocks: one focus capture for both modalities (Table XI, A-S). The embedding before it is no attention
        block, and stays shared.
    share_biases: one bias P for both (Table XI, B-S); the templates are then equally long.
    without: components taken out (Table VIII), any of
        avfc  the features themselves, all T rows, guide key fusion,
        avkf  the largest value over both focuses' rows, feature by feature, is the fused vector,
        dpcl  no contrastive loss,
        gpap  no preferences: the fused vector alone answers (and there is nothing to contrast it with),
        tdpp  no fused vector: the preferences alone answer (likewise).
        "w/o ALL" is all but tdpp, which leaves the largest value over the plain features.
    dynamic_fusion: weights from the question inside key fusion, in place of the preference path (Table VIII).
    inputs: what the model may see (Fig. 5), of audio, visual, question; the rest is zeros before its projection.
    fused_weight, audio_weight, visual_weight, contrastive_weight: of the loss terms (Table IX, Fig. 8). A decoder of
        weight 0 is not trained, and has no say in the answer.
    enhancement: preferences that join in the answer (Table XIII): avpe both, ape audio, vpe visual, none.
    combine: how they do (Table XIV); the paper gives no formula. add: the sum of all logits. mul: the fused
        probabilities plus the product of the preferences' (a product of logits would turn two low ones into a high
        one). w_add: the fused logits plus the preferences' in proportion to their total score, Σ exp(logit).
    temperature: τ of Eq. 6.
    dropout: in training, wherever an attention or a feed-forward has one.

    ValueError names the field that is wrong. Released tensors that no output depends on are carried from
    `load_released` to `released_state_dict`, outside the parameters: fc_p, fc_spat_q, audio_fusion, visual_fusion,
    SM_fusion, fc_av_fusion, object_embeddings; GlobalSelf_Module's cm_attn and norm2, norm1 and norm2 of AP_Module
    and VP_Module; each fc_answer_pred's class_embedding, positional_embedding and memory_intermediate; queries and
    keys where all keys are equal (focus_capture's w and cross_attn, fc_answer_pred); and the biases that shift all
    scores of a softmax alike (keys', wo_v, wo_a).
    """

    def __init__(
        self,
        num_answers: int = 42,
        audio_dim: int = 128,
        visual_dim: int = 768,
        text_dim: int = 768,
        width: int = 768,
        focus_width: int = 512,
        heads: int = 8,
        audio_template: int = 8,
        visual_template: int = 8,
        share_blocks: bool = True,
        share_biases: bool = False,
        without: Sequence[str] = (),
        dynamic_fusion: bool = False,
        inputs: Sequence[str] = INPUTS,
        fused_weight: float = 1.0,
        audio_weight: float = 1.0,
        visual_weight: float = 1.0,
        contrastive_weight: float = 1.0,
        enhancement: str = "avpe",
        combine: str = "add",
        temperature: float = 0.1,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.settings = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        check(self.settings)
        self.temperature, self.dropout, self.inputs = temperature, dropout, frozenset(inputs)
        self.enhancement, self.combine = enhancement, combine
        self.weights = dict(zip(LOSSES, (fused_weight, audio_weight, visual_weight, contrastive_weight), strict=True))
        self.spare: dict[str, list[Tensor]] | None = None  # released tensors without use, by name
        has_tdpp, has_gpap = "tdpp" not in without, "gpap" not in without and not dynamic_fusion
        self.contrasts = has_tdpp and has_gpap and "dpcl" not in without and contrastive_weight > 0

        self.fc_audio, self.fc_visual = Linear(audio_dim, width), Linear(visual_dim, width)
        # Key fusion and the preferences read the words; a model without either hears only the sentence.
        reads_words = has_gpap or (has_tdpp and "avkf" not in without)
        self.fc_words = Linear(text_dim, width) if reads_words else None
        self.fc_sentence = Linear(text_dim, width)
        self.embed = self.focus = self.own_focus_audio = self.bias_visual = self.bias_audio = self.fusion = None
        if has_tdpp and "avfc" not in without:
            self.embed = Linear(width, width)
            self.focus = FocusCapture(width, focus_width, heads)
            self.own_focus_audio = None if share_blocks else FocusCapture(width, focus_width, heads)
            self.bias_visual = nn.Parameter(torch.randn(visual_template, width))
            self.bias_audio = None if share_biases else nn.Parameter(torch.randn(audio_template, width))
        if has_tdpp and "avkf" not in without:
            self.fusion = KeyFusion(width, gated=dynamic_fusion)
        self.preference_audio, self.preference_visual = (Preference(width) if has_gpap else None for _ in range(2))
        self.decode_fused = AnswerDecoder(width, heads, num_answers, one_token=True) if has_tdpp else None
        self.decode_audio, self.decode_visual = (
            AnswerDecoder(width, heads, num_answers) if has_gpap else None for _ in range(2)
        )

    def forward(
        self,
        audio: Tensor,
        visual: Tensor,
        words: Tensor,
        sentence: Tensor,
        neg_audio: Tensor | None = None,
        neg_visual: Tensor | None = None,
        attention: bool = False,
        videos: Tensor | None = None,
    ) -> Output:
        """audio B,T,audio_dim; visual B,T,visual_dim; words B,W,text_dim; sentence B,text_dim; the negatives like audio
        and visual, or None for no contrastive loss. Any float type. `attention` asks for Fig. 9's maps, the weights
        B,T,W of each modality's seconds on the words.

        Questions about the same video share most of the work: with `videos` B, row numbers, audio and visual hold
        each video once, V,T,…, and question b is about row videos[b]. Not together with negatives."""
        if (neg_audio is None) != (neg_visual is None):
            raise ValueError("neg_audio and neg_visual: give both or neither")
        if videos is not None and neg_audio is not None:
            raise ValueError("videos: negatives belong to questions, so give audio and visual for each question too")
        dropout = self.dropout if self.training else 0.0
        contrasts = self.contrasts and neg_audio is not None
        # B,S,T,…: the sample's own sequence, and its negative.
        heard = self.admit("audio", *([audio, neg_audio] if contrasts else [audio]))
        seen = self.admit("visual", *([visual, neg_visual] if contrasts else [visual]))
        audios, visuals = self.fc_audio(heard), self.fc_visual(seen)
        words, query = self.ask(words, sentence)
        fused = focus_visual = focus_audio = logits = logits_audio = logits_visual = contrastive_loss = maps = None

        if self.decode_fused is not None:
            audio, visual = audios[:, 0], visuals[:, 0]
            if self.focus is not None:
                focus_visual, focus_audio = (select_rows(x, videos) for x in self.capture(visual, audio, dropout))
            audio, visual = select_rows(audio, videos), select_rows(visual, videos)
            guides = (visual, audio) if self.focus is None else (focus_visual, focus_audio)
            fused = self.fuse_parts(audio, visual, words, query, guides, dropout)
            logits = self.decode_fused(query, fused[:, None], dropout)
        if self.preference_audio is not None:
            audios, on_audio = self.preference_audio(heard, self.fc_audio, audios, words, dropout, videos)
            visuals, on_visual = self.preference_visual(seen, self.fc_visual, visuals, words, dropout, videos)
            logits_audio = self.decode_audio(query, audios[:, 0], dropout)
            logits_visual = self.decode_visual(query, visuals[:, 0], dropout)
            maps = {"audio": on_audio[:, 0], "visual": on_visual[:, 0]} if attention else None
        if contrasts:
            contrastive_loss = self.contrast(fused, audios.mean(2), visuals.mean(2))
        return Output(logits, logits_audio, logits_visual, contrastive_loss, focus_visual, focus_audio, maps)

    def admit(self, name: str, *inputs: Tensor) -> Tensor:
        """S inputs B,… -> B,S,… in the model's type; zeros where the model may not have them."""
        x = torch.stack([x.to(self.fc_audio.weight.dtype) for x in inputs], 1)
        return x if name in self.inputs else torch.zeros_like(x)

    def ask(self, words: Tensor, sentence: Tensor) -> tuple[Tensor | None, Tensor]:
        """words B,W,text_dim and sentence B,text_dim -> B,W,D and B,D"""
        query = self.fc_sentence(self.admit("question", sentence)[:, 0])
        return None if self.fc_words is None else self.fc_words(self.admit("question", words)[:, 0]), query

    def capture(self, visual: Tensor, audio: Tensor, dropout: float, every: bool = False) -> tuple[Tensor, ...]:
        """Features B,T,D -> focus of visual and audio, (T,)B,L,D; in one pass where they share blocks and length."""
        bias_audio = self.bias_visual if self.bias_audio is None else self.bias_audio
        if self.own_focus_audio is None and bias_audio.shape == self.bias_visual.shape:
            features, biases = torch.stack([visual, audio]), (self.bias_visual, bias_audio)
            return mix_rows(self.focus(features, self.embed, biases, dropout, every)).unbind(-4)
        of_audio = self.own_focus_audio or self.focus
        focus_visual = self.focus(visual[None], self.embed, [self.bias_visual], dropout, every)
        focus_audio = of_audio(audio[None], self.embed, [bias_audio], dropout, every)
        return mix_rows(focus_visual.squeeze(-4)), mix_rows(focus_audio.squeeze(-4))

    def encode(self, audio: Tensor, visual: Tensor, words: Tensor, query: Tensor, dropout: float):
        if self.fusion is None:
            return None
        return self.fusion.encode(torch.cat([audio, visual, words], dim=1), query, dropout)

    def fuse(self, encoded, focus_visual: Tensor, focus_audio: Tensor) -> Tensor:
        """The fused vector, B,D."""
        if self.fusion is None:
            return torch.cat([focus_visual, focus_audio], dim=1).amax(1)
        return self.fusion(encoded, focus_visual, focus_audio)

    def fuse_parts(
        self, audio: Tensor, visual: Tensor, words: Tensor, query: Tensor, guides: tuple[Tensor, Tensor], dropout: float
    ) -> Tensor:
        """The fused vectors of all samples, B,D. On a CPU a few at a time: a tensor of over 32 MB is fetched from the
        system, page by page, whenever one is made."""
        if self.fusion is None:
            return self.fuse(None, *guides)
        count = FUSED_AT_ONCE if query.device.type == "cpu" else len(query)
        parts = zip(*(x.split(count) for x in (audio, visual, words, query, *guides)), strict=True)
        return torch.cat([self.fuse(self.encode(*part[:4], dropout), *part[4:]) for part in parts])

    def contrast(self, fused: Tensor, audios: Tensor, visuals: Tensor) -> Tensor:
        """DPCL (Eq. 6), over all pairs of a batch: fused B,D; means of the preferences B,2,D, positive and negative."""
        fused = F.normalize(fused, dim=-1)
        positive, negative = (
            fused @ (F.normalize(audios[:, n], dim=-1) + F.normalize(visuals[:, n], dim=-1)).T / self.temperature
            for n in range(2)
        )
        return F.softplus(negative - positive).mean()

    def loss(self, out: Output, answers: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Eq. 7: the weighted sum, and its terms by name before weighing. `answers` B, class indices. A forward pass
        without negatives has no contrastive term."""
        terms = {}
        for name in ("fused", "audio", "visual"):
            if getattr(out, name) is not None and self.weights[name]:
                terms[name] = F.cross_entropy(getattr(out, name), answers)
        if out.contrastive_loss is not None:
            terms["contrastive"] = out.contrastive_loss
        return sum(self.weights[name] * term for name, term in terms.items()), terms

    def answer_scores(self, out: Output, enhancement: str | None = None, combine: str | None = None) -> Tensor:
        """B,num_answers; the answer is the largest. `enhancement` and `combine` in place of the model's own."""
        enhancement, combine = enhancement or self.enhancement, combine or self.combine
        check_choice("enhancement", enhancement, ENHANCEMENTS)
        check_choice("combine", combine, COMBINATIONS)
        fused = out.fused if self.weights["fused"] else None
        logits = [
            getattr(out, name)
            for name in ENHANCEMENTS[enhancement]
            if getattr(out, name) is not None and self.weights[name]
        ]
        if fused is None and not logits:
            raise ValueError(f"enhancement: {enhancement!r} leaves this model without a decoder to answer")
        if combine == "mul" and logits:
            product = torch.stack(logits).log_softmax(-1).sum(0).exp()
            return product if fused is None else fused.softmax(-1) + product
        if combine == "w_add" and logits:
            share = torch.stack(logits).logsumexp(-1, keepdim=True).softmax(0)
            logits = list(share * torch.stack(logits))
        return sum(logits) if fused is None else sum(logits, fused)

    def compile_loop(self) -> AVMaster:
        """From now on a step of the focus loop is one compiled region wherever there are no gradients. Compiled at the
        first pass of each batch size, which takes seconds, and needs what torch.compile needs: a C++ compiler, or
        Triton on a GPU."""
        for focus in (self.focus, self.own_focus_audio):
            if focus is not None:
                focus.take = torch.compile(run_step, dynamic=False)
        return self

    @torch.no_grad()
    def step_scores(
        self, audio: Tensor, visual: Tensor, words: Tensor, sentence: Tensor, videos: Tensor | None = None
    ) -> Tensor:
        """Fig. 6: the scores that the templates after each second would give, B,T,num_answers. Key fusion and the
        preferences see the whole video all along: only the focus capture is stopped early. `videos` as in `forward`."""
        if self.focus is None:
            raise ValueError("without: scores by time step need avfc and tdpp")
        out = self(audio, visual, words, sentence, videos=videos)
        dropout = self.dropout if self.training else 0.0
        audio = self.fc_audio(self.admit("audio", audio)[:, 0])
        visual = self.fc_visual(self.admit("visual", visual)[:, 0])
        words, query = self.ask(words, sentence)
        encoded = self.encode(select_rows(audio, videos), select_rows(visual, videos), words, query, dropout)
        scores = []
        for focuses in zip(*self.capture(visual, audio, dropout, every=True), strict=True):
            fused = self.fuse(encoded, *(select_rows(x, videos) for x in focuses))
            logits = self.decode_fused(query, fused[:, None], dropout)
            scores.append(self.answer_scores(out._replace(fused=logits)))
        return torch.stack(scores, 1)

    @classmethod
    def load_released(cls, state_dict: dict[str, Tensor], heads: int = 8, **settings) -> AVMaster:
        """A model with the weights of a released checkpoint, in its type; dimensions follow the tensors. ValueError
        when a name is missing or unknown, or a shape does not fit the others."""
        model = cls(heads=heads, **released.dimensions(state_dict), **settings)
        model.to(state_dict["fc_a.weight"].dtype)
        model.spare = released.load(model, state_dict)
        return model

    def released_state_dict(self) -> dict[str, Tensor]:
        """The model in the released names. ValueError if it has other blocks than the released one."""
        self.spare = self.spare or released.fresh(self)
        return released.save(self, self.spare)
