"""The tables that the manifest makes."""

from collections.abc import Sequence
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
