"""AVAF-Net against its equations, written out plainly below, and against what the paper says of its losses."""

import math

import pytest
import torch
import torch.nn.functional as F
from models.building import assert_learns, filled_batch, restarted
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import complexity, fast
from pipeline.models.avaf_net.config import AVAFNetSettings
from pipeline.models.avaf_net.model import AVAFNet, spatial_alignment, temporal_alignment, vocalization

B, T, N, M, D = 3, 4, 5, 7, 8  # N patches, and the CLS row


def small(seconds=T, patches=N, words=M, text=D, **changed):
    shapes = {"audio": (seconds, 6), "visual": (seconds, 9), "patch": (seconds, patches, 9)}
    shapes |= {"words": (words, text), "sentence": (text,), "length": ()}
    values = {"width": D, "heads": 2, "hidden": 12, "dropout": 0.0, "threshold": 1 / (N + 1)} | changed
    torch.manual_seed(1)
    model = AVAFNet(AVAFNetSettings.from_dict(values), shapes, 4).double()
    for p in model.parameters():  # no zeros and ones: each must be seen to matter
        nn.init.normal_(p, std=0.4)
    return model


# The equations, number by number.


def affine(w, name, x):
    return [
        sum(a * b for a, b in zip(row, x, strict=True)) + bias
        for row, bias in zip(w[f"{name}.weight"], w[f"{name}.bias"], strict=False)
    ]


def layer_norm(w, name, x):
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return [
        (v - mean) / math.sqrt(variance + 1e-5) * g + b
        for v, g, b in zip(x, w[f"{name}.weight"], w[f"{name}.bias"], strict=True)
    ]


def softmax(x):
    total = sum(math.exp(v) for v in x)
    return [math.exp(v) / total for v in x]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def cosine(x, y):
    return dot(x, y) / math.sqrt(dot(x, x) * dot(y, y))


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def attend(w, name, x, memory, heads):
    """MultiHead(x, memory, memory) for rows x and rows of memory."""
    matrices, biases = w[f"{name}.in_proj_weight"], w[f"{name}.in_proj_bias"]
    width, size = len(x[0]), len(x[0]) // heads

    def project(part, y):
        at = slice(part * width, (part + 1) * width)
        return [dot(row, y) + bias for row, bias in zip(matrices[at], biases[at], strict=True)]

    keys, values, out = [project(1, y) for y in memory], [project(2, y) for y in memory], []
    for row in x:
        query, joined = project(0, row), []
        for h in range(heads):
            at = slice(h * size, (h + 1) * size)
            weights = softmax([dot(query[at], key[at]) / math.sqrt(size) for key in keys])
            joined += [dot(weights, [value[at][i] for value in values]) for i in range(size)]
        out.append(affine(w, f"{name}.out_proj", joined))
    return out


def block(w, name, x, memory, heads):
    out = []
    for row, attended in zip(x, attend(w, f"{name}.attention", x, memory, heads), strict=True):
        z = layer_norm(w, f"{name}.norm1", [a + b for a, b in zip(row, attended, strict=True)])
        refined = affine(w, f"{name}.linear2", [max(v, 0) for v in affine(w, f"{name}.linear1", z)])
        out.append(layer_norm(w, f"{name}.norm2", [a + b for a, b in zip(z, refined, strict=True)]))
    return out


