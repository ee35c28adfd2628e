"""The settings of the baseline `pooled`, without PyTorch, which takes seconds to import."""

from dataclasses import dataclass
from typing import ClassVar

from pipeline.models.settings import ModelSettings, setting


@dataclass
class PooledSettings(ModelSettings):
    """What can be set, and what the model reads."""

    features: ClassVar = {"audio": (60, 128), "visual": (60, 768)}
    texts: ClassVar = {"sentence": (768,)}
    training_mb: ClassVar = 0.1

    width: int = setting(512, "Size of the hidden layer", minimum=1)
    dropout: float = setting(0.1, "In training, of the hidden layer", minimum=0, exclusiveMaximum=1)
