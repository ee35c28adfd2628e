"""The contract of a model: what it is built from, what it is given, and what it gives back.

A model says in its settings which features and texts it reads, and is given batches that hold exactly these. The
trainer, the evaluation, the report and the command line use nothing but the methods here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.errors import AVQAError
from pipeline.models.counts import Count
from pipeline.models.settings import TOKENS, ModelSettings

DATA_PARALLEL = "module."  # nn.DataParallel begins the names of a model's tensors with it
PAPER_TOKENS = 93  # words in MUSIC-AVQA's training questions, padding among them


class NotOffered(AVQAError):
    """The model has no such part; the message names both."""


@dataclass
class Batch:
    """B questions, and the features of their videos by name.

    In evaluation each video is held once: `features` then has V rows, and question b belongs to row videos[b]."""

    features: dict[str, Tensor]  # B, T, …; with `videos` V, T, …
    texts: dict[str, Tensor]  # B, …; int64 for TOKENS
    negatives: dict[str, Tensor] | None = None  # like features: of another question's video
    videos: Tensor | None = None  # B int64
    choices: Tensor | None = None  # B, K, D: text features of each question's own options, zeros where it has fewer
    answer: Tensor | None = None  # B int64: among the choices, if any; -1 where it never occurs in training
    row: np.ndarray | None = None  # B: places in the table of questions

    def per_question(self, x: Tensor) -> Tensor:
        """What is per video, per question: x[videos]."""
        return select_rows(x, self.videos)


def reads_tokens(settings: type[ModelSettings]) -> bool:
    """Whether a model of these settings reads words by their numbers."""
    return any(name in settings.texts for name in TOKENS)


def select_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """x[rows]; all of x where `rows` is None."""
    return x if rows is None else x.index_select(0, rows)


class AVQAModel(nn.Module, ABC):
    """A model for audio-visual question answering.

    settings: an instance of the class's Settings. shapes: the shape of one sample of each feature and text, such as
    {"audio": (60, 128), "sentence": (768,)}. num_answers: how many answers there are to choose from. num_tokens: the
    size of the vocabulary, padding included; given to a model that reads TOKENS, and to no other.

    `score_fields` names the scores B, num_answers among what `forward` returns, where that is a named tuple.

    `parts`, if a model has them, are those of `counted`, each with how the names of its modules and parameters begin
    here and in the released code; the part without such beginnings has all the others."""

    Settings: ClassVar[type[ModelSettings]]
    score_fields: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {}
    released_prefix: ClassVar[str] = DATA_PARALLEL  # of names in the file that the released test script loads

    def __init__(
        self,
        settings: ModelSettings,
        shapes: dict[str, tuple[int, ...]],
        num_answers: int,
        num_tokens: int | None = None,
    ):
        super().__init__()
        self.settings, self.shapes, self.num_answers, self.num_tokens = settings, shapes, num_answers, num_tokens

    @classmethod
    def in_paper_setting(cls, seconds: int | None = None, num_answers: int = 42, **settings: Any) -> AVQAModel:
        """The model for features of the paper's shapes, for `seconds` if they are given, and for the vocabulary of
        MUSIC-AVQA if it reads tokens. Raises ValueError."""
        features = {name: (seconds or shape[0], *shape[1:]) for name, shape in cls.Settings.features.items()}
        shapes, vocabulary = features | cls.Settings.texts, {"num_tokens": PAPER_TOKENS}
        own = cls.Settings.from_dict(settings)
        return cls(own, shapes, num_answers, **(vocabulary if reads_tokens(cls.Settings) else {}))

    def twin(self) -> AVQAModel:
        """A new model of the same settings and sizes, with fresh weights."""
        vocabulary = {} if self.num_tokens is None else {"num_tokens": self.num_tokens}
        return type(self)(self.settings, self.shapes, self.num_answers, **vocabulary)

    @abstractmethod
    def forward(self, batch: Batch) -> Any:
        """The scores, or whatever `loss` and `scores` need."""

    def loss(self, output: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The number to minimise, and its parts by name for the history."""
        assert batch.answer is not None
        return F.cross_entropy(self.scores(output), batch.answer), {}

    def scores(self, output: Any) -> Tensor:
        """B, num_answers; the answer is the largest."""
        return output

    @property
    def needs_negatives(self) -> bool:
        """Whether training batches must hold negatives."""
        return False

    def scores_by_second(self, batch: Batch) -> Tensor:
        """B, T, num_answers: the scores after each second, for a model that reads the seconds in order. Not every model
        offers it."""
        raise self._not_offered("accuracy by second")

    def word_attention(self, batch: Batch) -> dict[str, Tensor]:
        """Modality -> B, W: the share of its attention that each token of the question gets. Not every model offers
        it."""
        raise self._not_offered("attention on words")

    def preference_features(self, batch: Batch) -> dict[str, Tensor]:
        """Modality -> B, D: its features under the question, before they are fused. Not every model offers it."""
        raise self._not_offered("preference features")

    @classmethod
    def load_released(cls, state_dict: dict[str, Tensor], **settings: Any) -> AVQAModel:
        """A model with the weights of its authors' released checkpoint, with or without the prefix of DataParallel.
        Not every model offers it. Raises ValueError for a checkpoint of another model."""
        return cls.from_released({name.removeprefix(DATA_PARALLEL): x for name, x in state_dict.items()}, **settings)

    @classmethod
    def from_released(cls, state_dict: dict[str, Tensor], **settings: Any) -> AVQAModel:
        """What `load_released` does, for names without prefix."""
        raise NotOffered(f"{cls.__name__} does not offer released checkpoints")

    def released_state_dict(self) -> dict[str, Tensor]:
        """The weights under the names of the authors' release. Not every model offers it."""
        raise self._not_offered("released checkpoints")

    def released_checkpoint(self) -> dict[str, Tensor]:
        """`released_state_dict` as the released test script loads it."""
        return {self.released_prefix + name: tensor for name, tensor in self.released_state_dict().items()}

    def _not_offered(self, what: str) -> NotOffered:
        return NotOffered(f"{type(self).__name__} does not offer {what}")

    @property
    def published(self) -> str:
        """What is printed of its size elsewhere: a line below the model's own counts, empty if there is none."""
        return ""

    def counted(self) -> dict[str, list[Count]]:
        """The layers of the released code by part, as the field counts them (counts.py); empty for a model without
        released code."""
        return {}


def example_batch(model: AVQAModel, size: int = 1) -> Batch:
    """Zeros in the shapes that a model is built for."""
    shapes = model.shapes.items()
    zeros = {name: torch.zeros(size, *shape, dtype=torch.int64 if name in TOKENS else None) for name, shape in shapes}
    features = {name: zeros[name] for name in model.Settings.features}
    return Batch(features, {name: zeros[name] for name in model.Settings.texts})
