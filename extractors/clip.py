"""OpenAI's CLIP (Radford et al., 2021) through open_clip: image, patch and word tokens."""

import logging
from contextlib import suppress
from pathlib import Path

import numpy as np
import open_clip
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from torch import nn

from extractors import EncoderError
from extractors.base import CONNECT_SECONDS, Encoder, download_errors, normalize


class CLIP(Encoder):
    """CLS and patch rows are after `ln_post` and the visual projection, words after `ln_final` and the text's."""

    libraries = ("open_clip_torch",)

    def build(self) -> nn.Module:
        # open_clip warns that it loads no weights; they are loaded in the one place that checks them.
        logging.disable(logging.WARNING)
        try:
            model = open_clip.create_model(self.spec.model, load_weights=False)
        finally:
            logging.disable(logging.NOTSET)
        model.visual.output_tokens = True
        return model

    def fetch(self, tag: str) -> Path:
        entry = get_pretrained_cfg(self.spec.model, tag)
        if not entry:
            known = ", ".join(list_pretrained_tags_by_model(self.spec.model))
            raise EncoderError(f"weights {tag!r} of {self.spec.model}: no such tag; choose one of {known}, or a file")
        repository = entry["hf_hub"].rstrip("/")
        for name in (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME):
            cached = try_to_load_from_cache(repository, name)
            if isinstance(cached, str):
                return Path(cached)
        with download_errors(f"{tag!r} of {self.spec.model}"):
            # The download itself tries each of two files six times, 23 s each. Without a network this raises at once.
            with suppress(EntryNotFoundError):
                get_hf_file_metadata(hf_hub_url(repository, HF_SAFE_WEIGHTS_NAME), timeout=CONNECT_SECONDS)
            return Path(download_pretrained(entry))

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # OpenAI's release has three more entries, which describe the model.
        described = {"input_resolution", "context_length", "vocab_size"}
        return {name: tensor for name, tensor in state.items() if name not in described}

    @torch.inference_mode()
    def encode(self, *windows: np.ndarray) -> dict[str, torch.Tensor]:
        """B, S, S, 3 uint8 frames to cls B, D and patch B, P, D from one forward pass."""
        (frames,) = windows
        values = normalize(frames, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, self.device)
        visual = self.network.visual
        cls, tokens = visual(values.to(self.dtype))
        return {"cls": cls.float(), "patch": (tokens @ visual.proj).float()}

    @staticmethod
    def tokens(text: str) -> list[str]:
        tokenizer = open_clip.SimpleTokenizer()
        return ["(start)", *(tokenizer.decode([token]).strip() for token in tokenizer.encode(text)), "(end)"]

    @torch.inference_mode()
    def encode_text(self, texts: list[str], sentence: str) -> dict[str, torch.Tensor]:
        """words Q, 77, D; sentence Q, D (`eot`: the end-of-text row, `first`: row 0, `mean`: of the text's rows);
        length Q, the number of tokens including start and end."""
        model = self.network
        tokens = open_clip.tokenize(texts, context_length=model.context_length).to(self.device)
        length = tokens.argmax(dim=-1) + 1  # end-of-text has the highest number of the vocabulary
        x = model.token_embedding(tokens) + model.positional_embedding
        x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
        words = (x @ model.text_projection).float()
        if sentence == "eot":
            pooled = words[torch.arange(len(texts), device=self.device), length - 1]
        elif sentence == "first":
            pooled = words[:, 0]
        else:
            own = torch.arange(words.shape[1], device=self.device) < length[:, None]
            pooled = (words * own[..., None]).sum(1) / length[:, None]
        return {"words": words, "sentence": pooled, "length": length}
