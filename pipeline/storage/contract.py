"""What is in the project's HDF5 files: README.md, "HDF5 contract", as code."""

from dataclasses import dataclass

SCHEMA_VERSION = 1
DECODED, FAILED = 0, 1  # values of the dataset `status`


@dataclass(frozen=True)
class DatasetSpec:
    """One HDF5 dataset of a shard: the shape of one row, its type, how many rows a chunk holds."""

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...] | None = None  # of one row; None: the whole row
