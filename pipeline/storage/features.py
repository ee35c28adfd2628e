"""The features of a data set on disk: features.h5, the index over its shards."""

from pathlib import Path

import h5py

from pipeline.errors import AVQAError
from pipeline.storage.hdf5 import open_hdf5


def open_index(path: str | Path) -> h5py.File:
    """Open a features.h5. Raises AVQAError if it is not one or a shard that it points to is gone."""
    path = Path(path)
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise AVQAError(f"{path}: cannot be read ({error}); run the workflow to make it") from error
    lost = set()

    def look(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.is_virtual:
            lost.update(s.file_name for s in item.virtual_sources() if not (path.parent / s.file_name).exists())

    file.visititems(look)
    if lost:
        raise AVQAError(f"{path}: {len(lost)} of its shards are gone, the first {min(lost)}; run the workflow again")
    return file


def damaged_shards(folder: str | Path) -> list[str]:
    """Read every number of every features and text file of a results folder; what is wrong, a line a file."""
    found = []
    for path in sorted(Path(folder).glob("*/*.h5")):
        kind = "text" if path.name == "text.h5" else "segments" if path.parent.name == "segments" else "features"
        try:
            with open_hdf5(path, kind) as file:
                file.visititems(lambda _, item: _read_all(item))
        except AVQAError as error:
            found.append(str(error))
    return found


def _read_all(item: object) -> None:
    if isinstance(item, h5py.Dataset):
        for n in range(len(item)):
            item[n]
