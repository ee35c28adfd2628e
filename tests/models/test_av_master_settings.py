"""AV-Master's settings: each of the paper's tables can be made, and a wrong value is named."""

import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.building import av_master, batch_of, twin

from pipeline.errors import AVQAError
from pipeline.models.av_master.model import AVMaster
from pipeline.models.base import NotOffered
from pipeline.models.fast.dropout import add_dropped, drop

COMPONENTS = ("avfc", "avkf", "dpcl", "gpap", "tdpp")
ANSWERS = (0, 1, 4)
SMALL = {"num_answers": 5, "audio_dim": 6, "visual_dim": 7, "text_dim": 9, "width": 16, "focus_width": 12, "heads": 4}
SECONDS, WORDS = 4, 3


def inputs(batch=3, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(batch, SECONDS, 6), (batch, SECONDS, 7), (batch, WORDS, 9), (batch, 9)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in (*shapes, *shapes[:2])]


def training_batch():
    return batch_of(*inputs(), answer=ANSWERS)


def evaluation_batch():
    return batch_of(*inputs()[:4], answer=ANSWERS)


def model(seed=0, **choices):
    torch.manual_seed(seed)
    return av_master(**SMALL, **choices).eval()


def trained_names(net):
    batch = training_batch()
    net.loss(net(batch), batch)[0].backward()
    return {name for name, parameter in net.named_parameters() if parameter.grad is not None}


@st.composite
def choices(draw):
    """Settings that AVMaster accepts."""
    picked = {
        "audio_template": draw(st.integers(1, 5)),
        "visual_template": draw(st.integers(1, 5)),
        "share_blocks": draw(st.booleans()),
        "dynamic_fusion": draw(st.booleans()),
        "without": draw(st.lists(st.sampled_from(COMPONENTS), unique=True)),
        "inputs": draw(st.lists(st.sampled_from(["audio", "visual", "question"]), unique=True, min_size=1)),
        "contrastive_weight": draw(st.sampled_from([0.0, 0.4, 1.0])),
        "combine": draw(st.sampled_from(["add", "mul", "w_add"])),
    }
    if picked["audio_template"] == picked["visual_template"]:
        picked["share_biases"] = draw(st.booleans())
    if "tdpp" in picked["without"]:
        picked["dynamic_fusion"] = False
        picked["without"] = [name for name in picked["without"] if name != "gpap"]
    if "avkf" in picked["without"]:
        picked["dynamic_fusion"] = False
    return picked


@settings(max_examples=40, deadline=None)
@given(picked=choices())
def test_every_combination_learns_and_answers(picked):
    """All parameters take part, and the answers are numbers."""
    net = model(**picked).train()
    assert trained_names(net) == {name for name, _ in net.named_parameters()}
    total, terms = net.loss(net(training_batch()), training_batch())
    assert total.isfinite()
    gpap = "gpap" not in picked["without"] and not picked["dynamic_fusion"]
    assert ("fused" in terms, "audio" in terms) == ("tdpp" not in picked["without"], gpap)
    contrast = "fused" in terms and gpap and "dpcl" not in picked["without"] and picked["contrastive_weight"] > 0
    assert ("contrastive" in terms) == contrast == net.needs_negatives
    net.eval()
    scores = net.scores(net(evaluation_batch()))
    assert scores.shape == (3, 5) and scores.isfinite().all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 16.0),
        ("heads", 3),
        ("audio_template", -1),
        ("share_blocks", "yes"),
        ("share_biases", True),
        ("without", ["avpf"]),
        ("without", "avfc"),
        ("without", ["tdpp", "gpap"]),
        ("dynamic_fusion", 1),
        ("inputs", []),
        ("inputs", ["video"]),
        ("fused_weight", -1.0),
        ("contrastive_weight", float("nan")),
        ("enhancement", "all"),
        ("combine", "sum"),
        ("temperature", 0.0),
        ("dropout", 1.0),
    ],
)
def test_a_wrong_value_is_named(field, value):
    extra = {"visual_template": 4} if field == "share_biases" else {}
    with pytest.raises(ValueError, match=f"^{field}: "):
        AVMaster.Settings.from_dict({"width": 16, "heads": 4} | extra | {field: value})


def test_settings_that_contradict_each_other():
    for wrong, named in (
        ({"dynamic_fusion": True, "without": ["avkf"]}, "dynamic_fusion"),
        ({"without": ["tdpp"], "enhancement": "none"}, "enhancement"),
        ({"without": ["gpap"], "fused_weight": 0.0}, "fused_weight"),
        ({"fused_weight": 0.0, "audio_weight": 0.0, "enhancement": "ape"}, "enhancement"),
    ):
        with pytest.raises(ValueError, match=f"^{named}"):
            AVMaster.Settings.from_dict(wrong)


