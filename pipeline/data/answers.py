"""Answers that differ in case, white space or Unicode form only: classes of their own, unless they are merged."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

import pandas as pd


def plain(answer: str) -> str:
    """An answer without case, with single spaces and in one Unicode form. Two have the same where they are canonically
    equivalent but for case and white space: é is é however it is stored, and ² is not 2."""
    folded = unicodedata.normalize("NFD", answer).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def display_forms(*answers: Iterable[str]) -> dict[str, str]:
    """How each answer is written, by its plain form: as the most have it in the first of the lists that has it at all,
    the first of equals."""
    forms: dict[str, str] = {}
    for listed in answers:
        in_list: dict[str, str] = {}
        for answer, _ in Counter(listed).most_common():  # equals stay in the order of their first appearance
            in_list.setdefault(plain(answer), answer)
        forms = in_list | forms
    return forms


def written_as(answers: Iterable[str], forms: dict[str, str]) -> list[str]:
    """The answers in these forms; others stay as they are."""
    return [forms.get(plain(answer), answer) for answer in answers]


def merge_answers(questions: pd.DataFrame, training: Iterable[str]) -> pd.DataFrame:
    """Questions with their answers and options written as most training questions write them, or else most others."""
    options = [option for listed in questions["choices"].dropna() for option in listed]
    forms = display_forms(training, questions["answer"], options)
    choices = [written_as(listed, forms) if isinstance(listed, list) else None for listed in questions["choices"]]
    return questions.assign(
        answer=written_as(questions["answer"], forms), choices=pd.Series(choices, questions.index, dtype=object)
    )


def written_differently(answers: Iterable[str], numbered: Iterable[str] = ()) -> list[dict[str, int]]:
    """The groups of answers that differ in their form only, each with the count of each form; 0 of a numbered answer
    that does not occur."""
    groups: dict[str, Counter[str]] = {}
    for answer, count in [*Counter(answers).items(), *((answer, 0) for answer in numbered)]:
        groups.setdefault(plain(answer), Counter())[answer] += count
    return [dict(group.most_common()) for group in groups.values() if len(group) > 1]
