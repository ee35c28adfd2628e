"""VideoMAE, CLAP and AST against the preprocessing and outputs of transformers."""

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
)
from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

from extractors import ast as ast_module
from extractors import clap as clap_module
from extractors import load_encoder
from pipeline.media.transform import resize_and_crop


def audio(rate, count=3):
    """Noise, a tone, and half a second of silence within noise."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(rate) / 5
    broken = noise * (np.arange(rate) < rate / 2)
    tone = np.sin(2 * np.pi * 440 * np.arange(rate) / rate) / 2
    return np.stack([noise, tone, broken])[:count].astype("float32")


def saved(model, path):
    """The model with random numbers in every tensor, written as its authors publish it."""
    torch.manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor += torch.randn(tensor.shape) * (0.05 if tensor.ndim > 1 else 0.1)
            if name.endswith("running_var"):
                tensor.abs_()
    safetensors.torch.save_model(model, str(path))
    return model.eval()


@pytest.mark.slow
def test_videomae(tmp_path):
    reference = saved(VideoMAEForVideoClassification(VideoMAEConfig(use_mean_pooling=True)), tmp_path / "v.safetensors")
    encoder = load_encoder("videomae_b16", str(tmp_path / "v.safetensors"), dtype="float32")
    (wanted,) = encoder.spec.inputs
    blocks = np.random.default_rng(0).integers(0, 256, (16, 7, 9, 3), dtype="uint8")
    video = [np.asarray(Image.fromarray(block).resize((300, 230), Image.Resampling.BICUBIC)) for block in blocks]
    settings = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}  # preprocessor_config.json
    values = VideoMAEImageProcessorPil(**settings)(video, return_tensors="pt")["pixel_values"]
    found = {}
    reference.fc_norm.register_forward_hook(lambda module, given, out: found.update(given=given[0], out=out))
    with torch.inference_mode():
        reference(values)
        tokens = reference.videomae(values).last_hidden_state
    encoded = encoder.encode(np.stack([resize_and_crop(frame, wanted) for frame in video])[None])
    torch.testing.assert_close(encoded["pooled"], found["out"], rtol=1e-2, atol=1e-2)
    for n in range(8):
        torch.testing.assert_close(
            encoded["tubes"][0, n], tokens[0, n * 196 : (n + 1) * 196].mean(0), rtol=1e-2, atol=1e-2
        )
    assert encoded["tubes"].std(1).mean() > 1e-3


def test_clap(tmp_path):
    """The published file has both branches, text and audio."""
    config = ClapConfig(text_config={"num_hidden_layers": 1, "vocab_size": 50})
    reference = saved(ClapModel(config), tmp_path / "clap.safetensors")
    encoder = load_encoder("clap_htsat", str(tmp_path / "clap.safetensors"), dtype="float32")
    extractor = ClapFeatureExtractor(truncation="rand_trunc", frequency_min=50, frequency_max=14000)
    features = extractor(list(audio(48000)), sampling_rate=48000, return_tensors="pt")["input_features"]
    np.testing.assert_allclose(
        clap_module.log_mel(torch.from_numpy(audio(48000)).repeat(1, 10)), features[:, 0], rtol=1e-3, atol=2e-2
    )
    with torch.inference_mode():
        expected = reference.audio_projection(reference.audio_model(input_features=features).pooler_output)
    encoded = encoder.encode(audio(48000))["embedding"]
    torch.testing.assert_close(encoded, expected, rtol=1e-2, atol=1e-2)
    assert torch.pdist(encoded).min() > 0.05


@pytest.mark.slow
def test_ast(tmp_path):
    reference = saved(ASTForAudioClassification(ASTConfig()), tmp_path / "ast.safetensors")
    encoder = load_encoder("ast", str(tmp_path / "ast.safetensors"), dtype="float32")
    values = ASTFeatureExtractor()(list(audio(16000, 2)), sampling_rate=16000, return_tensors="pt")["input_values"]
    with torch.inference_mode():
        rows = reference.audio_spectrogram_transformer(values).last_hidden_state
    encoded = encoder.encode(audio(16000, 2))
    for name, expected in {"cls": rows[:, 0], "distillation": rows[:, 1], "pooled": rows[:, 2:].mean(1)}.items():
        torch.testing.assert_close(encoded[name], expected, rtol=1e-2, atol=1e-2)


def test_the_spectrogram_of_ast_is_the_librarys():
    values = ASTFeatureExtractor()(list(audio(16000)), sampling_rate=16000, return_tensors="pt")["input_values"]
    torch.testing.assert_close(ast_module.log_mel(torch.from_numpy(audio(16000))), values, rtol=1e-3, atol=2e-3)
