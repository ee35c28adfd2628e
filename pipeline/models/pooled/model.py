"""A baseline: features averaged over time, the sentence, one hidden layer.

What it answers right needs no order of events; what another model gains over it comes from the order of seconds.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.models.base import AVQAModel, Batch
from pipeline.models.pooled.config import PooledSettings


class Pooled(AVQAModel):
    """logits = W₂ relu(W₁ [mean_t audio ; mean_t visual ; sentence])"""

    Settings = PooledSettings

    def __init__(self, settings: PooledSettings, shapes: dict[str, tuple[int, ...]], num_answers: int):
        super().__init__(settings, shapes, num_answers)
        self.hidden = nn.Linear(sum(shape[-1] for shape in shapes.values()), settings.width)
        self.dropout = nn.Dropout(settings.dropout)
        self.answers = nn.Linear(settings.width, num_answers)

    def forward(self, batch: Batch) -> Tensor:
        """audio B,T,… and visual B,T,…, sentence B,… -> logits B,num_answers"""
        dtype = self.hidden.weight.dtype
        means = [batch.per_question(batch.features[name].to(dtype).mean(1)) for name in ("audio", "visual")]
        x = torch.cat([*means, batch.texts["sentence"].to(dtype)], dim=-1)
        return self.answers(self.dropout(F.relu(self.hidden(x))))
