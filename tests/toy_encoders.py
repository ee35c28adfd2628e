"""Encoders that are made in no time, and whose features anybody can tell from the file: the mean colour, the loudness.

Each also has random weights, so that a seed decides numbers. All sums are over one second alone: a feature does not
depend on what is encoded beside it, to the last bit.
"""

import hashlib

import torch
from torch import nn
from toy_table import WIDTH, WORDS

from extractors.base import Encoder


class Toy(Encoder):
    """A fixed part, and the same multiplied by random numbers."""

    inputs_of = 3

    def build(self) -> nn.Module:
        return nn.Linear(self.inputs_of, WIDTH)

    def fetch(self, tag: str):
        raise NotImplementedError

    def mixed(self, x: torch.Tensor) -> torch.Tensor:
        """B, inputs -> B, WIDTH, one row after the other."""
        return (x.to(self.dtype)[:, None] * self.network.weight).sum(-1) + self.network.bias + 1


class Colour(Toy):
    def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        mean = torch.stack([frame.double().mean((0, 1)) / 255 for frame in frames])
        return {"mean": mean + 1, "mixed": self.mixed(mean)}


class Loudness(Toy):
    inputs_of = 1

    def forward(self, samples: torch.Tensor) -> dict[str, torch.Tensor]:
        level = torch.stack([window.double().square().mean().sqrt() for window in samples])[:, None]
        return {"level": level + 1, "mixed": self.mixed(level)}


class Words(Toy):
    """Numbers of a text's words; a text's sentence is the word that `sentence` names."""

    inputs_of = WIDTH

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        raise NotImplementedError

    def encode_text(self, texts: list[str], sentence: str) -> dict[str, torch.Tensor]:
        rows = [self._words(text) for text in texts]
        words = torch.stack(rows)
        place = {"first": 0, "eot": -1}
        chosen = words.mean(1) if sentence == "mean" else words[:, place[sentence]]
        length = torch.tensor([min(WORDS, len(text.split())) for text in texts])
        return {"words": words.float(), "sentence": chosen.float(), "length": length}

    def _words(self, text: str) -> torch.Tensor:
        listed = [*(text.split() * WORDS)[: WORDS - 1], text]
        digests = [hashlib.sha256(word.encode()).digest()[:WIDTH] for word in listed]
        return self.mixed(torch.tensor([[byte / 255 for byte in digest] for digest in digests]))
