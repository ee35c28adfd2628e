"""Questions as numbers of words, against a restatement of how MUSIC-AVQA's authors number them."""

import ast
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.formats import read_annotations
from pipeline.data.vocabulary import build_vocabulary, encode
from pipeline.errors import AVQAError
from pipeline.numbering import number


def released_words(record):
    """Split at blanks, drop the last character, then put in the values of the template one by one."""
    words = record["question_content"].rstrip().split(" ")
    words[-1] = words[-1][:-1]
    values = iter(ast.literal_eval(record["templ_values"]))
    return [next(values) if "<" in word else word for word in words]


@pytest.mark.parametrize(("trained", "size"), [("train_fake", 85), ("val", 91), ("test", 93)])
def test_music_avqas_questions_get_the_numbers_of_the_release(shared, trained, size):
    path = shared / "annotations" / f"music_avqa_{trained}.json"
    records = json.loads(path.read_text())
    expected = ["<pad>"]
    for record in records:
        expected += [word for word in dict.fromkeys(released_words(record)) if word not in expected]
    table = read_annotations(path, "train")
    numbering = number({}, table)
    vocabulary = build_vocabulary(numbering.words, ["tokens"])
    assert vocabulary == expected and len(vocabulary) == size
    numbers = encode(table, "tokens", vocabulary, 14)
    assert numbers.shape == (len(records), 14) and numbers.dtype == np.int64
    for row, record in zip(numbers, records, strict=True):
        words = released_words(record)
        assert row.tolist() == [expected.index(word) for word in words] + [0] * (14 - len(words))


def table(questions, split="train", **columns):
    return pd.DataFrame(
        {"split": split, "question": questions, "scenario": "Audio", "type": "Counting"}
        | {"answer": "yes", "keywords": None}
        | columns
    )


def test_a_model_that_reads_more_texts_numbers_the_question_as_one_that_does_not():
    questions = table(["How many violins?", "Is it left?"], keywords=[["violins"], ["left", "new"]])
    words = number({}, questions).words
    short, long = build_vocabulary(words, ["tokens"]), build_vocabulary(words, ["type", "keywords", "tokens"])
    assert long[: len(short)] == short and long[len(short) :] == ["new", "Audio", "Counting"]
    assert encode(questions, "type", long, 2).tolist() == [[8, 9]] * 2
    assert encode(questions, "keywords", long, 2).tolist() == [[3, 0], [6, 7]]
    with pytest.raises(AVQAError, match="has no keywords"):
        encode(questions.drop(columns="keywords"), "keywords", long, 2)


def test_longer_questions_and_unknown_words(caplog):
    caplog.set_level("INFO")
    questions = pd.concat([table(["a b c d e?"]), table(["a b c d e a b", "x a"], split="test")], ignore_index=True)
    numbering = number({}, questions)
    vocabulary = build_vocabulary(numbering.words, ["tokens"])
    assert numbering.longest["tokens"] == 5
    numbers = encode(questions, "tokens", vocabulary, 5)
    assert numbers.tolist() == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [0, 1, 0, 0, 0]]
    assert "1 questions have words that training does not have, 1 are cut to 5" in caplog.text


@given(st.lists(st.text(max_size=30), min_size=1, max_size=6), st.integers(1, 8))
def test_any_text_becomes_numbers_that_stand_for_its_words(texts, length):
    questions = table(texts)
    numbering = number({}, questions)
    vocabulary, length = build_vocabulary(numbering.words, ["tokens"]), max(length, numbering.longest["tokens"])
    assert len(set(vocabulary)) == len(vocabulary)
    for text, row in zip(texts, encode(questions, "tokens", vocabulary, length), strict=True):
        assert [vocabulary[n] for n in row if n] == text.strip().removesuffix("?").split()
