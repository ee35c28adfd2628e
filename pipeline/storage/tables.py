"""The tables that the manifest makes, and results that are read back."""

import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from pipeline.errors import AVQAError

LABELS = ("question_id", "file", "record")  # say which question it is; every other column may decide what a batch holds


def deciding(questions: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table of questions that may decide what is trained and answered: all but LABELS, so that one
    that is added later is not forgotten."""
    return questions.drop(columns=[name for name in LABELS if name in questions])


def read_table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A Parquet file. Raises AVQAError if it is not there or damaged."""
    try:
        return pd.read_parquet(path, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such file; `avqa manifest` makes it") from None
    except (OSError, ValueError) as error:  # PyArrow's errors are of these kinds
        raise AVQAError(f"{path}: cannot be read ({error}); `avqa manifest` writes it again") from error


@contextmanager
def reading(path: str | Path, command: str) -> Iterator[None]:
    """What is read in the block is the content of a file of results. Raises AVQAError, which names the command that
    makes the file, where it is not there, or not of the form that the block expects."""
    try:
        yield
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such file; `{command}` makes it") from None
    except (ValueError, LookupError, TypeError) as error:  # of the parsers of all kinds of file, and of PyArrow
        raise AVQAError(f"{path}: is damaged ({error}); `{command}` makes it again") from error


def read_failures(path: Path | str) -> list[dict[str, str]]:
    """The lines of a shard's table of failures, FAILURE_FIELDS; none where there is no table."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="\t"))
    except FileNotFoundError:
        return []