def restated(model, batch, n):
    """Sample n alone: the logits, P, A, P', A' and F_q, as lists."""
    s, w = model.settings, {name: p.tolist() for name, p in model.named_parameters()}
    length = int(batch.texts["length"][n])
    audio, visual, patch = (batch.features[name][n].tolist() for name in ("audio", "visual", "patch"))
    words, sentence = batch.texts["words"][n].tolist()[:length], batch.texts["sentence"][n].tolist()
    padding = batch.texts["words"][n].tolist()[length:]
    if "fc_text.weight" in w:
        words, sentence = [affine(w, "fc_text", x) for x in words], affine(w, "fc_text", sentence)
    frames = [[cls, *rows] if s.cls_token else rows for cls, rows in zip(visual, patch, strict=True)]
    a = [affine(w, "fc_audio", x) for x in audio]
    p = [[affine(w, "fc_tokens", x) for x in frame] for frame in frames]
    p2, a2 = [x for frame in p for x in frame], a
    if "avcm" not in s.without:
        p2, a2 = block(w, "mine_tokens", p2, words, s.heads), block(w, "mine_audio", a2, words, s.heads)
    if "qoaf" in s.without:
        p3, a3, length = [mean(p2)], [mean(a2)], 1
    else:
        p3 = block(w, "fusion.of_tokens", words, p2, s.heads)
        a3 = block(w, "fusion.of_audio", words, a2, s.heads)
    weights = [1, 1] if s.without else softmax(affine(w, "fusion.weigh", sentence))
    if s.without == ("avcm",):
        weights = softmax(affine(w, "fusion.weigh", sentence))
    fused = [
        affine(w, "fusion.fc", [weights[0] * v for v in x] + [weights[1] * v for v in y])
        for x, y in zip(p3, a3, strict=True)
    ]
    share = [1 / length] * length
    if s.pooling == "attention" and len(fused) > 1:
        share = softmax([dot(w["pool.3.weight"][0], [max(v, 0) for v in affine(w, "pool.0", x)]) for x in fused])
    pooled = [sum(weight * row[i] for weight, row in zip(share, fused, strict=True)) for i in range(len(fused[0]))]
    assert len(padding) + len(words) == len(batch.texts["words"][n])
    per_frame = len(frames[0])
    p2 = [p2[i : i + per_frame] for i in range(0, len(p2), per_frame)]
    return affine(w, "answers", pooled), p, a, p2, a2, sentence


def restated_vocal(kind, tokens, audio):
    if kind == "gate":
        return [v * a for v, a in zip(mean(tokens), audio, strict=True)]
    if kind == "product":
        weights = [dot(x, audio) / len(tokens) for x in tokens]
    else:
        weights = softmax([cosine(x, audio) for x in tokens])
    return [sum(weight * x[i] for weight, x in zip(weights, tokens, strict=True)) for i in range(len(audio))]


def restated_temporal(samples, kind):
    """Eqs. 1 to 3: the mean over i and the batch. samples: (P, A) of each."""
    total = 0
    for tokens, audio in samples:
        visual, voices = (
            [mean(x) for x in tokens],
            [restated_vocal(kind, x, a) for x, a in zip(tokens, audio, strict=True)],
        )
        seconds = range(len(audio))
        for i in seconds:
            for j in seconds:
                across, of_audio = cosine(audio[i], visual[j]), cosine(audio[i], audio[j])
                total += abs(across - of_audio) + abs(across - cosine(visual[i], visual[j]))
                total += abs(of_audio - cosine(voices[i], voices[j]))
    return total / len(samples) / len(seconds) ** 2


def restated_spatial(samples, threshold, temperature, others=False):
    """Eqs. 6 to 8 for one anchor per second: the mean over seconds and the batch. samples: (P', anchors) of each."""
    total = 0
    for n, (tokens, anchors) in enumerate(samples):
        for t, (frame, anchor) in enumerate(zip(tokens, anchors, strict=True)):
            p = softmax([cosine(anchor, x) for x in frame])
            above = sum(math.exp(v / temperature) for v in p if v > threshold)
            below = sum(math.exp(v / temperature) for v in p if v <= threshold)
            if others:
                elsewhere = [cosine(anchor, x) for m, (y, _) in enumerate(samples) if m != n for x in y[t]]
                below += sum(elsewhere) / len(elsewhere)
            total -= math.log(max(above, 1e-3) / (above + below))
    return total / len(samples) / len(anchors)


VARIANTS = [
    {},
    {"without": ["avcm"]},
    {"without": ["weights"]},
    {"without": ["qoaf"]},
    {"without": ["avcm", "weights"]},
    {"without": ["avcm", "qoaf"]},
    {"vocal": "product"},
    {"vocal": "gate"},
    {"other_videos": True},
    {"pooling": "attention"},
    {"cls_token": False},
    {"text": 10},
    {"threshold": 0.9},
    {"alpha": 0, "beta": 0.7, "temperature": 0.05},
    {"alpha": 1.5, "beta": 0},
]


