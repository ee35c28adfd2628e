"""VGGish (Hershey et al., 2017) through torchvggish: 128 numbers per example of 0.96 s."""

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvggish import mel_features, torchvggish, vggish_params

from extractors import EncoderError, is_hub_tag
from extractors.base import Encoder, download, initialize_he
from extractors.spectrogram import power_spectrum

WINDOW, HOP, FFT = 400, 160, 512  # samples at 16 kHz: 25 ms, 10 ms, and the next power of 2
FRAMES = 96  # per example, 0.96 s
PCA = {"pca_eigen_vectors": (128, 128), "pca_means": (128,)}


class VGGish(Encoder):
    """One embedding per window, from the log-mel example of its first 0.96 s: the last ReLU's output, without PCA and
    quantisation.

    The windows of `vggish` are the video's seconds. Those of `vggish_hop096` follow each other every 0.96 s, as in the
    release of AudioSet: row i begins at 0.96 i, so that row 59 is 2.36 s earlier than second 59.
    """

    def build(self) -> nn.Module:
        network = torchvggish.VGG(torchvggish.make_layers(), postprocess=False)
        initialize_he(network)
        return network

    def fetch(self, tag: str) -> Path:
        if tag != "torchvggish":
            raise EncoderError(f"weights {tag!r} of vggish: no such tag; use torchvggish, a file, or random")
        return download(torchvggish.VGGISH_WEIGHTS)

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, 16000 float32 samples to embedding B, 128."""
        return {"embedding": self.network(log_mel(windows[0]).unsqueeze(1).to(self.dtype))}


class VGGishPCA(VGGish):
    """The embeddings of AudioSet's release: what the last ReLU would read, after PCA with whitening, cut to -2…2 and
    quantised to the whole numbers 0…255 by truncation.

    The PCA's tensors, pca_eigen_vectors (128, 128) and pca_means (128), are in torchvggish's download, in a local
    weights file, or in a file beside it that is named as the download is.
    """

    def build(self) -> nn.Module:
        network: Any = super().build()
        network.embeddings = network.embeddings[:-1]
        network.pca_eigen_vectors = nn.Parameter(torch.empty(PCA["pca_eigen_vectors"]).normal_(std=128**-0.5))
        network.pca_means = nn.Parameter(torch.zeros(PCA["pca_means"]))
        return network

    def files(self, weights: str) -> list[Path]:
        files = super().files(weights)
        return [*files, download(torchvggish.PCA_PARAMS)] if is_hub_tag(weights) else files

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        weights, *beside = self.paths
        if not PCA.keys() <= state.keys():
            if not beside:
                raise EncoderError(
                    f"weights {weights}: has no {' and '.join(PCA)}; put {self.spec.beside} beside it, which "
                    "`avqa weights --encoder vggish_hop096_pca --weights torchvggish` downloads"
                )
            state = state | self._read_pca(beside[0])
        return state | {name: state[name].reshape(shape) for name, shape in PCA.items()}

    def _read_pca(self, path: Path) -> dict[str, torch.Tensor]:
        found = self._read(path)
        sizes = {name: tensor.numel() for name, tensor in found.items()}
        if sizes != {name: math.prod(shape) for name, shape in PCA.items()}:
            raise EncoderError(f"weights {path}: holds {sizes}, expected {PCA}; {self._remedy(path)}")
        return found

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, 16000 float32 samples to embedding B, 128, whole numbers of 0 to 255."""
        embedding = super().forward(*windows)["embedding"].float()
        net: Any = self.network
        projected = (embedding - net.pca_means.float()) @ net.pca_eigen_vectors.float().T
        return {"embedding": ((projected.clamp(-2, 2) + 2) * (255 / 4)).floor()}


def log_mel(samples: torch.Tensor) -> torch.Tensor:
    """B, at least 15600 samples to B, 96, 64: torchvggish's log-mel example, computed for the batch at once."""
    frames = samples[:, : WINDOW + (FRAMES - 1) * HOP].unfold(-1, WINDOW, HOP)
    window = torch.hann_window(WINDOW, device=samples.device)
    magnitude = power_spectrum(frames, window, FFT).sqrt()
    return (magnitude @ _mel_filters().to(samples.device) + vggish_params.LOG_OFFSET).log()


@cache
def _mel_filters() -> torch.Tensor:
    """257 frequencies to 64 bands."""
    filters = mel_features.spectrogram_to_mel_matrix(
        num_mel_bins=vggish_params.NUM_MEL_BINS,
        num_spectrogram_bins=FFT // 2 + 1,
        audio_sample_rate=vggish_params.SAMPLE_RATE,
        lower_edge_hertz=vggish_params.MEL_MIN_HZ,
        upper_edge_hertz=vggish_params.MEL_MAX_HZ,
    )
    return torch.from_numpy(filters).float()
