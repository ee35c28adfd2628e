"""CLAP (Wu et al., 2023: "Large-scale Contrastive Language-Audio Pretraining") through transformers: 512 numbers per
second."""

from functools import cache
from pathlib import Path

import torch
from torch import nn
from transformers import ClapAudioConfig, ClapAudioModelWithProjection
from transformers.audio_utils import mel_filter_bank

from extractors.base import Encoder, download_tag
from extractors.spectrogram import centred_frames, decibels, power_spectrum

SAMPLE_RATE, WINDOW, HOP = 48000, 1024, 480  # Hz, samples, samples
MELS, LOWEST, HIGHEST = 64, 50, 14000  # bands; Hz
CLIP_SECONDS = 10
REPOSITORIES = {
    "laion_unfused": "laion/clap-htsat-unfused",
}


class CLAP(Encoder):
    """The audio branch (HTS-AT), after the projection into the space of texts, not normalised to unit length.

    The network reads clips of ten seconds. As the library does with shorter audio (`repeatpad`), a second is repeated
    ten times. The spectrogram is that of the library for models without fusion (`rand_trunc`).
    """

    def build(self) -> nn.Module:
        return ClapAudioModelWithProjection(ClapAudioConfig())

    def fetch(self, tag: str) -> Path:
        return download_tag(self.spec.model, tag, REPOSITORIES)

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The published files have the text branch as well."""
        kept = ("audio_model.", "audio_projection.")
        wanted = self.network.state_dict().keys()
        # Older files store two constants of the audio branch that newer libraries compute.
        return {name: tensor for name, tensor in state.items() if name.startswith(kept) and name in wanted}

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, 48000 float32 samples to embedding B, 512."""
        spectrogram = log_mel(windows[0].repeat(1, CLIP_SECONDS))[:, None]
        return {"embedding": self.network(spectrogram.to(self.dtype)).audio_embeds}


def log_mel(samples: torch.Tensor) -> torch.Tensor:
    """B, samples to B, frames, 64 in dB, one frame per 10 ms."""
    window = torch.hann_window(WINDOW, device=samples.device)
    power = power_spectrum(centred_frames(samples, WINDOW, HOP), window, WINDOW)
    return decibels(power @ _mel_filters().to(samples.device))


@cache
def _mel_filters() -> torch.Tensor:
    """513 frequencies to 64 bands."""
    bins = WINDOW // 2 + 1
    filters = mel_filter_bank(bins, MELS, LOWEST, HIGHEST, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters).float()
