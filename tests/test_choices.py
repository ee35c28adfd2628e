"""Multiple choice: a question's own options, scored by their text features."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_learning import config, folder  # noqa: F401

from pipeline.config import check_config
from pipeline.errors import AVQAError
from pipeline.evaluate import evaluate, load_trained
from pipeline.explain import explain
from pipeline.models import MODELS, model_class
from pipeline.models.base import Batch, example_batch
from pipeline.models.choices import MultipleChoice
from pipeline.models.pooled.config import PooledSettings
from pipeline.models.pooled.model import Pooled
from pipeline.train import predict, train

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
    scores = two_parts.scores(two_parts(given)).detach()
    query = two_parts.model.scores(two_parts.model(given)).detach()
    for b in range(6):
        similar = [torch.cosine_similarity(query[b], option, dim=0) for option in given.choices[b] if option.any()]
        assert scores[b].argmax() == max(range(len(similar)), key=lambda n: float(similar[n]))
    assert torch.isneginf(scores[0, 2:]).all() and torch.isfinite(scores[1:]).all()


def test_the_order_of_options_moves_their_scores_and_nothing_else():
    given, order = batch(), torch.tensor([2, 0, 3, 1])
    chooser = model().eval()
    whole = chooser.scores(chooser(given))
    given.choices = given.choices[:, order]
    torch.testing.assert_close(chooser.scores(chooser(given)), whole[:, order])


def test_it_learns_which_option_is_right():
    chooser, given = model().train(), batch()
    optimizer = torch.optim.Adam(chooser.parameters(), lr=0.01)
    for _ in range(200):
        loss, _ = chooser.loss(chooser(given), given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (chooser.scores(chooser.eval()(given)).argmax(-1) == given.answer).all()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_trains_on_options_with_its_own_loss(name):
    """What a model's loss compares beside the answers has the same value as with a fixed list of answers."""
    torch.manual_seed(0)
    inner = model_class(name).in_paper_setting(seconds=20, num_answers=16)
    chooser = MultipleChoice(inner, 4).train()
    given = example_batch(inner, 4)
    given.features = {name: torch.randn_like(x) for name, x in given.features.items()}
    given.texts = {name: torch.randn_like(x) if x.is_floating_point() else x + 1 for name, x in given.texts.items()}
    given.choices, given.answer = torch.randn(4, 4, 16), torch.tensor([0, 1, 1, 0])
    given.choices[0, 2:] = 0
    if chooser.needs_negatives:
        given.negatives = {name: x.flip(0) for name, x in given.features.items()}
    torch.manual_seed(1)
    loss, terms = chooser.loss(chooser(given), given)
    torch.manual_seed(1)  # the same dropout
    _, expected = inner.loss(inner(given), given)
    assert terms.keys() == expected.keys()
    for term in terms.keys() - {"answer", "fused", "audio", "visual"}:
        torch.testing.assert_close(terms[term], expected[term])
    loss.backward()
    assert torch.isfinite(loss) and all(p.grad is None or p.grad.isfinite().all() for p in chooser.parameters())
    scores = chooser.scores(chooser.eval()(given))
    assert scores.shape == (4, 4) and torch.isneginf(scores[0, 2:]).all() and torch.isfinite(scores[1:]).all()


TEXTS = ["Is it playing?", "Is it loud?"]
POOLED = {"pooled": {"architecture": "pooled", "audio": "vggish/embedding", "visual": "clip_vit_b32/cls"}}


def questions_with_options(folder):  # noqa: F811
    """The right option follows from the video; the options' order says nothing."""
    table = pd.read_parquet(folder / "questions.parquet")
    options = [TEXTS[::-1] if n % 3 else TEXTS for n in range(len(table))]
    return table.assign(choices=options, answer=[TEXTS[label] for label in table["answer_id"]])


@pytest.fixture
def with_options(config, folder):  # noqa: F811
    questions_with_options(folder).to_parquet(folder / "questions.parquet", index=False)
    return check_config(config | {"models": POOLED, "train": config["train"] | {"epochs": 20, "learning_rate": 0.01}})


def test_training_and_scores_of_a_data_set_with_options(with_options, folder):  # noqa: F811
    train(with_options, "pooled", 0, folder / "x")
    scores = evaluate(folder / "x")
    answered = pd.read_parquet(folder / "x" / "predictions.parquet")
    assert set(answered["prediction"]) <= set(TEXTS)
    assert (answered["correct"] == (answered["prediction"] == answered["answer"])).all()
    assert scores["overall"]["accuracy"] > 0.8 and set(scores["types"]["Visual"]) == {"Counting", "Location"}


