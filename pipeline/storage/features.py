"""The features of a data set on disk: features.h5 says which row of which shard holds a video's features.

features.h5 also has every feature as a virtual dataset, so that any HDF5 reader sees one file. This module does not
read those: a virtual dataset gives its fill value where a shard cannot be opened, and reads lists of rows slowly.
"""

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from threading import Lock

import h5py
import numpy as np

from pipeline.errors import AVQAError
from pipeline.storage.contract import PER_VIDEO
from pipeline.storage.finite import all_finite
from pipeline.storage.hdf5 import REMEDY, open_hdf5

OPEN_FILES = 16  # shards that are open at a time; systems allow a process about 1,000 open files


class FeatureIndex:
    """A data set's features, read from their shards, a bounded number of files open at a time. Safe with threads.

    `video_id`, `num_segments`, `has_audio` and `status` are arrays over the V videos; `names` lists the features
    ("encoder/output", and "text/words", "text/sentence" over the Q texts). Raises AVQAError if the file or one of its
    shards is missing.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.names: dict[str, tuple[int, ...]] = {}  # feature -> shape: rows, then that of one row
        self.provenance: dict[str, dict] = {}  # encoder (or "text") -> the attributes of its files
        self.files: dict[str, list[Path]] = {}
        with open_hdf5(self.path, "index") as file:
            self.collection = str(file.attrs["collection"])
            self.video_id = file["video_id"].asstr()[:]
            self.num_segments, self.has_audio, self.status = (file[name][:] for name in PER_VIDEO)
            self.shard, self.row = file["shard"][:], file["row"][:]
            self.texts = file["text/text"].asstr()[:]
            self.text_lengths = file["text/length"][:]  # tokens
            for group in (item for item in file.values() if isinstance(item, h5py.Group)):
                self._add(group)
        lost = [path for paths in self.files.values() for path in paths if not path.exists()]
        if lost:
            raise AVQAError(f"{self.path}: {len(lost)} of its shards are missing, as {lost[0]}; run the workflow again")
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def _add(self, group: h5py.Group) -> None:
        name = group.name.lstrip("/")
        attributes = {k: v.item() if isinstance(v, np.generic) else v for k, v in group.attrs.items() if k != "files"}
        self.provenance[name] = attributes
        self.files[name] = [self.path.parent / str(file) for file in group.attrs["files"]]
        self.names |= {f"{name}/{k}": item.shape for k, item in group.items() if item.is_virtual}

    def read(self, name: str, rows: Iterable[int] | None = None) -> np.ndarray:
        """The given rows of a feature (default: all), in their order: R, *shape.

        Raises AVQAError if a shard is damaged or holds a number that is not finite.
        """
        group = name.split("/")[0]
        wanted = np.arange(self.names[name][0]) if rows is None else np.asarray(list(rows), np.int64)
        shards = np.zeros_like(wanted) if group == "text" else self.shard[wanted]
        places = wanted if group == "text" else self.row[wanted]
        output = name.removeprefix("text/") if group == "text" else name
        values = None
        for shard in np.unique(shards):
            path = self.files[group][shard]
            at = np.flatnonzero(shards == shard)
            part = self._read_rows(path, output, places[at])
            if not all_finite(part):
                bad = wanted[at[np.flatnonzero(~np.isfinite(part).reshape(len(at), -1).all(1))[0]]]
                which = repr(self.texts[bad]) if group == "text" else f"video {self.video_id[bad]}"
                raise AVQAError(f"{path}: {name} of {which} is not finite; {REMEDY}")
            if len(at) == len(wanted):
                return part
            if values is None:
                values = np.empty((len(wanted), *part.shape[1:]), part.dtype)
            values[at] = part
        return np.empty((0, *self.names[name][1:]), np.float16) if values is None else values

    def _read_rows(self, path: Path, output: str, rows: np.ndarray) -> np.ndarray:
        """Rows one by one, unless they follow one another: a chunk holds one row at most."""
        with self._lock:
            try:
                dataset = self._opened(path)[output]
                if (np.diff(rows) == 1).all():
                    return dataset[rows[0] : rows[-1] + 1]
                return np.stack([dataset[row] for row in rows])
            except OSError as error:
                raise AVQAError(f"{path}: cannot be read ({error}); `avqa verify` checks all files") from error

    def _opened(self, path: Path) -> "_OpenFile":
        if path not in self._open:
            while len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._open[path] = _OpenFile(path)
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        """Close all files."""
        with self._lock:
            while self._open:
                self._open.popitem()[1].close()


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
