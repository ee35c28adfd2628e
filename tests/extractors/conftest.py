"""What the tests of the encoders share."""

import socket

import huggingface_hub.constants
import numpy as np
import open_clip
import pytest
import torch

from extractors import load_encoder


@pytest.fixture(scope="package")
def clip():
    return load_encoder("clip_vit_b32", "random", seed=3, dtype="float32")


@pytest.fixture(scope="package")
def open_clips():
    """open_clip's own model with the random numbers of the fixture `clip`."""
    torch.manual_seed(3)
    return open_clip.create_model("ViT-B-32-quickgelu", load_weights=False).eval()


@pytest.fixture(scope="package")
def vggish():
    return load_encoder("vggish", "random", dtype="float32")


@pytest.fixture(scope="package")
def frames():
    return np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype="uint8")


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Empty download caches and no network; the list of attempts to reach a host."""
    attempts = []

    def fail(host, *args, **kwargs):
        attempts.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return attempts
