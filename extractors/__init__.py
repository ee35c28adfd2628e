"""Frozen encoders. This table says what can be run; PyTorch and the models are imported only when one is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:
    from extractors.base import Encoder


class EncoderError(Exception):
    """An encoder or its weights cannot be used; the message names the remedy."""


@dataclass(frozen=True)
class Transform:
    """How a frame of any size becomes a square: the short side is resized to `short_side` pixels (None: the square's
    own side) with Pillow's antialiased `filter`, then the centre is cropped. Values stay uint8."""

    filter: Literal["bicubic", "bilinear"] = "bicubic"
    short_side: int | None = None


@dataclass(frozen=True)
class FrameInput:
    """`fps` frames per second, at the middles of as many equal parts of the second, as size×size RGB.

    One second is uint8 (size, size, 3) for fps 1, else (fps, size, size, 3).
    """

    size: int
    fps: int = 1
    transform: Transform = Transform()

    dtype: ClassVar[str] = "uint8"
    seconds: ClassVar[int] = 1

    @property
    def key(self) -> str:
        """The name of the HDF5 dataset that holds this input; inputs with equal keys are equal."""
        short_side = f"-{self.transform.short_side}" if self.transform.short_side else ""
        rate = f"-{self.fps}fps" if self.fps > 1 else ""
        return f"frames/{self.size}-{self.transform.filter}{short_side}{rate}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one second."""
        return (*([self.fps] if self.fps > 1 else []), self.size, self.size, 3)


@dataclass(frozen=True)
class AudioInput:
    """Mono samples at `rate` Hz, float32 in -1…1, in windows of `seconds` seconds.

    Segments hold (rate,) per second. The window of second i is centred on the middle of second i: it holds the
    seconds * rate samples from sample i * rate - (seconds - 1) * rate // 2 of the video on. So an odd number of
    seconds gives whole seconds, i - (seconds - 1) / 2 to i + (seconds - 1) / 2; an even number begins and ends in the
    middle of a second (with an odd rate, half a sample late). Where a window extends past the video's true length it
    holds zeros; what a segments file repeats to fill a short video is not audio of that video.
    """

    rate: int
    seconds: int = 1

    dtype: ClassVar[str] = "float32"

    @property
    def key(self) -> str:
        """The name of the HDF5 dataset that holds this input; inputs with equal keys hold the same seconds."""
        return f"audio/{self.rate}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one second."""
        return (self.rate,)


Input = FrameInput | AudioInput


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is made of, its inputs and its outputs."""

    loader: str  # module:class
    model: str  # its name in the library that builds it
    inputs: tuple[Input, ...]
    outputs: dict[str, tuple[int, ...]]  # name -> shape per second
    text_outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)  # name -> shape per text; empty: no text


CLIP_TOKENS = 77  # rows of every text, start, end and padding included


def _clip(model: str, size: int, patches: int, dim: int) -> EncoderSpec:
    outputs = {"cls": (dim,), "patch": (patches, dim)}
    text_outputs = {"words": (CLIP_TOKENS, dim), "sentence": (dim,)}
    return EncoderSpec("extractors.clip:CLIP", model, (FrameInput(size),), outputs, text_outputs)


# OpenAI trained its CLIP with QuickGELU, so the weights need these variants wherever they are loaded from.
ENCODERS = {
    "clip_vit_l14": _clip("ViT-L-14-quickgelu", 224, 256, 768),
    "clip_vit_l14_336": _clip("ViT-L-14-336-quickgelu", 336, 576, 768),
    "clip_vit_b32": _clip("ViT-B-32-quickgelu", 224, 49, 512),
    "resnet18": EncoderSpec(
        "extractors.resnet:ResNet18",
        "resnet18",
        (FrameInput(224, transform=Transform("bilinear", 256)),),
        {"pooled": (512,), "map": (512, 14, 14)},
    ),
    "vggish": EncoderSpec("extractors.vggish:VGGish", "vggish", (AudioInput(16000),), {"embedding": (128,)}),
    "panns_cnn14": EncoderSpec(
        "extractors.panns:PANNs", "Cnn14", (AudioInput(32000, seconds=2),), {"embedding": (2048,)}
    ),
}


def is_file(weights: str) -> bool:
    """Whether `weights` is a path, and not a hub tag or `random`."""
    return weights.endswith((".safetensors", ".pt", ".pth")) or "/" in weights


def major_minor(package: str) -> str:
    """The part of an installed package's version that can change a number beyond rounding."""
    return ".".join(version(package).split("+")[0].split(".")[:2])


def encoder_spec(name: str) -> EncoderSpec:
    """The table's entry for an encoder. Raises EncoderError if there is none."""
    if name not in ENCODERS:
        raise EncoderError(f"encoder {name!r} is not known; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[name]


def encoder_class(name: str) -> type[Encoder]:
    """The class of an encoder. Raises EncoderError if there is none."""
    module, class_name = encoder_spec(name).loader.split(":")
    return getattr(import_module(module), class_name)


def is_hub_tag(weights: str) -> bool:
    """Whether weights are neither random nor a file, so that they are downloaded on first use."""
    return weights != "random" and not is_file(weights)


def fetch_weights(name: str, weights: str) -> Path:
    """Download what a hub tag names, unless it is in the library's cache; returns the file. Builds no network.

    Raises EncoderError for an unknown tag, and where a download is impossible.
    """
    kind = encoder_class(name)
    encoder = kind.__new__(kind)
    encoder.spec = encoder_spec(name)
    return encoder.fetch(weights)


def load_encoder(
    name: str, weights: str, *, sha256: str | None = None, seed: int = 0, dtype: str = "bfloat16"
) -> Encoder:
    """Load an encoder with the given weights onto the GPU if there is one.

    `weights` is a hub tag, a local .safetensors or .pt file, or `random` for seeded random numbers. Raises
    EncoderError for unknown names and for weights that are missing, do not fit or have another sha256.
    """
    return encoder_class(name)(encoder_spec(name), weights, sha256, seed, dtype)
