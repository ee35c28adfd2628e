"""Features that are compared, by video id: files of the pipeline, or a folder of arrays."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from pipeline.data.array_folder import ArrayFolder, by_second
from pipeline.errors import AVQAError
from pipeline.storage.contract import DECODED
from pipeline.storage.finite import all_finite
from pipeline.storage.hdf5 import open_hdf5

FRAME_AT = 0.5  # of a second: the moment whose row of an array with times is compared


class ShardSource:
    """One output in features files of the pipeline."""

    def __init__(self, files: list[Path], output: str | None):
        self.places: dict[str, tuple[Path, int, int]] = {}
        self.name, self.note = "", ""
        self._file: h5py.File | None = None
        for path in files:
            try:
                self._list(path, output)
            except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:  # h5py's
                raise AVQAError(
                    f"{path}: is not laid out as a features file ({error}); `avqa verify` checks it"
                ) from error

    def _list(self, path: Path, output: str | None) -> None:
        with open_hdf5(path, "features") as file:
            names = list(file[str(file.attrs["encoder"])])
            if (output or names[0]) not in names or (output is None and len(names) > 1):
                raise AVQAError(f"{path}: holds {', '.join(names)}; choose one of these with --output")
            self.name = f"{file.attrs['encoder']}/{output or names[0]}"
            _check_numbers(path, file[self.name])
            decoded, seconds = file["status"][:] == DECODED, file["num_segments"][:]
            for n, video_id in enumerate(file["video_id"].asstr()[:]):
                if decoded[n]:
                    self.places[video_id] = (path, n, int(seconds[n]))

    def read(self, video_id: str) -> np.ndarray:
        """T, … of the true seconds. Videos of one file after another are fastest."""
        path, row, seconds = self.places[video_id]
        if self._file is None or self._file.filename != str(path):
            self.close()
            self._file = h5py.File(path)
        return _check_finite(f"{path}: {video_id}", self._file[self.name][row, :seconds])

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()


class ArraySource:
    """A folder of <video id>.npy, or of files that video_features named; of these, the row of each second."""

    def __init__(self, folder: Path, output: str | None):
        self.arrays = ArrayFolder(folder, output)
        self.name, self.note = folder.name, ""
        self.places = self.arrays.files

    def read(self, video_id: str) -> np.ndarray:
        """T, … as the file has it; where the rows have times, the row of each second."""
        values = self.arrays.load(video_id)
        _check_numbers(self.places[video_id], values)
        _check_finite(self.places[video_id], values)
        times = self.arrays.times(video_id, len(values)) if self.arrays.has_timestamps(video_id) else None
        if times is None:
            return values
        self.note = f"of {self.name}, the rows whose times are the middles of the seconds are compared"
        return values[by_second(times, FRAME_AT)]

    def close(self) -> None:
        """Nothing is open."""


def _check_numbers(path: Path, values: np.ndarray | h5py.Dataset) -> None:
    if values.ndim < 2 or values.dtype.kind not in "fiu":
        raise AVQAError(f"{path}: holds {values.dtype} {values.shape}, expected a vector of numbers or more per second")


def _check_finite(name: str | Path, values: np.ndarray) -> np.ndarray:
    """The values themselves. Raises AVQAError where nothing could be said of them."""
    if not values.size or not all_finite(values):
        what = "numbers that are not finite" if values.size else "no seconds"
        raise AVQAError(f"{name}: holds {what}; get or make it again")
    return values


def open_source(path: str | Path, output: str | None = None) -> ShardSource | ArraySource:
    """Features by video id: an HDF5 file, or a folder of HDF5 or .npy files. Raises AVQAError for anything else."""
    path = Path(path)
    if path.is_file():
        return ShardSource([path], output)
    if files := sorted(path.glob("*.h5")):
        return ShardSource(files, output)
    if any(path.glob("*.npy")):
        return ArraySource(path, output)
    raise AVQAError(f"{path}: has no .h5 and no .npy files; give a features file or the folder that such files are in")
