"""The released code of AV-Master: its modules by name, and its layers as the field counts them."""

from __future__ import annotations

import torch
from torch import nn

from pipeline.models.av_master.config import AVMasterSettings
from pipeline.models.counts import Count, attention, feed_forward, linear, norm
from pipeline.models.released import Modules, Partly, cross_modal, without_use

Shapes = dict[str, tuple[int, ...]]


def modules(s: AVMasterSettings, shapes: Shapes) -> Modules:
    """Ours by released name. Raises ValueError for a model of other blocks."""
    if not s.share_blocks or s.share_biases or s.dynamic_fusion or {*s.without} - {"dpcl"}:
        raise ValueError(
            "share_blocks, share_biases, without, dynamic_fusion: the released names fit only the defaults of these"
        )
    d, focus = s.width, "AugInformation.focus_capture"
    return {
        "bo_v": "fusion.visual.bias",
        "bo_a": "fusion.audio.bias",
        "fc_a": "fc_audio",
        "fc_v": "fc_visual",
        "fc_p": lambda: nn.Linear(shapes["visual"][-1], d),
        "fc_word": "fc_words",
        "fc_q": "fc_sentence",
        "fc_spat_q": lambda: nn.Linear(shapes["words"][-1], d),
        **cross_modal("GlobalSelf_Module.layers.0", "fusion"),
        "GlobalSelf_Module.layers.0.self_attn": packed("fusion.attention", d),
        **without_use({"GlobalSelf_Module.layers.0.cm_attn": ""}, d),
        "GlobalSelf_Module.norm2": lambda: nn.LayerNorm(512),
        **preference("AP_Module", "preference_audio", d),
        **preference("VP_Module", "preference_visual", d),
        "AugInformation.video_embeddings": "embed",
        "AugInformation.object_embeddings": lambda: nn.Linear(d, d),
        **focus_encoder(f"{focus}.encoder.layers.0", s.focus_width),
        **focus_decoder(f"{focus}.decoder.layers.0", d),
        f"{focus}.decoder.norm": "focus.norm",
        "bisa_v.weight": "bias_visual",
        "bias_a.weight": "bias_audio",
        "audio_fusion": lambda: nn.Linear(d, d),
        "visual_fusion": lambda: nn.Linear(d, d),
        "SM_fusion": lambda: nn.Linear(1024, d),
        "fc_av_fusion": lambda: nn.Linear(1024, d),
        "Uo_v": "fusion.visual.project",
        "wo_v": weight_only("fusion.visual.score", d, 1),
        "Uo_a": "fusion.audio.project",
        "wo_a": weight_only("fusion.audio.score", d, 1),
        "linear_visual_layer": "fusion.merge",
        **answer_decoder("fc_answer_pred", "decode_fused", d, one_token=True),
        **answer_decoder("fc_answer_pred2", "decode_audio", d),
        **answer_decoder("fc_answer_pred3", "decode_visual", d),
    }


def weight_only(ours: str, inner: int, outer: int) -> Partly:
    """A linear layer whose bias adds the same to all scores of a softmax."""
    return Partly(lambda: nn.Linear(inner, outer), {"weight": (f"{ours}.weight",)})


def packed(ours: str, width: int) -> Partly:
    """nn.MultiheadAttention: ours is an Attention, whose keys have no bias."""
    query, key, value, out = (f"{ours}.{name}" for name in ("query", "key", "value", "out"))
    parts = {
        "in_proj_weight": (f"{query}.weight", f"{key}.weight", f"{value}.weight"),
        "in_proj_bias": (f"{query}.bias", None, f"{value}.bias"),
        "out_proj.weight": (f"{out}.weight",),
        "out_proj.bias": (f"{out}.bias",),
    }
    return Partly(lambda: nn.MultiheadAttention(width, 1), parts)


def preference(theirs: str, ours: str, width: int) -> Modules:
    layer = f"{theirs}.layers.0"
    return {
        **cross_modal(layer, ours),
        f"{layer}.self_attn": packed(f"{ours}.own", width),
        f"{layer}.cm_attn": packed(f"{ours}.cross", width),
        **without_use({f"{theirs}.norm1": "", f"{theirs}.norm2": ""}, 512),
    }


def focus_encoder(theirs: str, focus_width: int) -> Modules:
    """Its scores w are of equal keys."""

    def scores() -> nn.Module:
        layer = nn.Linear(focus_width, 1)
        nn.init.xavier_uniform_(layer.weight)
        return layer

    return {
        f"{theirs}.b": "focus.energy_bias",
        f"{theirs}.linear1": "focus.template_in",
        f"{theirs}.linear2": "focus.frame_in",
        f"{theirs}.w": scores,
        f"{theirs}.linear3": "focus.energy_out",
    }


