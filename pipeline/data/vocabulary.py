"""Questions as numbers of words, as MUSIC-AVQA's authors number them.

A question is split at blanks and its question mark dropped. Words are numbered in the order of their first appearance
in the training questions as published, from 1: MUSIC-AVQA has 92. 0 is the padding at the end, and, since the released
code has no number for one, a word that training does not have.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from pipeline.errors import AVQAError

log = logging.getLogger(__name__)


def question_words(questions: pd.DataFrame) -> list[list[str]]:
    """`How many violins?` as How, many, violins."""
    return [question.strip().removesuffix("?").split() for question in questions["question"]]


def type_words(questions: pd.DataFrame) -> list[list[str]]:
    """Scenario and type: Audio-Visual, Counting."""
    return questions[["scenario", "type"]].to_numpy().tolist()


def keyword_words(questions: pd.DataFrame) -> list[list[str]]:
    """What the question's template was filled with: left, violin. Raises AVQAError if the table does not have it."""
    if "keywords" not in questions:
        raise AVQAError("questions.parquet: has no keywords, which the model reads; run `avqa manifest` again")
    return [list(values) if values is not None else [] for values in questions["keywords"]]


# Name of a model's text -> its words. Words are numbered in this order, so that a model that reads more than questions
# numbers these as one that does not.
SOURCES = {"tokens": question_words, "keywords": keyword_words, "type": type_words}


def build_vocabulary(words: Mapping[str, list[str]], sources: Iterable[str]) -> list[str]:
    """The words that a model reads by their numbers, the first is the padding; `words` are those of each of SOURCES."""
    return list(dict.fromkeys(["<pad>", *(word for name in SOURCES if name in set(sources) for word in words[name])]))


def encode(questions: pd.DataFrame, source: str, vocabulary: Sequence[str], length: int) -> np.ndarray:
    """Q, length int64: the numbers of each question's words; a longer question is cut."""
    lists, numbers = SOURCES[source](questions), {word: n for n, word in enumerate(vocabulary)}
    encoded = np.zeros((len(lists), length), np.int64)
    for row, words in zip(encoded, lists, strict=True):
        row[: len(words)] = [numbers.get(word, 0) for word in words[:length]]
    unknown = sum(any(word not in numbers for word in words) for words in lists)
    cut = sum(len(words) > length for words in lists)
    if unknown or cut:
        log.info(f"{source}: {unknown} questions have words that training does not have, {cut} are cut to {length}")
    return encoded
