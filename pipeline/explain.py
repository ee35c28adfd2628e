"""What a trained model's answers depend on: modalities, seconds, words and the geometry of its features."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from extractors import EncoderError, encoder_class
from pipeline.accuracy import score
from pipeline.data.dataset import QuestionData
from pipeline.evaluate import accuracy_by_second, load_trained, suffix
from pipeline.models import fast
from pipeline.models.base import AVQAModel, NotOffered
from pipeline.storage.atomic import atomic
from pipeline.text import without_last_character
from pipeline.train import frozen

QUESTIONS = 1000  # at most so many of a split are answered again


def explain(
    folder: str | Path,
    split: str = "test",
    questions_of: str | Path | None = None,
    out: str | Path | None = None,
    training_data: str | Path | None = None,
) -> dict:
    """Examine the model in `folder` on a sample of a split; writes explanation.json to `out`, by default there
    (explanation-<split>.json of another split than test), and returns its content. `questions_of` and
    `training_data` as for `evaluate`.

    Parts that the model does not offer are named under `not_offered` with the reason. Raises AVQAError if the folder
    holds no trained model.
    """
    folder, out = Path(folder), Path(out or folder)
    trained, model, data = load_trained(folder, questions_of, training_data)
    data.questions = sample_questions(data.questions, split)
    size = trained["config"]["train"]["batch_size"]
    explanation = {"model": trained["model"], "seed": trained["seed"], "split": split}
    explanation |= {"questions": len(data.questions), "not_offered": {}}
    with fast.switched(trained["config"]["train"]["fast"]), torch.inference_mode(), frozen(model):
        for name, part in PARTS.items():
            try:
                explanation[name] = part(model, data, split, size)
            except (NotOffered, EncoderError) as error:
                explanation["not_offered"][name] = str(error)
    with atomic(out / f"explanation{suffix(split)}.json") as partial:
        partial.write_text(json.dumps(explanation, indent=1) + "\n", encoding="utf-8")
    return explanation


def sample_questions(questions: pd.DataFrame, split: str) -> pd.DataFrame:
    """The split's questions, at random at most QUESTIONS of them, in the table's order."""
    part = questions[questions["split"] == split]
    return part.sample(min(QUESTIONS, len(part)), random_state=0).sort_index()


def contributions(model: AVQAModel, data: QuestionData, split: str, size: int) -> dict[str, dict]:
    """Scores as trained, and with one feature at a time taken from another video of the sample.

    What is lost without a feature is what the model gets from it and from nothing else (permutation importance,
    Breiman, 2001)."""
    changed = {"as trained": None} | {name: name for name in model.settings.features}
    return {label: _scores(model, data, split, size, name) for label, name in changed.items()}


def _scores(model: AVQAModel, data: QuestionData, split: str, size: int, swapped: str | None) -> dict:
    rows, correct = [], []
    videos = np.unique(data.questions_in(split)["video_row"])
    for batch in data.batches(split, size):
        if swapped:
            own = np.unique(data.questions.loc[batch.row, "video_row"])  # as the batch has them
            others = videos[np.searchsorted(videos, own) - 1]  # the one before; of the first, the last
            batch = replace(batch, features=batch.features | {swapped: data.features[swapped][others]})
        answers = model.scores(model(batch)).argmax(-1)
        rows.append(batch.row)
        correct.append((answers == batch.answer).cpu().numpy())
    table = data.questions.loc[np.concatenate(rows), ["scenario", "type"]]
    return score(table.assign(correct=np.concatenate(correct)))


def by_second(model: AVQAModel, data: QuestionData, split: str, size: int) -> list[float]:
    """Accuracy had the videos ended after each second (AV-Master, Fig. 6)."""
    return np.round(accuracy_by_second(model, data, split, size), 4).tolist()


def word_attention(model: AVQAModel, data: QuestionData, split: str, size: int) -> list[dict]:
    """One question of each type with what each modality attends to in it (AV-Master, Fig. 9)."""
    examples = data.questions.drop_duplicates(["scenario", "type"]).index
    text = next(attributes for name, attributes in data.provenance.items() if name.startswith("text"))
    encoder, shortened = encoder_class(text["encoder"]), "drop_last_character" in json.loads(text.get("config", "{}"))
    found = []
    for batch in data.batches(split, size):
        if not (chosen := np.flatnonzero(np.isin(batch.row, examples))).size:
            continue
        attention = {name: x.double().cpu().numpy() for name, x in model.word_attention(batch).items()}  # B, W
        for n in chosen:
            row = data.questions.loc[batch.row[n]]
            tokens = encoder.tokens(without_last_character(row["question"]) if shortened else row["question"])
            shares = {name: np.round(x[n, : len(tokens)], 4).tolist() for name, x in attention.items()}
            described = {k: row[k] for k in ("video_id", "question", "answer", "scenario", "type")}
            found.append(described | {"tokens": tokens[: next(iter(attention.values())).shape[1]], "attention": shares})
    return found


def preference_features(model: AVQAModel, data: QuestionData, split: str, size: int) -> dict[str, list]:
    """Each modality's features under the question, on the two axes along which they differ most, and the answers
    (AV-Master, Fig. 7, with principal components in place of t-SNE: they are the same on every machine)."""
    rows, features = [], {}
    for batch in data.batches(split, size):
        rows.append(batch.row)
        for name, x in model.preference_features(batch).items():
            features.setdefault(name, []).append(x.double().cpu().numpy())
    points = {name: principal_components(np.concatenate(parts)) for name, parts in features.items()}
    return {name: np.round(x, 3).tolist() for name, x in points.items()} | {
        "answers": data.questions.loc[np.concatenate(rows), "answer"].tolist()
    }


def principal_components(x: np.ndarray) -> np.ndarray:
    """N, D -> N, 2."""
    x = x - x.mean(0)
    _, _, axes = np.linalg.svd(x, full_matrices=False)
    points = np.zeros((len(x), 2))
    points[:, : len(axes[:2])] = x @ axes[:2].T
    return points


Part = Callable[[AVQAModel, QuestionData, str, int], object]
PARTS: dict[str, Part] = {
    "contributions": contributions,
    "by_second": by_second,
    "word_attention": word_attention,
    "preference_features": preference_features,
}
