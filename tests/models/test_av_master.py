"""AV-Master against the released implementation's outputs and against its formulas written out plainly."""

import json
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.building import DIMS, av_master, batch_of, twin

from pipeline.models import fast
from pipeline.models.av_master.model import AVMaster
from pipeline.models.av_master.reference import main as compare
from pipeline.models.av_master.reference import reference_av_master
from pipeline.models.fast.linear import HAS_ONEDNN, by_onednn

OUTPUTS = ("fused", "audio", "visual", "contrastive_loss", "focus_visual", "focus_audio")
ONES = ("norm1.weight", "norm2.weight", "norm3.weight", "norm.weight", "LayerNorm.weight")


def noise(name, shape):
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    return generator.standard_normal(shape).astype(np.float32)


def fill(name, shape):
    """The recipe of the golden cases, for one tensor of the released state dict."""
    x = noise(name, shape)
    x = x / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.1 * x + name.endswith(ONES)
    return torch.from_numpy(x.astype(np.float32))


def far(ours, theirs):
    """Largest difference relative to the largest value."""
    theirs = torch.as_tensor(theirs)
    return float((ours.detach().double() - theirs.double()).abs().max() / theirs.double().abs().max())


@pytest.fixture(scope="module")
def golden():
    return json.loads((Path(__file__).parent.parent / "data/av_master_official.json").read_text())


@pytest.fixture(scope="module")
def released_weights(golden):
    return {name: fill(name, shape) for name, shape in golden["state_dict"].items()}


def golden_inputs(case):
    b, t, tag = case["batch"], case["segments"], case["tag"]
    shapes = {
        "audio": (b, t, 128),
        "visual": (b, t, 768),
        "words": (b, 1, 77, 768),
        "question": (b, 1, 768),
        "neg_audio": (b, t, 128),
        "neg_visual": (b, t, 768),
    }
    x = {name: torch.from_numpy(noise(f"{tag}/{name}", shape)) for name, shape in shapes.items()}
    return x["audio"], x["visual"], x["words"][:, 0], x["question"][:, 0], x["neg_audio"], x["neg_visual"]


@pytest.mark.parametrize("number", [0, 1])
def test_equals_the_released_implementation(golden, released_weights, number):
    case = golden["cases"][number]
    model = AVMaster.load_released(released_weights).eval().requires_grad_(number == 0)
    with torch.no_grad():
        out = model(batch_of(*golden_inputs(case)))
    for name in ("fused", "audio", "visual"):
        assert far(getattr(out, name), case[f"logits_{name}"]) < 1e-5
    assert far(out.contrastive_loss, case["contrastive_loss"]) < 1e-5
    assert far(out.focus_visual.mean(-1), case["focus_visual_mean"]) < 1e-5
    assert far(out.focus_audio.mean(-1), case["focus_audio_mean"]) < 1e-5
    assert model.scores(out).argmax(1).tolist() == case["argmax"]


def test_released_state_dict_comes_back(released_weights):
    back = AVMaster.load_released(released_weights).released_state_dict()
    assert list(back) == list(released_weights)
    assert all(torch.equal(back[name], tensor) for name, tensor in released_weights.items())


@settings(max_examples=20, deadline=None)
@given(
    st.tuples(*[st.integers(1, 4)] * 8),
    st.sampled_from([torch.float16, torch.float32, torch.float64]),
    st.booleans(),
    st.integers(0, 9999),
)
def test_any_released_state_dict_comes_back(sizes, dtype, prefixed, seed):
    """Of any sizes and type, bit by bit, with what no output depends on; and what does not fit is named."""
    names = ("width", "focus_width", "audio_template", "visual_template", "num_answers", *DIMS)
    model = av_master(heads=1, **dict(zip(names, sizes, strict=True)))
    generator = torch.Generator().manual_seed(seed)
    weights = {
        name: torch.randn(tensor.shape, generator=generator).to(dtype)
        for name, tensor in model.released_state_dict().items()
    }
    given = {f"module.{name}" if prefixed else name: tensor for name, tensor in weights.items()}
    loaded = AVMaster.load_released(given, heads=1)
    assert {name: p.shape for name, p in loaded.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    back = loaded.released_state_dict()
    assert list(back) == list(weights)
    assert all(back[name].dtype == dtype and torch.equal(back[name], weights[name]) for name in weights)
    name = sorted(weights.keys() - {"bisa_v.weight", "bias_a.weight"})[seed % (len(weights) - 2)]  # of any length
    longer = weights | {name: torch.cat([weights[name], weights[name][:1]])}
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}: |: expected shape"):  # others are sizes of the rest
        AVMaster.load_released(longer, heads=1)
    with pytest.raises(ValueError, match=re.escape(f"lacks {name}")):
        AVMaster.load_released({key: x for key, x in weights.items() if key != name}, heads=1)
    assert same_random_numbers(model.released_state_dict)


