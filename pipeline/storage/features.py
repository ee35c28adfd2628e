"""The features of a data set on disk: features.h5 says which row of which shard holds a video's features.

features.h5 also has every feature as a virtual dataset, so that any HDF5 reader sees one file. This module does not
read those: a virtual dataset gives its fill value where a shard cannot be opened, and reads lists of rows slowly.
"""

import math
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from threading import Lock

import h5py
import numpy as np

from pipeline.errors import AVQAError
from pipeline.storage.contract import PER_VIDEO, PROVENANCE, comparable
from pipeline.storage.finite import all_finite
from pipeline.storage.hdf5 import REMEDY, open_hdf5

OPEN_FILES = 16  # shards that are open at a time; systems allow a process about 1,000 open files


class FeatureIndex:
    """A data set's features, read from their shards, a bounded number of files open at a time. Safe with threads.

    `video_id`, `num_segments`, `has_audio` and `status` are arrays over the V videos; `names` lists the features:
    "encoder/output", and over the Q texts "text_<encoder>/words", "text_<encoder>/sentence" and so on ("text/…" are
    those of the first text encoder). Raises AVQAError if the file or one of its shards is missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.names: dict[str, tuple[int, ...]] = {}  # feature -> shape: rows, then that of one row
        self.dtypes: dict[str, np.dtype] = {}
        self.provenance: dict[str, dict] = {}  # encoder (or "text") -> the attributes of its files
        self.files: dict[str, list[Path]] = {}
        self.made_as: dict[Path, dict] = {}  # file -> those of its attributes that it had when the index was made
        with open_hdf5(self.path, "index") as file:
            try:
                self._read_tables(file)
            except (LookupError, TypeError, ValueError, AttributeError) as error:  # of h5py and NumPy
                raise AVQAError(f"{path}: is not laid out as an index ({error}); run the workflow again") from error
        lost = [path for paths in self.files.values() for path in paths if not path.exists()]
        if lost:
            raise AVQAError(f"{self.path}: {len(lost)} of its shards are missing, as {lost[0]}; run the workflow again")
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def _read_tables(self, file: h5py.File) -> None:
        self.collection = str(file.attrs["collection"])
        self.video_id = file["video_id"].asstr()[:]
        self.num_segments, self.has_audio, self.status = (file[name][:] for name in PER_VIDEO)
        self.shard, self.row = file["shard"][:], file["row"][:]
        self.texts = file["text/text"].asstr()[:]
        self.text_lengths = file["text/length"][:]  # tokens
        for name, dtype in (PER_VIDEO | {"shard": "int32", "row": "int32"}).items():
            values = getattr(self, name)
            if values.shape != self.video_id.shape or values.dtype.kind != np.dtype(dtype).kind:
                raise ValueError(f"{name} is {values.dtype} {values.shape} of {len(self.video_id)} videos")
        for group in (item for item in file.values() if isinstance(item, h5py.Group)):
            self._add(group)

    def _add(self, group: h5py.Group) -> None:
        name = group.name.lstrip("/")
        own = {k: v for k, v in group.attrs.items() if k not in ("files", "sources")}
        attributes = {k: v.item() if isinstance(v, np.generic) else v for k, v in own.items()}
        self.provenance[name] = attributes
        folder = self.path.resolve().parent  # names are relative to the file itself, whatever link leads to it
        self.files[name] = [folder / file for file in _listed(group, "files")]
        made_as = {key: attributes[key] for key in PROVENANCE if key in attributes}
        sources = _listed(group, "sources") or [""] * len(self.files[name])  # texts and an earlier version have none
        for file, source in zip(self.files[name], sources, strict=True):
            self.made_as[file] = made_as | ({"source": source} if source else {})
        numbers = {f"{name}/{k}": item for k, item in group.items() if item.dtype.kind in "fi"}
        self.names |= {k: item.shape for k, item in numbers.items()}
        self.dtypes |= {k: item.dtype for k, item in numbers.items()}

    def read(
        self, name: str, rows: Iterable[int] | None = None, seconds: slice | None = None, out: np.ndarray | None = None
    ) -> np.ndarray:
        """The given rows of a feature (default: all), in their order: R, *shape; with `seconds` these seconds only.

        Chunks that hold none of the wanted seconds are not read. `out` takes the rows if it is given. Raises AVQAError
        if a shard is damaged or holds a number that is not finite.
        """
        wanted = np.arange(self.names[name][0]) if rows is None else np.asarray(list(rows), np.int64)
        values = np.empty((len(wanted), *self.shape(name, seconds)), self.dtypes[name]) if out is None else out
        for path, output, at, places in self._by_shard(name, wanted) if values.size else ():
            with self._lock:
                try:
                    dataset = self._opened(path)[output]
                    for begin, end in _runs(at, places):
                        source = slice(places[begin], places[end - 1] + 1)
                        rows_out = np.s_[at[begin] : at[end - 1] + 1]
                        dataset.read_direct(values, np.s_[source] if seconds is None else (source, seconds), rows_out)
                except OSError as error:
                    raise AVQAError(f"{path}: cannot be read ({error}); `avqa verify` checks all files") from error
            for n in at:
                if not all_finite(values[n]):
                    raise AVQAError(f"{path}: {name} of {self._row_name(name, wanted[n])} is not finite; {REMEDY}")
        return values

    def shape(self, name: str, seconds: slice | None = None) -> tuple[int, ...]:
        """Of one row of a feature, or of the given seconds of one."""
        whole = self.names[name][1:]
        return whole if seconds is None else (len(range(whole[0])[seconds]), *whole[1:])

    def prefetch(self, name: str, rows: np.ndarray, seconds: slice | None = None) -> None:
        """Have the system fetch rows that will be read next, all at the same time and without waiting for them. HDF5
        itself has one request at a time. Does nothing where the system has no such call."""
        if not hasattr(os, "posix_fadvise"):
            return
        for path, output, _, places in self._by_shard(name, rows):
            with self._lock, suppress(OSError, ValueError):  # what is wrong with a file comes up when it is read
                dataset = self._opened(path)[output]
                for place in places:
                    for offset, size in _byte_ranges(dataset, int(place), seconds):
                        os.posix_fadvise(dataset.file.id.get_vfd_handle(), offset, size, os.POSIX_FADV_WILLNEED)

    def _by_shard(self, name: str, rows: np.ndarray) -> Iterator[tuple[Path, str, np.ndarray, np.ndarray]]:
        """The file of each shard that has some of the rows, the dataset's name in it, which of `rows` these are, and
        where they are in the shard."""
        group, _, output = name.partition("/")
        shards = np.zeros_like(rows) if is_text(group) else self.shard[rows]
        places = rows if is_text(group) else self.row[rows]
        for shard in np.unique(shards):
            at = np.flatnonzero(shards == shard)
            yield self.files[group][shard], output if is_text(group) else name, at, places[at]

    def _row_name(self, name: str, row: int) -> str:
        return repr(self.texts[row]) if is_text(name) else f"video {self.video_id[row]}"

    def _opened(self, path: Path) -> "_OpenFile":
        if path not in self._open:
            while len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[path] = self._unchanged(path)
        self._open.move_to_end(path)
        return self._open[path]

    def _unchanged(self, path: Path) -> "_OpenFile":
        """A file that is still the one that the index was made from."""
        opened = _OpenFile(path)
        found, made_as = opened.file.attrs, self.made_as[path]
        differing = [name for name in made_as if comparable(name, found.get(name)) != comparable(name, made_as[name])]
        if "text" in opened.file and not np.array_equal(opened.file["text"].asstr()[:], self.texts):
            differing.append("texts")
        if differing:
            opened.close()
            raise AVQAError(
                f"{path}: was made again since {self.path}: {', '.join(differing)} differ; run the workflow again"
            )
        return opened

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


def is_text(name: str) -> bool:
    """Whether a feature, or a group of features.h5, is of texts and not of videos."""
    return name.partition("/")[0].partition("_")[0] == "text"


def _listed(group: h5py.Group, name: str) -> list[str]:
    """The texts of a list of a group; an earlier version had such lists as attributes."""
    return group[name].asstr()[:].tolist() if name in group else [str(value) for value in group.attrs.get(name, ())]


def _runs(at: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, int]]:
    """Parts of two lists, begin … end - 1, in which both count up by one: each is one call of HDF5."""
    breaks = np.flatnonzero((np.diff(at) != 1) | (np.diff(places) != 1)) + 1
    edges = [0, *breaks.tolist(), len(at)]
    return pairwise(edges)


def _byte_ranges(dataset: h5py.Dataset, row: int, seconds: slice | None) -> Iterator[tuple[int, int]]:
    """Offset and size of the parts of the file that hold a row's wanted seconds: one per chunk, or one from the first
    to the last chunk where all between them are wanted."""
    by_second = len(dataset.chunks) > 1 and dataset.chunks[1] < dataset.shape[1]
    wanted = range(dataset.shape[1])[seconds or slice(None)] if by_second else range(1)
    if len(wanted) > 1 and wanted.step == 1:
        wanted = range(wanted[0], wanted[-1] + 1, wanted[-1] - wanted[0])
        first, last = (_chunk(dataset, row, second) for second in wanted)
        size = last.byte_offset + last.size - first.byte_offset
        if 0 < size < 2 * math.prod(dataset.shape[1:]) * dataset.dtype.itemsize:  # one after the other in the file
            yield first.byte_offset, size
        return
    for second in wanted:
        chunk = _chunk(dataset, row, second)
        yield chunk.byte_offset, chunk.size


def _chunk(dataset: h5py.Dataset, row: int, second: int) -> h5py.h5d.StoreInfo:
    return dataset.id.get_chunk_info_by_coord((row, second, *[0] * (dataset.ndim - 2))[: dataset.ndim])


class _OpenFile(dict[str, h5py.Dataset]):
    """The datasets of an open file, by name. Each is opened once, which takes as long as reading a video's vectors."""

    def __init__(self, path: Path):
        self.file = h5py.File(path, "r", rdcc_nbytes=2**20)  # a cache of whole chunks has no use in random order

    def __missing__(self, name: str) -> h5py.Dataset:
        self[name] = self.file[name]
        return self[name]

    def close(self) -> None:
        """Close the file."""
        self.clear()
        self.file.close()
