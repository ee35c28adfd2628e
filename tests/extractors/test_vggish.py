"""VGGish against torchvggish's own outputs."""

import numpy as np
import pytest
import torch
from torchvggish import torchvggish, vggish_input

from extractors import load_encoder
from extractors.vggish import log_mel
from pipeline.extract import Piece, read_audio_windows


def test_embeddings_are_torchvggishs_own(vggish):
    audio = (np.random.default_rng(1).standard_normal((3, 16000)) / 5).astype("float32")
    with torch.inference_mode():
        expected = torch.cat([vggish.network(vggish_input.waveform_to_examples(s, 16000)) for s in audio])
    torch.testing.assert_close(vggish.encode(audio)["embedding"], expected, rtol=1e-4, atol=1e-5)


def test_random_weights_keep_different_audio_different(vggish):
    """Random weights are of use only if different audio stays different on its way through nine layers."""
    time = np.arange(16000) / 16000
    tones = np.stack([np.sin(2 * np.pi * f * time) / 2 for f in (220, 440, 1760)] + [np.zeros(16000)])
    embedding = torch.nn.functional.normalize(vggish.encode(tones.astype("float32"))["embedding"], dim=-1)
    similarity = embedding @ embedding.T
    assert similarity.fill_diagonal_(0).max() < 0.99


@pytest.fixture
def minute():
    """61 s of tones, noise and silence."""
    rng = np.random.default_rng(2)
    loud = np.repeat(rng.uniform(0, 0.5, 61) * (rng.random(61) > 0.2), 16000)
    return (rng.standard_normal(61 * 16000) * loud).astype("float32")


def test_the_spectrogram_is_torchvggishs(minute):
    seconds = minute.reshape(61, 16000)[:8]
    expected = torch.cat([vggish_input.waveform_to_examples(second, 16000) for second in seconds])[:, 0]
    torch.testing.assert_close(log_mel(torch.from_numpy(seconds)), expected.float(), rtol=1e-4, atol=2e-4)


def test_rows_with_a_hop_are_those_of_the_whole_track(vggish, minute):
    """Oracle: torchvggish on the whole track at once, which cuts it every 0.96 s."""
    encoder = load_encoder("vggish_hop096", "random", dtype="float32")
    (audio,) = encoder.spec.inputs
    windows = read_audio_windows(minute.reshape(1, 61, 16000), audio, 61, Piece(0, 0, 60))
    examples = vggish_input.waveform_to_examples(minute, 16000)[:60]
    assert len(windows) == len(examples) == 60
    torch.testing.assert_close(log_mel(torch.from_numpy(windows.copy())), examples[:, 0].float(), rtol=1e-4, atol=2e-4)
    chosen = [0, 1, 30, 59]
    with torch.inference_mode():
        expected = vggish.network(examples[chosen].float())
    torch.testing.assert_close(encoder.encode(windows[chosen])["embedding"], expected, rtol=1e-3, atol=1e-4)


def test_pca_is_torchvggishs_postprocessor(vggish, minute, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    matrix, means = torch.randn(128, 128, generator=generator) / 20, torch.randn(128, 1, generator=generator)
    torch.save({"pca_eigen_vectors": matrix, "pca_means": means}, tmp_path / "pca.pt")
    torch.save(vggish.network.state_dict(), tmp_path / "vggish.pt")
    monkeypatch.setattr("extractors.vggish.download", lambda url: tmp_path / "pca.pt")
    encoder = load_encoder("vggish_hop096_pca", str(tmp_path / "vggish.pt"), dtype="float32")
    seconds = minute.reshape(61, 16000)[:6]
    processor = object.__new__(torchvggish.Postprocessor)
    processor._pca_matrix, processor._pca_means = matrix, means
    expected = processor.postprocess(vggish.encode(seconds)["embedding"])
    found = encoder.encode(seconds)["embedding"]
    assert found.min() >= 0 and found.max() <= 255 and len(found.unique()) > 50
    assert ((found - expected).abs() <= 1).all() and (found == expected).float().mean() > 0.99
