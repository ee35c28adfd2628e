"""ResNet-18 (He et al., 2016) trained on ImageNet, through torchvision: a pooled vector and a spatial map."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from extractors import EncoderError
from extractors.base import Encoder, download, normalize

WEIGHTS = ResNet18_Weights.IMAGENET1K_V1
PRESET = WEIGHTS.transforms()


class ResNet18(Encoder):
    """`pooled` is the input of ImageNet's classifier; `map` is the last stage computed with stride 1 in place of 2, so
    that a frame of 224×224 gives 14×14 positions.

    These are the two visual features of MUSIC-AVQA (Li et al., 2022; GeWu-Lab/MUSIC-AVQA, feat_script, the scripts
    extract_rgb_feat.py and extract_14x14_feat.py). The published weights do not depend on the stride. Here both
    outputs use ImageNet's own resize (256), centre crop (224) and normalisation.
    """

    mean: ClassVar[list[float]] = PRESET.mean
    std: ClassVar[list[float]] = PRESET.std

    def build(self) -> nn.Module:
        return resnet18(weights=None)

    def fetch(self, tag: str) -> Path:
        if tag != "torchvision":
            raise EncoderError(f"weights {tag!r} of resnet18: no such tag; use torchvision, a file, or random")
        return download(WEIGHTS.url)

    def forward(self, *windows: torch.Tensor) -> dict[str, torch.Tensor]:
        """B, 224, 224, 3 uint8 frames to pooled B, 512 and map B, 512, 14, 14."""
        net = self.network
        x = normalize(windows[0], self.mean, self.std).to(self.dtype)
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        x = net.layer3(net.layer2(net.layer1(x)))
        outputs = {"map": self._last_stage(x, stride=1)}
        if "pooled" in self.spec.outputs:
            outputs["pooled"] = net.avgpool(self._last_stage(x, stride=2)).flatten(1)
        return outputs

    def _last_stage(self, x: torch.Tensor, stride: int) -> torch.Tensor:
        first = self.network.layer4[0]
        first.conv1.stride = first.downsample[0].stride = (stride, stride)
        return self.network.layer4(x)


class MusicAVQAResNet18(ResNet18):
    """The maps as the authors of MUSIC-AVQA made them (extract_14x14_feat.py): frames squashed to 224×224, and
    normalised with the means and deviations of the Kinetics data, which are not those that the weights were trained
    with."""

    mean: ClassVar[list[float]] = [0.43216, 0.394666, 0.37645]
    std: ClassVar[list[float]] = [0.22803, 0.22145, 0.216989]
