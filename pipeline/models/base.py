"""The contract of a model: what it is built from, what it is given, and what it gives back.

A model says in its settings which features and texts it reads, and is given batches that hold exactly these. The
trainer, the evaluation, the report and the command line use nothing but the methods here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.errors import AVQAError
from pipeline.models import fast
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

    `score_fields` names the scores B, num_answers among what `forward` returns, where that is a named tuple."""

    Settings: ClassVar[type[ModelSettings]]
    score_fields: ClassVar[tuple[str, ...]] = ()
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

    def counted(self) -> dict[str, list]:
        """The layers of the released code by part, as the field counts them (pipeline/models/counts.py); empty for a
        model without released code."""
        return {}

    def field_count(self) -> tuple[int, int]:
        """Parameters and multiply-adds for one sample, as the field counts the released code; this code's own ones
        where there is none."""
        from pipeline.models import counts  # which imports this module

        layers = [layer for part in self.counted().values() for layer in part]
        parameters, macs = counts.total(layers) if layers else counts.executed(self)
        return parameters, macs

    @torch.no_grad()
    def report(self) -> str:
        """Parameters and FLOPs of a forward pass over one sample, by part, as text."""
        twin = self.twin().eval()
        twin(example_batch(twin))  # what is computed from weights alone is not counted
        counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _lstm_flops})
        with counter, fast.switched(False):  # the counter knows PyTorch's own products only
            twin(example_batch(twin))
        counts = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        rows = []
        for name, part in twin.named_children():  # a list of modules is not called itself, but its items are
            own = [f"{name}.{n}" for n in range(len(part))] if isinstance(part, nn.ModuleList) else [name]
            flops = sum(counts.get(f"{type(self).__name__}.{item}", 0) for item in own)
            rows.append((name, part.parameters(), flops))
        rows.append(("all", twin.parameters(), counts.get("Global", 0)))
        lines = [f"{'':<18}{'M parameters':>14}{'MFLOPs':>14}"]
        return "\n".join(lines + [f"{name:<18}{_count(own) / 1e6:>14.3f}{n / 1e6:>14.3f}" for name, own, n in rows])


def _lstm_flops(x: tuple[int, ...], *weights_and_rest: Any, **_: Any) -> int:
    """Of the products of an LSTM layer: L·B inputs and as many states, each with its matrix."""
    return 2 * math.prod(x[:-1]) * sum(math.prod(weight) for weight in weights_and_rest[:2])


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)


def example_batch(model: AVQAModel, size: int = 1) -> Batch:
    """Zeros in the shapes that a model is built for."""
    shapes = model.shapes.items()
    zeros = {name: torch.zeros(size, *shape, dtype=torch.int64 if name in TOKENS else None) for name, shape in shapes}
    features = {name: zeros[name] for name in model.Settings.features}
    return Batch(features, {name: zeros[name] for name in model.Settings.texts})
