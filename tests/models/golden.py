"""The golden cases of the released models: weights and inputs made from names, and comparison."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch


def read(name):
    return json.loads((Path(__file__).parent.parent / f"data/{name}_official.json").read_text())


def noise(name, shape):
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return torch.from_numpy(generator.standard_normal(shape).astype(np.float32))


def fill(shapes, ones):
    """Tensors by name, filled by the recipe in the files."""
    state_dict = {}
    for name, shape in shapes.items():
        x = noise(name, shape)
        if len(shape) > 1:
            x = (x.numpy() / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
            state_dict[name] = torch.from_numpy(x)
        else:
            state_dict[name] = 0.1 * x + float(name in ones)
    return state_dict


def weights(golden):
    return fill(golden["state_dict"], golden["ones"])


def far(ours, theirs):
    """Largest difference relative to the largest value."""
    theirs = torch.as_tensor(theirs).double()
    return float((ours.detach().double() - theirs).abs().max() / theirs.abs().max())


def starts_as(tensors, expected):
    """Assert that each tensor's root mean square, block by block where it is packed, is `expected(name, shapes)`;
    0 stands for a constant. The spread allowed is that of a sample of this size."""
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        for block in tensor.chunk(3) if "in_proj" in name else (tensor,):
            deviation = expected(name, shapes)
            if not deviation:
                assert block.unique().numel() == 1, name
                continue
            root = float((block.double() ** 2).mean() ** 0.5)
            assert abs(root - deviation) < 4.5 * deviation / block.numel() ** 0.5, (name, root, deviation)


def default_deviation(name, shapes):
    """The standard deviation at which PyTorch starts a tensor of a linear layer, an LSTM, an embedding, a layer norm or
    nn.MultiheadAttention."""
    layer, _, kind = name.rpartition(".")
    shape = shapes[name]
    if "norm" in layer or name.endswith(("in_proj_bias", "out_proj.bias")):
        return 0.0
    if kind == "in_proj_weight":  # Xavier-uniform over the packed matrix
        return (6 / (shape[0] + shape[1]) / 3) ** 0.5
    if layer.endswith("word2vec"):
        return 1.0
    if layer.endswith("lstm"):
        return (3 * shapes[f"{layer}.weight_hh_l0"][1]) ** -0.5
    return (3 * shapes[f"{layer}.weight"][1]) ** -0.5
