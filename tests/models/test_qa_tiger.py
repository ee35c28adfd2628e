"""QA-TIGER against the released implementation's outputs and against a plain restatement of its parts."""

import pytest
import torch
import torch.nn.functional as F
from models import golden as g

from pipeline.models import complexity, fast
from pipeline.models.base import Batch
from pipeline.models.qa_tiger.model import QATiger


@pytest.fixture(scope="module")
def golden():
    return g.read("qa_tiger")


@pytest.fixture(scope="module")
def released_weights(golden):
    return g.weights(golden)


def batch_of(case):
    b, t, tag = case["B"], case["T"], case["tag"]
    x = {name: g.noise(f"{tag}/{name}", shape)
         for name, shape in {"audio": (b, t, 128), "video": (b, t, 768), "patch": (b, t, 14, 1024),
                             "quest": (b, 768), "words": (b, 77, 768)}.items()}  # fmt: skip
    features = {"audio": x["audio"], "visual": x["video"], "patch": x["patch"]}
    return Batch(features, {"words_unprojected": x["words"], "sentence": x["quest"]})


def take(batch, rows):
    return Batch({k: x[rows] for k, x in batch.features.items()}, {k: x[rows] for k, x in batch.texts.items()})


@pytest.mark.parametrize("fast_on", [True, False])
@pytest.mark.parametrize("number", range(3))
@torch.no_grad()
def test_equals_the_released_implementation(golden, released_weights, number, fast_on):
    """Also with all samples in one batch, the corrected variant equals the released one with each sample alone."""
    case, batch = golden["cases"][number], batch_of(golden["cases"][number])
    top_k = case["arguments"].get("topK", 7)
    with fast.switched(fast_on):
        model = QATiger.load_released(released_weights, top_k=top_k).eval()
        assert model.settings.variant == "released"
        logits = model(batch)
        assert g.far(logits, case["logits"]) < 1e-5
        assert logits.argmax(1).tolist() == case["argmax"]
        corrected = QATiger.load_released(released_weights, top_k=top_k, variant="corrected").eval()
        alone = case["logits_one_sample_at_a_time"]
        assert g.far(corrected(batch), alone) < 1e-5
        assert g.far(torch.cat([model(take(batch, [b])) for b in range(case["B"])]), alone) < 1e-5
    assert g.far(logits, alone) > 0.01  # batch mates matter


