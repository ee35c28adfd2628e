"""VGGish (Hershey et al., 2017) through torchvggish: 128 numbers per second, without PCA and quantisation."""

from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvggish import torchvggish, vggish_input

from extractors import EncoderError
from extractors.base import Encoder, download, initialize_he

SAMPLE_RATE = 16000


class VGGish(Encoder):
    """One embedding per second, from the log-mel example of the second's first 0.96 s."""

    libraries = ("torchvggish",)

    def build(self) -> nn.Module:
        network = torchvggish.VGG(torchvggish.make_layers(), postprocess=False)
        initialize_he(network)
        return network

    def fetch(self, tag: str) -> Path:
        if tag != "torchvggish":
            raise EncoderError(f"weights {tag!r} of vggish: no such tag; use torchvggish, a file, or random")
        return download(torchvggish.VGGISH_WEIGHTS)

    @torch.inference_mode()
    def encode(self, *windows: np.ndarray) -> dict[str, torch.Tensor]:
        """B, 16000 float32 samples to embedding B, 128."""
        (audio,) = windows
        examples = np.concatenate(
            [vggish_input.waveform_to_examples(second, SAMPLE_RATE, return_tensor=False) for second in audio]
        )
        batch = torch.from_numpy(examples).unsqueeze(1).to(self.device, self.dtype)
        return {"embedding": self.network(batch).float()}
