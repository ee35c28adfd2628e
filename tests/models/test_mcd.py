"""MCD against its equations, written out plainly below, and the switches of the paper's tables."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models.building import assert_learns, filled_batch, restarted
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models import complexity, fast
from pipeline.models.mcd.config import MCDSettings
from pipeline.models.mcd.model import MCD, AssociationBlock, contrast, equal_videos

ROOT = Path(__file__).parents[2]
B, T, D, ANSWERS, WORDS = 4, 6, 5, 3, 11


def small(seconds=T, **changed):
    shapes = {"audio": (seconds, 4), "visual": (seconds, 7), "tokens": (5,), "keywords": (2,), "type": (2,)}
    values = {"width": D, "hidden": 6, "dropout": 0.0} | changed
    torch.manual_seed(1)
    model = MCD(MCDSettings.from_dict(values), shapes, ANSWERS, num_tokens=WORDS).double()
    for name, p in model.named_parameters():  # no zeros and ones: each must be seen to matter
        nn.init.normal_(p, std=0.5)
        if "norm" in name:
            nn.init.uniform_(p, 0.5, 1.5)
    for name, buffer in model.named_buffers():
        if "running" in name:
            nn.init.uniform_(buffer, 0.5, 1.5)
    return model


# The equations, number by number, on vectors.


def tensors(model):
    return dict(model.state_dict())


def affine(w, name, x):
    return w[f"{name}.weight"] @ x + w.get(f"{name}.bias", 0.0)


def attend(w, name, x, memory):
    """Eq. 1 for one query x and rows of memory."""
    query, keys = affine(w, f"{name}.query", x), [affine(w, f"{name}.key", y) for y in memory]
    weights = torch.stack([query @ key / math.sqrt(len(query)) for key in keys]).softmax(0)
    return sum(weight * affine(w, f"{name}.value", y) for weight, y in zip(weights, memory, strict=True))


def read_words(w, tokens, directions):
    """AVST's question encoder: the vector, and the states after each word."""
    ends, states = [], []
    for suffix in ("", "_reverse")[:directions]:
        h = c = torch.zeros(D).double()
        of_words = []
        for token in reversed(tokens) if suffix else tokens:
            x = torch.tanh(w["question.embedding.weight"][token])
            gates = w[f"question.lstm.weight_ih_l0{suffix}"] @ x + w[f"question.lstm.bias_ih_l0{suffix}"]
            gates = gates + w[f"question.lstm.weight_hh_l0{suffix}"] @ h + w[f"question.lstm.bias_hh_l0{suffix}"]
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            of_words.append(h)
        ends.append((h, c))
        states.append(of_words[::-1] if suffix else of_words)
    last = torch.cat([h for h, _ in ends] + [c for _, c in ends])
    return affine(w, "question.fc", last.tanh()), [torch.cat(rows) for rows in zip(*states, strict=True)]


def batch_norm(w, name, samples, training):
    """samples: B lists of T vectors; each channel over all of them, or by the running statistics."""
    rows = torch.stack([x for sample in samples for x in sample])
    mean, variance = rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0)
    if not training:
        mean, variance = w[f"{name}.running_mean"], w[f"{name}.running_var"]
    scale = w[f"{name}.weight"] / (variance + 1e-5).sqrt()
    return [[(x - mean) * scale + w[f"{name}.bias"] for x in sample] for sample in samples]


def average(rows):
    return sum(rows) / len(rows)


