"""PSTP-Net against the released implementation's outputs, the paper's Table 3, and a plain restatement."""

import json

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import golden as g
from torch import nn

from pipeline.ablations import MANIFESTS
from pipeline.models import complexity, fast
from pipeline.models.base import Batch
from pipeline.models.pstp_net.model import RELEASED, PSTPNet


@pytest.fixture(scope="module")
def golden():
    return g.read("pstp_net")


@pytest.fixture(scope="module")
def released_weights(golden):
    return g.weights(golden)


def batch_of(case):
    b, t, tag = case["B"], case["T"], case["tag"]
    shapes = {"audio": (b, t, 128), "visual": (b, t, 512), "patch": (b, t, 49, 512)}
    features = {name: g.noise(f"{tag}/{name}", shape) for name, shape in shapes.items()}
    words, question = g.noise(f"{tag}/words", (b, 1, 77, 512))[:, 0], g.noise(f"{tag}/question", (b, 1, 512))[:, 0]
    return Batch(features, {"words": words, "sentence": question})


def sizes(case):
    names = {"segs": "segments", "top_k": "top_k", "top_m": "top_m"}
    return {names[name]: value for name, value in case["arguments"].items()}


@pytest.mark.parametrize("fast_on", [True, False])
@pytest.mark.parametrize("variant", ["released", "concat_all"])
@pytest.mark.parametrize("number", range(3))
@torch.no_grad()
def test_equals_the_released_implementation(golden, released_weights, number, variant, fast_on):
    case, batch = golden["cases"][number], batch_of(golden["cases"][number])
    model = (
        PSTPNet.load_released(released_weights, variant=variant, **sizes(case)).eval().requires_grad_(not fast_on)
    )  # frozen weights are multiplied beforehand
    with fast.switched(fast_on):
        logits = model(batch)
    assert g.far(logits, case[variant]["logits"]) < 1e-5
    assert logits.argmax(1).tolist() == case[variant]["argmax"]


@pytest.mark.parametrize("number", range(3))
@torch.no_grad()
def test_selects_what_the_release_selects(golden, released_weights, number, monkeypatch):
    case, batch = golden["cases"][number], batch_of(golden["cases"][number])
    model = PSTPNet.load_released(released_weights, variant="concat_all", **sizes(case)).eval()
    seen = {}
    for name in ("select_segments", "select_patches"):
        module = getattr(model, name)
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.update({name: output}))
        module.attention.weights = (
            lambda x, memory, attention=module.attention, name=name: seen.setdefault(
                f"{name} weights", type(attention).weights(attention, x, memory)
            )
        )  # fmt: skip
    model(batch)
    theirs = case["selection"]
    assert g.far(seen["select_segments weights"][:, 0], theirs["temporal_weights"]) < 1e-5
    assert seen["select_segments"].tolist() == theirs["top_k_segments"]
    assert seen["select_patches"][0, 0].tolist() == theirs["top_m_patches_sample0_frame0"]
    assert int(seen["select_patches"][0, 0, -1]) == theirs["patch_used"]


@pytest.mark.parametrize("variant", ["released", "concat_all", "paper"])
def test_released_state_dict_comes_back(released_weights, variant):
    checkpoint = {f"module.{name}": x for name, x in released_weights.items()}
    back = PSTPNet.load_released(checkpoint, variant=variant).released_state_dict()
    assert list(back) == list(released_weights)
    assert all(torch.equal(back[name], tensor) for name, tensor in released_weights.items())


@pytest.mark.parametrize("variant", ["released", "concat_all", "paper"])
def test_a_new_model_starts_as_the_released_one(golden, variant):
    torch.manual_seed(0)
    tensors = PSTPNet.in_paper_setting(variant=variant).released_state_dict()
    assert {name: list(x.shape) for name, x in tensors.items()} == golden["state_dict"]
    g.starts_as(tensors, g.default_deviation)


def counted(patches, **choices):
    shapes = PSTPNet.Settings.features | PSTPNet.Settings.texts | {"patch": (60, patches, 512)}
    model = PSTPNet(PSTPNet.Settings.from_dict(RELEASED | choices), shapes, 42)
    total = complexity.field_count(model)
    return round(total.macs / 1e9, 4), round(total.parameters / 1e6, 4)


