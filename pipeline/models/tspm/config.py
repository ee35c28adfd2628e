"""TSPM's settings, without PyTorch, which takes seconds to import."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.models.settings import ModelSettings, setting


@dataclass
class TSPMSettings(ModelSettings):
    """What can be set, and what the model reads.

    variant: paper takes the patches of the chosen seconds, as the paper says and the copy of this model in QA-TIGER's
    repository does; released takes those of the first k seconds, whatever was chosen.

    prompt is the sentence feature of the question as a statement (`manifests/prompts.csv`, in other words than the
    release's); the question stands in where it has none. The weights that read it keep their initial values in
    training."""

    features: ClassVar = {"audio": (60, 128), "visual": (60, 768), "patch": (60, 14, 1024)}
    texts: ClassVar = {"sentence": (768,), "prompt": (768,)}
    training_mb: ClassVar = 0.3

    variant: Literal["paper", "released"] = setting("paper", "Whose patches the audio of a chosen second attends to")
    width: int = setting(512, "D", minimum=4, multipleOf=4)
    top_k: int = setting(10, "k, seconds that are chosen", minimum=1)
    dropout: float = setting(0.1, "In training", minimum=0, exclusiveMaximum=1)

    def reads(self) -> dict[str, slice]:
        return {"patch": slice(self.top_k)} if self.variant == "released" else {}