def focus_decoder(theirs: str, width: int) -> Modules:
    """Its cross attention is on equal keys."""
    cross = {
        "in_proj_weight": (None, None, "focus.cross_value.weight"),
        "in_proj_bias": (None, None, "focus.cross_value.bias"),
        "out_proj.weight": ("focus.cross_out.weight",),
        "out_proj.bias": ("focus.cross_out.bias",),
    }
    return {
        f"{theirs}.self_attn": packed("focus.attention", width),
        f"{theirs}.cross_attn": Partly(lambda: nn.MultiheadAttention(width, 1), cross),
        f"{theirs}.linear1": "focus.inner",
        f"{theirs}.linear2": "focus.outer",
        **{f"{theirs}.norm{n}": f"focus.norm{n}" for n in (1, 2, 3)},
    }


def answer_decoder(theirs: str, ours: str, width: int, one_token: bool = False) -> Modules:
    """With one token as memory, queries and keys have no use."""

    def embedding(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, width) * width**-0.5

    def square() -> nn.Module:
        return nn.Linear(width, width)

    decoder: Modules = {
        f"{theirs}.class_embedding": embedding,
        f"{theirs}.positional_embedding": lambda: embedding(100),
    }
    for n in range(2):
        a, b = f"{theirs}.layer_ca.{n}", f"{ours}.layers.{n}"
        decoder |= {
            f"{a}.attention.self.query": square if one_token else f"{b}.query",
            f"{a}.attention.self.key": square if one_token else weight_only(f"{b}.key", width, width),
            f"{a}.attention.self.value": f"{b}.value",
            f"{a}.attention.output.dense": f"{b}.out",
            f"{a}.attention.output.LayerNorm": f"{b}.norm1",
            f"{a}.hidden_intermediate.dense": f"{b}.inner",
            f"{a}.memory_intermediate.dense": square,
            f"{a}.output.dense": f"{b}.outer",
            f"{a}.output.LayerNorm": f"{b}.norm2",
        }
    return decoder | {
        f"{theirs}.head.bias": f"{ours}.answers.bias",
        f"{theirs}.head.transform.dense": f"{ours}.dense",
        f"{theirs}.head.transform.LayerNorm": f"{ours}.norm",
        f"{theirs}.head.decoder.weight": f"{ours}.answers.weight",
    }


def counted(s: AVMasterSettings, shapes: Shapes, num_answers: int) -> dict[str, list[Count]]:
    """The layers by part, for one sample without a negative. thop does not know the class of the decoders' layer
    norms."""
    d, f, t, words = s.width, s.focus_width, shapes["audio"][0], shapes["words"][0]
    templates, tokens = (s.visual_template, s.audio_template), 2 * t + words
    rows = {"audio": t, "visual": t, "words": words, "sentence": 1}
    parts = {"input projections": [linear(shapes[name][-1], d, n) for name, n in rows.items()]}
    captures, fuses = s.has_tdpp and "avfc" not in s.without, s.has_tdpp and "avkf" not in s.without
    if captures:
        steps, pairs = t * sum(templates), t * sum(length**2 for length in templates)
        layers = [*[linear(d, f, steps)] * 3, *[linear(f, d, steps)] * 2, linear(f, 1, pairs), *[norm(d, steps)] * 4]
        unshared = [] if s.share_blocks else [Count(layer.parameters, 0) for layer in layers]
        attentions = [attention(d, length, length) for length in templates] * 2 * t
        parts["focus capture"] = [linear(d, d, 2 * t), *layers, *unshared, *attentions]
    if fuses:
        layers = [norm(d, tokens), feed_forward(d, tokens), linear(3 * d, d, tokens), attention(d, tokens, tokens)]
        for length in templates if captures else (t, t):
            layers += [linear(d, d, length), linear(d, 1, tokens * length)]
        parts["key fusion"] = layers + [linear(d, 2, 1)] * s.dynamic_fusion
    if s.has_gpap:
        attentions = [attention(d, t, t), attention(d, t, words)]
        parts["preferences"] = [norm(d, t), feed_forward(d, t), *attentions] * 2
    parts["decoders"] = []
    for length in [1] * s.has_tdpp + [t, t] * s.has_gpap:
        layer = [*[linear(d, d, 1)] * 4, *[linear(d, d, length)] * 2, Count(0, 0, 2 * length * d)]
        parts["decoders"] += [*layer * 2, linear(d, d, 1), Count(d * num_answers, d * num_answers)]
    return parts
