"""VGGish (Hershey et al., 2017) through torchvggish: 128 numbers a second, without PCA and quantisation."""

import numpy as np
import torch
from torch import nn
from torchvggish import torchvggish, vggish_input

from extractors import EncoderError
from extractors.base import Encoder

SAMPLE_RATE = 16000


class VGGish(Encoder):
    """One embedding a second, from the log-mel example of the second's first 0.96 s."""

    def build(self) -> nn.Module:
        network = torchvggish.VGG(torchvggish.make_layers(), postprocess=False)
        # PyTorch's default shrinks the signal at each layer until random embeddings are all alike;
        # He's initialisation (2015, eq. 10) keeps its variance.
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                nn.init.zeros_(layer.bias)
        return network

    def fetch(self, tag: str) -> str:
        if tag != "torchvggish":
            raise EncoderError(f"weights {tag!r} of vggish: no such tag; use torchvggish, a file, or random")
        url = torchvggish.VGGISH_WEIGHTS
        path = f"{torch.hub.get_dir()}/checkpoints/{url.rsplit('/', 1)[1]}"
        try:
            torch.hub.load_state_dict_from_url(url, weights_only=True, check_hash=True)
        except OSError as error:
            raise EncoderError(
                f"weights torchvggish cannot be downloaded ({error}); "
                "fetch the file elsewhere and give its path: see README.md, Weights"
            ) from error
        return path

    @torch.inference_mode()
    def encode(self, seconds: np.ndarray) -> dict[str, torch.Tensor]:
        """B, 16000 float32 samples to embedding B, 128."""
        examples = np.concatenate(
            [vggish_input.waveform_to_examples(second, SAMPLE_RATE, return_tensor=False) for second in seconds]
        )
        batch = torch.from_numpy(examples).unsqueeze(1).to(self.device, self.dtype)
        return {"embedding": self.network(batch).float()}