def test_counts_of_table_3():
    """Paper: 0.144/1.403, 1.945/3.250, 0.955/3.508, 1.212/3.770, 1.096/3.769, 1.223/4.297 (GMACs / M parameters), of
    which all but 0.955 and 3.250 follow from the released code, with CLS among the patches."""
    grid = pd.read_csv(MANIFESTS / "pstp_net_tables.csv")
    ours = [counted(50, variant="concat_all", **json.loads(row)) for row in grid["settings"]]
    assert ours == [(0.1442, 1.4029), (1.9449, 3.2456), (0.2990, 3.5078), (1.2122, 3.7704), (1.0959, 3.7694),
                    (1.2228, 4.2967)]  # fmt: skip
    assert counted(50, variant="released") == (1.0114, 4.2967)
    assert counted(49, variant="released") == (0.9957, 4.2967)


def test_own_parameters():
    """The reference page: 2.454 M parameters can change the released answer, and 16.383 M are constructed."""
    model = PSTPNet.in_paper_setting(**RELEASED)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == 2.454
    assert round(sum(x.numel() for x in model.released_state_dict().values()) / 1e6, 3) == 16.383
    assert complexity.executed(model).macs < 1.913e9
    assert complexity.executed(PSTPNet.in_paper_setting(**RELEASED | {"variant": "concat_all"})).macs < 2.868e9
    assert "4.297" in complexity.as_text(model)


SMALL = {"width": 8, "segments": 3, "top_k": 2, "top_m": 3, "dropout": 0.0}


def small(seconds=8, **choices):
    shapes = {"audio": (seconds, 6), "visual": (seconds, 5), "patch": (seconds, 7, 5), "words": (4, 5)}
    return PSTPNet(PSTPNet.Settings.from_dict(SMALL | choices), shapes | {"sentence": (5,)}, 5).double()


def random_batch(size, seconds=8):
    shapes = {"audio": (seconds, 6), "visual": (seconds, 5), "patch": (seconds, 7, 5), "words": (4, 5)}
    x = {name: torch.randn(size, *shape).double() for name, shape in (shapes | {"sentence": (5,)}).items()}
    texts = {name: x.pop(name) for name in ("words", "sentence")}
    return Batch(x, texts, answer=torch.randint(5, (size,)))


def attend(module, x, memory):
    """PyTorch's attention with a module's weights: values and weights, with the graph to the parameters."""
    theirs = nn.MultiheadAttention(x.shape[-1], module.heads, batch_first=True).to(x.dtype)
    return torch.func.functional_call(theirs, dict(module.named_parameters()), (x[None], memory[None], memory[None]))


def plain_layer(layer, x, y=None):
    """One sample: x N,D and y M,D."""
    z = x + attend(layer.own, x, x)[0][0] + (0 if y is None else attend(layer.cross, x, y)[0][0])
    return plain_feed_forward(layer.feed_forward, layer.norm(z))


def plain_feed_forward(layer, x):
    return layer.norm(x + layer.outer(F.relu(layer.inner(x))))


def best(weights, count):
    order = sorted(range(len(weights)), key=lambda n: -weights[n].item())
    return sorted(order[:count])


