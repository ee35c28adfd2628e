"""PSTP-Net's settings, without PyTorch, which takes seconds to import."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.models.settings import ModelSettings, setting


@dataclass
class PSTPNetSettings(ModelSettings):
    """What can be set, and what the model reads.

    without: tssm, all frames go on; srsm, no patches, and the audio of a frame attends to the frame's own vector; avam
    and lgpm, their tokens are not fused. All four leave audio, visual and words.
    fusion: attention is the release's last layer, which the paper's counts include; relu is Eq. 16, without words."""

    features: ClassVar = {"audio": (60, 128), "visual": (60, 512), "patch": (60, 49, 512)}
    texts: ClassVar = {"words": (77, 512), "sentence": (512,)}
    training_mb: ClassVar = 1.5

    variant: Literal["paper", "released", "concat_all"] = setting("paper", "Which of the published models")
    width: int = setting(512, "D", minimum=4, multipleOf=4)
    segments: int = setting(20, "K, segments of a video", minimum=1)
    top_k: int = setting(7, "Segments that are chosen", minimum=1)
    top_m: int = setting(20, "Patches that are chosen in a frame", minimum=1)
    without: tuple[Literal["tssm", "srsm", "avam", "lgpm"], ...] = setting(
        (), "Components that are taken out (Table 3)"
    )
    fusion: Literal["attention", "relu"] = setting("attention", "What comes before the mean over all tokens")
    dropout: float = setting(0.1, "In training", minimum=0, exclusiveMaximum=1)

    def reads(self) -> dict[str, slice]:
        return {} if self.has("srsm") else {"patch": slice(1)}  # none are used; one is the least that can be read

    def has(self, component: str) -> bool:
        """Whether a component takes part in the answer."""
        return self.variant != "released" and component not in self.without

    def __post_init__(self):
        super().__post_init__()
        if self.variant == "released" and (self.without or self.fusion != "attention"):
            raise ValueError("without, fusion: the released forward pass uses none of its components; use concat_all")
        if self.top_k > self.segments:
            raise ValueError(f"top_k: {self.top_k} of {self.segments} segments cannot be chosen")
