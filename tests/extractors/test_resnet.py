"""ResNet-18 against torchvision's own preprocessing and model."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import ResNet18_Weights, resnet18

from extractors import load_encoder
from pipeline.media.transform import resize_and_crop


@pytest.fixture(scope="module")
def state():
    """Random weights with statistics of batch normalisation that are not their defaults."""
    torch.manual_seed(0)
    state = resnet18().state_dict()
    for name, tensor in state.items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.2)
        elif name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
    return state


@pytest.fixture(scope="module")
def encoder(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "resnet.pth"
    torch.save(state, path)
    return load_encoder("resnet18", str(path), dtype="float32")


@pytest.fixture(scope="module")
def images():
    """256×256, so that torchvision's resize leaves them as they are and crops their middle."""
    return np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3), dtype="uint8")


def reference(state, images, stop, dense=False):
    """torchvision's model up to a layer; `dense` replaces its last stage's convolutions of stride 2."""
    model = resnet18()
    model.load_state_dict(state)
    if dense:
        old = model.layer4[0]
        for owner, name in ((old, "conv1"), (old.downsample, "0")):
            conv = getattr(owner, name)
            new = torch.nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, 1, conv.padding, bias=False)
            new.load_state_dict(conv.state_dict())
            setattr(owner, name, new)
    model.eval()
    found = {}
    getattr(model, stop).register_forward_hook(lambda module, given, out: found.update(out=out))
    if not isinstance(images, torch.Tensor):
        preprocess = ResNet18_Weights.IMAGENET1K_V1.transforms()
        images = torch.stack([preprocess(Image.fromarray(image)) for image in images])
    with torch.inference_mode():
        model(images)
    return found["out"]


def test_pooled_is_the_input_of_torchvisions_classifier(encoder, state, images):
    encoded = encoder.encode(images[:, 16:240, 16:240])
    expected = reference(state, images, "avgpool").flatten(1)
    torch.testing.assert_close(encoded["pooled"], expected, rtol=1e-4, atol=1e-5)


def test_map_is_the_last_stage_without_its_stride(encoder, state, images):
    encoded = encoder.encode(images[:, 16:240, 16:240])
    expected = reference(state, images, "layer4", dense=True)
    assert expected.shape == (2, 512, 14, 14)
    torch.testing.assert_close(encoded["map"], expected, rtol=1e-3, atol=5e-4)


def test_its_input_is_torchvisions_preset(encoder):
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    (frames,) = encoder.spec.inputs
    assert [frames.size] == preset.crop_size and [frames.transform.short_side] == preset.resize_size
    assert frames.transform.filter == preset.interpolation.value and preset.antialias


def test_maps_of_music_avqa(state, tmp_path):
    """Oracle: the steps of the authors' extract_14x14_feat.py, restated: squash, Kinetics' means and deviations, the
    last stage without its stride."""
    torch.save(state, tmp_path / "resnet.pth")
    encoder = load_encoder("resnet18_music_avqa", str(tmp_path / "resnet.pth"), dtype="float32")
    image = np.random.default_rng(1).integers(0, 256, (120, 300, 3), dtype="uint8")
    prepare = transforms.Compose(
        [
            transforms.Resize([224, 224]),
            transforms.ToTensor(),
            transforms.Normalize([0.43216, 0.394666, 0.37645], [0.22803, 0.22145, 0.216989]),
        ]
    )
    batch = prepare(Image.fromarray(image))[None]
    expected = reference(state, batch, "layer4", dense=True)
    encoded = encoder.encode(resize_and_crop(image, encoder.spec.inputs[0])[None])
    torch.testing.assert_close(encoded["map"], expected, rtol=1e-3, atol=5e-4)
