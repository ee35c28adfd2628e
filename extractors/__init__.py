"""Frozen encoders. This table says what can be run; models are imported only when one is loaded."""

from importlib import import_module
from typing import NamedTuple


class EncoderError(Exception):
    """An encoder or its weights cannot be had; the message names the remedy."""


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
