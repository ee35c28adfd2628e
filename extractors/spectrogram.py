"""Spectrograms on the encoder's device, a batch at a time."""

import torch


def power_spectrum(frames: torch.Tensor, window: torch.Tensor, size: int) -> torch.Tensor:
    """The power at each frequency of windowed frames of samples, …, length to …, size // 2 + 1."""
    spectrum = torch.fft.rfft(frames * window, size)
    return spectrum.real.square() + spectrum.imag.square()


def centred_frames(samples: torch.Tensor, length: int, hop: int) -> torch.Tensor:
    """B, samples to B, frames, length: frame n is centred on sample n * hop, and both ends are reflected."""
    padded = torch.nn.functional.pad(samples[:, None], (length // 2, length // 2), mode="reflect")[:, 0]
    return padded.unfold(-1, length, hop)


def decibels(power: torch.Tensor) -> torch.Tensor:
    """10 log₁₀ of power, which counts as 1e-10 at least."""
    return 10 * power.clamp(min=1e-10).log10()
