"""The contract of a frozen encoder, and the one place where weights are loaded."""

import hashlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import safetensors.torch
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from extractors import EncoderError, EncoderSpec, is_file, major_minor

CONNECT_SECONDS = 10  # without an answer of a server in this time a download is impossible


class Encoder(ABC):
    """A frozen network in evaluation mode.

    Subclasses define `build`, `fetch` and `encode`, those with text outputs `encode_text` too, and name in `libraries`
    the packages besides PyTorch that decide their outputs. `provenance` becomes attributes of every file made with the
    encoder: weights (tag, file name or `random (seed n)`), weights_sha256 (of the file; of all tensors if random),
    pretrained, and libraries (package -> major.minor version: what can change an output beyond rounding).
    """

    libraries: ClassVar[tuple[str, ...]] = ()

    def __init__(self, spec: EncoderSpec, weights: str, sha256: str | None, seed: int, dtype: str):
        self.spec = spec
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.network: Any
        if weights == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.network = self.build()
            name, found = f"random (seed {seed})", _digest_tensors(self.network)
            _check_sha256(weights, found, sha256, "another seed or library gives other random numbers")
            print(f"NOTE: {spec.model} has seeded random weights (seed {seed}), not pretrained ones", flush=True)
        else:
            with _NoInitialization():
                self.network = self.build()
            name, found = self._load(weights, sha256)
        self.network.eval().requires_grad_(False).to(self.device, self.dtype)
        self.provenance: dict[str, Any] = {
            "weights": name,
            "weights_sha256": found,
            "pretrained": weights != "random",
            "libraries": {package: major_minor(package) for package in ("torch", *self.libraries)},
        }

    @abstractmethod
    def build(self) -> nn.Module:
        """The network on the CPU in float32, with random weights drawn from PyTorch's global generator."""

    @abstractmethod
    def fetch(self, tag: str) -> Path:
        """The file that a hub tag names, downloaded unless it is in the library's cache.

        Raises EncoderError for an unknown tag, and after one short try where a download is impossible.
        """

    @abstractmethod
    def encode(self, *windows: np.ndarray) -> dict[str, torch.Tensor]:
        """Encode B windows in time, one array for each of `spec.inputs`, in their order.

        Frames are uint8 (B, size, size, 3) or (B, fps, size, size, 3), audio float32 (B, seconds * rate).
        Returns name -> float32 (B, *spec.outputs[name]) for each output, on the encoder's device.
        """

    def encode_text(self, texts: list[str], sentence: str) -> dict[str, torch.Tensor]:
        """Encode Q texts: name -> (Q, *spec.text_outputs[name]) for each text output, and `length` (Q,), the number of
        a text's tokens. `sentence` is eot, first or mean: the tokens that `sentence` is made from."""
        raise EncoderError(f"{self.spec.model} has no text outputs; use one of the CLIP encoders")

    @staticmethod
    def tokens(text: str) -> list[str]:
        """What each token of a text stands for, start and end included."""
        raise EncoderError("this encoder reads no text; use one of the CLIP encoders")

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A published file's tensors under the names that the network has; those that it does not need are left out."""
        return state

    def _load(self, weights: str, sha256: str | None) -> tuple[str, str]:
        """Fill the network from a file or a hub tag; returns the weights' name and sha256."""
        if is_file(weights):
            path = Path(weights)
            name, remedy = path.name, "fetch the file again"
        else:
            path = self.fetch(weights).resolve()
            name, remedy = weights, f"delete {path}, a download in the library's cache, and run again to download it"
        try:
            found = _digest_file(path)
        except OSError as error:
            raise EncoderError(f"weights {path}: {error.strerror}; give a hub tag, a file, or random") from None
        _check_sha256(str(path), found, sha256, remedy)
        try:
            self.network.load_state_dict(self.adapt(read_state_dict(path)))
        except RuntimeError as error:  # PyTorch's for names and shapes that differ
            raise EncoderError(f"weights {path}: not a state dict of {self.spec.model}: {error}") from error
        except ValueError as error:
            raise EncoderError(f"weights {path}: {error}; {remedy}") from error
        return name, found


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """A weights file's tensors, without running code of the file; of a checkpoint, those under `model`.

    Raises ValueError for a file that is no state dict.
    """
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise many kinds for a file that is not theirs
        raise ValueError(
            f"cannot be read as a plain state dict ({error}); "
            "a TorchScript archive must be saved as one first (README.md, Weights), a broken file replaced"
        ) from error
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError("must hold a state dict, names to tensors, and nothing else")
    return state


def download(url: str) -> Path:
    """A file published as NAME-<first digits of its sha256>.EXT, in torch.hub's cache.

    Raises EncoderError if it cannot be downloaded or if the cached file has another sha256.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[1])
    digits = path.stem.rsplit("-", 1)[1]
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with download_errors(path.name), _socket_timeout(CONNECT_SECONDS):
            torch.hub.download_url_to_file(url, str(path), hash_prefix=digits)
    elif not _digest_file(path).startswith(digits):
        raise EncoderError(
            f"weights {path}: sha256 does not begin with {digits}, an incomplete download; "
            "delete this file, which is in torch.hub's cache, and run again to download it"
        )
    return path


@contextmanager
def download_errors(name: str) -> Iterator[None]:
    """Errors of a download client as EncoderError."""
    try:
        yield
    except Exception as error:  # each client raises its own kinds
        raise EncoderError(
            f"weights {name} cannot be downloaded ({error}); "
            "fetch the file on a machine with a network and give its path: see README.md, Weights"
        ) from error


def normalize(frames: np.ndarray, mean: Sequence[float], std: Sequence[float], device: torch.device) -> torch.Tensor:
    """B, S, S, 3 uint8 frames to B, 3, S, S float32, scaled to 0…1, less `mean`, over `std`."""
    values = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float().div_(255)
    channels = (torch.tensor(numbers, device=device).view(3, 1, 1) for numbers in (mean, std))
    return values.sub_(next(channels)).div_(next(channels))


def initialize_he(network: nn.Module) -> None:
    """Random weights that keep the variance of activations (He et al., 2015, eq. 10), and zero biases.

    PyTorch's default shrinks activations at each layer until random embeddings of different inputs are all alike.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class _NoInitialization(TorchFunctionMode):
    """Leaves out torch.nn.init within a block: 6 s of drawing numbers for ViT-L/14 that a file then replaces."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if kwargs and "tensor" in kwargs else args[0]
        return func(*args, **(kwargs or {}))


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _check_sha256(weights: str, found: str, expected: str | None, remedy: str) -> None:
    if expected is not None and expected != found:
        raise EncoderError(f"weights {weights}: sha256 is {found}, expected {expected}; {remedy}")


def _digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_tensors(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
