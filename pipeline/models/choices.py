"""Multiple choice: a question's own options are scored by their text features, with any model of the registry.

The model is built with as many outputs as an option's sentence feature has numbers. Its output is a query, and an
option's score is how well the two agree: scores_k = s · (query · option_k) / (|query| |option_k|), as CLIP (Radford et
al., 2021, Section 2.3) scores texts for an image, with a learned scale s.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.base import AVQAModel, Batch

FIRST_SCALE = 1 / 0.07  # CLIP's


class MultipleChoice(AVQAModel):
    """Scores a question's own options with `model`, whose outputs are as many as an option's feature has numbers.

    The loss is the cross-entropy over the options; losses of the model's own, which are about a fixed list of answers,
    have no part in it."""

    def __init__(self, model: AVQAModel, choices: int):
        super().__init__(model.settings, model.shapes, choices)
        self.model = model
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    def forward(self, batch: Batch) -> Tensor:
        """B, choices: the scores of the options, minus infinity where a question has fewer."""
        assert batch.choices is not None
        query = F.normalize(self.model.scores(self.model(batch)).float(), dim=-1)
        options = F.normalize(batch.choices.float(), dim=-1)
        scores = self.log_scale.exp() * torch.einsum("bd,bkd->bk", query, options)
        return scores.masked_fill((batch.choices == 0).all(-1), -math.inf)
