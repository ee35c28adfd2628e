"""AST (Gong et al., 2021: "Audio Spectrogram Transformer") through transformers: 768 numbers per second."""

import warnings
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import ASTConfig, ASTModel
from transformers.audio_utils import mel_filter_bank

from extractors.base import Encoder, download_tag
from extractors.spectrogram import power_spectrum

SAMPLE_RATE, WINDOW, HOP, FFT = 16000, 400, 160, 512  # Hz, samples
MELS, LOWEST = 128, 20  # bands; Hz
FRAMES = 1024  # that the network reads: 10.24 s
PREEMPHASIS, FLOOR = 0.97, 2.0**-23
MEAN, STD = -4.2677393, 4.5689974  # of AudioSet
REPOSITORIES = {"audioset": "MIT/ast-finetuned-audioset-10-10-0.4593"}


class AST(Encoder):
    """`cls` and `distillation` are the first two rows after the last norm, `pooled` is the mean of the patch rows.

    The network reads 10.24 s. As the library does with shorter audio, a second's 98 frames are followed by zeros; their
    patches are part of the mean.
    """

    def build(self) -> nn.Module:
        return ASTModel(ASTConfig())

    def fetch(self, tag: str) -> Path:
        return download_tag(self.spec.model, tag, REPOSITORIES)

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        prefix = "audio_spectrogram_transformer."
        named = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
        return {name: tensor for name, tensor in named.items() if not name.startswith("classifier.")}

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, 16000 float32 samples to cls, distillation and pooled, each B, 768."""
        rows = self.network(log_mel(windows[0]).to(self.dtype)).last_hidden_state
        return {"cls": rows[:, 0], "distillation": rows[:, 1], "pooled": rows[:, 2:].mean(1)}


def log_mel(samples: torch.Tensor) -> torch.Tensor:
    """B, samples to B, 1024, 128: Kaldi's filter bank energies, normalised, with zeros after the audio's end."""
    frames = samples.unfold(-1, WINDOW, HOP)
    frames = frames - frames.mean(-1, keepdim=True)
    before = torch.cat([frames[..., :1], frames[..., :-1]], dim=-1)
    window = torch.hann_window(WINDOW, periodic=False, device=samples.device)
    power = power_spectrum(frames - PREEMPHASIS * before, window, FFT)
    bands = (power @ _mel_filters().to(samples.device)).clamp(min=FLOOR).log()
    return (F.pad(bands, (0, 0, 0, FRAMES - bands.shape[1])) - MEAN) / (2 * STD)


@cache
def _mel_filters() -> torch.Tensor:
    """257 frequencies to 128 bands."""
    bins, highest = FFT // 2 + 1, SAMPLE_RATE // 2
    with warnings.catch_warnings(action="ignore"):  # the lowest band falls between two frequencies, as in the release
        filters = mel_filter_bank(
            bins, MELS, LOWEST, highest, SAMPLE_RATE, norm=None, mel_scale="kaldi", triangularize_in_mel_space=True
        )
    return torch.from_numpy(filters).float()
