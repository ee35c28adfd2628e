"""AVAF-Net's settings. The defaults are the reading of the paper that model.py describes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.models.settings import ModelSettings, setting


@dataclass
class AVAFNetSettings(ModelSettings):
    """What the paper's tables vary, and what the paper leaves open.

    alpha, beta: a loss of weight 0 is not computed. Table 3's "w/o TACL" is alpha 0, "w/o SACL" is beta 0.
    without: avcm, the projected features stand in for the clues (P' = P, A' = A); weights, δ₁ = δ₂ = 1 in Eq. 13; qoaf,
        no Eqs. 10 to 12 either: F_fuse = FC([mean P' ; mean A']). The paper's text on "w/o QOAF" describes `weights`,
        its drop of 3 points suggests `qoaf`. With avcm and qoaf both left out, no question reaches the answer; only
        this explains the paper's 26.70 % for "w/o all".
    vocal: what the paper's "interaction matrix of F_p and F_a, averaged" means for a second's tokens p_n and audio a.
        attention, Σ_n softmax_n(cos(a, p_n)) p_n; product, mean_n (p_n·a) p_n; gate, mean_n p_n ⊙ a.
    other_videos: the released code of APL, from which the paper takes the spatial loss, adds the mean cosine of the
        anchor with the tokens of the batch's other samples to the denominator of Eq. 8; the paper does not.
    pooling: how M rows of F_fuse become one. mean, over the question's words; attention, as in APL: a softmax over the
        words of the output of a network with one hidden layer.
    """

    features: ClassVar = {"audio": (60, 128), "visual": (60, 512), "patch": (60, 49, 512)}
    texts: ClassVar = {"words": (77, 512), "sentence": (512,), "length": ()}
    recipe: ClassVar = {"batch_size": 32}

    width: int = setting(512, "D; words and sentence of another width are projected to it", minimum=1)
    heads: int = setting(4, "Attention heads; divides width", minimum=1)
    hidden: int = setting(2048, "Hidden width of the feed-forward networks", minimum=1)
    dropout: float = setting(0.1, "In training", minimum=0, exclusiveMaximum=1)
    cls_token: bool = setting(True, "`visual`, CLIP's CLS row, is the first of a frame's N tokens")
    stride: int = setting(1, "Every how many seconds are read (APL and AVST: 6)", minimum=1)
    alpha: float = setting(0.2, "α of Eq. 14: weight of the temporal alignment loss", minimum=0)
    beta: float = setting(0.2, "β of Eq. 14: weight of the spatial alignment loss (Table 5)", minimum=0)
    threshold: float = setting(0.019, "φ of Eq. 7 (Table 4)", minimum=0)
    temperature: float = setting(0.4, "τ of Eq. 8", exclusiveMinimum=0)
    without: tuple[Literal["avcm", "weights", "qoaf"], ...] = setting((), "Components that are taken out (Table 3)")
    vocal: Literal["attention", "product", "gate"] = setting("attention", "How vocalization visual features are made")
    other_videos: bool = setting(False, "Tokens of other videos are negatives in Eq. 8")
    pooling: Literal["mean", "attention"] = setting("mean", "How the words' rows are pooled before the answer")

    def reads(self) -> dict[str, slice]:
        return {name: slice(None, None, self.stride) for name in self.features} if self.stride > 1 else {}

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} does not divide the width, {self.width}")
        if {"weights", "qoaf"} <= set(self.without):
            raise ValueError("without: qoaf leaves the weights out too; name one of the two")
