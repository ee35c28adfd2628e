"""Multiple choice: a question's own options, scored by their text features."""

import torch

from pipeline.models.base import Batch, example_batch
from pipeline.models.choices import MultipleChoice
from pipeline.models.pooled import Pooled, PooledSettings

SHAPES = {"audio": (4, 8), "visual": (4, 8), "sentence": (16,)}


def model():
    torch.manual_seed(0)
    return MultipleChoice(Pooled(PooledSettings(width=8), SHAPES, 16), 4)


def batch(size=6):
    torch.manual_seed(1)
    made = example_batch(model().model, size)
    features = {name: torch.randn_like(x) for name, x in made.features.items()}
    texts = {name: torch.randn_like(x) for name, x in made.texts.items()}
    choices = torch.randn(size, 4, 16)
    choices[0, 2:] = 0  # the first question has two options
    return Batch(features, texts, choices=choices, answer=torch.arange(size) % 2)


def test_the_best_option_is_the_one_that_the_models_output_agrees_with_most():
    two_parts, given = model().eval(), batch()
    output = two_parts(given).detach()
    query = two_parts.model.scores(two_parts.model(given)).detach()
    for b in range(6):
        similar = [torch.cosine_similarity(query[b], option, dim=0) for option in given.choices[b] if option.any()]
        assert two_parts.scores(output)[b].argmax() == max(range(len(similar)), key=lambda n: float(similar[n]))
    assert torch.isneginf(output[0, 2:]).all() and torch.isfinite(output[1:]).all()


def test_the_order_of_options_moves_their_scores_and_nothing_else():
    given, order = batch(), torch.tensor([2, 0, 3, 1])
    whole = model().eval()(given)
    given.choices = given.choices[:, order]
    torch.testing.assert_close(model().eval()(given), whole[:, order])


def test_it_learns_which_option_is_right():
    chooser, given = model().train(), batch()
    optimizer = torch.optim.Adam(chooser.parameters(), lr=0.01)
    for _ in range(200):
        loss, _ = chooser.loss(chooser(given), given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (chooser.eval()(given).argmax(-1) == given.answer).all()
