"""AV-Master's settings. The defaults are the released model; other values make the paper's tables."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.models.settings import ModelSettings, setting

# Preferences that join in the answer, by the paper's names (Table XIII).
ENHANCEMENTS = {"avpe": ("audio", "visual"), "ape": ("audio",), "vpe": ("visual",), "none": ()}


@dataclass
class AVMasterSettings(ModelSettings):
    """What the tables leave open is chosen here:

    share_blocks: the linear layer before the focus capture is no attention block and stays shared.
    without: avfc, the T feature rows themselves guide key fusion; avkf, the fused vector is the maximum over both
        focuses' rows, feature by feature; dpcl, no contrastive loss; gpap, no preferences: the fused vector alone
        answers (and there is nothing to contrast it with); tdpp, no fused vector: the preferences alone answer
        (likewise). "w/o ALL" is all but tdpp, which leaves the maximum over the plain features.
    inputs: the features that are left out are zeros before their projection.
    fused_weight and the other weights: a decoder of weight 0 is not trained and takes no part in the answer.
    combine: the paper gives no formula. add: the sum of all logits. mul: the fused probabilities plus the product of
        the preferences' (a product of logits would turn two low ones into a high one). w_add: the fused logits plus
        the preferences' in proportion to their total score, Σ exp(logit).
    dropout: wherever an attention or a feed-forward has one.
    """

    features: ClassVar = {"audio": (60, 128), "visual": (60, 768)}
    texts: ClassVar = {"words": (77, 768), "sentence": (768,)}
    training_mb: ClassVar = 1.6

    width: int = setting(768, "D", minimum=1)
    focus_width: int = setting(512, "Width of the additive attention and feed-forward of focus capture", minimum=1)
    heads: int = setting(8, "Attention heads; divides width", minimum=1)
    audio_template: int = setting(8, "Rows of the audio template (Table X, A-L)", minimum=1)
    visual_template: int = setting(8, "Rows of the visual template (Table X, V-L)", minimum=1)
    share_blocks: bool = setting(True, "One focus capture for both modalities (Table XI, A-S)")
    share_biases: bool = setting(False, "One bias P for both modalities; templates equally long (Table XI, B-S)")
    without: tuple[Literal["avfc", "avkf", "dpcl", "gpap", "tdpp"], ...] = setting(
        (), "Components that are taken out (Table VIII)"
    )
    dynamic_fusion: bool = setting(
        False, "Weights from the question inside key fusion, in place of the preferences (Table VIII, Dynamic Fus)"
    )
    inputs: tuple[Literal["audio", "visual", "question"], ...] = setting(
        ("audio", "visual", "question"), "What the model reads; the rest is zeros (Fig. 5)", minItems=1
    )
    fused_weight: float = setting(1.0, "Weight of the answer loss (Table IX, Fig. 8)", minimum=0)
    audio_weight: float = setting(1.0, "Weight of the audio preference loss (Table IX, Fig. 8)", minimum=0)
    visual_weight: float = setting(1.0, "Weight of the visual preference loss (Table IX, Fig. 8)", minimum=0)
    contrastive_weight: float = setting(1.0, "Weight of the contrastive loss (Table IX, Fig. 8)", minimum=0)
    enhancement: Literal["avpe", "ape", "vpe", "none"] = setting("avpe", "Preferences in the answer (Table XIII)")
    combine: Literal["add", "mul", "w_add"] = setting("add", "How they are combined (Table XIV)")
    temperature: float = setting(0.1, "τ of Eq. 6", exclusiveMinimum=0)
    dropout: float = setting(0.1, "In training", minimum=0, exclusiveMaximum=1)

    @property
    def has_tdpp(self) -> bool:
        """Whether there is a temporal dynamic perception path, and with it a fused vector."""
        return "tdpp" not in self.without

    @property
    def has_gpap(self) -> bool:
        """Whether there is a global preference activation path."""
        return "gpap" not in self.without and not self.dynamic_fusion

    @property
    def contrasts(self) -> bool:
        """Whether there is a contrastive loss between the two paths."""
        return self.has_tdpp and self.has_gpap and "dpcl" not in self.without and self.contrastive_weight > 0

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide the width, {self.width}")
        if self.share_biases and self.audio_template != self.visual_template:
            raise ValueError("share_biases: audio_template and visual_template differ; a shared bias needs them equal")
        if "tdpp" in self.without and "gpap" in self.without:
            raise ValueError("without: tdpp and gpap together leave no path to an answer")
        if self.dynamic_fusion and ("tdpp" in self.without or "avkf" in self.without):
            raise ValueError("dynamic_fusion: weighs modalities in key fusion, so it needs tdpp and avkf")
        fused = self.has_tdpp and self.fused_weight > 0
        if not fused and not (self.has_gpap and self.audio_weight + self.visual_weight > 0):
            raise ValueError("fused_weight, audio_weight, visual_weight: no decoder of this model is trained")
        if not fused and not any(getattr(self, f"{name}_weight") for name in ENHANCEMENTS[self.enhancement]):
            raise ValueError(f"enhancement: {self.enhancement!r} leaves this model without a decoder to answer")
