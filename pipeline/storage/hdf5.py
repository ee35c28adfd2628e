"""HDF5 files that hold the rows of a shard: one writer and one opener.

The layout of every HDF5 file is the contract in README.md, schema version 1. A file appears under its final
name only when it is complete.
"""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from pipeline import __version__
from pipeline.errors import AVQAError
from pipeline.storage.atomic import atomic
from pipeline.storage.contract import SCHEMA_VERSION, DatasetSpec

SPARE = 2**16  # bytes that an HDF5 file may take beyond its numbers


class ShardWriter:
    """Writes the rows of one HDF5 file, in any order, and survives being killed.

    Each call of `write` leaves a part, a file of its own with checksums, in a hidden folder beside the file; the
    parts of a killed run are the finished rows of the next. Leaving the block joins them to the HDF5 file and
    publishes it; an exception leaves them to be resumed. (Rows could go to an HDF5 file straight away, but one
    that was being written when its process was killed or its disk was full cannot be trusted.)

        with ShardWriter(path, 64, {"audio": DatasetSpec((60, 16000), "float32")}, attributes, constants) as writer:
            for n in np.flatnonzero(~writer.done):
                writer.write(n, {"audio": …})

    `datasets` maps a name to its row's shape; `constants` are small datasets known beforehand (video_id).
    `attributes` say what the file is made from: parts made from something else are not used, and a finished file
    made from the same things is left as it is, all its rows done. Raises AVQAError on leaving if rows are missing.
    """

    def __init__(
        self,
        path: str | Path,
        rows: int,
        datasets: Mapping[str, DatasetSpec],
        attributes: Mapping[str, object],
        constants: Mapping[str, list[str]],
    ):
        self.path = Path(path)
        self.rows, self.datasets, self.constants = rows, dict(datasets), dict(constants)
        self.attributes = {
            "schema_version": SCHEMA_VERSION,
            "created_by": f"avqa-pipeline {__version__}",
            **{k: json.dumps(v, sort_keys=True) if isinstance(v, dict) else v for k, v in attributes.items()},
        }
        made_from = repr((sorted(self.attributes.items()), self.constants, rows, sorted(self.datasets.items())))
        key = hashlib.sha256(made_from.encode()).hexdigest()
        self.parts = self.path.with_name(f".{self.path.name}.{key[:16]}.parts")
        self.done = np.zeros(rows, bool)

    def __enter__(self) -> "ShardWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = _lock(self.path.with_name(f".{self.path.name}.lock"))
        self.published = self._is_published()
        if self.published:
            self.done[:] = True
            return self
        for other in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.parts"):
            if other != self.parts:
                shutil.rmtree(other)
        self.parts.mkdir(exist_ok=True)
        for part in self.parts.glob("*.npz"):
            try:
                with zipfile.ZipFile(part) as arrays:
                    self.done[_rows(part)] = arrays.testzip() is None
            except (OSError, zipfile.BadZipFile):
                part.unlink()  # cut short by a power failure or a full disk; its rows are made again
        return self

    def write(self, n: int | slice, row: Mapping[str, object]) -> None:
        """Store a row (or a slice of rows); once this returns, a killed process does not lose it."""
        rows = n if isinstance(n, slice) else slice(int(n), int(n) + 1)
        start, stop, _ = rows.indices(self.rows)
        arrays = {}
        for name, spec in self.datasets.items():
            shape = (stop - start, *spec.shape)
            arrays[name] = np.asarray(row[name], spec.dtype).reshape(shape)
        partial = self.parts / "partial"
        with open(partial, "wb") as file:
            np.savez(file, **arrays)
        os.replace(partial, self.parts / f"{start}-{stop}.npz")
        self.done[start:stop] = True

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None and not self.published:
                if not self.done.all():
                    raise AVQAError(f"{self.path}: {int((~self.done).sum())} of {self.rows} rows were never written")
                with atomic(self.path) as partial:
                    self._join(partial)
                shutil.rmtree(self.parts)
        finally:
            self.path.with_name(f".{self.path.name}.lock").unlink(missing_ok=True)
            os.close(self.lock)

    def _join(self, partial: Path) -> None:
        parts = sorted(self.parts.glob("*.npz"), key=lambda part: _rows(part).start)
        with open(partial, "wb") as file:
            # HDF5 crashes when its disk becomes full. This asks beforehand whether there is space, and fails in order.
            os.posix_fallocate(file.fileno(), 0, SPARE + sum(part.stat().st_size for part in parts))
        with h5py.File(partial, "w") as file:
            file.attrs.update(self.attributes)
            for name, values in self.constants.items():
                file[name] = values
            for name, spec in self.datasets.items():
                # Scalars of all rows share a chunk: one number a chunk would cost more in index than in data.
                chunks = (1, *(spec.chunk or spec.shape)) if spec.shape else (max(self.rows, 1),)
                shape = (self.rows, *spec.shape)
                file.create_dataset(name, shape, spec.dtype, chunks=chunks, fletcher32=True)
            for part in parts:
                with np.load(part) as arrays:
                    for name in self.datasets:
                        file[name][_rows(part)] = arrays[name]

    def _is_published(self) -> bool:
        if not self.path.exists():
            return False
        try:
            with h5py.File(self.path, "r") as file:
                return dict(file.attrs) == self.attributes and all(
                    list(file[name].asstr()[:]) == list(values) for name, values in self.constants.items()
                )
        except (OSError, KeyError):
            return False  # damaged: made again


def _rows(part: Path) -> slice:
    """The rows that a part's name says."""
    return slice(*map(int, part.stem.split("-")))


def _lock(path: Path) -> int:
    """Wait until no other process writes the same file: one that a killed run left behind may still be at it."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{path}: another process is writing this file; waiting for it to end", flush=True)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
        os.close(descriptor)  # the other process has removed the lock that this one waited for


@contextmanager
def open_hdf5(path: str | Path, kind: str) -> Iterator[h5py.File]:
    """Open a finished HDF5 file of the given kind. Raises AVQAError if it is damaged or something else."""
    remedy = "delete it and run again to have it made anew"
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such file") from None
    except OSError as error:
        raise AVQAError(f"{path}: cannot be read as HDF5 ({error}); {remedy}") from error
    with file:
        version, found = file.attrs.get("schema_version"), file.attrs.get("kind")
        if version != SCHEMA_VERSION or found != kind:
            raise AVQAError(
                f"{path}: attribute kind is {found!r} and schema_version {version!r}, "
                f"expected {kind!r} and {SCHEMA_VERSION}; {remedy}"
            )
        try:
            yield file
        except OSError as error:
            if error.errno is not None and "synchronously read" not in str(error):
                raise  # the system's, of another file; HDF5's have no number, or tell of reading
            raise AVQAError(f"{path}: damaged ({error}); {remedy}") from error