@pytest.mark.parametrize("quick", [True, False])
@pytest.mark.parametrize("changed", VARIANTS, ids=str)
def test_equals_its_equations(changed, quick):
    model = small(**changed)
    batch, s = filled_batch(model, B), model.settings
    with fast.switched(quick):
        output = model(batch)
        total, terms = model.loss(output, batch)
    samples = [restated(model, batch, n) for n in range(B)]
    logits = torch.tensor([sample[0] for sample in samples], dtype=torch.float64)
    torch.testing.assert_close(model.scores(output), logits)
    log_shares = [math.log(softmax(row)[answer]) for row, answer in zip(logits.tolist(), batch.answer, strict=True)]
    expected = {"answer": -mean([[x] for x in log_shares])[0]}
    if s.alpha:
        expected["temporal"] = restated_temporal([(p, a) for _, p, a, *_ in samples], s.vocal)
    if s.beta:
        anchors = [(p2, [sentence] * T) for *_, p2, _, sentence in samples], [(p2, a2) for *_, p2, a2, _ in samples]
        expected["spatial"] = sum(restated_spatial(x, s.threshold, s.temperature, s.other_videos) for x in anchors)
    assert {name: float(value.detach()) for name, value in terms.items()} == pytest.approx(expected)
    weights = {"answer": 1, "temporal": s.alpha, "spatial": s.beta}
    assert float(total.detach()) == pytest.approx(sum(weights[name] * value for name, value in expected.items()))


def test_padding_batch_mates_and_order_change_no_answer():
    model = small()
    batch = filled_batch(model, B)
    batch.texts["length"] = torch.tensor([3, 7, 5])
    expected = model.scores(model(batch))
    for n in range(B):  # alone, the question's own length decides how many words are read
        alone = filled_batch(model, B)
        alone.features = {name: x[n : n + 1] for name, x in batch.features.items()}
        alone.texts = {name: x[n : n + 1] for name, x in batch.texts.items()}
        torch.testing.assert_close(model.scores(model(alone)), expected[n : n + 1])
    batch.texts["words"][0, 3:] = 100.0
    torch.testing.assert_close(model.scores(model(batch)), expected)
    batch.texts["words"][0, :3] = batch.texts["words"][0, [2, 0, 1]]
    batch.features = {name: x[:, [2, 0, 3, 1]] for name, x in batch.features.items()}
    batch.features["patch"] = batch.features["patch"][:, :, [4, 2, 0, 1, 3]]
    torch.testing.assert_close(model.scores(model(batch)), expected)
    batch.texts["words"][0, 2] += 1.0
    assert not torch.allclose(model.scores(model(batch))[0], expected[0])


def test_a_length_of_zero_is_all_rows():
    model, batch = small(), filled_batch(small(), B)
    batch.texts["length"] = torch.zeros(B, dtype=torch.int64)
    found = model.scores(model(batch))
    batch.texts["length"] += M
    torch.testing.assert_close(found, model.scores(model(batch)))


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def test_limits_of_the_threshold():
    """φ = 0: all tokens are positive and the loss is 0, as the equal rows of the paper's Tables 3 and 4 say. Past all
    probabilities: no token is, and the numerator is at its floor."""
    tokens, anchors = features(2, 3, 6, 4), features(2, 3, 1, 4, seed=1)
    assert spatial_alignment(tokens, anchors, 0.0, 0.4).item() == pytest.approx(0, abs=1e-12)
    p = F.cosine_similarity(tokens, anchors, dim=-1).softmax(-1)
    expected = ((p / 0.4).exp().sum(-1).log() - math.log(1e-3)).mean().item()
    assert spatial_alignment(tokens, anchors, 1.0, 0.4).item() == pytest.approx(expected)
    alike = torch.ones(1, 1, 4, 3).double()  # each probability is 1/4: at the threshold a token is negative
    at, below = (float(spatial_alignment(alike, alike[:, :, :1], x, 1.0)) for x in (0.25, 0.2499))
    assert below == pytest.approx(0) and at == pytest.approx(math.log(4) + 0.25 - math.log(1e-3))
    between = [float(spatial_alignment(tokens, anchors, x, 0.4)) for x in (0.0, 0.1, 0.15, 0.2, 0.3)]
    assert between == sorted(between)


