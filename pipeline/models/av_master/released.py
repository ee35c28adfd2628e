"""The released checkpoint's names, and which of our parameters each of its tensors is.

A released tensor is a stack, along its first dimension, of our parameters and of rows that no output depends on
(written None). The table is in the order of the released state dict.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from pipeline.models.av_master.model import AVMaster

Parts = tuple[str | None, ...]


def linear(theirs: str, ours: str | None) -> dict[str, Parts]:
    return {f"{theirs}.{kind}": (ours and f"{ours}.{kind}",) for kind in ("weight", "bias")}


def attention(theirs: str, ours: dict[str, str | None]) -> dict[str, Parts]:
    """PyTorch's multi-head attention; `ours` maps query, key, value, out to a layer of ours or None."""
    names = [ours["query"], ours["key"], ours["value"]]
    return {
        f"{theirs}.in_proj_weight": tuple(name and f"{name}.weight" for name in names),
        f"{theirs}.in_proj_bias": tuple(name and f"{name}.bias" for name in (names[0], None, names[2])),
        **linear(f"{theirs}.out_proj", ours["out"]),
    }


def four(ours: str | None) -> dict[str, str | None]:
    return {part: ours and f"{ours}.{part}" for part in ("query", "key", "value", "out")}


def encoder(theirs: str, own: str, cross: str | None, norm: str, feed_forward: str, unused: tuple[str, ...]):
    layer = f"{theirs}.layers.0"
    table = {
        **attention(f"{layer}.self_attn", four(own)),
        **attention(f"{layer}.cm_attn", four(cross)),
        **linear(f"{layer}.linear1", f"{feed_forward}.inner"),
        **linear(f"{layer}.linear2", f"{feed_forward}.outer"),
        **linear(f"{layer}.norm1", norm),
        **linear(f"{layer}.norm2", f"{feed_forward}.norm"),
    }
    for name in unused:
        table |= linear(f"{theirs}.{name}", None)
    return table


def answer_decoder(theirs: str, ours: str, one_token: bool) -> dict[str, Parts]:
    table: dict[str, Parts] = {f"{theirs}.class_embedding": (None,), f"{theirs}.positional_embedding": (None,)}
    for n in range(2):
        a, b = f"{theirs}.layer_ca.{n}", f"{ours}.layers.{n}"
        table |= linear(f"{a}.attention.self.query", None if one_token else f"{b}.query")
        table |= {f"{a}.attention.self.key.weight": (None if one_token else f"{b}.key.weight",)}
        table |= {f"{a}.attention.self.key.bias": (None,)}
        table |= linear(f"{a}.attention.self.value", f"{b}.value")
        table |= linear(f"{a}.attention.output.dense", f"{b}.out")
        table |= linear(f"{a}.attention.output.LayerNorm", f"{b}.norm1")
        table |= linear(f"{a}.hidden_intermediate.dense", f"{b}.inner")
        table |= linear(f"{a}.memory_intermediate.dense", None)
        table |= linear(f"{a}.output.dense", f"{b}.outer")
        table |= linear(f"{a}.output.LayerNorm", f"{b}.norm2")
    return {
        **table,
        f"{theirs}.head.bias": (f"{ours}.answers.bias",),
        **linear(f"{theirs}.head.transform.dense", f"{ours}.dense"),
        **linear(f"{theirs}.head.transform.LayerNorm", f"{ours}.norm"),
        f"{theirs}.head.decoder.weight": (f"{ours}.answers.weight",),
    }


