"""AVST against the released implementation's outputs and against a plain restatement of its grounding."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from models import golden as g

from pipeline.models import complexity, fast
from pipeline.models.avst.model import AVST
from pipeline.models.base import Batch


@pytest.fixture(scope="module")
def golden():
    return g.read("avst")


@pytest.fixture(scope="module")
def released_weights(golden):
    return g.weights(golden)


def batch_of(case):
    b, t, tag = case["B"], case["T"], case["tag"]
    maps = [g.noise(f"{tag}/visual_{kind}", (b, t, 512, 14, 14)) for kind in ("posi", "nega")]
    if tag.endswith("_relu"):
        maps = [x.relu() for x in maps]
    features = {"audio": g.noise(f"{tag}/audio", (b, t, 128)), "map": maps[0]}
    tokens = torch.tensor(case["question_tokens"])
    return Batch(features, {"tokens": tokens}, {"map": maps[1]}, answer=torch.zeros(b, dtype=torch.int64))


@pytest.mark.parametrize("number", range(3))
@torch.no_grad()
def test_equals_the_released_implementation(golden, released_weights, number):
    case = golden["cases"][number]
    batch = batch_of(case)
    model = AVST.load_released(released_weights).eval()
    for fast_on in (True, False):
        with fast.switched(fast_on):
            output = model(batch)
        assert g.far(output.answers, case["logits"]) < 1e-5
        assert output.answers.argmax(1).tolist() == case["argmax"]
        assert g.far(output.match[0].flatten(0, 1)[:4], case["match_posi_first4"]) < 1e-5
        assert g.far(output.match[1].flatten(0, 1)[:4], case["match_nega_first4"]) < 1e-5
    total, terms = model.loss(output, batch)
    assert float(terms["match"]) == pytest.approx(case["match_loss"], rel=1e-6)
    assert float(total) == pytest.approx(float(F.cross_entropy(output.answers, batch.answer)) + case["match_loss"] / 2)


def test_reads_every_sixth_second():
    assert [list(range(60))[seconds] for seconds in AVST.Settings().reads().values()] == 2 * [list(range(0, 60, 6))]


def test_released_state_dict_comes_back(released_weights):
    checkpoint = released_weights | {"visual_net.conv1.weight": torch.ones(3)}
    back = AVST.load_released({f"module.{name}": x for name, x in checkpoint.items()}).released_state_dict()
    assert list(back) == list(checkpoint)
    assert all(torch.equal(back[name], tensor) for name, tensor in checkpoint.items())


def test_a_new_model_starts_as_the_released_one(golden):
    torch.manual_seed(0)
    tensors = AVST.in_paper_setting().released_state_dict()
    assert {name: list(x.shape) for name, x in tensors.items()} == golden["state_dict"]
    g.starts_as(tensors, g.default_deviation)


def test_counts():
    """The reference page: 10.608 M constructed, 7.917 M can change an output; by thop 5.768 M, and 0.0611 or 0.2089
    GMACs with T = 10 or 60; with the ResNet-18 on one frame and without negatives, the 3.188 of PSTP-Net's Table 2."""
    model = AVST.in_paper_setting()
    assert round(sum(x.numel() for x in model.released_state_dict().values()) / 1e6, 3) == 10.608
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == 7.917
    for seconds, expected in ((10, 0.0611), (60, 0.2089)):
        total = complexity.field_count(AVST.in_paper_setting(seconds))
        assert round(total.parameters / 1e6, 3) == 5.768
        assert round(total.macs / 1e9, 4) == expected
    assert "5.768" in complexity.as_text(model)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(0, 99))
def test_grounding_equals_its_plain_restatement(videos, seconds, side, seed):
    """One frame at a time, on maps scaled to length 1; some positions are zero, as after a ReLU."""
    torch.manual_seed(seed)
    shapes = {"audio": (seconds, 6), "map": (seconds, 8, side, 1), "tokens": (3,)}
    model = AVST(AVST.Settings(), shapes, 5, num_tokens=7).double()
    audio = torch.randn(videos, seconds, 8, dtype=torch.float64, requires_grad=True)
    maps = torch.randn(videos, seconds, 8, side, 1, dtype=torch.float64) * (
        torch.rand(videos, seconds, 1, side, 1) > 0.2
    )
    ours = model.attend(audio, maps)
    direction = torch.randn_like(ours)
    plain = []
    for a, m in zip(audio.flatten(0, 1), maps.flatten(0, 1).flatten(2), strict=True):
        unit = F.normalize(m, dim=0)
        weights = (unit.T @ F.normalize(a, dim=0)).softmax(0)
        pooled = torch.stack([unit[:, s] * weights[s] for s in range(side)]).sum(0)
        plain.append(model.ground(torch.cat([m.mean(1), pooled]).tanh()))
    plain = torch.stack(plain).view_as(ours)
    torch.testing.assert_close(ours, plain)
    grads = [torch.autograd.grad((out * direction).sum(), [audio, *model.ground.parameters()]) for out in (ours, plain)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def small(**choices):
    shapes = {"audio": (4, 6), "map": (4, 8, 2, 2), "tokens": (3,)}
    return AVST(AVST.Settings.from_dict({"dropout": 0.0} | choices), shapes, 5, num_tokens=7)


def random_batch(size):
    features, negatives = ({"audio": torch.randn(size, 4, 6), "map": torch.randn(size, 4, 8, 2, 2)} for _ in range(2))
    return Batch(features, {"tokens": torch.randint(7, (size, 3))}, negatives, answer=torch.randint(5, (size,)))


def test_the_match_stage_trains_the_grounding_alone():
    torch.manual_seed(0)
    model, batch = small(stage="match"), random_batch(3)
    loss, terms = model.loss(model(batch), batch)
    assert list(terms) == ["match"] and model.needs_negatives
    loss.backward()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {"fc_audio1", "fc_audio2", "ground", "match"}
    assert not small(match_weight=0.0).needs_negatives


def test_the_match_is_learned():
    """A second's map has its own audio's direction, the negative's another; the match loss falls far below ln 2."""
    torch.manual_seed(0)
    model = small(stage="match")
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    losses = []
    for _ in range(60):
        batch = random_batch(16)
        signs = torch.randn(16, 4, 1).sign()
        batch.features["audio"] = signs * torch.ones(6)
        batch.features["map"] = (signs * torch.ones(8))[..., None, None].expand(-1, -1, -1, 2, 2)
        batch.negatives["map"] = -batch.features["map"]
        loss, _ = model.loss(model(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] > 0.6 and losses[-1] < 0.1
