"""HDF5 files that hold the rows of a shard: one writer and one opener.

The layout of every HDF5 file is the contract in README.md, schema version 2. A file appears under its final
name only when it is complete.
"""

import glob
import hashlib
import json
import logging
import math
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
from pipeline.storage.lock import lock_file

SPARE, SPARE_PER_CHUNK = 2**16, 128  # bytes that an HDF5 file may take beyond its numbers
REMEDY = "move it away and run again: the workflow then makes this file anew"

log = logging.getLogger(__name__)


class ShardWriter:
    """Writes the rows of one HDF5 file, in any order, and can be interrupted at any moment.

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
        made_from = repr((sorted(self._source().items()), self.constants, rows, sorted(self.datasets.items())))
        key = hashlib.sha256(made_from.encode()).hexdigest()
        self.parts = self.path.with_name(f".{self.path.name}.{key[:16]}.parts")
        self.done = np.zeros(rows, bool)

    def __enter__(self) -> "ShardWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = _lock(self._lock_path)
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
            np.savez(file, allow_pickle=False, **arrays)
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
            self._lock_path.unlink(missing_ok=True)
            os.close(self.lock)

    def _join(self, partial: Path) -> None:
        parts = sorted(self.parts.glob("*.npz"), key=lambda part: _rows(part).start)
        with h5py.File(partial, "w") as file:
            file.attrs.update(self.attributes)
            for name, values in self.constants.items():
                file[name] = values
            for name, spec in self.datasets.items():
                # Scalars of all rows share a chunk: one number per chunk would cost more in index than in data.
                chunks = (1, *(spec.chunk or spec.shape)) if spec.shape else (max(self.rows, 1),)
                shape = (self.rows, *spec.shape)
                file.create_dataset(name, shape, spec.dtype, chunks=chunks, fletcher32=True)
            self._reserve(partial, sum(part.stat().st_size for part in parts))
            for part in parts:
                with np.load(part) as arrays:
                    for name in self.datasets:
                        file[name][_rows(part)] = arrays[name]
            file.flush()
            size = file.id.get_filesize()
        os.truncate(partial, size)

    def _reserve(self, partial: Path, numbers: int) -> None:
        """Take the disk space that the file will need: HDF5 crashes when its disk becomes full while it writes. This
        raises OSError in its place, and no other writer can take the space afterwards. The file is already open, since
        HDF5 empties a file that it opens for writing."""
        per_row = [math.prod(np.ceil(np.divide(s.shape, s.chunk or s.shape))) for s in self.datasets.values()]
        descriptor = os.open(partial, os.O_RDWR)
        try:
            os.posix_fallocate(descriptor, 0, numbers + SPARE + self.rows * int(sum(per_row)) * SPARE_PER_CHUNK)
        finally:
            os.close(descriptor)

    def _is_published(self) -> bool:
        """Whether the finished file is there and was made from the same things; its contents are not read."""
        if not self.path.exists():
            return False
        try:
            with h5py.File(self.path, "r") as file:
                same_source = {n: v for n, v in file.attrs.items() if n != "created_by"} == self._source()
                found: dict[str, tuple] = {}
                file.visititems(
                    lambda name, item: (
                        found.update({name: (item.shape, item.dtype.name)}) if isinstance(item, h5py.Dataset) else None
                    )
                )
                wanted = {n: ((self.rows, *s.shape), np.dtype(s.dtype).name) for n, s in self.datasets.items()}
                return (
                    same_source
                    and {n: v for n, v in found.items() if n not in self.constants} == wanted
                    and all(list(file[n].asstr()[:]) == list(values) for n, values in self.constants.items())
                )
        except (OSError, KeyError):
            return False  # damaged: made again

    def _source(self) -> dict[str, object]:
        """The attributes that decide whether a file is still good: the version of this package does not."""
        return {name: value for name, value in self.attributes.items() if name != "created_by"}

    @property
    def _lock_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.lock")


def _rows(part: Path) -> slice:
    """The rows that a part's name says."""
    return slice(*map(int, part.stem.split("-")))


def _lock(path: Path) -> int:
    """Wait until no other process writes the same file: a process of a killed run may still be writing it."""
    while True:
        try:
            descriptor = lock_file(path)
        except BlockingIOError:
            log.info("%s: another process is writing this file; waiting for it to end", path)
            descriptor = lock_file(path, wait=True)
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            return descriptor
        os.close(descriptor)  # the other process has removed the lock file that this one waited for


@contextmanager
def open_hdf5(path: str | Path, kind: str) -> Iterator[h5py.File]:
    """Open a finished HDF5 file of the given kind (segments, features, text, index).

    Raises AVQAError if the file is missing, damaged or something else, and OSError where the system cannot read it.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such file") from None
    except OSError as error:
        if error.errno:
            raise  # the system's: too many open files, a disk that cannot be read, no permission
        if not _is_hdf5(path):
            raise AVQAError(f"{path}: not an HDF5 file; expected one of kind {kind}") from error
        raise AVQAError(f"{path}: damaged ({error}); {REMEDY}") from error
    with file:
        version, found = file.attrs.get("schema_version"), file.attrs.get("kind")
        if not np.array_equal(found, kind):  # an attribute of others may be a list
            raise AVQAError(f"{path}: attribute kind is {found!r}, expected {kind!r}")
        if not np.array_equal(version, SCHEMA_VERSION):
            raise AVQAError(f"{path}: attribute schema_version is {version!r}, expected {SCHEMA_VERSION}; {REMEDY}")
        try:
            yield file
        except OSError as error:
            if error.errno is not None and "synchronously read" not in str(error):
                raise  # the system's, of another file; errors of HDF5 have no number, or speak of reading
            raise AVQAError(f"{path}: damaged ({error}); {REMEDY}") from error


def _is_hdf5(path: str | Path) -> bool:
    with open(path, "rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"
