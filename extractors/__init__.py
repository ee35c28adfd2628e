"""Frozen encoders. This table says what can be run; models are imported only when one is loaded."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Literal, NamedTuple


class EncoderError(Exception):
    """An encoder or its weights cannot be had; the message names the remedy."""


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

    dtype = "uint8"
    seconds = 1


@dataclass(frozen=True)
class AudioInput:
    """Mono samples at `rate` Hz, float32 in -1…1, in windows of `seconds` seconds.

    Segments hold (rate,) per second. The window of second i is centred on the middle of second i; where it goes past
    the video's ends it is filled with zeros.
    """

    rate: int
    seconds: int = 1

    @property
    def key(self) -> str:
        """The name of the HDF5 dataset that holds this input; inputs with equal keys are equal."""
        return f"audio/{self.rate}"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one second."""
        return (self.rate,)

    dtype = "float32"


Input = FrameInput | AudioInput


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder reads and gives."""

    loader: str  # module:class
    model: str  # its name in the library that builds it
    inputs: tuple[Input, ...]
    outputs: dict[str, tuple[int, ...]]  # name -> shape per second
    text_outputs: dict[str, tuple[int, ...]] = field(default_factory=dict)  # name -> shape per text; empty: reads none


class Spec(NamedTuple):
    """What an encoder reads from a segments file and the shape of each output for one second."""

    loader: str  # module:class
    model: str
    reads: str
    outputs: dict[str, tuple[int, ...]]
    text_dim: int | None = None  # of word and sentence features, for encoders that read text too


def _clip(model: str, size: int, patches: int, dim: int) -> Spec:
    return Spec("extractors.clip:CLIP", model, f"frames/{size}", {"cls": (dim,), "patch": (patches, dim)}, dim)


# OpenAI trained its CLIP with QuickGELU, so the weights need these variants wherever they are loaded from.
ENCODERS = {
    "clip_vit_l14": _clip("ViT-L-14-quickgelu", 224, 256, 768),
    "clip_vit_l14_336": _clip("ViT-L-14-336-quickgelu", 336, 576, 768),
    "clip_vit_b32": _clip("ViT-B-32-quickgelu", 224, 49, 512),
    "vggish": Spec("extractors.vggish:VGGish", "vggish", "audio", {"embedding": (128,)}),
}


def load_encoder(name: str, weights: str, *, sha256: str | None = None, seed: int = 0, dtype: str = "bfloat16"):
    """Load an encoder with the given weights onto the GPU if there is one.

    `weights` is a hub tag, a local .safetensors or .pt file, or `random` for seeded random numbers. Raises
    EncoderError for unknown names and for weights that do not fit or have another sha256.
    """
    module, _, attribute = spec(name).loader.partition(":")
    return getattr(import_module(module), attribute)(spec(name), weights, sha256, seed, dtype)


def spec(name: str) -> Spec:
    """The table's entry for an encoder. Raises EncoderError if there is none."""
    if name not in ENCODERS:
        raise EncoderError(f"encoder {name!r} is not known; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[name]
