"""The tables that the manifest makes."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.errors import AVQAError


def read_table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """A Parquet file. Raises AVQAError if it is not there or damaged."""
    try:
        return pd.read_parquet(path, columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such file; `avqa manifest` makes it") from None
    except (OSError, ValueError) as error:  # PyArrow's errors are of these kinds
        raise AVQAError(f"{path}: cannot be read ({error}); `avqa manifest` writes it again") from error