def plain(model, batch):
    """The variants equation by equation: one sample and one frame at a time, all tokens written out."""
    s, out, last_patch = model.settings, [], None
    paper, has = s.variant == "paper", s.has
    for b in range(len(batch.texts["sentence"])):
        a, v = (
            layer(batch.features[name][b]) for layer, name in ((model.fc_audio, "audio"), (model.fc_visual, "visual"))
        )
        q, tokens, seconds = model.fc_sentence(batch.texts["sentence"][b]), [a, v], list(range(len(a)))
        updated = v
        if has("tssm"):
            length, joint, updated = len(a) // s.segments, [], []
            for k in range(len(a) // length):
                x, y = a[k * length : (k + 1) * length], v[k * length : (k + 1) * length]
                if paper:
                    x, y = plain_layer(model.exchange, x, y), plain_layer(model.exchange, y, x)
                joint.append(model.select_segments.merge(torch.cat([x.mean(0), y.mean(0)]).tanh()))
                updated.append(y)
            updated = torch.cat(updated)
            weights = attend(model.select_segments.attention, q[None], torch.stack(joint))[1][0, 0]
            seconds = [k * length + i for k in best(weights, s.top_k) for i in range(length)]
            tokens += [a[seconds], updated[seconds]]
        for t in seconds if s.variant != "released" else []:
            patch = updated[t : t + 1]
            if has("srsm"):
                p = model.fc_patch(batch.features["patch"][b, t])
                chosen = best(attend(model.select_patches.attention, q[None], p)[1][0, 0], s.top_m)
                last_patch = chosen[-1] if last_patch is None else last_patch
                patch = p[chosen] if paper else torch.stack([p[last_patch]] * s.top_m)
                tokens.append(patch)
            if has("avam"):
                attention = model.guide.attention
                guided = attend(attention, a[t : t + 1], patch)[0][0]
                if paper:
                    guided = plain_terms(attention, a[t], patch)
                tokens.append(plain_feed_forward(model.guide.feed_forward, guided))
        if has("lgpm"):
            x, y = model.perceive_globally, (a, v)
            tokens += [plain_layer(x, a, v), plain_layer(x, v, a)] if paper else y
        if model.fc_words is not None:
            tokens.append(model.fc_words(batch.texts["words"][b]))
        x = torch.cat(tokens)
        x = F.relu(x) if model.fuse is None else plain_fuse(model.fuse, x)
        out.append(model.answers((x.mean(0) * q).tanh()))
    return torch.stack(out)


def plain_fuse(layer, x):
    return plain_feed_forward(layer.feed_forward, layer.norm(x + attend(layer.own, x, x)[0][0]))


def plain_terms(attention, query, patch):
    """The attention's output without its sum over the patches: one row for each patch."""
    width, rows = len(query), []
    wq, wk, wv = attention.in_proj_weight.split(width)
    bq, bk, bv = attention.in_proj_bias.split(width)
    size = width // attention.heads
    for n in range(len(patch)):
        row = []
        for h in range(attention.heads):
            part = slice(h * size, (h + 1) * size)
            scores = (patch @ wk[part].T + bk[part]) @ (wq[part] @ query + bq[part]) / size**0.5
            row.append(scores.softmax(0)[n] * (wv[part] @ patch[n] + bv[part]))
        rows.append(attention.out_proj(torch.cat(row)))
    return torch.stack(rows)


COMPONENTS = ("tssm", "srsm", "avam", "lgpm")


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from(["paper", "concat_all", "released"]),
    st.sets(st.sampled_from(COMPONENTS)),
    st.integers(1, 3),
    st.integers(3, 8),
    st.sampled_from(["attention", "relu"]),
    st.integers(0, 99),
)
def test_equals_its_plain_restatement(variant, without, size, seconds, fusion, seed):
    """Outputs in evaluation, with equal tokens merged and not, and gradients in training."""
    torch.manual_seed(seed)
    choices = {"variant": variant}
    choices |= {} if variant == "released" else {"without": sorted(without), "fusion": fusion}
    model, batch = small(seconds, **choices), random_batch(size, seconds)
    expected = plain(model, batch)
    weights = list(model.parameters())
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), weights, allow_unused=True) for out in (model(batch), expected)
    )
    for parameter, own, other in zip(weights, ours, theirs, strict=True):
        zero = torch.zeros_like(parameter)  # what is chosen by rank has no gradient
        torch.testing.assert_close(zero if own is None else own, zero if other is None else other)
    model.eval()
    for fast_on in (True, False):
        with fast.switched(fast_on), torch.no_grad():
            torch.testing.assert_close(model(batch), expected)


@pytest.mark.parametrize(("variant", "alone"), [("paper", True), ("released", True), ("concat_all", False)])
@torch.no_grad()
def test_batch_mates_matter_in_concat_all_only(variant, alone):
    torch.manual_seed(0)
    model, batch = small(variant=variant).eval(), random_batch(6)
    together = model(batch)
    single = torch.cat([
        model(Batch({k: x[[b]] for k, x in batch.features.items()}, {k: x[[b]] for k, x in batch.texts.items()}))
        for b in range(6)
    ])  # fmt: skip
    torch.testing.assert_close(together[0], single[0])
    assert torch.allclose(together, single) == alone


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"segments": 9}, "segments: 8 seconds cannot be cut into 9"),
        ({"top_k": 4}, "top_k: 4 of 3 segments"),
        ({"top_m": 8}, "top_m: 8 of 7 patches"),
        ({"variant": "released", "without": ["tssm"]}, "without, fusion: the released forward"),
    ],
)
def test_impossible_settings_are_named(choices, message):
    with pytest.raises(ValueError, match=message):
        small(**choices)