def same_random_numbers(call):
    """Whether those that follow a call are those that would have followed without it."""
    state = torch.get_rng_state()
    call()
    return torch.equal(torch.get_rng_state(), state)


def test_a_new_model_gives_a_complete_released_state_dict(golden):
    back = av_master().released_state_dict()
    assert {name: list(tensor.shape) for name, tensor in back.items()} == golden["state_dict"]
    assert all(tensor.isfinite().all() for tensor in back.values())


def expected_deviation(name, shapes):
    """The standard deviation at which the release starts a tensor, by its layer's type. A uniform distribution within
    ±bound has the deviation bound/√3.

    nn.Linear: weight and bias within ±1/√in. nn.LayerNorm: constants. nn.Embedding: N(0, 1). nn.MultiheadAttention:
    the packed 3D×D matrix Xavier-uniform, within ±√(6 / (in + out)); out_proj as nn.Linear; biases 0. The focus
    capture then makes each of its tensors with more than one dimension Xavier-uniform. Plain parameters: b and bo_…
    are ones, class and positional embeddings N(0, 1/D). BERT's layers are nn.Linear and nn.LayerNorm, the bias of
    their head 0; there the release has no initialiser of its own, so that PyTorch's default is expected.
    """
    layer, _, kind = name.rpartition(".")
    shape, width = shapes[name], shapes["fc_q.bias"][0]
    if kind in ("class_embedding", "positional_embedding"):
        return width**-0.5
    if layer in ("bisa_v", "bias_a"):
        return 1.0
    if "norm" in layer.lower() or kind in ("bo_v", "bo_a", "b") or name.endswith(("head.bias", "in_proj_bias")):
        return 0.0
    if name.endswith("out_proj.bias"):
        return 0.0
    if kind == "in_proj_weight" or (len(shape) > 1 and "focus_capture" in name):
        return (6 / (shape[0] + shape[1]) / 3) ** 0.5
    return (3 * shapes[f"{layer}.weight"][1]) ** -0.5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_new_model_starts_as_the_released_one(seed):
    """Packed projections row block by row block, since a part that starts too large hides in the whole."""
    torch.manual_seed(seed)
    tensors = av_master(width=96, focus_width=64).released_state_dict()
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        expected = expected_deviation(name, shapes)
        for block in tensor.chunk(3) if "in_proj" in name else (tensor,):
            if not expected:
                assert block.unique().numel() == 1, name
                continue
            root = float((block.double() ** 2).mean() ** 0.5)  # the mean is 0
            spread = 4.5 * expected * (1.0 if expected == 1.0 or "embedding" in name else 0.65) / block.numel() ** 0.5
            assert abs(root - expected) < max(spread, 1e-6), (name, root, expected)


def small_model(seed, dtype, **settings):
    """A narrow model in eval mode, every parameter away from its starting value, and its released weights."""
    torch.manual_seed(seed)
    model = av_master(dropout=0.1, **settings).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, {name: tensor.requires_grad_() for name, tensor in model.released_state_dict().items()}


def random_inputs(batch, segments, words, settings, dtype):
    shapes = [(batch, segments, settings["audio_dim"]), (batch, segments, settings["visual_dim"])]
    question = [(batch, words, settings["text_dim"]), (batch, settings["text_dim"])]
    return [torch.randn(shape, dtype=dtype) for shape in (*shapes, *question, *shapes)]


