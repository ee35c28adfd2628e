"""AV-Master, equation by equation: nothing collapsed, merged or reused.

Jiayu Zhang, Qilang Ye, Shuo Ye, Xun Lin, Zihan Song, Zitong Yu: AV-Master: Dual-Path Comprehensive Perception Makes
Better Audio-Visual Question Answering. arXiv:2510.18346, 2025.

The functions take the released state dict `w` as it is and compute in the type of its tensors. Shapes: B samples,
T seconds, W words, D = 768, L template rows. The tests hold model.py to this file, and this file to outputs of the
released implementation; `python -m pipeline.models.av_master.reference` compares the two on seeded weights.

The released implementation made the published numbers, so it is followed where the two differ:

| | paper | release |
|---|---|---|
| focus sampling, Eq. 2 | self-attention over template + feature, twice, the second time with the bias; then cross attention | additive attention of template rows to the feature, then one post-norm decoder layer, which adds the bias to queries and keys |
| output of focus capture | the templates after the last second | these, mixed by the tanh of their cosine similarities |
| key fusion, Eq. 3 | M plus the projected focus, self-attention, pooling | self-attention on M first; additive attention from M to each focus; maximum over the tokens |
| sentence feature | the first token | the end-of-text token |
| visual features | CLIP ViT-L/14 | CLIP ViT-L/14 at 336 px |
| answer | the largest of the summed distributions | the largest of the summed logits |
| negatives, Eq. 6 | N per sample | one per sample; the mean over all pairs of the batch |

And where model.py differs from the release: in training, the release also drops weights of the focus capture's cross
attention. All L of these are equal, so each head's output is scaled by a random number of mean 1 and variance
p / ((1 − p) L), which is 0.014; model.py leaves this noise out. All other dropout has the release's distribution.
"""  # noqa: E501

import argparse
import sys
from types import SimpleNamespace

import torch
import torch.nn.functional as F

ATTENTION_HEADS = 8
TOLERANCE = 1e-5  # relative to the largest value of an output