def test_limits_of_the_temperature():
    """τ → ∞: −log of the share of positives. τ → 0: nothing if the largest probability is positive, and finite."""
    tokens, anchors = features(2, 3, 6, 4), features(2, 3, 1, 4, seed=1)
    p = F.cosine_similarity(tokens, anchors, dim=-1).softmax(-1)
    shares = (p > 1 / 6).double().mean(-1)
    assert float(spatial_alignment(tokens, anchors, 1 / 6, 1e6)) == pytest.approx(float(-shares.log().mean()), rel=1e-4)
    assert float(spatial_alignment(tokens.float(), anchors.float(), 1 / 6, 1e-4)) == pytest.approx(0, abs=1e-6)


def test_the_threshold_selects_and_passes_no_gradient():
    tokens = features(1, 1, 6, 4).requires_grad_()
    anchors = features(1, 1, 1, 4, seed=1)
    p = F.cosine_similarity(tokens.detach()[0, 0], anchors[0, 0], dim=-1).softmax(-1)
    positive = p > 1 / 6

    def fixed(x):
        q = (F.cosine_similarity(x[0, 0], anchors[0, 0], dim=-1).softmax(-1) / 0.4).exp()
        return -(q[positive].sum() / q.sum()).log()

    (expected,) = torch.autograd.grad(fixed(tokens), tokens)
    (found,) = torch.autograd.grad(spatial_alignment(tokens, anchors, 1 / 6, 0.4).sum(), tokens)
    torch.testing.assert_close(found, expected)


def test_the_temporal_loss_is_zero_where_audio_and_frames_agree_and_ignores_lengths():
    audio = features(2, 5, 4)
    tokens = audio[:, :, None].repeat(1, 1, 3, 1)
    for kind in ("attention", "product"):
        assert float(temporal_alignment(tokens, audio, kind)) == pytest.approx(0, abs=1e-12)
    tokens = features(2, 5, 3, 4, seed=1)
    expected = temporal_alignment(tokens, audio)
    assert float(expected) > 0.1
    torch.testing.assert_close(temporal_alignment(3 * tokens, 0.1 * audio), expected)


def test_vocalization_prefers_the_token_that_sounds_like_the_audio():
    audio, tokens = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[[2.0, 0.0], [0.0, 2.0]]]])
    share = math.e / (math.e + 1)
    torch.testing.assert_close(vocalization(tokens, audio, "attention"), torch.tensor([[[2 * share, 2 - 2 * share]]]))
    torch.testing.assert_close(vocalization(tokens, audio, "product"), torch.tensor([[[2.0, 0.0]]]))
    torch.testing.assert_close(vocalization(tokens, audio, "gate"), torch.tensor([[[1.0, 0.0]]]))


@pytest.mark.parametrize("changed", [{}, {"other_videos": True, "pooling": "attention"}], ids=str)
def test_gradients(changed):
    """Numeric differences of the whole loss by inputs and by one matrix of each kind."""
    model = small(2, 2, 3, threshold=0.3, **changed)
    batch = filled_batch(model, 2)
    names = ["fc_tokens.weight", "mine_tokens.attention.in_proj_weight", "fusion.of_tokens.attention.in_proj_bias"]
    names += ["fusion.weigh.weight", "fc_audio.bias"]
    parameters = dict(model.named_parameters())

    def loss(patch, *given):
        batch.features["patch"] = patch
        values = dict(zip(names, given, strict=True))
        output = torch.func.functional_call(model, parameters | values, (batch,))
        return model.loss(output, batch)[0]

    given = [parameters[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, (batch.features["patch"].clone().requires_grad_(), *given))


@pytest.mark.parametrize("changed", VARIANTS, ids=str)
def test_each_variant_trains_all_its_parameters(changed):
    model = small(**changed).train()
    batch = filled_batch(model, B)
    model.loss(model(batch), batch)[0].backward()
    still = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert not still and all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("without", "reads_words", "reads_sentence"),
    [([], True, True), (["avcm"], True, True), (["weights"], True, False), (["qoaf"], True, False),
     (["avcm", "weights"], True, False), (["avcm", "qoaf"], False, False)],
)  # fmt: skip
def test_what_each_row_of_table_3_leaves_of_the_question(without, reads_words, reads_sentence):
    """Nothing in "w/o all": only so can it be at the paper's 26.70 %, below a model that reads the question only."""
    model = small(without=without)
    batch = filled_batch(model, B)
    expected = model.scores(model(batch))
    for name, reads in (("words", reads_words), ("sentence", reads_sentence)):
        changed = filled_batch(model, B)
        changed.texts[name] = changed.texts[name] + torch.randn(changed.texts[name].shape)
        assert torch.allclose(model.scores(model(changed)), expected) is not reads


