"""Shards on disk: the TSV that lists a shard's videos and the HDF5 files that hold their rows.

The layout of every HDF5 file is the contract in README.md, schema version 1. A file appears under its final
name only when it is complete. While it grows it is a hidden file beside it, in HDF5's single-writer mode, in
which the library keeps the file readable after each flush: when a run is killed, the next one copies the rows
that were finished and goes on from there.
"""

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from pipeline import __version__
from pipeline.errors import AVQAError
from pipeline.files import publish, write_if_changed

SCHEMA_VERSION = 1
UNFINISHED = -1
TSV_FIELDS = ("video_id", "path", "size", "mtime_ns")


class Video(NamedTuple):
    """One line of a shard's TSV: a file as the manifest found it (size in bytes, time in nanoseconds)."""

    video_id: str
    path: str
    size: int
    mtime_ns: int


def read_shard(tsv: str | Path) -> list[Video]:
    """The videos of a shard in row order. Raises AVQAError if the file is not a shard's TSV."""
    with open(tsv, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t")
        if tuple(reader.fieldnames or ()) != TSV_FIELDS:
            raise AVQAError(f"{tsv}: the columns must be {', '.join(TSV_FIELDS)}; run `avqa manifest` to write it anew")
        return [Video(r["video_id"], r["path"], int(r["size"]), int(r["mtime_ns"])) for r in reader]


def write_shard(tsv: str | Path, videos: list[Video]) -> None:
    """Write a shard's TSV, unless it already says the same: an untouched file makes nothing due again."""
    lines = ["\t".join(TSV_FIELDS), *("\t".join(map(str, video)) for video in videos)]
    write_if_changed(tsv, "\n".join(lines) + "\n")


def digest(videos: list[Video]) -> str:
    """Identifies what a shard was made from: the sha256 of its TSV's lines."""
    return hashlib.sha256("\n".join("\t".join(map(str, v)) for v in videos).encode()).hexdigest()


@dataclass(frozen=True)
class Dataset:
    """One HDF5 dataset of a shard: the shape of one row, its type, how many rows a chunk holds."""

    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...] | None = None  # of one row; None: the whole row


class ShardWriter:
    """Writes the rows of one HDF5 file, in any order, and survives being killed.

    `datasets` maps a name to its row's shape; `constants` are small datasets known beforehand (video_id).
    `marker` is the integer dataset that is written last for each row: a row counts as finished when it is not
    -1. `attributes` say what the file is made from; a partial file with other attributes is started anew.

        with ShardWriter(path, 64, {"audio": Dataset((60, 16000), "float32")}, attributes, constants) as writer:
            for n in np.flatnonzero(~writer.done):
                writer.write(n, {"audio": …, "status": 0})

    Leaving the block publishes the file under its name; an exception leaves the partial file to be resumed.
    A finished file that was made from the same things is left as it is: all its rows are done.
    Raises AVQAError on leaving if rows are missing.
    """

    def __init__(
        self,
        path: str | Path,
        rows: int,
        datasets: Mapping[str, Dataset],
        attributes: Mapping[str, object],
        constants: Mapping[str, np.ndarray | list[str]] | None = None,
        marker: str = "status",
    ):
        self.path = Path(path)
        self.partial = self.path.with_name(f".{self.path.name}.partial")
        self.rows, self.marker = rows, marker
        self.datasets = {**datasets, marker: Dataset((), "int32")}
        self.attributes = {
            "schema_version": SCHEMA_VERSION,
            "created_by": f"avqa-pipeline {__version__}",
            **{k: json.dumps(v, sort_keys=True) if isinstance(v, dict) else v for k, v in attributes.items()},
        }
        self.constants = dict(constants or {})
        self.done = np.zeros(rows, bool)

    def __enter__(self) -> "ShardWriter":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = _lock(self.path.with_name(f".{self.path.name}.lock"))
        self.published = self.path.exists() and self._is_same(self.path)
        if self.published:
            self.done[:] = True
            return self
        fresh = self.path.with_name(f".{self.path.name}.fresh")
        self.file = h5py.File(fresh, "w", libver="latest")
        self._create()
        self.file.swmr_mode = True
        if self.partial.exists():
            self._resume()
        os.replace(fresh, self.partial)
        return self

    def _create(self) -> None:
        for name, value in self.attributes.items():
            self.file.attrs[name] = value
        for name, value in self.constants.items():
            self.file.create_dataset(name, data=value, fletcher32=not isinstance(value, list))
        for name, spec in self.datasets.items():
            self.file.create_dataset(
                name,
                shape=(self.rows, *spec.shape),
                dtype=spec.dtype,
                # Scalars of all rows share a chunk: one number a chunk would cost more in index than in data.
                chunks=(1, *(spec.chunk or spec.shape)) if spec.shape else (max(self.rows, 1),),
                fletcher32=True,
                fillvalue=UNFINISHED if name == self.marker else 0,
            )
        self.file.flush()

    def _resume(self) -> None:
        """Copy the finished rows of a killed run. A row that fails its checksum is simply not finished."""
        try:
            if not self._is_same(self.partial):
                return
            with h5py.File(self.partial, "r", libver="latest", swmr=True) as old:
                finished = np.flatnonzero(old[self.marker][:] != UNFINISHED)
                for n in finished:
                    self.write(n, {name: old[name][n] for name in self.datasets})
        except (OSError, KeyError) as error:
            # What was copied so far is good; the rest is made again.
            print(f"{self.partial}: cannot be resumed fully ({error}); the remaining rows are made anew", flush=True)

    def _is_same(self, path: Path) -> bool:
        """Whether a file was made from the same things, and so holds the same rows."""
        try:
            with h5py.File(path, "r", libver="latest", swmr=True) as old:
                return dict(old.attrs) == self.attributes and all(
                    list(old[name].asstr()[:] if isinstance(value[0], str) else old[name][:]) == list(value)
                    for name, value in self.constants.items()
                )
        except (OSError, KeyError):
            return False

    def write(self, n, row: Mapping[str, object]) -> None:
        """Store row (or slice of rows) `n`; once this returns, a killed process does not lose it."""
        marker = row[self.marker]
        for name, value in row.items():
            if name != self.marker:
                self.file[name][n] = value
        self.file.flush()
        self.file[self.marker][n] = marker
        self.file.flush()
        self.done[n] = True

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if self.published:
                return
            self.file.close()
            if kind is not None:
                return
            if not self.done.all():
                raise AVQAError(f"{self.path}: {int((~self.done).sum())} of {self.rows} rows were never written")
            publish(self.partial, self.path)
        finally:
            _unlock(self.lock, self.path.with_name(f".{self.path.name}.lock"))


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


def _unlock(descriptor: int, path: Path) -> None:
    path.unlink(missing_ok=True)
    os.close(descriptor)


@contextmanager
def open_shard(path: str | Path, kind: str) -> Iterator[h5py.File]:
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
            raise AVQAError(f"{path}: damaged ({error}); {remedy}") from error
