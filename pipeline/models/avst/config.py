"""AVST's settings, without PyTorch, which takes seconds to import."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.models.settings import ModelSettings, setting


@dataclass
class AVSTSettings(ModelSettings):
    """What can be set, and what the model reads.

    every: the benchmark has 60 seconds, of which the release reads seconds 0, 6, …, 54.
    stage: match trains spatial grounding and the match head alone (the release's grounding_gen); answer trains all.

    The release draws each second's negative frame from all frames of all other videos, and so reads T further maps per
    question. Here they are the same seconds of one other video, drawn for each question."""

    features: ClassVar = {"audio": (10, 128), "map": (10, 512, 14, 14)}
    texts: ClassVar = {"tokens": (14,)}
    recipe: ClassVar = {
        "epochs": 80,
        "pretrain": {"settings": {"stage": "match"}, "epochs": 30, "checkpoint": "last"},
    }
    training_mb: ClassVar = 0.3

    every: int = setting(6, "Of so many seconds one is read, the first", minimum=1)
    stage: Literal["answer", "match"] = setting("answer", "What is trained")
    match_weight: float = setting(0.5, "λ, weight of the match loss", minimum=0)
    dropout: float = setting(0.1, "In training", minimum=0, exclusiveMaximum=1)

    def reads(self) -> dict[str, slice]:
        return {name: slice(None, None, self.every) for name in self.features}