def test_sharing_changes_what_there_is_to_learn():
    """Table XI. A second set of attention blocks, one bias less; with equal weights the answers stay the same."""
    shared, apart, one_bias = model(), model(share_blocks=False), model(share_biases=True)
    count = {net: sum(p.numel() for p in net.parameters()) for net in (shared, apart, one_bias)}
    assert count[apart] - count[shared] == sum(p.numel() for p in shared.focus.parameters())
    assert count[shared] - count[one_bias] == shared.bias_audio.numel()
    apart.load_state_dict(shared.state_dict(), strict=False)
    apart.own_focus_audio.load_state_dict(shared.focus.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(apart(training_batch()).fused, shared(training_batch()).fused)
        shared.bias_audio.copy_(shared.bias_visual)
        one_bias.load_state_dict({k: v for k, v in shared.state_dict().items() if k != "bias_audio"})
        torch.testing.assert_close(one_bias(training_batch()).fused, shared(training_batch()).fused)


@pytest.mark.parametrize("kept", [["question"], ["audio", "question"], ["visual", "question"]])
def test_an_input_that_is_left_out_has_no_influence(kept):
    """Fig. 5. Same size, and no trace of what the model may not see."""
    net = model(inputs=kept)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in model().parameters())
    audio, visual, words, sentence, *_ = inputs()
    with torch.no_grad():
        scores = net.scores(net(batch_of(audio, visual, words, sentence)))
        other_audio = audio if "audio" in kept else audio + 1
        other_visual = visual if "visual" in kept else visual + 1
        assert torch.equal(net.scores(net(batch_of(other_audio, other_visual, words, sentence))), scores)
        assert not torch.equal(net.scores(net(batch_of(audio, visual, words + 1, sentence + 1))), scores)


def test_loss_weights():
    """Table IX, Fig. 8. The total is the weighted sum, and a decoder of weight 0 neither learns nor answers."""
    weights = {"fused_weight": 1.0, "audio_weight": 0.0, "visual_weight": 0.5, "contrastive_weight": 2.0}
    net = model(**weights)
    out = net(training_batch())
    total, terms = net.loss(out, training_batch())
    assert set(terms) == {"fused", "visual", "contrastive"}
    torch.testing.assert_close(total, terms["fused"] + 0.5 * terms["visual"] + 2 * terms["contrastive"])
    torch.testing.assert_close(net.scores(out), out.fused + out.visual)
    assert not any(name.startswith("decode_audio") for name in trained_names(net))


def test_preferences_join_the_answer_as_set():
    """Tables XIII and XIV."""
    net = model()
    with torch.no_grad():
        out = net(evaluation_batch())
    f, a, v = out.fused, out.audio, out.visual
    torch.testing.assert_close(net.scores(out), f + a + v)
    torch.testing.assert_close(model(enhancement="ape").scores(out), f + a)
    torch.testing.assert_close(model(enhancement="vpe").scores(out), f + v)
    for combine in ("add", "mul", "w_add"):
        torch.testing.assert_close(model(enhancement="none", combine=combine).scores(out), f)
    product = f.softmax(-1) + a.softmax(-1) * v.softmax(-1)
    torch.testing.assert_close(model(combine="mul").scores(out), product)
    of_audio, of_visual = a.exp().sum(-1, keepdim=True), v.exp().sum(-1, keepdim=True)
    weighted = f + (of_audio * a + of_visual * v) / (of_audio + of_visual)
    torch.testing.assert_close(model(combine="w_add").scores(out), weighted)


def test_attention_maps_are_distributions_over_words():
    """Fig. 9."""
    with torch.no_grad():
        out = model()(training_batch(), attention=True)
    assert set(out.attention) == {"audio", "visual"}
    for weights in out.attention.values():
        assert weights.shape == (3, SECONDS, WORDS)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, SECONDS))
    assert model()(training_batch()).attention is None
    for name, weights in model().word_attention(training_batch()).items():
        torch.testing.assert_close(weights, out.attention[name].mean(1))


def test_preference_features_are_the_preferences_means_over_time():
    """Fig. 7."""
    net, kept = model(), {}
    for name in ("audio", "visual"):
        block = getattr(net, f"preference_{name}")
        block.register_forward_hook(lambda block, inputs, output, name=name: kept.update({name: output[0]}))
    features = net.preference_features(evaluation_batch())
    for name, x in features.items():
        assert kept[name].shape == (3, 1, SECONDS, net.settings.width)
        torch.testing.assert_close(x, kept[name][:, 0].sum(1) / SECONDS)
    with pytest.raises(NotOffered, match="gpap"):
        model(without=["gpap"]).preference_features(evaluation_batch())


def test_scores_by_time_step():
    """Fig. 6. After the last second they are the answer's; after two seconds the templates are a short video's."""
    net = model(audio_template=2, visual_template=3)
    x = inputs()[:4]
    with torch.no_grad():
        scores = net.scores_by_second(batch_of(*x))
        assert scores.shape == (3, SECONDS, 5)
        torch.testing.assert_close(scores[:, -1], net.scores(net(batch_of(*x))))
        short = net(batch_of(x[0][:, :2], x[1][:, :2], *x[2:]))
        states = net.capture(net.fc_visual(x[1]), net.fc_audio(x[0]), every=True)
        torch.testing.assert_close(states[0][1], short.focus_visual)
        torch.testing.assert_close(states[1][1], short.focus_audio)
    with pytest.raises(AVQAError, match="without"):
        model(without=["avfc"]).scores_by_second(batch_of(*x))


