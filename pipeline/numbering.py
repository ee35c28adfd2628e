"""Which number each answer and each word of a data set has: one list for training, scoring and exports.

Numbers follow the annotations as published, before any question is left out, since a checkpoint's numbers do not change
where a video is missing.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pandas as pd

from pipeline.cards import card_answers, read_answers
from pipeline.config import annotation_files
from pipeline.data.answers import display_forms, merge_answers, written_as
from pipeline.data.formats import COLUMNS, read_annotations
from pipeline.data.vocabulary import SOURCES
from pipeline.errors import AVQAError

# What can decide the numbers, in this order. No checkpoint is known to have those of the last two.
CONFIGURATION, CARD, TRAINING, NO_TRAINING = "configuration", "card", "training annotations", "no training annotations"
REORDERED = "training annotations in another order than the release's"


@dataclass(frozen=True)
class Numbering:
    """What manifest.json says about numbers.

    answers: by number. words: those of the training questions by the name of a model's text, in the order of their
    first appearance. longest: the words of the longest such text. answers_from, words_from: what decided them.
    merge_answers: whether answers that differ in their form only are one."""

    answers: list[str]
    answers_from: str
    words: dict[str, list[str]]
    words_from: str
    longest: dict[str, int]
    merge_answers: bool

    def as_dict(self) -> dict:
        return asdict(self)


def number(config: dict, published: pd.DataFrame) -> Numbering:
    """The numbering of a data set with the given questions, as they were published. Raises AVQAError.

    Answers: those of the configuration's `answers`, else of its card, else of the training questions in the order of
    their first appearance. A data set that is only scored is numbered as the one that its models are trained on
    (`numbered_as`)."""
    merge = config.get("merge_answers", False)
    if "numbered_as" in config:
        training = read_training(config["numbered_as"], merge)
    else:
        training = published[published["split"] == "train"]
    of_training = training["answer"].unique().tolist()
    if listed := listed_answers(config):
        answers, decided_by = listed
        if merge:
            forms = display_forms(training["answer"], published["answer"], answers)
            answers = list(dict.fromkeys(written_as(answers, forms)))
    elif of_training:
        answers, decided_by = of_training, TRAINING
    else:
        answers, decided_by = published["answer"].unique().tolist(), NO_TRAINING
    if decided_by in (CONFIGURATION, CARD) and "numbered_as" not in config:
        _check_answers(answers, decided_by, config, training)
    texts = {name: words(training) for name, words in SOURCES.items()}
    return Numbering(
        answers,
        decided_by,
        {name: list(dict.fromkeys(word for words in lists for word in words)) for name, lists in texts.items()},
        _words_from(config, of_training),
        {name: max(map(len, lists), default=0) for name, lists in texts.items()},
        merge,
    )


def listed_answers(config: dict) -> tuple[list[str], str] | None:
    """The list of answers of the configuration or of the card, and which of them; None without any."""
    for source in (config, config.get("numbered_as", {})):
        if "answers" in source:
            return read_answers(source["answers"]), CONFIGURATION
        if "card" in source and (listed := card_answers(source["card"])):
            return listed, CARD
    return None


def _words_from(config: dict, of_training: list[str]) -> str:
    """What the words' numbers follow from. Where the card says in which order answers occur in the release's training
    annotations, other annotations have another order."""
    cards = [source["card"] for source in (config, config.get("numbered_as", {})) if "card" in source]
    listed = next((answers for card in cards if (answers := card_answers(card))), of_training)
    if not of_training:
        return NO_TRAINING
    return TRAINING if listed == of_training else REORDERED


def _check_answers(answers: list[str], decided_by: str, config: dict, training: pd.DataFrame) -> None:
    """Raises AVQAError if a list lacks an answer of a training question, which no model can then learn."""
    lacking = training.loc[~training["answer"].isin(answers), "answer"].unique()
    if not len(lacking):
        return
    count = f"lacks {len(lacking)} answers of training questions, as {lacking[0]!r}"
    if decided_by == CARD:
        raise AVQAError(
            f"manifests/{config['card']}.yaml: its list of answers {count}; give the answers of these annotations in "
            "the order of their numbers as answers: in the configuration"
        )
    path = config["answers"] if isinstance(config["answers"], str) else "answers"
    raise AVQAError(f"{path}: {count}; add them, or remove answers: from the configuration")


def read_training(config: dict, merge: bool = False) -> pd.DataFrame:
    """The training questions of all annotation files, as published, or with `merge` their answers merged. Raises
    AVQAError."""
    files = [(split, path) for split, _, path in annotation_files(config) if split in (None, "train")]
    read = [read_annotations(path, split, config["format"]) for split, path in files]
    questions = pd.concat(read, ignore_index=True) if read else pd.DataFrame(columns=COLUMNS)
    training = questions[questions["split"] == "train"]
    return merge_answers(training, training["answer"]) if merge else training


def index_answers(answers: Iterable[str], numbered: list[str]) -> pd.Series:
    """The number of each answer, int64: its place among the numbered ones, -1 for others."""
    return pd.Series(answers).map({answer: n for n, answer in enumerate(numbered)}).fillna(-1).astype("int64")
