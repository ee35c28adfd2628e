"""SigLIP 2 (Tschannen et al., 2025) through open_clip: pooled, patch and word tokens."""

from functools import cached_property
from pathlib import Path

import open_clip
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.tokenizer import HFTokenizer
from torch import nn

from extractors import EncoderError, is_file
from extractors.base import Encoder, download_from_hub, normalize
from extractors.clip import build_open_clip, hub_repository, normalization, sentence_of

PAD, END = 0, 1  # of the tokenizer's vocabulary
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
MEAN = STD = (0.5, 0.5, 0.5)


class SigLIP(Encoder):
    """`pooled` is the image's embedding (attention pooling of the patches), `patch` the patch rows after the last norm,
    which the pooling reads. `words` are after `ln_final` and the text projection; `sentence` is the last of the 64
    rows, usually padding, which is the row that SigLIP is trained to read.

    The tokenizer is part of the download. For a local weights file it is read from the file's folder (tokenizer.json
    and tokenizer_config.json of the same repository). With random weights, tokens are the text's bytes.
    """

    def build(self) -> nn.Module:
        return build_open_clip(self.spec.model)

    def fetch(self, tag: str) -> Path:
        return download_from_hub(hub_repository(self.spec.model, tag), (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME))

    def fetch_all(self, tag: str) -> list[Path]:
        repository = hub_repository(self.spec.model, tag)
        return [*self.files(tag), *(download_from_hub(repository, [name]) for name in TOKENIZER)]

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, S, S, 3 uint8 frames to pooled B, D and patch B, P, D."""
        trunk = self.network.visual.trunk
        values = normalize(windows[0], *normalization(self.spec.model, self.weights, (MEAN, STD)))
        patch = trunk.forward_features(values.to(self.dtype))
        return {"pooled": self.network.visual.head(trunk.forward_head(patch)), "patch": patch}

    @torch.inference_mode()
    def encode_text(self, texts: list[str], sentence: str) -> dict[str, torch.Tensor]:
        """words Q, 64, D; sentence Q, D (`eot`: the last row, `first`: row 0, `mean`: of the text's rows); length Q,
        the number of tokens including the end."""
        text = self.network.text
        tokens = self._tokens(texts).to(self.device)
        length = (tokens != PAD).sum(-1)
        embedded, mask = text._embeds(tokens)
        words = text.text_projection(text.ln_final(text.transformer(embedded, attn_mask=mask))).float()
        last = torch.full_like(length, words.shape[1] - 1)
        return {"words": words, "sentence": sentence_of(words, length, sentence, end=last), "length": length}

    def _tokens(self, texts: list[str]) -> torch.Tensor:
        """Q, 64 token numbers."""
        if self.weights == "random":
            rows = self.network.text.context_length
            tokens = torch.full((len(texts), rows), PAD)
            for row, text in zip(tokens, texts, strict=True):
                numbers = [*(byte + 2 for byte in text.lower().encode()[: rows - 1]), END]
                row[: len(numbers)] = torch.tensor(numbers)
            return tokens
        return self._tokenizer(texts)

    @cached_property
    def _tokenizer(self) -> HFTokenizer:
        # A folder also for a hub tag: a repository's name would be looked up in the network.
        file = Path(self.weights) if is_file(self.weights) else self.fetch_all(self.weights)[-1]
        folder = file.absolute().parent
        if lacking := [name for name in TOKENIZER if not (folder / name).exists()]:
            raise EncoderError(
                f"{folder}: has no {' and no '.join(lacking)}; put {' and '.join(TOKENIZER)} of the weights' "
                "repository beside the weights file"
            )
        text = open_clip.get_model_config(self.spec.model)["text_cfg"]
        try:
            return HFTokenizer(str(folder), context_length=text["context_length"], **text["tokenizer_kwargs"])
        except Exception as error:  # of several libraries, for files of others
            raise EncoderError(f"{folder}: the tokenizer cannot be read ({error}); fetch its files again") from error