def test_weights_are_a_choice_between_the_modalities():
    model = small()
    with torch.no_grad():
        model.fusion.weigh.weight.zero_()
        model.fusion.weigh.bias.copy_(torch.tensor([50.0, -50.0]))
    batch = filled_batch(model, B)
    output = model(batch)
    torch.testing.assert_close(output.weights, torch.tensor([[1.0, 0.0]]).double().expand(B, 2))
    expected = model.scores(output)
    batch.features["audio"] = torch.randn(B, T, 6).double()
    torch.testing.assert_close(model.scores(model(batch)), expected)


def test_parameters():
    """The paper states none. By hand: a matrix of attention and each other layer, D = 512."""
    attention = 4 * 512**2 + 4 * 512
    block = attention + 512 * 2048 + 2048 + 2048 * 512 + 512 + 4 * 512
    rest = 513 * 512 + 129 * 512 + 1025 * 512 + 513 * 2 + 513 * 42
    count = sum(p.numel() for p in AVAFNet.in_paper_setting().parameters())
    assert count == 4 * block + rest == 13_485_612
    without = AVAFNet.in_paper_setting(without=["avcm", "qoaf"])
    assert sum(p.numel() for p in without.parameters()) == rest - 513 * 2
    assert complexity.as_text(AVAFNet.in_paper_setting(hidden=512)).splitlines()[-1].split()[1] == "7.188"


def test_the_plain_form_costs_more(monkeypatch):
    """Multiply-adds of one sample with 12 words at the paper's sizes; oneDNN's products would not be counted."""
    monkeypatch.setattr("pipeline.models.fast.linear.by_onednn", lambda *_: False)
    model = AVAFNet.in_paper_setting().eval()
    batch = filled_batch(model, 1)
    batch.texts["length"] = torch.tensor([12])
    counts = {}
    for quick in (True, False):
        with fast.switched(quick), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(batch)
        counts[quick] = counter.get_total_flops()
    assert counts[True] < 0.8 * counts[False]


def test_stride_reads_every_sixth_second():
    assert AVAFNetSettings(stride=6).reads() == dict.fromkeys(("audio", "visual", "patch"), slice(None, None, 6))
    assert AVAFNetSettings().reads() == {}


@pytest.mark.parametrize(
    ("wrong", "named"),
    [({"heads": 3}, "heads: 3 does not divide"), ({"without": ["weights", "qoaf"]}, "without: qoaf leaves"),
     ({"temperature": 0}, "temperature"), ({"without": ["tacl"]}, "without")],
)  # fmt: skip
def test_wrong_settings_are_named(wrong, named):
    with pytest.raises(ValueError, match=named):
        AVAFNetSettings.from_dict(wrong)


def test_learns_what_the_question_alone_does_not_say():
    """One patch of a frame and the audio each hold a sign; the question says which of the two is the answer."""
    model = restarted(small(width=16, alpha=0.05, beta=0.05).float())

    def draw(seed, size=32):
        batch = filled_batch(model, size, seed)
        which, signs = (batch.answer % 2)[:, None], torch.randn(size, 2, generator=torch.Generator().manual_seed(seed))
        batch.texts["words"][:, 1, 0] = 4.0 * which[:, 0] - 2.0
        batch.texts["sentence"] = batch.texts["words"][:, 1]
        batch.features["patch"][:, :, 2, 0] = 4.0 * signs[:, :1].sign()
        batch.features["audio"][:, :, 0] = 4.0 * signs[:, 1:].sign()
        batch.answer = (signs.gather(1, which)[:, 0] > 0).long()
        return batch

    assert_learns(model, draw, steps=150)
