"""The encoder contract: what every encoder gives, and where weights may come from."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch

from extractors import ENCODERS, EncoderError, load_encoder

LARGE = ("_l14", "_l16", "_l_", "siglip", "videomae", "ast")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if any(part in n for part in LARGE) else n for n in ENCODERS]
)
def test_outputs_are_those_of_the_spec(name):
    encoder = load_encoder(name, "random", dtype="bfloat16")
    rng = np.random.default_rng(0)
    windows = [
        rng.integers(0, 256, (2, *i.shape), dtype="uint8")
        if i.dtype == "uint8"
        else (rng.standard_normal((2, i.seconds * i.rate)) / 5).astype("float32")
        for i in encoder.spec.inputs
    ]
    encoded = encoder.encode(*windows)
    assert {name: tuple(values.shape[1:]) for name, values in encoded.items()} == encoder.spec.outputs
    assert all(len(v) == 2 and v.dtype == torch.float32 and v.isfinite().all() for v in encoded.values())
    if not encoder.spec.text_outputs:
        with pytest.raises(EncoderError, match=r"has no text outputs; use one of clip_vit_l14"):
            encoder.encode_text(["Is it loud?"], "eot")


def test_the_table_needs_no_pytorch():
    code = "import sys, extractors; assert extractors.ENCODERS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_encoder_is_an_error_that_lists_the_known_ones():
    with pytest.raises(EncoderError, match=r"'resnet' is not known.*clip_vit_l14.*resnet18.*vggish"):
        load_encoder("resnet", "random")


def test_random_weights_are_a_matter_of_their_seed(clip, frames):
    again = load_encoder("clip_vit_b32", "random", seed=3, dtype="float32")
    assert again.provenance == clip.provenance
    assert again.provenance["pretrained"] is False and again.provenance["weights"] == "random (seed 3)"
    assert again.provenance["libraries"].keys() == {"torch", "open_clip_torch"}
    assert again.provenance["libraries"]["torch"] == ".".join(torch.__version__.split(".")[:2])
    torch.testing.assert_close(again.encode(frames)["cls"], clip.encode(frames)["cls"])
    with pytest.raises(EncoderError, match=r"random: sha256 is .*another seed"):
        load_encoder("vggish", "random", sha256="0" * 64)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file(vggish, tmp_path, suffix):
    state = {name: tensor.clone() for name, tensor in vggish.network.state_dict().items()}
    path = tmp_path / f"mine{suffix}"
    safetensors.torch.save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    loaded = load_encoder("vggish", str(path), sha256=digest, seed=99, dtype="float32")
    assert loaded.provenance["weights"] == path.name and loaded.provenance["pretrained"] is True
    assert loaded.provenance["weights_sha256"] == digest
    audio = np.random.default_rng(1).standard_normal((2, 16000)).astype("float32")
    torch.testing.assert_close(loaded.encode(audio), vggish.encode(audio))
    with pytest.raises(EncoderError, match="sha256 is"):
        load_encoder("vggish", str(path), sha256="0" * 64)


class Bomb:
    def __reduce__(self):
        return (open, ("exploded", "w"))


def test_a_weights_file_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"features.0.weight": Bomb()}, "bomb.pt")
    with pytest.raises(EncoderError, match=r"bomb\.pt"):
        load_encoder("vggish", str(tmp_path / "bomb.pt"))
    assert not (tmp_path / "exploded").exists()


def test_wrong_weights_are_refused_by_name(tmp_path):
    torch.save({"features.0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(EncoderError, match=r"other\.pt: not a state dict of vggish"):
        load_encoder("vggish", str(tmp_path / "other.pt"))
    torch.save({"epoch": 3}, tmp_path / "epoch.pt")
    with pytest.raises(EncoderError, match=r"epoch\.pt: must hold a state dict"):
        load_encoder("vggish", str(tmp_path / "epoch.pt"))
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 50)
    with pytest.raises(EncoderError, match=r"broken\.safetensors: cannot be read") as error:
        load_encoder("vggish", str(tmp_path / "broken.safetensors"))
    assert "delete" not in str(error.value)  # the file is the user's
    with pytest.raises(EncoderError, match=r"gone\.pt: No such file"):
        load_encoder("vggish", str(tmp_path / "gone.pt"))
    with pytest.raises(EncoderError, match="Is a directory"):
        load_encoder("vggish", str(tmp_path))
    for name in sorted(ENCODERS.keys() - {"panns_cnn14"}):
        with pytest.raises(EncoderError, match=r"'no_such_tag'.*no such tag"):
            load_encoder(name, "no_such_tag")


def test_the_hash_is_checked_before_the_file_is_used(tmp_path):
    (tmp_path / "replaced.pt").write_bytes(b"x" * 50)
    with pytest.raises(EncoderError, match="sha256 is"):
        load_encoder("vggish", str(tmp_path / "replaced.pt"), sha256="0" * 64)


@pytest.mark.parametrize(
    "name, tag",
    [
        ("vggish", "torchvggish"),
        ("resnet18", "torchvision"),
        ("clip_vit_b32", "openai"),
        ("siglip2_b16_256", "webli"),
        ("swinv2_l_192", "ms_in22k"),
        ("dinov3_l16", "lvd1689m"),
        ("tome_vit_l16_384", "augreg_in21k_ft_in1k"),
        ("videomae_b16", "kinetics400"),
        ("clap_htsat", "laion_unfused"),
        ("ast", "audioset"),
    ],
)
def test_without_a_network_there_is_one_try(offline, name, tag):
    with pytest.raises(EncoderError, match=r"cannot be downloaded.*give its path"):
        load_encoder(name, tag)
    assert 1 <= len(offline) <= 2  # the hub's client connects a second time at once; its retries would be 24


@pytest.mark.parametrize(
    "name, tag, file",
    [("vggish", "torchvggish", "vggish-10086976.pth"), ("resnet18", "torchvision", "resnet18-f37072fd.pth")],
)
def test_an_incomplete_download_is_named(offline, tmp_path, name, tag, file):
    path = tmp_path / "torch/hub/checkpoints" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x" * 50)
    with pytest.raises(EncoderError, match=rf"{path}: sha256 does not begin.*delete this file"):
        load_encoder(name, tag)


@pytest.mark.parametrize("sha256", [None, "0" * 64])
def test_an_incomplete_download_from_the_hub_is_named(offline, tmp_path, sha256):
    """The hub's cache keeps contents under blobs, to which snapshots link: deleting the link would change nothing."""
    folder = tmp_path / "hub/models--timm--vit_base_patch32_clip_224.openai"
    for name in ("blobs", "refs", "snapshots/123"):
        (folder / name).mkdir(parents=True)
    (folder / "refs/main").write_text("123")
    (folder / "blobs/abc").write_bytes(b"x" * 50)
    (folder / "snapshots/123/open_clip_model.safetensors").symlink_to("../../blobs/abc")
    with pytest.raises(EncoderError, match=rf"delete {folder}/blobs/abc, a download in the library's cache"):
        load_encoder("clip_vit_b32", "openai", sha256=sha256)
    assert offline == []  # what is in the cache needs no network


def test_a_replaced_file_does_not_change_a_loaded_encoder(vggish, tmp_path):
    """Files are mapped while they are read; what was loaded must not depend on them afterwards."""
    path = tmp_path / "mine.safetensors"
    safetensors.torch.save_file(vggish.network.state_dict(), path)
    loaded = load_encoder("vggish", str(path), dtype="float32")
    audio = np.random.default_rng(1).standard_normal((1, 16000)).astype("float32")
    before = loaded.encode(audio)["embedding"]
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    torch.testing.assert_close(loaded.encode(audio)["embedding"], before)
    assert before.abs().max() > 0.01


def test_loading_draws_no_random_numbers(vggish, tmp_path):
    safetensors.torch.save_file(vggish.network.state_dict(), tmp_path / "mine.safetensors")
    before = torch.get_rng_state()
    load_encoder("vggish", str(tmp_path / "mine.safetensors"))
    assert torch.equal(torch.get_rng_state(), before)
    torch.nn.Linear(2, 2)  # as always after the block
    assert not torch.equal(torch.get_rng_state(), before)
