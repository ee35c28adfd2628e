"""PSTP-Net, TSPM, QA-TIGER and AVST in small: gradients by finite differences, batch mates, learning."""

import pytest
import torch
from models.building import assert_learns, filled_batch

from pipeline.models import fast, model_class
from pipeline.models.base import Batch

# Sizes of one sample, settings, and whether a sample's answer depends on the others of its batch.
VIDEO = {"audio": (6, 5), "visual": (6, 6), "patch": (6, 3, 5)}
MODELS = {
    "pstp_net": (VIDEO | {"words": (4, 5), "sentence": (5,)}, {"width": 8, "segments": 3, "top_k": 2, "top_m": 2}),
    "tspm": (VIDEO | {"sentence": (5,), "prompt": (5,)}, {"width": 8, "top_k": 2}),
    "qa_tiger": (VIDEO | {"words_unprojected": (4, 5), "sentence": (5,)}, {"width": 8, "heads": 2, "experts": 3,
                                                                         "top_k": 2}),
    "avst": ({"audio": (3, 5), "map": (3, 8, 2, 2), "tokens": (4,)}, {}),
}  # fmt: skip
VARIANTS = [
    ("pstp_net", {"variant": "paper"}, True),
    ("pstp_net", {"variant": "released"}, True),
    ("pstp_net", {"variant": "concat_all"}, False),
    ("tspm", {"variant": "paper"}, True),
    ("tspm", {"variant": "released"}, True),
    ("qa_tiger", {"variant": "corrected"}, True),
    ("qa_tiger", {"variant": "released"}, False),
    ("avst", {}, True),
]


def small(name, **choices):
    shapes, settings = MODELS[name]
    cls = model_class(name)
    tokens = {"num_tokens": 7} if "tokens" in shapes else {}
    return cls(cls.Settings.from_dict(settings | {"dropout": 0.0} | choices), shapes, 5, **tokens)


def rows(batch, chosen):
    features = {name: x[chosen] for name, x in batch.features.items()}
    return Batch(features, {name: x[chosen] for name, x in batch.texts.items()})


@pytest.mark.parametrize(("name", "choices", "independent"), VARIANTS)
@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch_mates_but_where_the_release_does(name, choices, independent):
    torch.manual_seed(1)
    model = small(name, **choices).double().eval()
    batch = filled_batch(model, 8)
    together = model.scores(model(batch))
    alone = torch.cat([model.scores(model(rows(batch, [b]))) for b in range(8)])
    assert torch.allclose(together, alone) == independent


@pytest.mark.parametrize(("name", "choices", "independent"), VARIANTS)
def test_gradients_equal_finite_differences(name, choices, independent):
    """Of the loss, along a random direction of all parameters and inputs; nothing that is chosen by rank changes over
    so small a step. With the faster arithmetic and without."""
    torch.manual_seed(2)
    model = small(name, **choices).double()
    batch = filled_batch(model, 3)
    if model.needs_negatives:
        batch.negatives = {key: torch.randn_like(x) for key, x in batch.features.items()}
    leaves = [p for place, p in model.named_parameters() if not place.startswith("select")]
    leaves += [x.requires_grad_() for x in batch.features.values() if name != "avst"]
    directions = [torch.randn_like(x) for x in leaves]

    def loss_at(step):
        with torch.no_grad():
            for x, direction in zip(leaves, directions, strict=True):
                x.add_(step * direction)
            loss = float(model.loss(model(batch), batch)[0])
            for x, direction in zip(leaves, directions, strict=True):
                x.sub_(step * direction)
        return loss

    expected = (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6
    for fast_on in (True, False):
        with fast.switched(fast_on):
            grads = torch.autograd.grad(model.loss(model(batch), batch)[0], leaves, allow_unused=True)
        total = sum((g * d).sum() for g, d in zip(grads, directions, strict=True) if g is not None)
        assert float(total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "choices", "independent"), VARIANTS)
def test_learns_what_the_features_say(name, choices, independent):
    """The answer is the sign of a shift that all of a video's features share; the question says nothing."""
    torch.manual_seed(0)
    choices = choices | ({"match_weight": 0.0} if name == "avst" else {})
    model = small(name, **choices, dropout=0.1)

    def draw(seed, size=32):
        batch = filled_batch(model, size, seed)
        batch.answer = batch.answer % 2
        for key, x in batch.features.items():
            batch.features[key] = x + (2 * batch.answer - 1).float().view(-1, *[1] * (x.dim() - 1))
        return batch

    assert_learns(model, draw, 100)