sizes = st.fixed_dictionaries(
    {
        "num_answers": st.integers(2, 9),
        "audio_dim": st.integers(1, 20),
        "visual_dim": st.integers(1, 20),
        "text_dim": st.integers(1, 20),
        "width": st.sampled_from([8, 16, 32]),
        "focus_width": st.integers(1, 24),
        "heads": st.sampled_from([1, 2, 4]),
        "audio_template": st.integers(1, 9),
        "visual_template": st.integers(1, 9),
    }
)


@settings(max_examples=40, deadline=None)
@given(
    sizes=sizes,
    same_length=st.booleans(),
    batch=st.integers(1, 5),
    segments=st.integers(1, 12),
    words=st.integers(1, 10),
    missing=st.sampled_from([None, "audio", "visual"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
def test_equals_the_formulas(sizes, same_length, batch, segments, words, missing, dtype, seed):
    if same_length:
        sizes = sizes | {"audio_template": sizes["visual_template"]}
    model, weights = small_model(seed, dtype, **sizes)
    inputs = random_inputs(batch, segments, words, sizes, dtype)
    for n in {None: (), "audio": (0, 4), "visual": (1, 5)}[missing]:
        inputs[n].zero_()
    ours, plain = model(batch_of(*inputs)), reference_av_master(weights, *inputs, heads=sizes["heads"])
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    for name in OUTPUTS:
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=tolerance, atol=10 * tolerance)
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        with torch.no_grad():
            ours = model(batch_of(*inputs[:4]))
        assert ours.contrastive_loss is None
        for name in ("fused", "audio", "visual", "focus_visual", "focus_audio"):
            torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=tolerance, atol=10 * tolerance)


@settings(max_examples=15, deadline=None)
@given(
    sizes=sizes,
    videos=st.integers(1, 3).flatmap(lambda n: st.lists(st.integers(0, n - 1), min_size=1, max_size=6)),
    segments=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_questions_about_one_video_may_share_it(sizes, videos, segments, seed):
    model, weights = small_model(seed, torch.float64, **sizes)
    model.requires_grad_(False)
    count, rows = max(videos) + 1, torch.tensor(videos)
    audio, visual = random_inputs(count, segments, 5, sizes, torch.float64)[:2]
    words, sentence = random_inputs(len(videos), segments, 5, sizes, torch.float64)[2:4]
    shared = batch_of(audio, visual, words, sentence, videos=rows)
    ours = model(shared)
    plain = reference_av_master(weights, audio[rows], visual[rows], words, sentence, heads=sizes["heads"])
    for name in ("fused", "audio", "visual", "focus_visual", "focus_audio"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name), rtol=1e-10, atol=1e-9)
    alone = batch_of(audio[rows], visual[rows], words, sentence)
    torch.testing.assert_close(model.scores_by_second(shared), model.scores_by_second(alone))
    with pytest.raises(ValueError, match="videos"):
        model(batch_of(audio, visual, words, sentence, audio, visual, videos=rows))


@settings(max_examples=10, deadline=None)
@given(
    sizes=sizes,
    same_length=st.booleans(),
    batch=st.integers(1, 4),
    segments=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_gradients_equal_those_of_the_formulas(sizes, same_length, batch, segments, seed):
    if same_length:
        sizes = sizes | {"audio_template": sizes["visual_template"]}
    model, weights = small_model(seed, torch.float64, **sizes)
    inputs = random_inputs(batch, segments, 5, sizes, torch.float64)
    answers = torch.randint(sizes["num_answers"], (batch,))
    batch = batch_of(*inputs, answer=answers)
    total, parts = model.loss(model(batch), batch)
    total.backward()
    plain = reference_av_master(weights, *inputs, heads=sizes["heads"])
    expected = plain.contrastive_loss
    for logits in (plain.fused, plain.audio, plain.visual):
        expected = expected + torch.nn.functional.cross_entropy(logits, answers)
    expected.backward()
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(sum(parts.values()), total)

    ours = twin(model).to(torch.float64)
    ours.load_state_dict(
        {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
    )
    unused = AVMaster.load_released(weights, heads=sizes["heads"]).unused
    ours.unused = {name: torch.zeros_like(x) for name, x in unused.items()}
    for name, grad in ours.released_state_dict().items():
        theirs = weights[name].grad
        torch.testing.assert_close(grad, torch.zeros_like(grad) if theirs is None else theirs, rtol=1e-8, atol=1e-9)


def test_float32_at_a_size_for_the_faster_library():
    """Wide enough for oneDNN's products, more samples than are fused at once: outputs and gradients as in float64."""
    sizes = {"num_answers": 5, "audio_dim": 16, "visual_dim": 288, "text_dim": 288, "width": 288, "focus_width": 240}
    model, _ = small_model(0, torch.float32, **sizes, heads=4, audio_template=3, visual_template=3)
    exact = twin(model).double().eval()
    exact.load_state_dict(model.state_dict())
    inputs, answers = random_inputs(18, 4, 5, sizes, torch.float32), torch.arange(18) % 5
    batch, double = batch_of(*inputs, answer=answers), batch_of(*(x.double() for x in inputs), answer=answers)
    assert by_onednn(torch.zeros(1), model.focus.inner.weight) == HAS_ONEDNN

    found, expected = model(batch), exact(double)
    for name in OUTPUTS:
        assert far(getattr(found, name), getattr(expected, name).detach()) < 1e-5
    model.loss(found, batch)[0].backward()
    exact.loss(expected, double)[0].backward()
    for (name, ours), theirs in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert (ours.grad - theirs.grad).abs().max() < 1e-4 * theirs.grad.abs().max() + 1e-6, name
    for frozen in (False, True):
        with torch.no_grad():
            assert far(model.requires_grad_(not frozen)(batch).fused, expected.fused.detach()) < 1e-5
    model.requires_grad_(True).train()
    model.loss(model(batch), batch)[0].backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@settings(max_examples=15, deadline=None)
@given(
    sizes=sizes,
    same_length=st.booleans(),
    batch=st.integers(1, 4),
    segments=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_plain_arithmetic_gives_the_same_outputs_and_gradients(sizes, same_length, batch, segments, seed):
    if same_length:
        sizes = sizes | {"audio_template": sizes["visual_template"]}
    model, _ = small_model(seed, torch.float64, **sizes)
    answers = torch.randint(sizes["num_answers"], (batch,))
    assert_fast_equals_plain(
        model, batch_of(*random_inputs(batch, segments, 5, sizes, torch.float64), answer=answers), 1e-9
    )


def test_plain_arithmetic_at_a_size_for_the_faster_library():
    sizes = {"num_answers": 5, "audio_dim": 16, "visual_dim": 288, "text_dim": 288, "width": 288, "focus_width": 240}
    model, _ = small_model(0, torch.float32, **sizes, heads=4)
    batch = batch_of(*random_inputs(18, 4, 5, sizes, torch.float32), answer=torch.arange(18) % 5)
    assert by_onednn(torch.zeros(1), model.focus.inner.weight) == HAS_ONEDNN
    assert_fast_equals_plain(model, batch, 1e-5)
    with fast.switched(False):
        assert not by_onednn(torch.zeros(1), model.focus.inner.weight)


def assert_fast_equals_plain(model, batch, tolerance):
    """Relative to the largest value of an output and of a gradient."""
    results = {}
    for on in (True, False):
        model.zero_grad()
        with fast.switched(on):
            out = model(batch)
            model.loss(out, batch)[0].backward()
            model.requires_grad_(False)
            with torch.no_grad():
                frozen, steps = model(batch), model.scores_by_second(batch)
            model.requires_grad_(True)
        results[on] = {
            **{name: getattr(out, name).detach() for name in OUTPUTS},
            **{f"frozen {name}": getattr(frozen, name) for name in OUTPUTS},
            **{f"gradient of {name}": p.grad.clone() for name, p in model.named_parameters()},
            "by second": steps,
        }
    for name, value in results[True].items():
        plain = results[False][name]
        assert (value - plain).abs().max() <= tolerance * max(plain.abs().max(), 1.0), name


def test_the_comparison_command_prints_both_sides(capsys, monkeypatch):
    assert compare([]) == 0
    assert "focus_audio" in capsys.readouterr().out
    monkeypatch.setattr("pipeline.models.av_master.model.mix_rows", lambda x: 1.0001 * x)
    assert compare([]) == 1