def associate(w, name, s, audio, visual, training):
    """Eqs. 2 to 5, and the cross-features of both streams."""
    streams, out, crosses = {"audio": audio, "visual": visual}, [], []
    cross_name = f"{name}.cross_attention" if s.separate_attention else f"{name}.attention"
    for n, (own, other) in enumerate((("audio", "visual"), ("visual", "audio"))):
        terms, cross = [], []
        for f, f_other in zip(streams[own], streams[other], strict=True):
            rows = [torch.zeros(D).double() for _ in f]
            if own in s.self_attention:
                rows = [row + attend(w, f"{name}.attention", x, f) for row, x in zip(rows, f, strict=True)]
            if other in s.cross_attention:
                gate = torch.diag(attend(w, cross_name, average(f_other), f))
                cross.append([x @ gate for x in f])
                rows = [row + x for row, x in zip(rows, cross[-1], strict=True)]
            terms.append(rows)
        u = streams[own]
        if own in s.self_attention or other in s.cross_attention:
            normed = batch_norm(w, f"{name}.norm1.{n}", terms, training)
            u = [[x + y for x, y in zip(*pair, strict=True)] for pair in zip(u, normed, strict=True)]
        refined = [[affine(w, f"{name}.linear2", affine(w, f"{name}.linear1", x).relu()) for x in f] for f in u]
        refined = batch_norm(w, f"{name}.norm2.{n}", refined, training)
        out.append([[x + y for x, y in zip(*pair, strict=True)] for pair in zip(u, refined, strict=True)])
        crosses.append(cross)
    return *out, crosses


