"""Small models and batches for the tests."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.models.av_master.model import AVMaster
from pipeline.models.base import AVQAModel, Batch, example_batch
from pipeline.models.settings import TOKENS, ModelSettings, setting

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
    return Batch(features, {"words": words, "sentence": sentence}, negatives, videos, answer=answer)


@dataclass
class TokenSettings(ModelSettings):
    features: ClassVar = {"visual": (60, 512)}
    texts: ClassVar = {"tokens": (14,), "type": (2,)}

    every: int = setting(1, "Seconds between those that are read", minimum=1)
    answer_weight: float = setting(1.0, "Weight of the answer's loss", minimum=0)

    def reads(self):
        return {"visual": slice(None, None, self.every)}


class TokenModel(AVQAModel):
    """A model that reads words by their numbers and only some seconds; it has an answer's loss and another one."""

    Settings = TokenSettings

    def __init__(self, settings, shapes, num_answers, *, num_tokens):
        super().__init__(settings, shapes, num_answers, num_tokens=num_tokens)
        self.words = nn.EmbeddingBag(num_tokens, 4)
        self.visual, self.answers = nn.Linear(shapes["visual"][-1], 4), nn.Linear(8, num_answers)

    def forward(self, batch):
        assert batch.features["visual"].shape[1:] == self.shapes["visual"]
        visual = self.visual(batch.per_question(batch.features["visual"].float().mean(1)))
        self.pulled = visual.square().mean()
        return self.answers(torch.cat([visual, self.words(batch.texts["tokens"])], 1))

    def loss(self, output, batch):
        return self.settings.answer_weight * F.cross_entropy(output, batch.answer) + 0.1 * self.pulled, {}

    def scores(self, output):
        return output

    @classmethod
    def from_released(cls, state_dict, **settings):
        missing = {"table", "projection", "bias", "head", "head_bias"} - state_dict.keys()
        if missing:
            raise ValueError(f"lacks {min(missing)}")
        size, answers = state_dict["projection"].shape[1], len(state_dict["head"])
        shapes = {"visual": (60, size), "tokens": (14,), "type": (2,)}
        model = cls(TokenSettings.from_dict(settings), shapes, answers, num_tokens=len(state_dict["table"]))
        names = ["words.weight", "visual.weight", "visual.bias", "answers.weight", "answers.bias"]
        order = ["table", "projection", "bias", "head", "head_bias"]
        model.load_state_dict({ours: state_dict[theirs] for ours, theirs in zip(names, order, strict=True)})
        return model

    def released_state_dict(self):
        state = self.state_dict()
        order = {"table": "words.weight", "projection": "visual.weight", "bias": "visual.bias",
                 "head": "answers.weight", "head_bias": "answers.bias"}  # fmt: skip
        return {theirs: state[ours] for theirs, ours in order.items()}


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
