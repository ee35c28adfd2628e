"""Small models and batches for the tests."""

import torch

from pipeline.models.av_master.model import AVMaster
from pipeline.models.base import Batch, example_batch
from pipeline.models.settings import TOKENS

DIMS = ("audio_dim", "visual_dim", "text_dim")


def av_master(num_answers=42, audio_dim=128, visual_dim=768, text_dim=768, seconds=60, words=77, **settings):
    shapes = {"audio": (seconds, audio_dim), "visual": (seconds, visual_dim), "words": (words, text_dim)}
    return AVMaster(AVMaster.Settings.from_dict(settings), shapes | {"sentence": (text_dim,)}, num_answers)


def twin(model):
    """A new model like this one."""
    return type(model)(model.settings, model.shapes, model.num_answers)


def batch_of(audio, visual, words, sentence, neg_audio=None, neg_visual=None, *, answer=None, videos=None):
    negatives = None if neg_audio is None else {"audio": neg_audio, "visual": neg_visual}
    answer = None if answer is None else torch.as_tensor(answer)
    features = {"audio": audio, "visual": visual}
    return Batch(features, {"words": words, "sentence": sentence}, negatives, videos, answer)


def filled_batch(model, size, seed=0):
    """Random numbers in the shapes and the type of a model, each token and answer within its range."""
    generator, dtype = torch.Generator().manual_seed(seed), next(model.parameters()).dtype
    batch = example_batch(model, size)
    for tensors in (batch.features, batch.texts):
        for name, x in tensors.items():
            if name in TOKENS:
                tensors[name] = torch.randint(0, model.num_tokens, x.shape, generator=generator)
            elif name == "length":
                tensors[name] = torch.randint(2, model.shapes["words"][0] + 1, x.shape, generator=generator)
            else:
                tensors[name] = torch.randn(x.shape, generator=generator, dtype=dtype)
    batch.answer = torch.randint(0, model.num_answers, (size,), generator=generator)
    return batch


def restarted(model):
    """With the weights of a new model, the same each time."""
    torch.manual_seed(0)
    for layer in model.modules():
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    return model


def assert_learns(model, draw, steps):
    """Training on draw(seed) answers nine in ten of new questions right, and without video no more than guessing does.
    The answers that `draw` gives are 0 and 1, equally often whatever the question."""
    optimizer = torch.optim.Adam(model.parameters(), 0.005)
    for seed in range(steps):
        batch = draw(seed)
        loss, _ = model.loss(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    test = draw(steps, 200)
    assert (model.scores(model(test)).argmax(-1) == test.answer).float().mean() > 0.9
    test.features = {name: torch.zeros_like(x) for name, x in test.features.items()}
    assert (model.scores(model(test)).argmax(-1) == test.answer).float().mean() < 0.65
