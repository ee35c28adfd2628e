"""MCD's settings. The defaults are the reading of the paper that model.py describes."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from pipeline.models.settings import ModelSettings, setting

Modality = Literal["audio", "visual"]
BOTH = ("audio", "visual")


@dataclass
class MCDSettings(ModelSettings):
    """What the paper's tables vary, and what the paper leaves open.

    network: mlp is Table II's test, f_q and the means of f_a and f_v, those of `inputs`, through one hidden layer.
    self_attention, cross_attention: Table VII. Without either term a stream has no attention in its blocks, u = f in
        Eqs. 4 and 5. `cross_attention` names the modality that queries: visual is the second term of Eq. 2.
    separate_attention: Eq. 1 gives both kinds of attention one formula, here with one set of weights per block.
    question_keys: the keys of ζ₁ in Eq. 6. sentence, as written: one key, so that f̄_q = f_q + W^V f_q whatever F_j is;
        words: the states of the LSTM after each word.
    frame_weights: of ζ₂ in Eq. 6. softmax, over the k frames, h_i = ReLU(w_i W^V f_i); one, as written: each frame is
        the only key of its own attention, so that h_i = ReLU(W^V f_i) and no question is in it (and ζ₁ has no use).
    elements: Eq. 10. Without text, g̃ = F_v + F_a: Tables VI and IX print the same figures for it. With no elements at
        all, the branch is left out.
    element_fusion: multiply, Eq. 10; add, t̃ + F_v + F_a.
    element_level: the level of F_v and F_a in Eq. 10, before or after the association blocks.
    late_fusion: Fig. 4(b), with the means of f̂_a and f̂_v, those of `late_inputs`; then a linear layer and dropout.
    audio_visual_weight: there is no such loss where a stream has no cross-attention.
    """

    features: ClassVar = {"audio": (60, 128), "visual": (60, 512)}
    texts: ClassVar = {"tokens": (14,), "keywords": (2,), "type": (2,)}
    recipe: ClassVar = {"learning_rate": 1e-3}
    training_mb: ClassVar = 0.3

    width: int = setting(512, "D, and the number of the LSTM's hidden units", minimum=1)
    hidden: int = setting(512, "Hidden width of the association blocks' feed-forward networks", minimum=1)
    dropout: float = setting(0.1, "In training, of g̃ (Eq. 10) and of the embedding that answers", minimum=0,
                             exclusiveMaximum=1)  # fmt: skip
    network: Literal["mcd", "mlp"] = setting("mcd", "The whole network, or a plain one (Table II)")
    inputs: tuple[Literal["question", "audio", "visual"], ...] = setting(
        ("question", "audio", "visual"), "What the plain network reads (Table II)", minItems=1
    )
    question_encoder: Literal["lstm", "bilstm"] = setting("lstm", "Encoder of the texts (Table VI)")
    blocks: int = setting(2, "N, the number of association blocks (Table VIII)", minimum=1)
    self_attention: tuple[Modality, ...] = setting(BOTH, "Streams with self-attention (Table VII)")
    cross_attention: tuple[Modality, ...] = setting(BOTH, "Modalities that query the other stream (Table VII)")
    separate_attention: bool = setting(False, "Cross-attention has weights of its own")
    frames: int = setting(60, "k of Eq. 6: random frames in training, evenly spaced ones else; at most all", minimum=2)
    question_keys: Literal["sentence", "words"] = setting("sentence", "The keys of ζ₁ in Eq. 6")
    frame_weights: Literal["softmax", "one"] = setting("softmax", "The weights of ζ₂ in Eq. 6")
    elements: tuple[Literal["visual", "audio", "text"], ...] = setting(
        ("visual", "audio", "text"), "Elements of Eq. 10 (Tables VI and IX)"
    )
    element_fusion: Literal["multiply", "add"] = setting("multiply", "How Eq. 10 joins them (Table IX)")
    element_level: Literal["low", "high"] = setting("low", "Level of F_v and F_a in Eq. 10")
    late_fusion: Literal["none", "concat", "add"] = setting("none", "Audio-visual features in the answer (Fig. 5)")
    late_inputs: tuple[Modality, ...] = setting(BOTH, "Which these are (Fig. 5)", minItems=1)
    question_visual_weight: float = setting(1.0, "Weight of L_qv in Eq. 14 (Table X)", minimum=0)
    question_audio_weight: float = setting(1.0, "Weight of L_qa in Eq. 14 (Table X)", minimum=0)
    audio_visual_weight: float = setting(0.1, "λ of Eq. 14: weight of L_av (Table X)", minimum=0)
    temperature: float = setting(0.07, "τ of Eqs. 11 and 13", exclusiveMinimum=0)
    mask_equal_videos: bool = setting(True, "Samples of the same video are no negatives in Eqs. 11 and 13")

    @property
    def distilled(self) -> tuple[str, ...]:
        """The modalities that L_qj compares with the question (Eq. 11)."""
        return tuple(name for name in BOTH if self.network == "mcd" and getattr(self, f"question_{name}_weight"))

    @property
    def coordinates(self) -> bool:
        """Whether there is an audio-visual contrastive loss (Eq. 13)."""
        return self.network == "mcd" and set(self.cross_attention) == set(BOTH) and self.audio_visual_weight > 0

    @property
    def has_text_object(self) -> bool:
        return self.network == "mcd" and "text" in self.elements
