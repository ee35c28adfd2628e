"""VideoMAE (Tong et al., 2022) through transformers: 16 frames per second of video."""

from pathlib import Path

import torch
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from extractors.base import Encoder, download_tag, normalize

REPOSITORIES = {"kinetics400": "MCG-NJU/videomae-base-finetuned-kinetics"}


class VideoMAE(Encoder):
    """ViT-B/16 over tubes of two frames. `pooled` is the mean of all 8·14·14 tokens after `fc_norm`: what the
    classifier of actions reads. `tubes` is the mean over the 14·14 positions of each of the eight pairs of frames,
    before the norm."""

    def build(self) -> nn.Module:
        model = VideoMAEForVideoClassification(VideoMAEConfig())
        model.classifier = nn.Identity()
        return model

    def fetch(self, tag: str) -> Path:
        return download_tag(self.spec.model, tag, REPOSITORIES)

    def adapt(self, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in state.items() if not name.startswith("classifier.")}

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, 16, 224, 224, 3 uint8 frames to pooled B, 768 and tubes B, 8, 768."""
        values = normalize(windows[0], IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
        tokens = self.network.videomae(values.to(self.dtype)).last_hidden_state
        return {"pooled": self.network.fc_norm(tokens.mean(1)), "tubes": tokens.unflatten(1, (8, -1)).mean(2)}
