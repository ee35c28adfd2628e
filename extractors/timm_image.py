"""Image encoders through timm: Swin Transformer V2 (Liu et al., 2022), DINOv2 (Oquab et al., 2023) and DINOv3 (Siméoni
et al., 2025)."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import clean_state_dict, get_pretrained_cfg, list_pretrained
from torch import nn

from extractors import EncoderError, is_file, is_hub_tag
from extractors.base import Encoder, download_from_hub, normalize


class TimmImage(Encoder):
    """A network of timm by its name. Frames are normalised as timm's own configuration of the weights' tag says.

    Where a model's tags differ in that, config.json of the weights' repository beside a local file says which it is.
    """

    def build(self) -> nn.Module:
        size, name = self.spec.inputs[0].shape[0], self.spec.model
        if is_hub_tag(self.weights):
            name = f"{name}.{self.weights}"
        elif is_file(self.weights) and len(self.paths) > 1:
            name = f"{name}.{_tag_in(self.paths[1])}"
        return timm.create_model(name, pretrained=False, num_classes=0, img_size=size)

    def files(self, weights: str) -> list[Path]:
        tags = self._tags()
        if not is_file(weights) or not self.spec.beside or not Path(weights).exists():
            return super().files(weights)
        config = Path(weights).with_name(self.spec.beside)
        if _tag_in(config) not in tags:
            raise EncoderError(
                f"weights {weights}: frames for {' and '.join(tags)} are normalised differently, and {config} does not "
                "say which of them this file is; put config.json of the weights' repository there, or in a file of "
                f'that name {{"pretrained_cfg": {{"tag": "{next(iter(tags))}"}}}}'
            )
        return [Path(weights), config]

    def _tags(self) -> dict[str, Any]:
        """The model's hub tags with timm's configuration of each."""
        return {name.partition(".")[2]: get_pretrained_cfg(name) for name in list_pretrained(f"{self.spec.model}.*")}

    def fetch(self, tag: str) -> Path:
        known = self._tags()
        if tag not in known:
            raise EncoderError(
                f"weights {tag!r} of {self.spec.model}: no such tag; choose one of {', '.join(known)}, or a file"
            )
        return download_from_hub(known[tag].hf_hub_id, ("model.safetensors", "pytorch_model.bin"))

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Positions are interpolated where the weights were trained at another frame size; the classifier goes."""
        state = self.filter(clean_state_dict(state), self.network)
        return {name: tensor for name, tensor in state.items() if not name.startswith(("head.fc.", "head."))}

    def filter(self, state: dict[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
        """timm's own renaming and interpolation for the network's family."""
        raise NotImplementedError

    def prepare(self, frames: torch.Tensor) -> torch.Tensor:
        """B, S, S, 3 uint8 frames to the network's input."""
        cfg = self.network.pretrained_cfg
        return normalize(frames, cfg["mean"], cfg["std"]).to(self.dtype)


def _tag_in(config: Path) -> str:
    """The tag that timm's config.json names; empty where it names none."""
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["pretrained_cfg"]["tag"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


class Swin(TimmImage):
    """`map` is the last stage's output after the last norm, `pooled` its mean over positions, which ImageNet's
    classifier reads. timm's configuration of `swinv2_large_window12_192` resizes the short side to 213."""

    def filter(self, state: dict[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
        return timm.models.swin_transformer_v2.checkpoint_filter_fn(state, network)

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, S, S, 3 uint8 frames to pooled B, 1536 and map B, 1536, S/32, S/32."""
        positions = self.network.forward_features(self.prepare(windows[0]))
        return {"pooled": positions.mean((1, 2)), "map": positions.movedim(-1, 1)}


class DINO(TimmImage):
    """`cls` and `patch` are the rows after the last norm; DINOv3's four register rows are left out. DINOv2 was trained
    at 518 pixels; here it reads 224, and its positions are interpolated."""

    def filter(self, state: dict[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
        family = timm.models.eva if isinstance(network, timm.models.eva.Eva) else timm.models.vision_transformer
        return family.checkpoint_filter_fn(state, network)

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, S, S, 3 uint8 frames to cls B, 1024 and patch B, P, 1024."""
        rows = self.network.forward_features(self.prepare(windows[0]))
        return {"cls": rows[:, 0], "patch": rows[:, self.network.num_prefix_tokens :]}
