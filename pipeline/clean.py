"""What no configuration names any more: files whose keys are of other settings, videos or questions."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pipeline.errors import AVQAError
from pipeline.paths import NotMade, Paths

# Patterns of what is made under a name with a key, below the folder of a data set or of a collection.
OF_DATASET = (
    "manifests/*",
    "text/*.h5",
    "data/*",
    "runs/*/seed-*",
    "scores/*/*/seed-*",
    "reports/*",
    "ablations/*/*.csv",
    "former",
)
OF_COLLECTION = ("shards/*.tsv", "features/*/*.h5", "failures/*/*.tsv", "former")


def unnamed(everything: Sequence[Mapping[str, Paths]]) -> list[tuple[Path, int]]:
    """Files and folders that none of the configurations names, with their sizes in bytes, the largest first.

    Raises AVQAError if a configuration's questions were never read, so that it is not known what it names."""
    files = [paths for configuration in everything for paths in configuration.values()]
    kept: set[Path] = set()
    for paths in files:
        try:
            kept.update(path.absolute() for path in paths.everything())
        except NotMade as error:
            raise AVQAError(
                f"{error}, so that it is not known what {paths.name} names; run the workflow first"
            ) from None
    folders = [(paths.folder, OF_DATASET) for paths in files] + [(paths.collection, OF_COLLECTION) for paths in files]
    found = {path for folder, patterns in folders for pattern in patterns for path in folder.glob(pattern)}
    left = [path for path in found if path.absolute() not in kept]
    return sorted(((path, _size(path)) for path in left), key=lambda item: (-item[1], item[0]))


def _size(path: Path) -> int:
    return sum(os.lstat(file).st_size for file in _files(path))


def _files(path: Path) -> Iterator[Path]:
    yield from (file for file in path.rglob("*") if not file.is_dir() or file.is_symlink()) if path.is_dir() else [path]


def remove(paths: Sequence[Path]) -> None:
    """Remove files and folders, and the folders that are empty then."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        if path.parent.exists() and not any(path.parent.iterdir()):
            path.parent.rmdir()