def focus_capture(theirs: str, ours: str) -> dict[str, Parts]:
    enc, dec = f"{theirs}.encoder.layers.0", f"{theirs}.decoder.layers.0"
    cross = {"query": None, "key": None, "value": f"{ours}.cross_value", "out": f"{ours}.cross_out"}
    return {
        f"{enc}.b": (f"{ours}.energy_bias",),
        **linear(f"{enc}.linear1", f"{ours}.template_in"),
        **linear(f"{enc}.linear2", f"{ours}.frame_in"),
        **linear(f"{enc}.w", None),
        **linear(f"{enc}.linear3", f"{ours}.energy_out"),
        **attention(f"{dec}.self_attn", four(f"{ours}.attention")),
        **attention(f"{dec}.cross_attn", cross),
        **linear(f"{dec}.linear1", f"{ours}.inner"),
        **linear(f"{dec}.linear2", f"{ours}.outer"),
        **linear(f"{dec}.norm1", f"{ours}.norm1"),
        **linear(f"{dec}.norm2", f"{ours}.norm2"),
        **linear(f"{dec}.norm3", f"{ours}.norm3"),
        **linear(f"{theirs}.decoder.norm", f"{ours}.norm"),
    }


TABLE: dict[str, Parts] = {
    "bo_v": ("fusion.visual.bias",),
    "bo_a": ("fusion.audio.bias",),
    **linear("fc_a", "fc_audio"),
    **linear("fc_v", "fc_visual"),
    **linear("fc_p", None),
    **linear("fc_word", "fc_words"),
    **linear("fc_q", "fc_sentence"),
    **linear("fc_spat_q", None),
    **encoder(
        "GlobalSelf_Module", "fusion.attention", None, "fusion.norm", "fusion.feed_forward", ("norm2",)
    ),
    **encoder("AP_Module", "preference_audio.own", "preference_audio.cross", "preference_audio.norm",
              "preference_audio.feed_forward", ("norm1", "norm2")),
    **encoder("VP_Module", "preference_visual.own", "preference_visual.cross", "preference_visual.norm",
              "preference_visual.feed_forward", ("norm1", "norm2")),
    **linear("AugInformation.video_embeddings", "embed"),
    **linear("AugInformation.object_embeddings", None),
    **focus_capture("AugInformation.focus_capture", "focus"),
    "bisa_v.weight": ("bias_visual",),
    "bias_a.weight": ("bias_audio",),
    **linear("audio_fusion", None),
    **linear("visual_fusion", None),
    **linear("SM_fusion", None),
    **linear("fc_av_fusion", None),
    **linear("Uo_v", "fusion.visual.project"),
    "wo_v.weight": ("fusion.visual.score.weight",),
    "wo_v.bias": (None,),
    **linear("Uo_a", "fusion.audio.project"),
    "wo_a.weight": ("fusion.audio.score.weight",),
    "wo_a.bias": (None,),
    **linear("linear_visual_layer", "fusion.merge"),
    **answer_decoder("fc_answer_pred", "decode_fused", True),
    **answer_decoder("fc_answer_pred2", "decode_audio", False),
    **answer_decoder("fc_answer_pred3", "decode_visual", False),
}  # fmt: skip


def sizes(state_dict: dict[str, Tensor]) -> tuple[dict[str, int], dict[str, int], int]:
    """Read off a released state dict: the settings that are sizes, the last dimension of each feature and text, and
    the number of answers. Raises ValueError when names are missing or unknown."""
    missing, unknown = TABLE.keys() - state_dict.keys(), state_dict.keys() - TABLE.keys()
    if missing or unknown:
        some = [f"lacks {name}" for name in sorted(missing)] + [f"has unknown {name}" for name in sorted(unknown)]
        raise ValueError(f"not a released AV-Master state dict: it {', '.join(some[:3])} ({len(some)} in all)")
    shape = {name: tensor.shape for name, tensor in state_dict.items()}
    settings = {
        "width": shape["fc_a.weight"][0],
        "focus_width": shape["AugInformation.focus_capture.encoder.layers.0.linear1.weight"][0],
        "audio_template": shape["bias_a.weight"][0],
        "visual_template": shape["bisa_v.weight"][0],
    }
    text_dim = shape["fc_word.weight"][1]
    dims = {
        "audio": shape["fc_a.weight"][1],
        "visual": shape["fc_v.weight"][1],
        "words": text_dim,
        "sentence": text_dim,
    }
    return settings, dims, shape["fc_answer_pred.head.decoder.weight"][0]


