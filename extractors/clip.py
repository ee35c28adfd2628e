"""OpenAI's CLIP (Radford et al., 2021) through open_clip: image, patch and word tokens."""

import logging

import numpy as np
import open_clip
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.pretrained import download_pretrained, get_pretrained_cfg, list_pretrained_tags_by_model
from torch import nn

from extractors import EncoderError
from extractors.base import Encoder


class CLIP(Encoder):
    """CLS and patch rows are after `ln_post` and the visual projection, words after `ln_final` and the text's."""

    def build(self) -> nn.Module:
        # open_clip warns that it loads no weights; they are loaded in the one place that checks them.
        logging.disable(logging.WARNING)
        try:
            model = open_clip.create_model(self.spec.model, load_weights=False)
        finally:
            logging.disable(logging.NOTSET)
        model.visual.output_tokens = True
        return model

    def fetch(self, tag: str) -> str:
        entry = get_pretrained_cfg(self.spec.model, tag)
        if not entry:
            known = ", ".join(list_pretrained_tags_by_model(self.spec.model))
            raise EncoderError(f"weights {tag!r} of {self.spec.model}: no such tag; choose one of {known}, or a file")
        try:
            return download_pretrained(entry)
        except Exception as error:  # each hub client raises its own kinds
            raise EncoderError(
                f"weights {tag!r} of {self.spec.model} cannot be downloaded ({error}); "
                "fetch the file elsewhere and give its path: see README.md, Weights"
            ) from error

    def load(self, state, path) -> None:
        # OpenAI's release carries three numbers that describe the model; the model here knows them.
        described = {"input_resolution", "context_length", "vocab_size"}
        super().load({name: tensor for name, tensor in state.items() if name not in described}, path)

    @torch.inference_mode()
    def encode(self, seconds: np.ndarray) -> dict[str, torch.Tensor]:
        """B, S, S, 3 uint8 frames to cls B, D and patch B, P, D from one forward pass."""
        frames = torch.from_numpy(seconds).to(self.device).permute(0, 3, 1, 2).float().div_(255)
        mean = torch.tensor(OPENAI_DATASET_MEAN, device=self.device).view(3, 1, 1)
        std = torch.tensor(OPENAI_DATASET_STD, device=self.device).view(3, 1, 1)
        visual = self.network.visual
        cls, tokens = visual(frames.sub_(mean).div_(std).to(self.dtype))
        return {"cls": cls.float(), "patch": (tokens @ visual.proj).float()}

    @torch.inference_mode()
    def encode_text(self, texts: list[str], sentence: str) -> dict[str, torch.Tensor]:
        """words B, 77, D; sentence B, D (`eot`: the end-of-text row, `first`: row 0, `mean`: of the text's rows);
        length B, the number of tokens including start and end."""
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
