"""Files that hold many records for other tools: WebDataset tar, Parquet for Hugging Face `datasets`, safetensors.

A record is a key, a few plain values, and named arrays. Each writer puts an iterator of records into one file; one row
of `CONTAINERS` each.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy


class Record(NamedTuple):
    """One video or text."""

    key: str
    values: dict[str, Any]
    arrays: dict[str, np.ndarray]


def write_tar(path: Path, records: Iterable[Record]) -> None:
    """WebDataset: for each record <key>.json and <key>.<encoder>.<output>.npy. A dot would end the key: it is %2E."""
    with tarfile.open(path, "w") as tar:
        for key, values, arrays in records:
            stem = key.replace("%", "%25").replace(".", "%2E").replace("/", "%2F")
            files = {"json": json.dumps(values).encode()}
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array, allow_pickle=False)
                files[f"{name.replace('/', '.')}.npy"] = buffer.getvalue()
            for suffix, content in files.items():
                entry = tarfile.TarInfo(f"{stem}.{suffix}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def write_parquet(path: Path, records: Iterable[Record]) -> None:
    """Parquet with one row per record, an array as nested lists; `datasets` gives it back with_format("numpy")."""
    writer = None
    try:
        for _, values, arrays in records:
            columns = {name: pa.array([value]) for name, value in values.items()}
            table = pa.table(columns | {name: _nested(array[None]) for name, array in arrays.items()})
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()


def _nested(array: np.ndarray) -> pa.Array:
    values = pa.array(array.ravel())
    for axis in range(array.ndim - 1, 0, -1):
        count = int(np.prod(array.shape[:axis]))
        offsets = np.arange(count + 1, dtype="int32") * array.shape[axis]
        values = pa.ListArray.from_arrays(pa.array(offsets), values)
    return values


def write_safetensors(path: Path, records: Iterable[Record]) -> None:
    """Tensors <key>/<encoder>/<output>; the plain values of all records are the metadata `records`."""
    tensors, plain = {}, {}
    for key, values, arrays in records:
        plain[key] = values
        tensors |= {f"{key}/{name}": np.ascontiguousarray(array) for name, array in arrays.items()}
    # save_file would make a file that only its owner can read.
    path.write_bytes(safetensors.numpy.save(tensors, metadata={"records": json.dumps(plain)}))


class Container(NamedTuple):
    """How a kind of file is written, and its suffix."""

    suffix: str
    write: Callable[[Path, Iterable[Record]], None]


CONTAINERS = {
    "webdataset": Container("tar", write_tar),
    "datasets": Container("parquet", write_parquet),
    "safetensors": Container("safetensors", write_safetensors),
}
