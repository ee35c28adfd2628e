"""Whether a data set's features are those that released code expects."""

import json
import logging
from collections.abc import Iterator

import pandas as pd

from pipeline.data.feature_set import FeatureSet, is_text
from pipeline.data.layouts import Folder, Layout, T
from pipeline.data.vocabulary import build_vocabulary, question_words
from pipeline.errors import AVQAError
from pipeline.export_questions import LEFT_OUT, in_order_of_numbers
from pipeline.manifest import read_numbering
from pipeline.numbering import Numbering

log = logging.getLogger(__name__)


def text_group(layout: Layout, features: FeatureSet) -> str:
    """Where the texts of the layout's encoder are among the features, or those of the first one if it has none."""
    name = f"text_{layout.text_encoder}"
    return name if name in features.index.provenance else "text"


def choose(folder: Folder, texts: str, features: FeatureSet) -> list[str] | None:
    """The features of a folder: those of the release, or of the only other encoder that has such outputs."""
    wanted = [f"{texts}/{name.split('/')[1]}" if is_text(name) else name for name in folder.features]
    if all(name in features.names for name in wanted):
        return wanted
    outputs = [name.split("/")[1] for name in folder.features]
    encoders = dict.fromkeys(name.split("/")[0] for name in features.names if not is_text(name))
    others = [[f"{encoder}/{output}" for output in outputs] for encoder in encoders]
    others = [names for names in others if all(name in features.names for name in names)]
    if len(others) == 1:
        return others[0]
    if folder.optional:
        return None
    raise AVQAError(
        f"{features.index.path}: has no {' and '.join(folder.features)}, which {folder.option} ({folder.path}) is made "
        "from; add it under encoders: in the configuration and run the workflow again"
    )


def check_protocol(
    name: str,
    layout: Layout,
    chosen: list[tuple[Folder, list[str] | None]],
    questions: pd.DataFrame,
    features: FeatureSet,
    force: bool,
) -> None:
    """Raises AVQAError naming what a reader of the release would not expect, unless `force`."""
    check_texts(layout, questions, features)
    differences = list(_differences(layout, chosen, questions, features))
    differences += _number_differences(layout, questions, read_numbering(features.folder))
    for note in layout.notes:
        log.warning(f"{name}: {note}")
    if differences and not force:
        lines = "\n".join(f"  {line}" for line in dict.fromkeys(differences))
        raise AVQAError(
            f"{features.folder}: features are not those of {layout.release}:\n{lines}\n"
            "give --force to export them nevertheless"
        )
    for line in dict.fromkeys(differences):
        log.warning(f"{name}: {line}")


def check_texts(layout: Layout, questions: pd.DataFrame, features: FeatureSet) -> None:
    """Raises AVQAError if a text of a question that is not left out was not encoded."""
    for folder in layout.folders:
        if folder.per == "question":
            texts = folder_texts(folder, questions[questions[LEFT_OUT] == ""])
            lacking = texts[~texts.isin(features.texts)]
            if len(lacking):
                prompts = "with tspm under models: in the configuration, or encode prompts with `avqa text --prompts`"
                raise AVQAError(
                    f"{features.index.path}: has no {folder.text} {lacking.iloc[0]!r}, which {folder.option} "
                    f"({folder.path}) is made from; run the workflow again"
                    f"{f', {prompts} and run `avqa index`' if folder.text == 'prompt' else ''}"
                )


def folder_texts(folder: Folder, questions: pd.DataFrame) -> pd.Series:
    """The text of each question that a folder has arrays of; the question stands in for a prompt that it lacks."""
    return questions[folder.text].fillna(questions["question"])


def _number_differences(layout: Layout, questions: pd.DataFrame, numbering: Numbering) -> Iterator[str]:
    """Where the released code does not number answers and words as manifest.json does."""
    training = in_order_of_numbers(questions[questions["split"] == "train"], numbering.answers)
    numbered = training["answer"].unique().tolist()
    if not layout.answers and numbered != numbering.answers[: len(numbered)]:
        n, answer = next((n, a) for n, a in enumerate(numbering.answers) if a not in numbered)
        yield (
            f"no training question has the answer {answer!r} (number {n} of {len(numbering.answers)}): released code, "
            "which numbers answers by the training file, numbers those after it otherwise"
        )
    words = [word for text in question_words(training) for word in text]
    if layout.words and list(dict.fromkeys(["<pad>", *words])) != build_vocabulary(numbering.words, ["tokens"]):
        yield (
            "questions are put in the order of the answers' numbers, so that the released code numbers words otherwise "
            "than models trained here do"
        )


def _differences(
    layout: Layout, chosen: list[tuple[Folder, list[str] | None]], questions: pd.DataFrame, features: FeatureSet
) -> Iterator[str]:
    """Where arrays are not as in the release."""
    for folder, names in chosen:
        if names is None:
            yield f"{folder.path}: is left out, for lack of {' and '.join(folder.features)}"
            continue
        lacking = int(questions.loc[questions[LEFT_OUT] == "", folder.text].isna().sum())
        if lacking:
            yield f"{folder.path}: {lacking} questions have no prompt, and their own text's sentence in its place"
        if names != list(folder.features) and not is_text(names[0]):
            yield f"{folder.path}: {' and '.join(names)} in place of {' and '.join(folder.features)}"
        shape = array_shape(folder, names, features)
        expected = tuple(layout.seconds if size == T else size for size in folder.shape)
        if shape != expected:
            yield f"{folder.path}: arrays of shape {shape}, not {expected}"
        for encoder in dict.fromkeys(name.split("/")[0] for name in names):
            made = features.index.provenance[encoder]
            if not made.get("pretrained", True):
                yield f"{made['encoder']}: its weights are {made['weights']}, not pretrained ones"
            if is_text(encoder):
                yield from _text_differences(layout, folder, made)


def _text_differences(layout: Layout, folder: Folder, made: dict) -> Iterator[str]:
    """Where texts are not encoded as in the release; `made` are the attributes of their file."""
    if made["encoder"] != layout.text_encoder:
        yield f"{folder.path}: texts of {made['encoder']} in place of {layout.text_encoder}"
    config = json.loads(made.get("config", "{}"))
    config = config.get("source", config)  # what was imported was made elsewhere
    if config.get("sentence", "eot") != "eot":
        yield f"{folder.path}: sentences are made from {config['sentence']}, not from the end-of-text token"
    if config and config.get("drop_last_character", False) != layout.drop_last_character:
        ours, theirs = ("without", "with") if layout.drop_last_character is False else ("with", "without")
        yield f"{folder.path}: questions are encoded {ours} their question mark, in the release {theirs} it"


def array_shape(folder: Folder, names: list[str], features: FeatureSet) -> tuple[int, ...]:
    """Of one file of a folder."""
    shapes = [features.names[name] for name in names]
    if folder.per == "question":
        return (1, *shapes[0])
    if len(shapes) == 1:
        return shapes[0]
    tokens = sum(shape[1] if len(shape) == 3 else 1 for shape in shapes)
    return (shapes[0][0], tokens, shapes[0][-1])
