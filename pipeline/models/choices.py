"""Multiple choice: a question's own options are scored by their text features, with any model of the registry.

The model is built with as many outputs as an option's sentence feature has numbers. Such an output is a query, and an
option's score is how well the two agree: scores_k = s · (query · option_k) / (|query| |option_k|), as CLIP (Radford et
al., 2021, Section 2.3) scores texts for an image, with a learned scale s.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.base import AVQAModel, Batch

FIRST_SCALE = 1 / 0.07  # CLIP's


class MultipleChoice(AVQAModel):
    """Scores a question's own options with `model`, whose outputs are as many as an option's feature has numbers.

    Wherever the model has scores of answers, as AV-Master has in three places, these become scores of the options. The
    loss is the model's own with these in their place."""

    def __init__(self, model: AVQAModel, choices: int):
        super().__init__(model.settings, model.shapes, choices)
        self.model = model
        self.log_scale = nn.Parameter(torch.tensor(math.log(FIRST_SCALE)))

    @property
    def needs_negatives(self) -> bool:
        return self.model.needs_negatives

    def forward(self, batch: Batch) -> tuple[Any, Tensor]:
        """What the model returns, scores B, choices in the place of its own and minus infinity where a question has
        fewer options; and which these are, B, choices."""
        assert batch.choices is not None
        output, options = self.model(batch), F.normalize(batch.choices.float(), dim=-1)
        absent = (batch.choices == 0).all(-1)
        if isinstance(output, Tensor):
            return self._agreement(output, options, absent), absent
        queries = {name: getattr(output, name) for name in self.model.score_fields}
        scores = {name: self._agreement(query, options, absent) for name, query in queries.items() if query is not None}
        return output._replace(**scores), absent

    def _agreement(self, query: Tensor, options: Tensor, absent: Tensor) -> Tensor:
        """A query B, D and normalised options B, K, D to scores B, K."""
        similarity = torch.einsum("bd,bkd->bk", F.normalize(query.float(), dim=-1), options)
        return (self.log_scale.exp() * similarity).masked_fill(absent, -math.inf)

    def loss(self, output: tuple[Any, Tensor], batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.model.loss(output[0], batch)

    def scores(self, output: tuple[Any, Tensor]) -> Tensor:
        """B, choices; minus infinity where a question has fewer options, however the model combines its scores."""
        return self.model.scores(output[0]).masked_fill(output[1], -math.inf)
