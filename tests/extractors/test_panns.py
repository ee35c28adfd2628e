"""PANNs' CNN14 against librosa's spectrogram and a plain restatement of the paper's network."""

import librosa
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from extractors import EncoderError, load_encoder
from extractors.panns import log_mel


@pytest.fixture(scope="module")
def audio():
    time = np.arange(64000) / 32000
    noise = np.random.default_rng(0).standard_normal(64000) / 5
    return np.stack([noise, np.sin(2 * np.pi * 440 * time), np.zeros(64000)]).astype("float32")


@pytest.fixture(scope="module")
def panns():
    encoder = load_encoder("panns_cnn14", "random", dtype="float32")
    generator = torch.Generator().manual_seed(1)
    for name, tensor in encoder.network.state_dict().items():
        if name.endswith(("running_mean", "running_var", "bias")) or ("bn" in name and name.endswith("weight")):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return encoder


def plain_log_mel(samples):
    """librosa's, with the settings of the paper's section III-A and of torchlibrosa."""
    settings = {"n_fft": 1024, "hop_length": 320, "n_mels": 64, "fmin": 50, "fmax": 14000, "pad_mode": "reflect"}
    power = librosa.feature.melspectrogram(y=samples, sr=32000, power=2.0, **settings)
    return librosa.power_to_db(power, ref=1.0, amin=1e-10, top_db=None).T


def plain_network(state, spectrogram):
    """Table I of the paper, CNN14, in evaluation mode: B, frames, 64 -> B, 2048."""

    def normalise(x, name, axis):
        shape = [-1 if n == axis else 1 for n in range(x.ndim)]
        mean, var, weight, bias = (
            state[f"{name}.{part}"].view(shape) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * weight + bias

    x = normalise(spectrogram[:, None], "bn0", 3)
    for n in range(1, 7):
        for layer in (1, 2):
            x = F.conv2d(x, state[f"conv_block{n}.conv{layer}.weight"], padding=1)
            x = torch.relu(normalise(x, f"conv_block{n}.bn{layer}", 1))
        if n < 6:
            x = F.avg_pool2d(x, kernel_size=(2, 2))
    x = torch.mean(x, dim=3)
    x = torch.max(x, dim=2).values + torch.mean(x, dim=2)
    return torch.relu(x @ state["fc1.weight"].T + state["fc1.bias"])


def test_the_spectrogram_is_librosas(audio):
    spectrogram = log_mel(torch.from_numpy(audio))
    assert spectrogram.shape == (3, 201, 64)
    for n, samples in enumerate(audio):
        expected = plain_log_mel(samples)
        loud = expected > -60  # below, rounding of float32 is as large as the signal
        np.testing.assert_allclose(spectrogram[n].numpy()[loud], expected[loud], rtol=1e-4, atol=1e-2)
        assert (spectrogram[n].numpy()[~loud] < -59).all()
    assert (spectrogram[2] == -100).all()


def test_the_network_is_the_papers(panns, audio):
    state = panns.network.state_dict()
    spectrogram = torch.from_numpy(np.stack([plain_log_mel(samples) for samples in audio[:1]]))
    expected = plain_network(state, spectrogram)
    assert expected.std() > 0.01
    torch.testing.assert_close(panns.encode(audio[:1])["embedding"], expected, rtol=1e-3, atol=1e-3)


def test_the_authors_checkpoint_fits(panns, audio, tmp_path):
    """It nests the state dict under `model`, has constants and a classifier that are not needed, and the state of a
    sampler, of NumPy's arrays."""
    state = dict(panns.network.state_dict())
    for name, shape in {
        "spectrogram_extractor.stft.conv_real.weight": (513, 1, 1024),
        "spectrogram_extractor.stft.conv_imag.weight": (513, 1, 1024),
        "logmel_extractor.melW": (513, 64),
        "fc_audioset.weight": (527, 2048),
        "fc_audioset.bias": (527,),
    }.items():
        state[name] = torch.zeros(shape)
    sampler = {"indexes_per_class": [np.arange(5), np.arange(0)], "queue": [1, 0], "pointers_of_classes": [0, 2]}
    torch.save({"iteration": 1, "model": state, "sampler": sampler}, tmp_path / "Cnn14.pth")
    loaded = load_encoder("panns_cnn14", str(tmp_path / "Cnn14.pth"), dtype="float32")
    assert loaded.provenance["pretrained"]
    torch.testing.assert_close(loaded.encode(audio), panns.encode(audio))


def test_random_weights_keep_different_audio_different(audio):
    """Half a percent of an embedding is rounding of bfloat16. What differs must be far more."""
    encoder = load_encoder("panns_cnn14", "random", dtype="bfloat16")
    time = np.arange(64000) / 32000
    tones = np.stack([*audio, *(np.sin(2 * np.pi * f * time) / 2 for f in (220, 1760))]).astype("float32")
    embedding = encoder.encode(tones)["embedding"]
    assert torch.pdist(embedding).min() > 0.05 * embedding.norm(dim=-1).max()


def test_there_is_no_hub_tag():
    with pytest.raises(EncoderError, match=r"'zenodo'.*Cnn14_mAP=0\.431\.pth.*or use random"):
        load_encoder("panns_cnn14", "zenodo")
