"""The contract of an annotation format: the rows that it gives, and a record that checks what it is read for."""

import ast
import json
import re
from dataclasses import dataclass
from typing import NamedTuple

from pipeline.errors import AVQAError

# MUSIC-AVQA's nine types, scenario and type, in the order of the papers' tables.
TYPES = (
    ("Audio", "Counting"),
    ("Audio", "Comparative"),
    ("Visual", "Counting"),
    ("Visual", "Location"),
    ("Audio-Visual", "Existential"),
    ("Audio-Visual", "Counting"),
    ("Audio-Visual", "Location"),
    ("Audio-Visual", "Comparative"),
    ("Audio-Visual", "Temporal"),
)
VIDEO_ID = re.compile(r"(?!\.)[^/\\]+")  # one file name: no path, not hidden
CONTROL = re.compile("[\x00-\x1f\x7f]")
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class Question(NamedTuple):
    """One row of questions.parquet."""

    video_id: str
    question: str
    answer: str
    scenario: str  # what has to be perceived: Audio, Visual, Audio-Visual, …
    type: str  # question type: Counting, Location, …
    question_id: str | None = None
    choices: list[str] | None = None  # the answers to choose from, where each question has its own
    keywords: list[str] | None = None  # what its template was filled with, where it was made from one
    prompt: str | None = None  # the question as a statement, for models that select seconds by one (TSPM)
    split: str | None = None  # where the file itself says it
    part: str | None = None  # of the split: head, tail; where the file itself says it


@dataclass(frozen=True)
class Record:
    """One object of an annotation file. Each method raises AVQAError naming file, record and field."""

    value: object
    where: str

    def error(self, message: str) -> AVQAError:
        """For a reader to raise when a field holds something else than its format says."""
        return AVQAError(f"{self.where}: {message}")

    def has(self, name: str) -> bool:
        """Whether the field is there and holds something."""
        return isinstance(self.value, dict) and self.value.get(name) not in (None, "")

    def get(self, name: str) -> object:
        """The field's value as the file has it."""
        if not isinstance(self.value, dict) or name not in self.value:
            raise self.error(f"field {name} is missing")
        return self.value[name]

    def text(self, name: str) -> str:
        """A number or a text that is not blank, as text without white space around it."""
        value = self.get(name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and value == value  # NaN is no number
        if not (number or isinstance(value, str)) or not str(value).strip():
            raise self.error(f"field {name} must be a text that is not empty, not {_written(value)}")
        return str(value).strip()

    def video_id(self, name: str) -> str:
        """A text that is one plain file name, to the letter."""
        value = self.get(name)
        if not isinstance(value, str):
            raise self.error(f"{name} must be a text, in quotes, not {_written(value)}")
        if CONTROL.search(value):
            raise self.error(f"{name} {value!r} has a line break or another control character; rename the video")
        if not VIDEO_ID.fullmatch(value):
            raise self.error(f"{name} {value!r} could leave the video folder; it must be a plain file name")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts, or a text that holds one, as JSON or as Python writes it."""
        values = self.get(name)
        if isinstance(values, str):
            values = _parsed_list(values)
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.error(f'field {name} must be a list of texts such as ["Audio", "Counting"]')
        return values

    def choice(self, options: str, index: str) -> tuple[list[str], str]:
        """The options of a multiple-choice question without the empty ones, and the right one, by its index."""
        values, right = self.get(options), self.text(index)
        if isinstance(values, str):
            values = _parsed_list(values)
        if not isinstance(values, list) or not all(value is None or isinstance(value, str) for value in values):
            raise self.error(f"field {options} must be a list of texts")
        if not right.isdecimal() or int(right) >= len(values) or not (values[int(right)] or "").strip():
            raise self.error(f"field {index} must be the index of one of the {len(values)} {options}, not {right!r}")
        return [value.strip() for value in values if value and value.strip()], values[int(right)].strip()


def is_storable(text: str) -> bool:
    """Whether the files that are made of the annotations can hold a text: UTF-8 has no half of a surrogate pair, and
    HDF5 no NUL."""
    return UNSTORABLE.search(text) is None


def _written(value: object) -> str:
    """A value for an error, as JSON, or as Python writes what JSON does not have (bytes, of a Parquet file)."""
    return json.dumps(value, default=repr)


def _parsed_list(text: str) -> object:
    """What a text says as JSON, or as a literal of Python (some releases' CSV files); None if it is neither."""
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None
