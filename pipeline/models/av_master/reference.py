"""AV-Master's formulas written out one after the other, with nothing collapsed, merged or reused.

The tests hold pipeline.models.av_master to this, and bench/model.py times it. It takes the released state
dict as it is, and computes in whatever type the tensors have.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

ATTENTION_HEADS = 8


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(w, name, x, eps=1e-5):
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * w[f"{name}.weight"] + w[f"{name}.bias"]


def attend(q, k, v, heads, dropout):
    """B,Q,D and B,K,D -> B,Q,D"""
    (b, n, d), m = q.shape, k.shape[1]
    q = q.reshape(b, n, heads, d // heads).transpose(1, 2)
    k = k.reshape(b, m, heads, d // heads).transpose(1, 2)
    v = v.reshape(b, m, heads, d // heads).transpose(1, 2)
    weights = torch.softmax(q @ k.transpose(-1, -2) / (d // heads) ** 0.5, dim=-1)
    return (F.dropout(weights, dropout) @ v).transpose(1, 2).reshape(b, n, d)


def multihead(w, name, q, k, v, heads, dropout):
    weight, bias = w[f"{name}.in_proj_weight"].chunk(3), w[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (x @ weight[i].T + bias[i] for i, x in enumerate((q, k, v)))
    return linear(w, f"{name}.out_proj", attend(q, k, v, heads, dropout))


def focus_capture(w, features, bias, heads, dropout):
    """features B,T,D; bias L,D -> the focus B,L,D and, for every time step, the same had the video ended there"""
    rows = len(bias)
    x = linear(w, "AugInformation.video_embeddings", features)
    s = x[:, :1].repeat(1, rows, 1)
    encoder = "AugInformation.focus_capture.encoder.layers.0"
    decoder = "AugInformation.focus_capture.decoder.layers.0"
    for t in range(features.shape[1]):
        f = x[:, t : t + 1].repeat(1, rows, 1)
        ours, frame = linear(w, f"{encoder}.linear1", s), linear(w, f"{encoder}.linear2", f)
        e = ours[:, :, None] + frame[:, None] + w[f"{encoder}.b"]
        weights = torch.softmax(linear(w, f"{encoder}.w", torch.tanh(e)), dim=2)
        s = linear(w, f"{encoder}.linear3", (weights * e).sum(dim=2))

        attended = multihead(w, f"{decoder}.self_attn", s + bias, s + bias, s, heads, dropout)
        s = layer_norm(w, f"{decoder}.norm1", s + F.dropout(attended, dropout))
        attended = multihead(w, f"{decoder}.cross_attn", s + bias, f, f, heads, dropout)
        s = layer_norm(w, f"{decoder}.norm2", s + F.dropout(attended, dropout))
        hidden = F.dropout(F.gelu(linear(w, f"{decoder}.linear1", s)), dropout)
        s = layer_norm(w, f"{decoder}.norm3", s + F.dropout(linear(w, f"{decoder}.linear2", hidden), dropout))
        s = layer_norm(w, "AugInformation.focus_capture.decoder.norm", s)
    n = s / s.norm(dim=-1, keepdim=True)
    return torch.tanh(n @ n.transpose(1, 2)) @ s


def feed_forward(w, name, x, dropout):
    hidden = F.dropout(torch.relu(linear(w, f"{name}.linear1", x)), dropout)
    return layer_norm(w, f"{name}.norm2", x + F.dropout(linear(w, f"{name}.linear2", hidden), dropout))


def key_fusion(w, audio, visual, words, focus_visual, focus_audio, dropout):
    layer = "GlobalSelf_Module.layers.0"
    m = torch.cat([audio, visual, words], dim=1)
    attended = multihead(w, f"{layer}.self_attn", m, m, m, 1, dropout)
    m = layer_norm(w, f"{layer}.norm1", m + F.dropout(attended, dropout))
    m = feed_forward(w, layer, m, dropout)
    contexts = []
    for focus, letter in ((focus_visual, "v"), (focus_audio, "a")):
        e = m[:, :, None] + linear(w, f"Uo_{letter}", focus)[:, None] + w[f"bo_{letter}"]
        weights = torch.softmax(linear(w, f"wo_{letter}", torch.tanh(e)), dim=2)
        contexts.append((weights * e).sum(dim=2))
    return linear(w, "linear_visual_layer", torch.cat([m, *contexts], dim=-1)).max(dim=1).values


def preference(w, module, x, words, dropout):
    layer = f"{module}.layers.0"
    cross = multihead(w, f"{layer}.cm_attn", x, words, words, 1, dropout)
    own = multihead(w, f"{layer}.self_attn", x, x, x, 1, dropout)
    x = layer_norm(w, f"{layer}.norm1", x + F.dropout(cross, dropout) + F.dropout(own, dropout))
    return feed_forward(w, layer, x, dropout)


def answer(w, module, query, keys, heads, dropout):
    """query B,1,D; keys B,K,D -> logits B,answers"""
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
    """The released model's outputs from its state dict `w`. Inputs as the reference's table has them."""
    visual_feat, audio_feat = linear(w, "fc_v", visual), linear(w, "fc_a", audio)
    word_feat, query = linear(w, "fc_word", words), linear(w, "fc_q", sentence)[:, None]

    focus_visual = focus_capture(w, visual_feat, w["bisa_v.weight"], heads, dropout)
    focus_audio = focus_capture(w, audio_feat, w["bias_a.weight"], heads, dropout)
    fused = key_fusion(w, audio_feat, visual_feat, word_feat, focus_visual, focus_audio, dropout)
    audio_pref = preference(w, "AP_Module", audio_feat, word_feat, dropout)
    visual_pref = preference(w, "VP_Module", visual_feat, word_feat, dropout)

    contrastive_loss = None
    if neg_audio is not None:
        neg_audio_pref = preference(w, "AP_Module", linear(w, "fc_a", neg_audio), word_feat, dropout)
        neg_visual_pref = preference(w, "VP_Module", linear(w, "fc_v", neg_visual), word_feat, dropout)
        sim = (cosine_table(fused, audio_pref.mean(1)) + cosine_table(fused, visual_pref.mean(1))) / temperature
        neg = (cosine_table(fused, neg_audio_pref.mean(1)) + cosine_table(fused, neg_visual_pref.mean(1))) / temperature
        contrastive_loss = -torch.log(torch.exp(sim) / (torch.exp(neg) + torch.exp(sim))).mean()

    return SimpleNamespace(
        fused=answer(w, "fc_answer_pred", query, fused[:, None], heads, dropout),
        audio=answer(w, "fc_answer_pred2", query, audio_pref, heads, dropout),
        visual=answer(w, "fc_answer_pred3", query, visual_pref, heads, dropout),
        contrastive_loss=contrastive_loss,
        focus_visual=focus_visual,
        focus_audio=focus_audio,
    )
