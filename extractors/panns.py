"""PANNs' CNN14 (Kong et al., 2020: "PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern
Recognition"), 2048 numbers per second."""

from functools import cache
from pathlib import Path

import librosa
import torch
import torch.nn.functional as F
from torch import nn

from extractors import EncoderError
from extractors.base import Encoder, initialize_he
from extractors.spectrogram import centred_frames, decibels, power_spectrum

SAMPLE_RATE = 32000
WINDOW, HOP = 1024, 320  # samples
MELS, LOWEST, HIGHEST = 64, 50, 14000  # bands; Hz
CHANNELS = (1, 64, 128, 256, 512, 1024, 2048)


class PANNs(Encoder):
    """One embedding per second, from the two seconds of audio around its middle.

    CNN14 halves the log-mel spectrogram five times in time, so that one second would be three positions. It was
    trained on clips of 10 s, and a window of 10 s would make neighbouring seconds nearly equal at five times the cost.
    Two seconds per embedding is a compromise of this project; the authors publish no features per second.
    """

    def build(self) -> nn.Module:
        network = CNN14()
        initialize_he(network)
        return network

    def fetch(self, tag: str) -> Path:
        raise EncoderError(
            f"weights {tag!r} of panns_cnn14: no such tag, since no library publishes them; download "
            "Cnn14_mAP=0.431.pth of the paper's authors from Zenodo (record 3987831) and give its path, or use random"
        )

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # The authors' file also holds the constants of the log-mel spectrogram and AudioSet's classifier.
        unused = ("spectrogram_extractor.", "logmel_extractor.", "fc_audioset.")
        return {name: tensor for name, tensor in state.items() if not name.startswith(unused)}

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, 64000 float32 samples to embedding B, 2048."""
        return {"embedding": self.network(log_mel(windows[0]).to(self.dtype))}


def log_mel(samples: torch.Tensor) -> torch.Tensor:
    """B, samples to B, frames, 64: the log-mel spectrogram in dB of the authors' torchlibrosa, one frame per 10 ms."""
    window = torch.hann_window(WINDOW, device=samples.device)
    power = power_spectrum(centred_frames(samples, WINDOW, HOP), window, WINDOW)
    return decibels(power @ _mel_filters().to(samples.device).T)


@cache
def _mel_filters() -> torch.Tensor:
    filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=WINDOW, n_mels=MELS, fmin=LOWEST, fmax=HIGHEST)
    return torch.from_numpy(filters)


class CNN14(nn.Module):
    """Log-mel spectrogram B, frames, 64 (at least 32 frames) to embedding B, 2048. Names are the authors'."""

    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(MELS)
        for n in range(1, len(CHANNELS)):
            self.add_module(f"conv_block{n}", ConvBlock(CHANNELS[n - 1], CHANNELS[n]))
        self.fc1 = nn.Linear(CHANNELS[-1], CHANNELS[-1])

    def forward(self, spectrogram: torch.Tensor) -> torch.Tensor:
        # Each band has its own mean and deviation: to bn0 the bands are channels.
        x = self.bn0(spectrogram.transpose(1, 2).unsqueeze(-1)).permute(0, 3, 2, 1)
        for n in range(1, len(CHANNELS)):
            x = self.get_submodule(f"conv_block{n}")(x)
            if n < len(CHANNELS) - 1:
                x = F.avg_pool2d(x, 2)
        x = x.mean(dim=3)
        return self.fc1(x.amax(dim=2) + x.mean(dim=2)).relu()


class ConvBlock(nn.Module):
    """Two 3×3 convolutions, each with batch normalisation and ReLU."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