def own_parameters(model: AVMaster) -> dict[str, Tensor]:
    """By name. Raises ValueError unless they are exactly the table's."""
    parameters = dict(model.named_parameters())
    if parameters.keys() != {name for parts in TABLE.values() for name in parts if name}:
        raise ValueError(
            "share_blocks, share_biases, without, dynamic_fusion: the released names fit only the defaults of these"
        )
    return parameters


def load(model: AVMaster, state_dict: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """Fill the model's parameters; returns the rows that it has no use for, by released name."""
    parameters, unused = own_parameters(model), {}
    for name, parts in TABLE.items():
        rows = state_dict[name].chunk(len(parts)) if len(parts) > 1 else (state_dict[name],)
        for ours, tensor in zip(parts, rows, strict=True):
            if ours is None:
                unused.setdefault(name, []).append(tensor.detach().clone())
                continue
            if parameters[ours].shape != tensor.shape:
                expected = tuple(parameters[ours].shape)
                raise ValueError(f"{name}: expected rows of shape {expected}, the state dict has {tuple(tensor.shape)}")
            with torch.no_grad():
                parameters[ours].copy_(tensor)
    return unused


def save(model: AVMaster, unused_rows: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    """The released state dict of a model and the unused rows that `load` or `fresh` returned."""
    parameters, out = own_parameters(model), {}
    for name, parts in TABLE.items():
        unused = iter(unused_rows.get(name, ()))
        rows = [next(unused) if ours is None else parameters[ours].detach() for ours in parts]
        out[name] = (torch.cat([row.to(rows[-1]) for row in rows]) if len(rows) > 1 else rows[0]).clone()
    return out


def fresh(model: AVMaster) -> dict[str, list[Tensor]]:
    """Unused rows for a model that was not loaded from a released checkpoint, initialised as the release does. They
    are drawn from a generator of their own, so that the global random state does not change."""
    parameters, generator = own_parameters(model), torch.Generator().manual_seed(0)
    unused: dict[str, list[Tensor]] = {}
    for name, parts in TABLE.items():
        for _ in range(parts.count(None)):
            tensor = unused_tensor(name, model, generator)
            unused.setdefault(name, []).append(tensor.to(parameters["fc_audio.weight"]))
    return unused


def unused_tensor(name: str, model: AVMaster, generator: torch.Generator) -> Tensor:
    """One unused tensor, or one third of a packed one: the focus capture's matrices and packed ones are
    Xavier-uniform, embeddings normal with deviation D^-½, and all else is as PyTorch initialises a layer."""
    tensor = torch.empty(unused_shape(name, model))
    layer, _, kind = name.rpartition(".")
    if kind in ("class_embedding", "positional_embedding"):
        return tensor.normal_(std=model.settings.width**-0.5, generator=generator)
    if "norm" in layer:
        return tensor.fill_(float(kind == "weight"))
    if kind == "in_proj_weight":
        bound = (6 / (4 * tensor.shape[1])) ** 0.5
    elif kind == "in_proj_bias" or (layer.endswith("out_proj") and kind == "bias"):
        bound = 0.0
    elif "focus_capture" in layer and kind == "weight":
        bound = (6 / sum(tensor.shape)) ** 0.5
    else:
        bound = unused_shape(f"{layer}.weight", model)[1] ** -0.5
    return tensor.uniform_(-bound, bound, generator=generator)


def unused_shape(name: str, model: AVMaster) -> tuple[int, ...]:
    """The shape of an unused tensor, or of one third of a packed one."""
    width, focus_width = model.settings.width, model.settings.focus_width
    layer, _, kind = name.rpartition(".")
    if layer.endswith("encoder.layers.0.w"):
        return (1, focus_width) if kind == "weight" else (1,)
    if layer.startswith("wo_"):
        return (1, width) if kind == "weight" else (1,)
    if layer.endswith(("Module.norm1", "Module.norm2")):
        return (512,)
    if kind == "positional_embedding":
        return (100, width)
    columns = {"fc_p": model.fc_visual.in_features, "fc_spat_q": model.fc_words.in_features}
    columns |= {"SM_fusion": 1024, "fc_av_fusion": 1024}
    return (width, columns.get(layer, width)) if kind.endswith("weight") else (width,)
