"""Small models and batches for the tests."""

import torch

from pipeline.models.av_master.model import AVMaster
from pipeline.models.base import Batch

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