def test_dropout_is_for_training_only_and_right_on_average():
    batch, net = training_batch(), model(dropout=0.2)
    with torch.no_grad():
        quiet = net(batch).fused
        assert torch.equal(net(batch).fused, quiet)
        net.train()
        torch.manual_seed(1)
        once, again = net(batch).fused, net(batch).fused
        torch.manual_seed(1)
        assert not torch.equal(once, again) and torch.equal(net(batch).fused, once)


@settings(max_examples=20, deadline=None)
@given(rate=st.floats(0.01, 0.99), rows=st.integers(1, 7), residual=st.booleans(), seed=st.integers(0, 2**31))
def test_dropout_keeps_the_expectation_and_its_own_gradient(rate, rows, residual, seed):
    torch.manual_seed(seed)
    x = torch.ones(rows, 20001, dtype=torch.float64, requires_grad=True)
    y = add_dropped(torch.full_like(x, 3.0), x, rate) - 3 if residual else drop(x, rate)
    kept = y > 0.5
    count, spread = y.numel(), (rate / (1 - rate)) ** 0.5
    assert abs(y.mean().item() - 1) < 6 * spread / count**0.5 + 1e-4
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 1 / (1 - rate)), rtol=2e-3, atol=0)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach(), rtol=1e-12, atol=1e-12)


def test_what_a_frozen_model_keeps_follows_its_weights():
    """Products of frozen parameters are kept between calls; every way of changing one must be noticed."""
    net, x = model(), training_batch()

    def check(dtype=torch.float32):
        other = twin(net).to(dtype).eval()
        other.load_state_dict(net.state_dict())
        with torch.no_grad():
            expected = other(x)
            net.requires_grad_(False)
            for _ in range(2):
                torch.testing.assert_close(net(x).fused, expected.fused)
                torch.testing.assert_close(net(x).audio, expected.audio)
            net.requires_grad_(True)

    check()
    for fused in (False, True):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1, fused=fused)
        net.loss(net(x), x)[0].backward()
        with torch.no_grad():
            net(x)
        optimizer.step()
        check()
    net.load_state_dict(model(seed=1).state_dict())
    check()
    with torch.no_grad():
        net.bias_audio.mul_(2)
        net.preference_audio.own.key.weight[0] = 1
    check()
    net.load_state_dict({name: tensor.clone() for name, tensor in model(seed=2).state_dict().items()}, assign=True)
    check()
    net.double()
    check(torch.float64)
    net.float()
    check()


def test_half_precision_features_and_mixed_precision():
    net, x = model(), [tensor.half() for tensor in inputs()]
    halves = batch_of(*x, answer=ANSWERS)
    with torch.no_grad():
        full = net(batch_of(*(tensor.float() for tensor in x))).fused
        assert torch.equal(net(halves).fused, full)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = net(halves).fused
        assert torch.equal(net(halves).fused, full)
    torch.testing.assert_close(mixed.float(), full, rtol=0.1, atol=0.1)
    net.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = net.loss(net(halves), halves)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_graph_serves_one_backward_pass():
    net = model()
    loss, _ = net.loss(net(training_batch()), training_batch())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="already used"):
        loss.backward()


def test_released_names_need_released_blocks():
    with pytest.raises(ValueError, match="share_blocks"):
        model(share_blocks=False).released_state_dict()
    weights = model().released_state_dict()
    with pytest.raises(ValueError, match="lacks bo_v"):
        AVMaster.load_released({name: tensor for name, tensor in weights.items() if name != "bo_v"}, heads=4)
    with pytest.raises(ValueError, match=r"^fc_v\.bias: "):
        AVMaster.load_released(weights | {"fc_v.bias": torch.zeros(3)}, heads=4)
    with pytest.raises(ValueError, match=r"^fc_a\.weight: expected a matrix, the state dict has shape \(3,\)"):
        AVMaster.load_released(weights | {"fc_a.weight": torch.zeros(3)}, heads=4)
    with pytest.raises(ValueError, match=r"lacks fc_a\.weight, and has conv1\.weight \(1 in all\)"):
        AVMaster.load_released({"conv1.weight": torch.zeros(3)}, heads=4)


@pytest.mark.parametrize(
    "choices",
    [{"share_blocks": False}, {"share_biases": True}, {"dynamic_fusion": True},
     *({"without": [name]} for name in ("avfc", "avkf", "gpap", "tdpp"))],
)  # fmt: skip
def test_other_blocks_have_no_released_names(choices):
    with pytest.raises(ValueError, match=r"^share_blocks, .*fit only the defaults"):
        model(**choices).released_state_dict()
    assert model(without=["dpcl"]).released_state_dict().keys() == model().released_state_dict().keys()


@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="torch.compile needs a C++ compiler")
def test_a_compiled_loop_gives_the_same_answers():
    net, x = model(), training_batch()
    with torch.no_grad():
        expected = net(x)
        found = net.compile_loop()(x)
    torch.testing.assert_close(found.fused, expected.fused)
    torch.testing.assert_close(found.focus_audio, expected.focus_audio)
