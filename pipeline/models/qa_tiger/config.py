"""QA-TIGER's settings, without PyTorch, which takes seconds to import."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.models.settings import ModelSettings, setting


@dataclass
class QATigerSettings(ModelSettings):
    """What can be set, and what the model reads.

    variant: the released code gives second t of sample b the expert list of sample (b·T + t) mod B, so that an answer
    depends on the other questions of its batch; corrected gives each sample its own list. One sample at a time, the
    two are equal."""

    features: ClassVar = {"audio": (60, 128), "visual": (60, 768), "patch": (60, 14, 1024)}
    texts: ClassVar = {"words_unprojected": (77, 768), "sentence": (768,)}
    recipe: ClassVar = {"epochs": 15, "batch_size": 32, "betas": [0.95, 0.999]}
    training_mb: ClassVar = 0.9

    variant: Literal["corrected", "released"] = setting("corrected", "Whose experts each sample uses")
    width: int = setting(512, "D", minimum=2, multipleOf=2)
    heads: int = setting(8, "Attention heads; divides width", minimum=1)
    experts: int = setting(7, "E, Gaussian experts of each modality", minimum=1)
    top_k: int = setting(7, "Experts that take part for a question", minimum=1)
    dropout: float = setting(0.1, "In training", minimum=0, exclusiveMaximum=1)

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide the width, {self.width}")
        if self.top_k > self.experts:
            raise ValueError(f"top_k: {self.top_k} of {self.experts} experts cannot be chosen")
