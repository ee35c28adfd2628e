"""The contract of an annotation format: the rows that it gives, and a record that checks what it is read for."""

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
VIDEO_ID = re.compile(r"(?!\.)[^/\\\x00-\x1f\x7f]+")  # one plain file name: no path, not hidden, no control characters


class Question(NamedTuple):
    """One row of questions.parquet, but for its split."""

    video_id: str
    question: str
    answer: str
    scenario: str  # what has to be perceived: Audio, Visual, Audio-Visual, …
    type: str  # question type: Counting, Location, …
    question_id: str | None = None
    choices: list[str] | None = None  # the answers to choose from, where each question has its own


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
        if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
            raise self.error(f"field {name} must be a text that is not empty, not {json.dumps(value)}")
        return str(value).strip()

    def video_id(self, name: str) -> str:
        """A text that is one plain file name, to the letter."""
        value = self.get(name)
        if not isinstance(value, str) or not VIDEO_ID.fullmatch(value):
            raise self.error(f"{name} {value!r} could leave the video folder; it must be a plain file name")
        return value

    def texts(self, name: str) -> list[str]:
        """A list of texts, or a text that holds one as JSON."""
        values = self.get(name)
        try:
            values = json.loads(values) if isinstance(values, str) else values
        except ValueError:
            values = None
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise self.error(f'field {name} must be a list of texts such as ["Audio", "Counting"]')
        return values
