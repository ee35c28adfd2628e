"""VGGish against torchvggish's own outputs."""

import numpy as np
import torch
from torchvggish import vggish_input


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
