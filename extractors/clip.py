"""OpenAI's CLIP (Radford et al., 2021) through open_clip: image, patch and word tokens."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from open_clip.transformer import QuickGELU
from torch import nn

from extractors import EncoderError, is_hub_tag
from extractors.base import Encoder, download_from_hub, normalize

QUICK_GELU = 1.702  # x * sigmoid(1.702 x)


class CLIP(Encoder):
    """CLS and patch rows are after `ln_post` and the visual projection, words after `ln_final` and the text's; the
    unprojected rows are after the same norms, without the projections.

    QuickGELU costs three passes over the widest activations. The linear layers around it take over its two factors,
    x sigmoid(1.702 x) = silu(1.702 x) / 1.702, so that one remains.
    """

    def build(self) -> nn.Module:
        model: Any = build_open_clip(self.spec.model)
        model.visual.output_tokens = True
        for block in (*model.visual.transformer.resblocks, *model.transformer.resblocks):
            assert isinstance(block.mlp.gelu, QuickGELU)
            block.mlp.gelu = nn.SiLU()
        for block in model.transformer.resblocks:
            block.attn = MaskedAttention(block.attn)
        return model

    def fetch(self, tag: str) -> Path:
        return download_from_hub(hub_repository(self.spec.model, tag), (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME))

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # OpenAI's release has three more entries, which describe the model.
        described = {"input_resolution", "context_length", "vocab_size"}
        return {name: tensor for name, tensor in state.items() if name not in described}

    def fuse(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.endswith(("mlp.c_fc.weight", "mlp.c_fc.bias")):
            return tensor.float() * QUICK_GELU
        return tensor.float() / QUICK_GELU if name.endswith("mlp.c_proj.weight") else tensor

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, S, S, 3 uint8 frames to cls B, D, patch B, P, D and patch_unprojected B, P, W from one forward pass."""
        usual = (OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        values = normalize(windows[0], *normalization(self.spec.model, self.weights, usual))
        visual = self.network.visual
        cls, tokens = visual(values.to(self.dtype))
        return {"cls": cls, "patch": tokens @ visual.proj, "patch_unprojected": tokens}

    @staticmethod
    def tokens(text: str) -> list[str]:
        tokenizer = _tokenizer()
        return ["(start)", *(tokenizer.decode([token]).strip() for token in tokenizer.encode(text)), "(end)"]

    @torch.inference_mode()
    def encode_text(self, texts: list[str], sentence: str) -> dict[str, torch.Tensor]:
        """words Q, 77, D and words_unprojected Q, 77, W; sentence Q, D (`eot`: the end-of-text row of words, `first`:
        row 0, `mean`: of the text's rows); length Q, the number of tokens including start and end."""
        model = self.network
        tokens = open_clip.tokenize(texts, context_length=model.context_length).to(self.device)
        length = tokens.argmax(dim=-1) + 1  # end-of-text has the highest number of the vocabulary
        x = model.token_embedding(tokens) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        words = (x @ model.text_projection).float()
        pooled = sentence_of(words, length, sentence, end=length - 1)
        return {"words": words, "words_unprojected": x.float(), "sentence": pooled, "length": length}


_tokenizer = cache(open_clip.SimpleTokenizer)  # which reads its table of words


class MaskedAttention(nn.Module):
    """The same numbers as the MultiheadAttention that it takes over, in a third of the time on a CPU: with a mask,
    torch's copies its weights for every text (2.15)."""

    def __init__(self, attention: nn.MultiheadAttention):
        super().__init__()
        self.heads, self.in_proj_weight = attention.num_heads, attention.in_proj_weight
        self.in_proj_bias, self.out_proj = attention.in_proj_bias, attention.out_proj

    def forward(self, x: torch.Tensor, *_: torch.Tensor, attn_mask: torch.Tensor, **__: bool) -> tuple[torch.Tensor]:
        """x B, L, D and what is added to the scores, L, L -> B, L, D"""
        projected = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each B, heads, L, D / heads
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask.to(q.dtype))
        return (self.out_proj(attended.transpose(1, 2).flatten(2)),)


def build_open_clip(model: str) -> nn.Module:
    """A model of open_clip with random weights. (Its create_model would also load weights, and move the model.)"""
    config: Any = open_clip.get_model_config(model)
    kind = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
    return kind(**config)


def hub_repository(model: str, tag: str) -> str:
    """The repository of Hugging Face that has a model's weights of open_clip's `tag`. Raises EncoderError."""
    entry = get_pretrained_cfg(model, tag)
    if not entry:
        known = ", ".join(list_pretrained_tags_by_model(model))
        raise EncoderError(f"weights {tag!r} of {model}: no such tag; choose one of {known}, or a file")
    return entry["hf_hub"].rstrip("/")


def normalization(model: str, weights: str, usual: tuple[Sequence[float], Sequence[float]]) -> tuple:
    """Mean and deviation of frames for open_clip's tag; the usual ones, which are those of all tags so far, for a file
    and random weights."""
    entry = get_pretrained_cfg(model, weights) if is_hub_tag(weights) else {}
    return entry.get("mean", usual[0]), entry.get("std", usual[1])


def sentence_of(words: torch.Tensor, length: torch.Tensor, kind: str, end: torch.Tensor) -> torch.Tensor:
    """words Q, L, D to Q, D: `eot` is row `end`, `first` row 0, `mean` the mean of the first `length` rows."""
    if kind == "eot":
        return words[torch.arange(len(words), device=words.device), end]
    if kind == "first":
        return words[:, 0]
    own = torch.arange(words.shape[1], device=words.device) < length[:, None]
    return (words * own[..., None]).sum(1) / length[:, None]