def linear(w, name, x):
    """x Wᵀ + b"""
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w, name, x, eps=1e-5):
    """(x − mean) / √(variance + eps) · γ + β"""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(q, k, v, heads, dropout):
    """softmax(q kᵀ / √(D / heads)) v by heads: B,Q,D and B,K,D -> B,Q,D"""
    (b, n, d), m = q.shape, k.shape[1]
    q = q.reshape(b, n, heads, d // heads).transpose(1, 2)
    k = k.reshape(b, m, heads, d // heads).transpose(1, 2)
    v = v.reshape(b, m, heads, d // heads).transpose(1, 2)
    weights = torch.softmax(q @ k.transpose(-1, -2) / (d // heads) ** 0.5, dim=-1)
    return (F.dropout(weights, dropout) @ v).transpose(1, 2).reshape(b, n, d)


def multihead(w, name, q, k, v, heads, dropout):
    """nn.MultiheadAttention: the paper's SAB where q, k and v are the same, its CAB where they are not"""
    weight, bias = w[f"{name}.in_proj_weight"].chunk(3), w[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (x @ weight[i].T + bias[i] for i, x in enumerate((q, k, v)))
    return linear(w, f"{name}.out_proj", attend(q, k, v, heads, dropout))


def focus_capture(w, features, bias, heads, dropout):
    """Eq. 1: templates that pass over the seconds. features B,T,D; bias P L,D -> the focus B,L,D"""
    rows = len(bias)
    x = linear(w, "AugInformation.video_embeddings", features)
    s = x[:, :1].repeat(1, rows, 1)
    for t in range(features.shape[1]):
        s = focus_sampling(w, s, x[:, t : t + 1].repeat(1, rows, 1), bias, heads, dropout)
    n = s / s.norm(dim=-1, keepdim=True)
    return torch.tanh(n @ n.transpose(1, 2)) @ s


def focus_sampling(w, s, f, bias, heads, dropout):
    """Eq. 2: one second. templates s and the second's feature, repeated, f: B,L,D -> templates B,L,D"""
    encoder = "AugInformation.focus_capture.encoder.layers.0"
    decoder = "AugInformation.focus_capture.decoder.layers.0"
    e = linear(w, f"{encoder}.linear1", s)[:, :, None] + linear(w, f"{encoder}.linear2", f)[:, None] + w[f"{encoder}.b"]
    weights = torch.softmax(linear(w, f"{encoder}.w", torch.tanh(e)), dim=2)
    s = linear(w, f"{encoder}.linear3", (weights * e).sum(dim=2))

    attended = multihead(w, f"{decoder}.self_attn", s + bias, s + bias, s, heads, dropout)
    s = layer_norm(w, f"{decoder}.norm1", s + F.dropout(attended, dropout))
    attended = multihead(w, f"{decoder}.cross_attn", s + bias, f, f, heads, dropout)
    s = layer_norm(w, f"{decoder}.norm2", s + F.dropout(attended, dropout))
    hidden = F.dropout(F.gelu(linear(w, f"{decoder}.linear1", s)), dropout)
    s = layer_norm(w, f"{decoder}.norm3", s + F.dropout(linear(w, f"{decoder}.linear2", hidden), dropout))
    return layer_norm(w, "AugInformation.focus_capture.decoder.norm", s)


def feed_forward(w, name, x, dropout):
    """LN(x + W₂ relu(W₁ x))"""
    hidden = F.dropout(torch.relu(linear(w, f"{name}.linear1", x)), dropout)
    return layer_norm(w, f"{name}.norm2", x + F.dropout(linear(w, f"{name}.linear2", hidden), dropout))


def key_fusion(w, audio, visual, words, focus_visual, focus_audio, dropout):
    """Eq. 3: audio and visual B,T,D, words B,W,D, focuses B,L,D -> the fused vector B,D"""
    layer = "GlobalSelf_Module.layers.0"
    m = torch.cat([audio, visual, words], dim=1)
    attended = multihead(w, f"{layer}.self_attn", m, m, m, 1, dropout)
    m = layer_norm(w, f"{layer}.norm1", m + F.dropout(attended, dropout))
    m = feed_forward(w, layer, m, dropout)
    contexts = [guided_context(w, "v", m, focus_visual), guided_context(w, "a", m, focus_audio)]
    return linear(w, "linear_visual_layer", torch.cat([m, *contexts], dim=-1)).max(dim=1).values


def guided_context(w, letter, m, focus):
    """Eq. 3, one focus: Σ_j α_ij e_ij with e_ij = m_i + U(focus_j) + b and α_i = softmax_j of w·tanh(e_ij)"""
    e = m[:, :, None] + linear(w, f"Uo_{letter}", focus)[:, None] + w[f"bo_{letter}"]
    weights = torch.softmax(linear(w, f"wo_{letter}", torch.tanh(e)), dim=2)
    return (weights * e).sum(dim=2)


def preference(w, module, x, words, dropout):
    """Eq. 4: one modality B,T,D and words B,W,D -> its preference B,T,D"""
    layer = f"{module}.layers.0"
    cross = multihead(w, f"{layer}.cm_attn", x, words, words, 1, dropout)
    own = multihead(w, f"{layer}.self_attn", x, x, x, 1, dropout)
    x = layer_norm(w, f"{layer}.norm1", x + F.dropout(cross, dropout) + F.dropout(own, dropout))
    return feed_forward(w, layer, x, dropout)


def answer(w, module, query, keys, heads, dropout):
    """A decoder of Section III-D: query B,1,D; keys B,K,D -> logits B,answers"""
    for n in range(2):
        name = f"{module}.layer_ca.{n}"
        q, k, v = (
            linear(w, f"{name}.attention.self.{part}", x)
            for part, x in (("query", query), ("key", keys), ("value", keys))
        )
        attended = linear(w, f"{name}.attention.output.dense", attend(q, k, v, heads, dropout))
        query = layer_norm(w, f"{name}.attention.output.LayerNorm", F.dropout(attended, dropout) + query, 1e-12)
        hidden = F.gelu(linear(w, f"{name}.hidden_intermediate.dense", query))
        dense = F.dropout(linear(w, f"{name}.output.dense", hidden), dropout)
        query = layer_norm(w, f"{name}.output.LayerNorm", dense + query, 1e-12)
    head = f"{module}.head"
    query = layer_norm(w, f"{head}.transform.LayerNorm", F.gelu(linear(w, f"{head}.transform.dense", query)), 1e-12)
    return (query @ w[f"{head}.decoder.weight"].T + w[f"{head}.bias"])[:, 0]


def cosine_table(a, b):
    """B,D and B,D -> cos(a_i, b_k), B,B"""
    return (a[:, None] * b[None]).sum(-1) / (a.norm(dim=-1)[:, None] * b.norm(dim=-1)[None])


def contrastive_loss(fused, positive, negative, temperature):
    """Eq. 6: fused B,D; the audio and visual preferences of the samples and of their negatives, each B,T,D"""
    sim, neg = (
        sum(cosine_table(fused, preferences.mean(1)) for preferences in pair) / temperature
        for pair in (positive, negative)
    )
    return -torch.log(torch.exp(sim) / (torch.exp(neg) + torch.exp(sim))).mean()


def reference_av_master(
    w,
    audio,
    visual,
    words,
    sentence,
    neg_audio=None,
    neg_visual=None,
    *,
    heads=ATTENTION_HEADS,
    dropout=0.0,
    temperature=0.1,
):
    """The three logits, the contrastive loss (Eq. 6) and the focuses. Eqs. 5 and 7 are the sum of the cross entropies
    of the three logits and the contrastive loss. audio and neg_audio B,T,128; visual and neg_visual B,T,768; words
    B,W,768; sentence B,768."""
    visual_feat, audio_feat = linear(w, "fc_v", visual), linear(w, "fc_a", audio)
    word_feat, query = linear(w, "fc_word", words), linear(w, "fc_q", sentence)[:, None]

    focus_visual = focus_capture(w, visual_feat, w["bisa_v.weight"], heads, dropout)
    focus_audio = focus_capture(w, audio_feat, w["bias_a.weight"], heads, dropout)
    fused = key_fusion(w, audio_feat, visual_feat, word_feat, focus_visual, focus_audio, dropout)
    audio_pref = preference(w, "AP_Module", audio_feat, word_feat, dropout)
    visual_pref = preference(w, "VP_Module", visual_feat, word_feat, dropout)

    loss = None
    if neg_audio is not None:
        neg_audio_pref = preference(w, "AP_Module", linear(w, "fc_a", neg_audio), word_feat, dropout)
        neg_visual_pref = preference(w, "VP_Module", linear(w, "fc_v", neg_visual), word_feat, dropout)
        loss = contrastive_loss(fused, (audio_pref, visual_pref), (neg_audio_pref, neg_visual_pref), temperature)

    return SimpleNamespace(
        fused=answer(w, "fc_answer_pred", query, fused[:, None], heads, dropout),
        audio=answer(w, "fc_answer_pred2", query, audio_pref, heads, dropout),
        visual=answer(w, "fc_answer_pred3", query, visual_pref, heads, dropout),
        contrastive_loss=loss,
        focus_visual=focus_visual,
        focus_audio=focus_audio,
    )


def main(argv: list[str] | None = None) -> int:
    """Print the largest values of the outputs of this file and of model.py, and how far the two are apart."""
    from pipeline.models.av_master.model import AVMaster
    from pipeline.models.base import Batch

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--full", action="store_true", help="D = 768 and T = 60, instead of 96 and 8")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    size = {} if args.full else {"width": 96, "focus_width": 64}
    model = AVMaster.in_paper_setting(None if args.full else 8, **size).eval()
    x = {name: torch.randn(2, *shape) for name, shape in model.shapes.items()}
    x |= {f"neg_{name}": torch.randn_like(x[name]) for name in ("audio", "visual")}
    batch = Batch(
        {name: x[name] for name in ("audio", "visual")},
        {name: x[name] for name in ("words", "sentence")},
        {name: x[f"neg_{name}"] for name in ("audio", "visual")},
    )
    with torch.no_grad():
        expected = vars(reference_av_master(model.released_state_dict(), **x, heads=model.settings.heads))
        found = model(batch)._asdict()
    print(f"{'':<18}{'reference.py':>14}{'model.py':>14}{'difference':>14}")
    worst = 0.0
    for name, value in expected.items():
        largest = value.abs().max()
        apart = float((found[name] - value).abs().max() / largest)
        worst = max(worst, apart) if apart == apart else float("inf")
        print(f"{name:<18}{largest:>14.7f}{found[name].abs().max():>14.7f}{apart:>14.1e}")
    print(f"largest difference {worst:.1e}, allowed {TOLERANCE:.0e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
