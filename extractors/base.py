"""The contract of a frozen encoder, and the one place where weights are loaded."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import nn

from extractors import EncoderError, Spec


class Encoder(ABC):
    """A frozen network in evaluation mode.

    Subclasses build the network with random numbers in `build`, say where a hub tag's file is in `fetch`, and
    encode a batch of seconds in `encode`. `provenance` is what every file made with the encoder says about it.
    """

    def __init__(self, spec: Spec, weights: str, sha256: str | None, seed: int, dtype: str):
        self.spec = spec
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = getattr(torch, dtype)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self.build()
        if weights == "random":
            found = _digest_tensors(self.network)
            print(f"NOTE: {spec.model} has seeded random weights (seed {seed}), not pretrained ones", flush=True)
            self.provenance = {"weights": f"random (seed {seed})", "weights_sha256": found, "pretrained": False}
        else:
            path = Path(weights) if _is_file_name(weights) else Path(self.fetch(weights))
            state, found = load_state_dict(path)
            self.load(state, path)
            name = path.name if _is_file_name(weights) else weights
            self.provenance = {"weights": name, "weights_sha256": found, "pretrained": True}
        if sha256 is not None and sha256 != found:
            raise EncoderError(f"weights {weights}: sha256 is {found}, expected {sha256}; fetch the file again")
        self.network.eval().requires_grad_(False).to(self.device, self.dtype)

    @abstractmethod
    def build(self) -> nn.Module:
        """The network on the CPU in float32, with random weights."""

    @abstractmethod
    def fetch(self, tag: str) -> str:
        """Download the weights that a hub tag names; returns the file's path."""

    @abstractmethod
    def encode(self, seconds: np.ndarray) -> dict[str, torch.Tensor]:
        """Encode B seconds (rows of the dataset `spec.reads`); each output is B, *spec.outputs[name] float32."""

    def load(self, state: dict[str, torch.Tensor], path: Path) -> None:
        """Fill the network. Raises EncoderError if names or shapes differ."""
        try:
            self.network.load_state_dict(state)
        except RuntimeError as error:
            raise EncoderError(f"{path}: not a state dict of {self.spec.model}: {error}") from error


def load_state_dict(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """A weights file's tensors and its sha256, without running code of the file's. Raises EncoderError."""
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if path.suffix == ".safetensors":
            state = safetensors.torch.load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise EncoderError(f"weights {path}: no such file; give a hub tag, a file, or random") from None
    except Exception as error:  # both readers raise many kinds for a file that is not theirs
        raise EncoderError(
            f"weights {path}: cannot be read as a plain state dict ({error}); "
            "a TorchScript archive must be saved as one first: see README.md, Weights"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise EncoderError(f"weights {path}: must hold a state dict, names to tensors, and nothing else")
    return state, found


def _is_file_name(weights: str) -> bool:
    return weights.endswith((".safetensors", ".pt", ".pth")) or "/" in weights


def _digest_tensors(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