def test_an_option_that_stands_twice_counts_once(with_options, folder):  # noqa: F811
    """Rounding makes the scores of two equal options differ where there are three, so that both could win."""
    table = pd.read_parquet(folder / "questions.parquet")
    table["choices"] = [[options[0], options[1], options[0]] for options in table["choices"]]
    table.to_parquet(folder / "questions.parquet", index=False)
    train(with_options, "pooled", 0, folder / "x")
    _, chooser, data = load_trained(folder / "x")
    _, scores = predict(chooser, data, "test", 4)
    assert np.isneginf(scores[:, 2]).all() and np.isfinite(scores[:, :2]).all()
    answered = evaluate(folder / "x")
    assert answered["overall"]["accuracy"] > 0.8
    assert explain(folder / "x")["contributions"]["as trained"]["overall"] == answered["overall"]


def test_other_options_train_again_although_the_right_one_has_the_same_number(with_options, folder):  # noqa: F811
    train(with_options, "pooled", 0, folder / "x")
    before = load_file(folder / "x" / "checkpoint.safetensors")
    table = pd.read_parquet(folder / "questions.parquet")
    numbers = [list(row.choices).index(row.answer) for row in table.itertuples()]
    table["choices"] = [list(options)[::-1] for options in table["choices"]]
    table["answer"] = [options[n] for options, n in zip(table["choices"], numbers, strict=True)]
    table.to_parquet(folder / "questions.parquet", index=False)
    train(with_options, "pooled", 0, folder / "x")
    after = load_file(folder / "x" / "checkpoint.safetensors")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_what_answers_among_options_depend_on(with_options, folder):  # noqa: F811
    train(with_options, "pooled", 0, folder / "x")
    found = explain(folder / "x")
    trained, *swapped = (found["contributions"][name] for name in ("as trained", "audio", "visual"))
    assert trained == {name: part for name, part in evaluate(folder / "x").items() if name in trained}
    audio, visual = (scores["overall"]["accuracy"] for scores in swapped)
    assert visual < audio == trained["overall"]["accuracy"]
    assert set(found["not_offered"]) == {"by_second", "word_attention", "preference_features"}


def test_questions_with_and_without_options_are_refused(config, folder):  # noqa: F811
    table = pd.read_parquet(folder / "questions.parquet")
    options = [["Is it playing?", "Is it loud?"] if n else None for n in range(len(table))]
    table.assign(choices=options, answer="Is it loud?").to_parquet(folder / "questions.parquet", index=False)
    with pytest.raises(AVQAError, match="has questions with options and without"):
        train(config, "av_master", 0, folder / "x")


@pytest.fixture
def chooser(config):  # noqa: F811
    return check_config(config | {"models": POOLED, "train": config["train"] | {"epochs": 2}})


def test_a_test_question_with_more_options_needs_no_training(chooser, folder):  # noqa: F811
    table = questions_with_options(folder)
    table.to_parquet(folder / "questions.parquet", index=False)
    train(chooser, "pooled", 0, folder / "x")
    evaluate(folder / "x")
    before = pd.read_parquet(folder / "x" / "predictions.parquet")
    table.at[39, "choices"] = [*table.at[39, "choices"], "Is it playing?"]
    table.to_parquet(folder / "questions.parquet", index=False)
    evaluate(folder / "x")
    after = pd.read_parquet(folder / "x" / "predictions.parquet")
    assert (after["prediction"] == before["prediction"]).all()
    table.drop(columns="choices").to_parquet(folder / "questions.parquet", index=False)
    with pytest.raises(AVQAError, match="was trained on questions with"):
        evaluate(folder / "x")


@pytest.mark.parametrize("trained_with", [True, False])
def test_a_model_for_options_does_not_answer_questions_without_and_the_reverse(
    chooser,
    folder,  # noqa: F811
    tmp_path,
    trained_with,
):
    shutil.copytree(folder, tmp_path / "other")
    place = folder if trained_with else tmp_path / "other"
    questions_with_options(folder).to_parquet(place / "questions.parquet", index=False)
    train(chooser, "pooled", 0, folder / "x")
    words = ("without", "with") if trained_with else ("with", "without")
    with pytest.raises(AVQAError, match="has questions {} options, and the model was trained on .* {};".format(*words)):
        evaluate(folder / "x", questions_of=tmp_path / "other", out=tmp_path)