def aggregate(w, s, f_q, states, f):
    """Eqs. 6 to 9 for one sequence f of vectors, all of them sampled."""
    name, pooled, described = "aggregator", average(f), []
    if s.frame_weights == "one":
        described = [affine(w, f"{name}.value", x).relu() for x in f]
    else:
        if s.question_keys == "words":
            asked = f_q + attend(w, f"{name}.question", pooled, states)
        else:
            asked = f_q + affine(w, f"{name}.question", f_q)
        query = affine(w, f"{name}.query", asked)
        scores = torch.stack([query @ affine(w, f"{name}.key", x) / math.sqrt(D) for x in f])
        for weight, x in zip(scores.softmax(0), f, strict=True):
            described.append((weight * affine(w, f"{name}.value", x)).relu())
    best = sorted(described, key=lambda h: float(h.mean()), reverse=True)[: len(f) // 2]
    return sum(f_q + h * f_q for h in best)


def restated(model, batch):
    """For each sample: logits, f̂_q, F_a, F_v, m_a and m_v."""
    w, s = tensors(model), model.settings
    directions = 2 if s.question_encoder == "bilstm" else 1
    audio, visual = (
        [[affine(w, f"fc_{name}", x) for x in f] for f in batch.features[name]] for name in ("audio", "visual")
    )
    low, crosses = (audio, visual), []
    for n in range(s.blocks):
        audio, visual, cross = associate(w, f"blocks.{n}", s, audio, visual, model.training)
        crosses.append(cross)
    for n in range(len(batch.answer)):
        f_q, states = read_words(w, batch.texts["tokens"][n].tolist(), directions)
        clue_a, clue_v = (
            aggregate(w, s, f_q, states, first[n]) + aggregate(w, s, f_q, states, last[n])
            for first, last in zip(low, (audio, visual), strict=True)
        )
        f_a, f_v, high_a, high_v = (average(f[n]) for f in (*low, audio, visual))
        parts = [affine(w, "combination.mix.0", clue_a), affine(w, "combination.mix.1", clue_v)]
        if s.elements:
            mean_a, mean_v = (f_a, f_v) if s.element_level == "low" else (high_a, high_v)
            total = sum(x for name, x in (("audio", mean_a), ("visual", mean_v)) if name in s.elements)
            if "text" in s.elements:
                others = [read_words(w, batch.texts[name][n].tolist(), directions)[0] for name in ("keywords", "type")]
                t = affine(w, "combination.text", torch.cat([f_q, *others]))
                total = t * (t + total) if s.element_fusion == "multiply" else t + total
            parts.append(affine(w, "combination.mix.2", affine(w, "combination.refine", total)))
        embedding = affine(w, "combination.fc", torch.cat(parts))
        answering = embedding
        if s.late_fusion != "none":
            late = [embedding, *(x for name, x in (("audio", high_a), ("visual", high_v)) if name in s.late_inputs)]
            answering = affine(w, "late.fc", torch.cat(late) if s.late_fusion == "concat" else sum(late))
        m = [None, None]
        if set(s.cross_attention) == {"audio", "visual"}:
            m = [average([average(cross[side][n]) for cross in crosses]) for side in range(2)]
        yield affine(w, "answers", answering.relu()), embedding, f_a, f_v, *m


def cosine(x, y):
    return x @ y / (x.norm() * y.norm())


def info_nce(anchors, others, temperature, videos):
    """Eqs. 11 and 13, with the samples of other videos as negatives."""
    total = 0
    for i, anchor in enumerate(anchors):
        e = [math.exp(cosine(anchor, other) / temperature) for other in others]
        total -= math.log(e[i] / sum(x for k, x in enumerate(e) if k == i or videos[k] != videos[i]))
    return total / len(anchors)


VARIANTS = [
    {},
    {"blocks": 1},
    {"blocks": 3},
    {"question_encoder": "bilstm"},
    {"question_encoder": "bilstm", "question_keys": "words"},
    {"question_keys": "words"},
    {"frame_weights": "one"},
    {"separate_attention": True},
    {"self_attention": ["visual"]},
    {"self_attention": []},
    {"self_attention": [], "separate_attention": True},
    {"cross_attention": ["audio"]},
    {"cross_attention": ["visual"]},
    {"cross_attention": [], "self_attention": ["audio"]},
    {"cross_attention": [], "self_attention": []},
    {"elements": ["audio", "text"]},
    {"elements": ["visual", "text"]},
    {"elements": ["visual", "audio"]},
    {"elements": []},
    {"element_fusion": "add"},
    {"element_level": "high"},
    {"late_fusion": "concat"},
    {"late_fusion": "add", "late_inputs": ["audio"]},
    {"late_fusion": "concat", "late_inputs": ["visual"]},
    {"question_visual_weight": 0},
    {"question_audio_weight": 0, "temperature": 0.5},
    {"audio_visual_weight": 0},
    {"question_visual_weight": 0, "question_audio_weight": 0, "audio_visual_weight": 2},
    {"mask_equal_videos": False},
]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("changed", VARIANTS, ids=str)
def test_equals_its_equations(changed, training):
    model = small(**changed).train(training)
    batch, s = filled_batch(model, B), model.settings
    for x in batch.features.values():
        x[3] = x[1]  # two questions about one video
    expected = list(zip(*restated(model, batch), strict=True))
    with fast.switched(training):
        output = model(batch)
        total, terms = model.loss(output, batch)
    logits, embedding, *means, m_a, m_v = ([x for x in rows] for rows in expected)
    torch.testing.assert_close(model.scores(output), torch.stack(logits))
    torch.testing.assert_close(output.embedding, torch.stack(embedding))
    videos = [0, 1, 2, 1] if s.mask_equal_videos else [0, 1, 2, 3]
    w, known = tensors(model), {"answer": nn.functional.cross_entropy(torch.stack(logits), batch.answer).item()}
    weights = {"answer": 1, "question_audio": s.question_audio_weight, "question_visual": s.question_visual_weight}
    for name, rows in zip(("audio", "visual"), means, strict=True):
        if weights[f"question_{name}"]:
            anchors = [affine(w, "distill.question", x) for x in embedding]
            known[f"question_{name}"] = info_nce(
                anchors, [affine(w, f"distill.{name}", x) for x in rows], s.temperature, videos
            )
    if s.audio_visual_weight and len(s.cross_attention) == 2:
        weights["audio_visual"] = s.audio_visual_weight
        known["audio_visual"] = info_nce(m_v, m_a, s.temperature, videos)
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(known)
    assert total.item() == pytest.approx(sum(weights[name] * value for name, value in known.items()))


@pytest.mark.parametrize("inputs", [["question"], ["audio"], ["visual"], ["question", "audio"], ["question", "visual"],
                                    ["question", "audio", "visual"]], ids=str)  # fmt: skip
def test_the_plain_network_of_table_2_reads_its_inputs_and_nothing_else(inputs):
    model = small(network="mlp", inputs=inputs)
    batch, w = filled_batch(model, B), tensors(model)
    for n, logits in enumerate(model.scores(model(batch))):
        parts = [read_words(w, batch.texts["tokens"][n].tolist(), 1)[0]] if "question" in inputs else []
        parts += [
            average([affine(w, f"fc_{name}", x) for x in batch.features[name][n]])
            for name in ("audio", "visual") if name in inputs
        ]  # fmt: skip
        torch.testing.assert_close(logits, affine(w, "answers", affine(w, "hidden", torch.cat(parts)).relu()))
    expected = model.scores(model(batch))
    for name in ("audio", "visual"):
        batch.features[name] = batch.features[name] + 1
        assert torch.equal(model.scores(model(batch)), expected) is not (name in inputs)
        expected = model.scores(model(batch))
    assert list(model.loss(model(batch), batch)[1]) == ["answer"]


def test_the_order_of_seconds_matters_to_nothing_and_padding_to_the_question():
    """No positions anywhere. The encoder reads all words and the padding, as AVST's does."""
    model = small().eval()
    batch = filled_batch(model, B)
    expected = model.scores(model(batch))
    batch.features = {name: x[:, [4, 2, 5, 0, 3, 1]] for name, x in batch.features.items()}
    torch.testing.assert_close(model.scores(model(batch)), expected)
    batch.texts["tokens"] = torch.nn.functional.pad(batch.texts["tokens"], (0, 1))
    assert not torch.allclose(model.scores(model(batch)), expected)


def test_batch_mates_change_an_answer_in_training_only():
    """Through the batch normalisation."""
    model = small().train()
    batch = filled_batch(model, B)
    trained, scores = model.scores(model(batch)), model.eval().scores(model(batch))
    batch.features = {name: torch.cat([x[:2], x[2:] + 1]) for name, x in batch.features.items()}
    torch.testing.assert_close(model.scores(model(batch))[:2], scores[:2])
    assert not torch.allclose(model.train().scores(model(batch))[:2], trained[:2])


def test_streams_have_running_statistics_of_their_own():
    model = small().train()
    batch = filled_batch(model, B)
    batch.features["audio"] = batch.features["audio"] + 5
    model(batch)
    norms = model.blocks[0].norm1
    assert not torch.allclose(norms[0].running_mean, norms[1].running_mean)


def test_literal_question_attention_ignores_the_video():
    """One key: a softmax of one score is 1. So ζ₁ has neither query nor key, and F_j no part in Eq. 6."""
    assert not any("question.query" in name for name, _ in small().aggregator.named_parameters())
    assert any("question.query" in name for name, _ in small(question_keys="words").aggregator.named_parameters())
    literal = {name for name, _ in small(frame_weights="one").aggregator.named_parameters()}
    assert literal == {"value.weight"}


def clues(model, batch):
    low = torch.stack([model.project(name, batch) for name in ("audio", "visual")]).transpose(0, 1)
    question, states = model.question(batch.texts["tokens"])
    return low, model.aggregator(question, states, model.sample(low), low.mean(2), None) / question[:, None]


def test_only_the_better_half_of_the_frames_is_a_clue():
    """Dividing by f_q leaves k/2 + Σ h."""
    model = small(frame_weights="one").eval()
    batch = filled_batch(model, 1)
    low, found = clues(model, batch)
    heights = model.aggregator.value(low).relu()
    for side in range(2):
        best = heights[0, side].mean(-1).argsort(descending=True)[: T // 2]
        torch.testing.assert_close(found[0, side], T // 2 + heights[0, side][best].sum(0))


def test_a_video_of_one_second_keeps_its_frame():
    model = small(1, frame_weights="one").eval()
    batch = filled_batch(model, 1)
    low, found = clues(model, batch)
    torch.testing.assert_close(found[0], 1 + model.aggregator.value(low).relu()[0, :, 0])


def test_a_batch_of_one_question_about_one_second_can_be_trained_on():
    model = small(seconds=1).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    batch = filled_batch(model, 1)
    trained = model(batch).logits
    model.loss(model(batch), batch)[0].backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    torch.testing.assert_close(trained, model.eval()(batch).logits)


def test_sampled_frames_are_evenly_spaced_in_evaluation_and_random_in_training():
    model = small(10, frames=4)
    frames = torch.arange(10.0).view(1, 1, 10, 1).expand(2, 4, 10, 3)
    model.eval()
    assert model.sample(frames)[0, 0, :, 0].tolist() == [0, 3, 6, 9]
    model.train()
    drawn = [model.sample(frames) for _ in range(20)]
    assert len({tuple(x[0, 0, :, 0].tolist()) for x in drawn}) > 5
    for x in drawn:
        assert (x == x[:, :1, :, :1]).all() and (x[:, 0].diff(dim=1) > 0).all()
    assert small(10, frames=10).sample(frames) is frames and small(10).sample(frames) is frames


def test_contrast_is_at_its_limits():
    """Equal vectors: log B. τ → 0: nothing for the nearest, much for the others. A batch of one: nothing."""
    eye = torch.eye(4).double()
    assert contrast(torch.ones(5, 3), torch.ones(5, 3), 0.07).item() == pytest.approx(math.log(5))
    assert contrast(eye, eye, 0.01).item() == pytest.approx(0, abs=1e-9)
    assert contrast(eye, eye.roll(1, 0), 0.01).item() == pytest.approx(100)
    assert contrast(eye[:1], eye[1:2], 0.07).item() == 0
    assert contrast(7 * eye, 0.1 * eye, 0.5).item() == pytest.approx(contrast(eye, eye, 0.5).item())


LOSSES = """
import sys
sys.path[:0] = ["tests"]
import torch
from models.building import filled_batch
from models.test_mcd import small
model = small(question_audio_weight=0.1, question_visual_weight=0.3, audio_visual_weight=0.7).float()
losses = [model.loss(model(batch), batch)[0] for batch in (filled_batch(model, 6, seed) for seed in range(40))]
print(*(float(loss).hex() for loss in losses))
"""


def test_the_loss_is_the_same_number_in_every_process():
    """Sets of texts have another order in each process; a sum in that order would be rounded in another way."""
    found = set()
    for seed in range(4):
        command = [sys.executable, "-c", LOSSES]
        found.add(subprocess.check_output(command, env=os.environ | {"PYTHONHASHSEED": str(seed)}, cwd=ROOT))
    assert len(found) == 1


def test_samples_of_one_video_are_no_negatives():
    model = small()
    batch = filled_batch(model, 40)
    batch.features = {name: x[torch.arange(40) % 13].float() for name, x in batch.features.items()}
    expected = (torch.arange(40)[:, None] % 13 == torch.arange(40) % 13) & ~torch.eye(40, dtype=torch.bool)
    assert torch.equal(equal_videos(batch), expected)
    batch.videos = torch.arange(40) % 13
    assert torch.equal(equal_videos(batch), expected)
    assert contrast(torch.ones(40, 3), torch.ones(40, 3), 1.0, torch.ones(40, 40).bool().fill_diagonal_(False)) == 0


@pytest.mark.parametrize("changed", VARIANTS, ids=str)
def test_each_variant_trains_all_its_parameters(changed):
    """But for a bias before a normalisation over the batch, which takes it away."""
    model = small(**changed).train()
    batch = filled_batch(model, 8)
    model.loss(model(batch), batch)[0].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 1e-12 or name.endswith("linear2.bias"), name


@pytest.mark.parametrize("changed", [{}, {"question_keys": "words", "element_level": "high"}], ids=str)
def test_gradients(changed):
    """Numeric differences of the whole loss by a feature and by one matrix of each kind."""
    model = small(4, temperature=0.5, **changed).train()
    batch = filled_batch(model, 3)
    names = ["blocks.0.attention.key.weight", "blocks.1.norm1.0.weight", "aggregator.query.weight", "fc_audio.bias"]
    names += ["question.lstm.weight_hh_l0", "distill.visual.weight", "combination.text.bias"]
    parameters = dict(model.named_parameters())

    def loss(visual, *given):
        batch.features["visual"] = visual
        values = dict(zip(names, given, strict=True))
        return model.loss(torch.func.functional_call(model, parameters | values, (batch,)), batch)[0]

    given = [parameters[name].detach().clone().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(loss, (batch.features["visual"].clone().requires_grad_(), *given))


def test_blocks_gate_each_other_only_where_they_query():
    """Row by row of Table VII: what a stream's block reads of the other stream."""
    for cross, audio_reads, visual_reads in (
        (["audio", "visual"], True, True), (["visual"], True, False), (["audio"], False, True), ([], False, False),
    ):  # fmt: skip
        block = AssociationBlock(MCDSettings.from_dict({"width": D, "cross_attention": cross})).double()
        streams = torch.randn(2, B, T, D).double()
        expected, _ = block(streams)
        for changed, other, reads in ((1, 0, audio_reads), (0, 1, visual_reads)):
            moved = streams.clone()
            moved[changed] += torch.randn(B, T, D)
            assert torch.allclose(block(moved)[0][other], expected[other]) is not reads


def test_parameters_beside_the_papers():
    """By hand, D = 512. The paper's increment per block, 1.561 M, is no reading's; ours is 1.316 M, since Eq. 1 has
    three matrices and no biases."""
    d = 512
    block = 3 * d * d + 2 * (d * d + d) + 4 * 2 * d
    question = 93 * d + 4 * (2 * d * d + 2 * d) + (2 * d * d + d)
    aggregator, combination = 4 * d * d, 2 * (3 * d * d + d) + (d * d + d) + 3 * d * d
    rest = question + aggregator + combination + 3 * (d * d + d) + 129 * d + 513 * d + 513 * 42
    for blocks in (1, 2, 3):
        model = MCD.in_paper_setting(blocks=blocks)
        assert sum(p.numel() for p in model.parameters()) == rest + blocks * block
    assert round(block / 1e6, 3) == 1.316 and round((rest + 2 * block) / 1e6, 3) == 10.115
    *_, ours, claim = complexity.as_text(MCD.in_paper_setting()).splitlines()
    assert ours.split()[1] == "10.115" and claim.split()[3:5] == ["7.587", "2542.000"]
    assert "Table VIII" not in complexity.as_text(MCD.in_paper_setting(network="mlp"))


def test_flops():
    """Of one sample, by hand, as the equations stand but with keys and values of each stream made once per block; an
    LSTM is 8 D² per word."""
    d, t = 512, 60
    blocks = 2 * 2 * ((3 * t + 1) * d * d + 2 * (t + 1) * t * d + 2 * t * d * d)
    aggregator = 3 * d * d + 4 * (t * d * d + 2 * t * d)
    question = (14 + 2 + 2) * 8 * d * d + 3 * 2 * d * d
    rest = (3 + 1 + 3 + 3) * d * d + 42 * d + t * (128 + 512) * d
    found = float(complexity.as_text(MCD.in_paper_setting()).splitlines()[-2].split()[2])
    assert found == pytest.approx(2 * (blocks + aggregator + question + rest) / 1e6, abs=0.001)


def test_the_equations_as_they_stand_cost_more(monkeypatch):
    """Multiply-adds at the paper's sizes of one sample; the LSTM, which the counter does not know, is left out."""
    monkeypatch.setattr("pipeline.models.fast.linear.by_onednn", lambda *_: False)
    model = MCD.in_paper_setting().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(filled_batch(model, 1))
    d, t = 512, 60
    attention = (3 * t + 1 + 2 * t) * d * d + 2 * (t + 1) * t * d  # self, cross
    blocks = 2 * 2 * (attention + 2 * t * d * d)
    aggregator = 4 * ((2 + 2 * t) * d * d + 2 * t * d)
    others = (3 * 2 + 3 + 1 + 3 + 3) * d * d + 42 * d + t * (128 + 512) * d
    assert counter.get_total_flops() / 2 < 0.8 * (blocks + aggregator + others)


def test_a_vocabulary_is_needed():
    with pytest.raises(ValueError, match="num_tokens: "):
        MCD(MCDSettings(), {"audio": (2, 3), "visual": (2, 3)}, 2)


def test_learns_what_the_question_alone_does_not_say():
    """Audio and visual features each hold a sign; one word says which of the two is the answer."""
    model = restarted(small(width=16).float())

    def draw(seed, size=32):
        batch = filled_batch(model, size, seed)
        which, signs = (batch.answer % 2)[:, None], torch.randn(size, 2, generator=torch.Generator().manual_seed(seed))
        batch.texts["tokens"][:, 2] = 1 + which[:, 0]
        batch.features["audio"][:, :, 0] = 4.0 * signs[:, :1].sign()
        batch.features["visual"][:, :, 0] = 4.0 * signs[:, 1:].sign()
        batch.answer = (signs.gather(1, which)[:, 0] > 0).long()
        return batch

    assert_learns(model, draw, steps=250)