@torch.no_grad()
def test_chooses_the_released_experts(golden, released_weights, monkeypatch):
    case = golden["cases"][2]
    model = QATiger.load_released(released_weights, top_k=3, variant="corrected").eval()
    for name in ("audio", "visual"):
        experts, seen = getattr(model, f"{name}_experts"), {}

        def spy(probabilities, curves, experts=experts, seen=seen):
            seen.update(probabilities=probabilities, curves=curves)
            return type(experts).weights(experts, probabilities, curves)

        monkeypatch.setattr(experts, "weights", spy)
        model(batch_of(case))
        theirs = case["selection"][name]
        assert g.far(seen["probabilities"], theirs["router_probabilities"]) < 1e-5
        assert seen["probabilities"].topk(3).indices.tolist() == theirs["experts"]
        curves = seen["curves"].gather(2, torch.tensor(theirs["experts"])[:, None].expand(-1, case["T"], -1)).mT
        assert g.far(curves.flatten()[:8], theirs["gaussian_weights"]["first8"]) < 1e-5
        assert float(curves.mean()) == pytest.approx(theirs["gaussian_weights"]["mean"], rel=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_with_the_released_text_encoder(golden, released_weights):
    """Words before the text projection, and the end-of-text row after it."""
    open_clip = pytest.importorskip("open_clip")
    case = golden["case_with_text_encoder"]
    encoder = open_clip.create_model("ViT-L-14-336-quickgelu", pretrained=None)
    theirs = g.fill(case["text_state_dict"], case["text_ones"])
    del encoder.visual
    encoder.load_state_dict({name.removeprefix("quest_encoder."): x for name, x in theirs.items()})
    encoder.eval()
    tokens = torch.tensor(case["tokens"])
    x = encoder.token_embedding(tokens) + encoder.positional_embedding
    words = encoder.ln_final(encoder.transformer(x, attn_mask=encoder.attn_mask))
    sentence = words[torch.arange(2), tokens.argmax(-1)] @ encoder.text_projection
    batch = batch_of(case)
    batch.texts = {"words_unprojected": words, "sentence": sentence}
    logits = QATiger.load_released(released_weights | theirs).eval()(batch)
    assert g.far(logits, case["logits"]) < 1e-5
    assert logits.argmax(1).tolist() == case["argmax"]


def test_released_state_dict_comes_back(released_weights):
    checkpoint = released_weights | {"quest_encoder.positional_embedding": torch.ones(77, 768)}
    back = QATiger.load_released({f"module.{name}": x for name, x in checkpoint.items()}).released_state_dict()
    assert list(back) == list(checkpoint)
    assert all(torch.equal(back[name], tensor) for name, tensor in checkpoint.items())


def test_a_wrong_state_dict_is_named(released_weights):
    with pytest.raises(ValueError, match=r"lacks head.weight"):
        QATiger.load_released({k: x for k, x in released_weights.items() if k != "head.weight"})
    with pytest.raises(ValueError, match=r"has unknown tail.weight"):
        QATiger.load_released(released_weights | {"tail.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"crs_attn.linear1.weight: expected shape \(512, 512\)"):
        QATiger.load_released(released_weights | {"crs_attn.linear1.weight": torch.ones(512, 5)})


def expected_deviation(name, shapes):
    """Kaiming-normal, √(2 / in), and bias 0, but for attention, which PyTorch initialises."""
    layer, _, kind = name.rpartition(".")
    if "norm" in layer or "in_proj" in name or layer.endswith("out_proj"):
        return g.default_deviation(name, shapes)
    return 0.0 if kind == "bias" else (2 / shapes[name][1]) ** 0.5


def test_a_new_model_starts_as_the_released_one(golden):
    torch.manual_seed(0)
    tensors = QATiger.in_paper_setting().released_state_dict()
    assert {name: list(x.shape) for name, x in tensors.items()} == golden["state_dict"]
    g.starts_as(tensors, expected_deviation)


def test_counts():
    """The reference page: 14.960 M parameters; by thop 6.555 M and 0.925 GMACs; with 10 experts 16.547 M. With the
    text encoder and 768-wide patches thop gives the 63.09 M of AV-Master's table."""
    model = QATiger.in_paper_setting()
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == 14.960
    ten = QATiger.in_paper_setting(experts=10)
    assert round(sum(p.numel() for p in ten.parameters()) / 1e6, 3) == 16.547
    total = complexity.field_count(model)
    assert (round(total.parameters / 1e6, 3), round(total.macs / 1e9, 3)) == (6.555, 0.925)
    assert complexity.executed(model).macs < 2.809e9
    assert "6.555" in complexity.as_text(model)


def plain_experts(experts, query, x, streams):
    """The mixture, one sample, second and expert at a time."""
    module, batch, seconds = experts.question, len(x), x.shape[1]
    attention = torch.nn.MultiheadAttention(x.shape[-1], module.heads, batch_first=True).to(x.dtype)
    own = dict(module.named_parameters())
    seen = torch.func.functional_call(attention, own, (query[:, None], x, x))[0][:, 0]
    count, probabilities = len(experts.experts), experts.router(seen).softmax(-1)
    predicted = experts.gaussians(seen)
    lists = [probabilities[b].argsort(descending=True)[: experts.top_k] for b in range(batch)]
    outputs = [torch.zeros_like(x[:, 0]) for _ in streams]
    for b in range(batch):
        share = probabilities[b, lists[b]] / probabilities[b, lists[b]].sum()
        for j, own in enumerate(lists[b]):
            shift, width = predicted[b, 2 * own].tanh() / (2 * count), predicted[b, 2 * own + 1].sigmoid()
            centre = ((2 * own + 1) / (2 * count) + shift).clamp(0, 1)
            normal = torch.distributions.Normal(centre, width.clamp(min=0.09) / 9)
            density = normal.log_prob(torch.linspace(0, 1, seconds, dtype=x.dtype)).exp()
            for t in range(seconds):
                expert = lists[(b * seconds + t) % batch][j] if experts.mixes else own
                for out, stream in zip(outputs, streams, strict=True):
                    out[b] = out[b] + share[j] * density[t] / density.max() * experts.experts[expert](stream[b, t])
    return [norm(out) for norm, out in zip(experts.norms, outputs, strict=True)]


@pytest.mark.parametrize("variant", ["released", "corrected"])
@pytest.mark.parametrize(("batch", "seconds", "top_k"), [(1, 6, 3), (3, 7, 2), (2, 12, 4), (5, 6, 1)])
def test_experts_equal_their_plain_restatement(variant, batch, seconds, top_k):
    torch.manual_seed(batch)
    small = {"width": 16, "heads": 2, "experts": 4, "top_k": top_k, "dropout": 0.0, "variant": variant}
    model = QATiger.in_paper_setting(seconds, 5, **small).double()
    query, x, y = (torch.randn(*shape, 16, dtype=torch.float64) for shape in ((batch,), *2 * ((batch, seconds),)))
    ours = model.visual_experts(query, x, [x, y])
    plain = plain_experts(model.visual_experts, query, x, [x, y])
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b)
    weights = list(model.visual_experts.parameters())
    direction = torch.randn_like(ours[0])
    grads = [torch.autograd.grad(sum((out * direction).sum() for out in outs), weights, allow_unused=True)
             for outs in (ours, plain)]  # fmt: skip
    for p, a, b in zip(weights, *grads, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(p) if b is None else b)


@pytest.mark.parametrize("seconds", [1, 2, 3, 4])
def test_few_seconds_give_finite_answers(seconds):
    """A narrow Gaussian between two seconds underflows at both."""
    torch.manual_seed(0)
    model = QATiger.in_paper_setting(seconds, 5, width=16)
    with torch.no_grad():
        for experts in (model.audio_experts, model.visual_experts):
            experts.gaussians.bias.fill_(-50.0)
    batch = take_random(model, 2)
    logits = model(batch)
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert logits.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters())


def take_random(model, size):
    texts = {name: torch.randn(size, *model.shapes[name]) for name in model.Settings.texts}
    return Batch({name: torch.randn(size, *model.shapes[name]) for name in model.Settings.features}, texts)
