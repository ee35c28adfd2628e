"""Frozen encoders. This table says what can be run; PyTorch and the models are imported only when one is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
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
    own side) with Pillow's antialiased `filter`, then the centre is cropped. With `squash` both sides are resized to
    the square's, and the aspect ratio is lost. Values stay uint8."""

    filter: Literal["bicubic", "bilinear"] = "bicubic"
    short_side: int | None = None
    squash: bool = False


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
    hop: ClassVar[None] = None

    @property
    def key(self) -> str:
        """The name of the HDF5 dataset that holds this input; inputs with equal keys are equal."""
        short_side = f"-{self.transform.short_side}" if self.transform.short_side else ""
        squash = "-squash" if self.transform.squash else ""
        rate = f"-{self.fps}fps" if self.fps > 1 else ""
        return f"frames/{self.size}-{self.transform.filter}{short_side}{squash}{rate}"

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
    middle of a second (with an odd rate, half a sample late). With `hop`, row i is not of second i: its window begins
    at sample i * hop. Where a window extends past the video's true length it holds zeros; what a segments file repeats
    to fill a short video is not audio of that video.
    """

    rate: int
    seconds: int = 1
    hop: int | None = None  # samples

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
    on_request: frozenset[str] = frozenset()  # outputs that are made only where a configuration names them
    norms: tuple[float, float] = (1e-3, 1e4)  # smallest and largest Euclidean norm that a vector of it can have
    dtype: str = "bfloat16"  # in which it computes where nothing else is configured
    libraries: tuple[str, ...] = ()  # packages that decide its numbers, besides torch
    beside: str = ""  # name of a file beside a local weights file that decides numbers too
    # Of its numbers, by weights, or under "" for all: raised when a change of the code changes them, which makes the
    # features due. 1 where nothing stands here.
    versions: dict[str, int] = field(default_factory=dict)

    def version(self, weights: str) -> int:
        """The version of the numbers that the encoder gives with these weights."""
        return self.versions.get(weights, self.versions.get("", 1))

    @property
    def default_outputs(self) -> list[str]:
        """The outputs that are made where nothing else is configured."""
        return [name for name in self.outputs if name not in self.on_request]


def _clip(model: str, size: int, patches: int, dim: int, width: int, text_width: int) -> EncoderSpec:
    """Texts have 77 rows, start, end and padding included."""
    outputs = {"cls": (dim,), "patch": (patches, dim), "patch_unprojected": (patches, width)}
    texts = {"words": (77, dim), "words_unprojected": (77, text_width), "sentence": (dim,)}
    unprojected = frozenset({"patch_unprojected"})
    # Norms are of the order of 10; those of features that were divided by their norm are 1.
    return EncoderSpec(
        "extractors.clip:CLIP",
        model,
        (FrameInput(size),),
        outputs,
        texts,
        unprojected,
        (2, 1000),
        libraries=("open_clip_torch",),
    )


def _siglip(model: str, size: int, patches: int, dim: int) -> EncoderSpec:
    """Texts have 64 rows, end and padding included."""
    frames = FrameInput(size, transform=Transform(squash=True))
    texts = {"words": (64, dim), "sentence": (dim,)}
    outputs = {"pooled": (dim,), "patch": (patches, dim)}
    libraries = ("open_clip_torch", "timm", "transformers")
    return EncoderSpec("extractors.siglip:SigLIP", model, (frames,), outputs, texts, libraries=libraries)


def _timm(loader: str, model: str, frames: FrameInput, outputs: dict[str, tuple[int, ...]]) -> EncoderSpec:
    return EncoderSpec(f"extractors.timm_image:{loader}", model, (frames,), outputs, libraries=("timm",))


def _vggish(loader: str, hop: int | None = None) -> EncoderSpec:
    return EncoderSpec(
        f"extractors.vggish:{loader}",
        "vggish",
        (AudioInput(16000, hop=hop),),
        {"embedding": (128,)},
        libraries=("torchvggish",),
    )


def _dinov3() -> EncoderSpec:
    """Its tags differ in mean and deviation; version 2 of sat493m has its own."""
    spec = _timm("DINO", "vit_large_patch16_dinov3", FrameInput(256), {"cls": (1024,), "patch": (256, 1024)})
    return replace(spec, beside="config.json", versions={"sat493m": 2})


ENCODERS = {
    # Images. OpenAI trained its CLIP with QuickGELU, so the weights need these variants wherever they are loaded from.
    "clip_vit_l14": _clip("ViT-L-14-quickgelu", 224, 256, 768, 1024, 768),
    "clip_vit_l14_336": _clip("ViT-L-14-336-quickgelu", 336, 576, 768, 1024, 768),
    "clip_vit_b32": _clip("ViT-B-32-quickgelu", 224, 49, 512, 768, 512),
    "siglip2_b16_256": _siglip("ViT-B-16-SigLIP2-256", 256, 256, 768),
    "siglip2_l16_256": _siglip("ViT-L-16-SigLIP2-256", 256, 256, 1024),
    "resnet18": EncoderSpec(
        "extractors.resnet:ResNet18",
        "resnet18",
        (FrameInput(224, transform=Transform("bilinear", 256)),),
        {"pooled": (512,), "map": (512, 14, 14)},
        libraries=("torchvision",),
    ),
    "resnet18_music_avqa": EncoderSpec(
        "extractors.resnet:MusicAVQAResNet18",
        "resnet18",
        (FrameInput(224, transform=Transform("bilinear", squash=True)),),
        {"map": (512, 14, 14)},
        libraries=("torchvision",),
    ),
    "swinv2_l_192": _timm(
        "Swin",
        "swinv2_large_window12_192",
        FrameInput(192, transform=Transform(short_side=213)),
        {"pooled": (1536,), "map": (1536, 6, 6)},
    ),
    "swinv2_l_384": _timm(
        "Swin", "swinv2_large_window12to24_192to384", FrameInput(384), {"pooled": (1536,), "map": (1536, 12, 12)}
    ),
    "dinov2_l14": _timm("DINO", "vit_large_patch14_dinov2", FrameInput(224), {"cls": (1024,), "patch": (256, 1024)}),
    "dinov3_l16": _dinov3(),
    "tome_vit_l16_384": EncoderSpec(
        "extractors.tome:ToMe",
        "vit_large_patch16_384",
        (FrameInput(384, transform=Transform(short_side=438)),),
        {"tokens": (14, 1024)},
        libraries=("timm",),
        dtype="float32",  # in bfloat16 rounding decides which tokens merge
    ),
    # Video
    "videomae_b16": EncoderSpec(
        "extractors.videomae:VideoMAE",
        "videomae-base",
        (FrameInput(224, fps=16, transform=Transform("bilinear")),),
        {"pooled": (768,), "tubes": (8, 768)},
        libraries=("transformers",),
    ),
    # Audio
    "vggish": _vggish("VGGish"),
    "vggish_hop096": _vggish("VGGish", hop=15360),
    # Whitening enlarges rounding errors. Version 2: PCA of what the last ReLU would read, and truncation.
    "vggish_hop096_pca": replace(
        _vggish("VGGishPCA", hop=15360),
        dtype="float32",
        beside="vggish_pca_params-970ea276.pth",
        versions={"": 2},
    ),
    "panns_cnn14": EncoderSpec(
        "extractors.panns:PANNs",
        "Cnn14",
        (AudioInput(32000, seconds=2),),
        {"embedding": (2048,)},
        libraries=("librosa",),
    ),
    "clap_htsat": EncoderSpec(
        "extractors.clap:CLAP", "clap-htsat", (AudioInput(48000),), {"embedding": (512,)}, libraries=("transformers",)
    ),
    "ast": EncoderSpec(
        "extractors.ast:AST",
        "ast",
        (AudioInput(16000),),
        {"cls": (768,), "distillation": (768,), "pooled": (768,)},
        libraries=("transformers",),
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


def text_encoders() -> str:
    """The names of the encoders that have text outputs, for messages."""
    return ", ".join(name for name, spec in ENCODERS.items() if spec.text_outputs)


def is_hub_tag(weights: str) -> bool:
    """Whether weights are neither random nor a file, so that they are downloaded on first use."""
    return weights != "random" and not is_file(weights)


def fetch_weights(name: str, weights: str) -> list[Path]:
    """Download all that an encoder needs with a hub tag, unless it is in the libraries' caches; returns the files, the
    weights first. Builds no network.

    Raises EncoderError for an unknown tag, and where a download is impossible.
    """
    kind = encoder_class(name)
    if not is_hub_tag(weights):
        raise EncoderError(f"weights {weights} of {name}: are no hub tag, so that there is nothing to download")
    encoder = kind.__new__(kind)
    encoder.spec = encoder_spec(name)
    return encoder.fetch_all(weights)


def load_encoder(
    name: str, weights: str, *, sha256: str | None = None, seed: int = 0, dtype: str | None = None
) -> Encoder:
    """Load an encoder with the given weights onto the GPU if there is one.

    `weights` is a hub tag, a local .safetensors or .pt file, or `random` for seeded random numbers; `dtype` is float32,
    bfloat16, or the encoder's own where it is None. Raises EncoderError for unknown names and for weights that are
    missing, do not fit or have another sha256.
    """
    spec = encoder_spec(name)
    return encoder_class(name)(spec, weights, sha256, seed, dtype or spec.dtype)
