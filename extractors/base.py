"""The contract of a frozen encoder, and the one place where weights are loaded."""

import hashlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from torch import nn
from torch.overrides import TorchFunctionMode

from extractors import EncoderError, EncoderSpec, is_file, major_minor, text_encoders
from extractors.state_dict import read_state_dict

CONNECT_SECONDS = 10  # without an answer of a server in this time a download is impossible


class Encoder(ABC):
    """A frozen network in evaluation mode.

    Subclasses define `build`, `fetch` and `forward`, those with text outputs `encode_text` too. `provenance` becomes
    attributes of every file made with the encoder: weights (tag, file name or `random (seed n)`), weights_sha256 (of
    the file; of several files, of their sha256 one after the other; of all tensors if random), pretrained, and
    libraries (package -> major.minor version: what can change an output beyond rounding; `encoder` is the version of
    the encoder's numbers where it is not 1).
    """

    def __init__(self, spec: EncoderSpec, weights: str, sha256: str | None, seed: int, dtype: str):
        self.spec, self.weights = spec, weights
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype: torch.dtype = getattr(torch, dtype)
        if self.dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # else a GPU's convolutions keep 10 bits of a number
        self.network: Any
        if weights == "random":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.network = self.build()
            name, found = f"random (seed {seed})", _digest_tensors(self.network)
            _check_sha256(weights, found, sha256, "another seed or library gives other random numbers")
            print(f"NOTE: {spec.model} has seeded random weights (seed {seed}), not pretrained ones", flush=True)
            self._fill(self.network.state_dict())
        else:
            name, found = self._load(weights, sha256)
        self.network.eval().requires_grad_(False).to(self.device, self.dtype)
        self.provenance: dict[str, Any] = {
            "weights": name,
            "weights_sha256": found,
            "pretrained": weights != "random",
            "libraries": {package: major_minor(package) for package in ("torch", *self.spec.libraries)},
        }
        if (numbers := spec.version(weights)) != 1:
            self.provenance["libraries"]["encoder"] = numbers

    @abstractmethod
    def build(self) -> nn.Module:
        """The network on the CPU in float32, with random weights drawn from PyTorch's global generator."""

    @abstractmethod
    def fetch(self, tag: str) -> Path:
        """The file that a hub tag names, downloaded unless it is in the library's cache.

        Raises EncoderError for an unknown tag, and after one short try where a download is impossible.
        """

    def files(self, weights: str) -> list[Path]:
        """The files that decide the outputs, the state dict first: a local file and `spec.beside` where it is there, or
        those of a hub tag. Raises as `fetch`."""
        if not is_file(weights):
            return [self.fetch(weights)]
        beside = Path(weights).with_name(self.spec.beside) if self.spec.beside else None
        return [Path(weights), *([beside] if beside and beside.exists() else [])]

    def fetch_all(self, tag: str) -> list[Path]:
        """All files that are downloaded for a hub tag, the state dict first. Raises as `fetch`."""
        return self.files(tag)

    @abstractmethod
    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """Encode B windows in time, one tensor on the encoder's device for each of `spec.inputs`, in their order.

        Frames are uint8 (B, size, size, 3) or (B, fps, size, size, 3), audio float32 (B, seconds * rate).
        Returns name -> (B, *spec.outputs[name]) for each output, of any floating-point type.
        """

    @torch.inference_mode()
    def encode(
        self, *windows: np.ndarray | torch.Tensor, outputs: Sequence[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """`forward` of arrays or tensors on any device: float32 outputs (default: all) on the encoder's device."""
        tensors = (
            torch.as_tensor(np.require(w, requirements="W")) if isinstance(w, np.ndarray) else w for w in windows
        )
        encoded = self.forward(*(tensor.to(self.device, non_blocking=True) for tensor in tensors))
        return {name: encoded[name].float() for name in outputs or self.spec.outputs}

    def encode_text(self, texts: list[str], sentence: str) -> dict[str, torch.Tensor]:
        """Encode Q texts: name -> (Q, *spec.text_outputs[name]) for each text output, and `length` (Q,), the number of
        a text's tokens. `sentence` is eot, first or mean: the tokens that `sentence` is made from."""
        raise EncoderError(f"{self.spec.model} has no text outputs; use one of {text_encoders()}")

    @staticmethod
    def tokens(text: str) -> list[str]:
        """What each token of a text stands for, start and end included."""
        raise EncoderError("this encoder reads no text; use one of the CLIP encoders")

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A published file's tensors under the names that the network has; those that it does not need are left out."""
        return state

    def fuse(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A published tensor as a faster network with the same outputs has it."""
        return tensor

    def _load(self, weights: str, sha256: str | None) -> tuple[str, str]:
        """Build the network and fill it from a file or a hub tag; returns the weights' name and sha256."""
        self.paths = path, *others = self.files(weights)
        with ThreadPoolExecutor(1) as thread:
            digests = thread.submit(lambda: [_digest_weights(each) for each in (path, *others)])
            with _NoInitialization():
                self.network = self.build()
        found, *further = digests.result()
        together = hashlib.sha256("".join([found, *further]).encode()).hexdigest() if further else found
        if sha256 != together:
            _check_sha256(str(path), found, sha256, self._remedy(path))
        try:
            self._fill(self.adapt(self._read(path)))
        except RuntimeError as error:  # PyTorch's for names and shapes that differ
            raise EncoderError(f"weights {path}: not a state dict of {self.spec.model}: {error}") from error
        return path.name if is_file(weights) else weights, together

    def _read(self, path: Path) -> dict[str, torch.Tensor]:
        """`read_state_dict`, whose errors name the file and the remedy."""
        try:
            return read_state_dict(path)
        except ValueError as error:
            raise EncoderError(f"weights {path}: {error}; {self._remedy(path)}") from error

    def _remedy(self, path: Path) -> str:
        if is_file(self.weights):
            return "fetch the file again"
        # Of a link in the hub's cache, what it leads to: deleting the link would change nothing.
        return f"delete {path.resolve()}, a download in the library's cache, and run again to download it"

    def _fill(self, state: dict[str, torch.Tensor]) -> None:
        """Give the network its tensors, each converted and moved by itself: a file is never in memory as a whole.

        They are always copies. Those of a file are mapped, and would change if the file did.
        """
        converted = {
            name: self.fuse(name, tensor).to(
                self.device, self.dtype if tensor.is_floating_point() else tensor.dtype, copy=True
            )
            for name, tensor in state.items()
        }
        self.network.load_state_dict(converted, assign=True)


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


def download_from_hub(repository: str, names: Sequence[str]) -> Path:
    """The first of the files `names` that a repository of Hugging Face has, in the hub's cache.

    Raises EncoderError if none can be downloaded; without a network, after one short try.
    """
    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    with download_errors(f"{' or '.join(names)} of {repository}"):
        for name in names:
            # The download itself tries six times, 23 s each. Without a network this raises at once.
            with suppress(EntryNotFoundError):
                get_hf_file_metadata(hf_hub_url(repository, name), timeout=CONNECT_SECONDS)
                return Path(hf_hub_download(repository, name))
        raise FileNotFoundError(f"none of {', '.join(names)} is in the repository")


def download_tag(model: str, tag: str, repositories: dict[str, str]) -> Path:
    """The weights of transformers that a hub tag names, where `repositories` has each tag's repository of Hugging Face.

    Raises EncoderError for an unknown tag and as `download_from_hub`.
    """
    if tag not in repositories:
        raise EncoderError(f"weights {tag!r} of {model}: no such tag; use {', '.join(repositories)}, a file, or random")
    return download_from_hub(repositories[tag], ("model.safetensors", "pytorch_model.bin"))


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


def normalize(frames: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """uint8 frames B, …, S, S, 3 to float32 B, …, 3, S, S, scaled to 0…1, less `mean`, over `std`.

    In memory the channels stay last, which is what convolutions on a GPU read fastest.
    """
    values = frames.float().div_(255)
    values.sub_(torch.tensor(mean, device=frames.device)).div_(torch.tensor(std, device=frames.device))
    return values.movedim(-1, -3)


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
    """Within the block, parameters keep the memory that they are given: neither are numbers drawn for them (6 s for
    ViT-L/14) nor are they changed in any other way, since a file then replaces them. Buffers are computed as always:
    some are in no file, so that a network without any memory (PyTorch's meta device) would lack them."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        in_place = name.endswith("_") and not name.endswith("__")
        if name in ("normal_", "uniform_", "erfinv_") or (in_place and isinstance(target, nn.Parameter)):
            return target
        return func(*args, **kwargs)


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


def _digest_weights(path: Path) -> str:
    try:
        return _digest_file(path)
    except OSError as error:
        raise EncoderError(f"weights {path}: {error.strerror}; give a hub tag, a file, or random") from None


def _digest_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest_tensors(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
