"""A folder of .npy arrays, one per video or text, as others publish them, and the seconds that their rows are of.

Files are named <id>.npy, or as video_features writes them: <id>_<kind>.npy, with <id>_timestamps_ms.npy (a frame's time
each row) and <id>_fps.npy beside them.
"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.errors import AVQAError
from pipeline.storage.finite import all_finite

KINDS = ("clip", "timm", "resnet", "r21d", "s3d", "vggish", "rgb", "flow", "raft", "pwc")  # of video_features
ENDS = ("rgb", "flow")  # I3D: a timestamp is the end of its row's frames, and not their start
HOPS = {"vggish": 0.96}  # seconds from row to row where there are no timestamps
FPS, TIMESTAMPS = "_fps", "_timestamps_ms"


class Times(NamedTuple):
    """When the rows of an array start, in seconds, and when the last one ends."""

    starts: np.ndarray
    end: float


class ArrayFolder:
    """The arrays of a folder by their ids: those of the kind that is wanted, where video_features wrote several.

    `known` are ids that are looked for: what is named after one of them is never taken for a kind. Raises AVQAError if
    the folder holds several kinds and `kind` names none of them.
    """

    def __init__(self, path: str | Path, kind: str | None = None, known: Collection[str] = ()):
        self.path, self.kind = Path(path), ""
        files = {file.stem: file for file in sorted(self.path.glob("*.npy"))}
        self.companions = {stem for stem in files if stem not in known and _base(stem, files) is not None}
        self.files = {stem: file for stem, file in files.items() if stem not in self.companions}
        kinds = sorted({stem.rpartition("_")[2] for stem in self.files})
        if not self.files or not set(kinds) <= set(KINDS) or not self.files.keys().isdisjoint(known):
            return
        if kind not in kinds and len(kinds) > 1:
            raise AVQAError(f"{self.path}: holds arrays of {' and '.join(kinds)}; name one of these as the output")
        self.kind = kind if kind in kinds else kinds[0]
        ending = f"_{self.kind}"
        self.files = {s.removesuffix(ending): file for s, file in self.files.items() if s.endswith(ending)}

    @property
    def pattern(self) -> str:
        """Of the files' names, by video_id."""
        return f"{{video_id}}_{self.kind}.npy" if self.kind else "{video_id}.npy"

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of an array, whose numbers are not read. Raises AVQAError for a file that is cut."""
        array = _open(self.files[name], mmap_mode="r")
        return array.shape, array.dtype

    def load(self, name: str) -> np.ndarray:
        """An array as it is on the disk. Raises AVQAError naming the file, also for numbers that are not finite."""
        array = _open(self.files[name])
        if array.dtype.kind not in "fiu" or not all_finite(array):
            what = "numbers that are not finite" if array.dtype.kind in "fiu" else f"{array.dtype} in place of numbers"
            raise AVQAError(f"{self.files[name]}: holds {what}; get or make it again")
        return array

    def has_timestamps(self, name: str) -> bool:
        """Whether a file says when an array's rows are."""
        return self._companion(name, TIMESTAMPS) is not None

    def times(self, name: str, rows: int) -> Times | None:
        """When each of an array's rows is; None where nothing says so. Raises AVQAError naming the file of the times.

        VGGish of video_features has no file of times: it has a row each 0.96 s.
        """
        path = self._companion(name, TIMESTAMPS)
        if path is None:
            hop = HOPS.get(self.kind)
            return None if hop is None else Times(hop * np.arange(rows), hop * rows)
        stamps = np.asarray(_open(path), np.float64) / 1000
        if stamps.shape != (rows,) or not np.isfinite(stamps).all() or (np.diff(stamps) < 0).any():
            raise AVQAError(
                f"{path}: holds {stamps.shape} times, expected ({rows},) that never go back, as {self.files[name]} has "
                f"{rows} rows; get both again"
            )
        if self.kind in ENDS:
            return Times(np.concatenate([[0.0], stamps[:-1]]), float(stamps[-1]))
        return Times(stamps, float(stamps[-1] + self._period(name, stamps)))

    def _period(self, name: str, stamps: np.ndarray) -> float:
        """Seconds that a frame lasts."""
        path = self._companion(name, FPS)
        if path is None:
            return float(np.median(np.diff(stamps))) if len(stamps) > 1 else 1.0
        fps = _open(path)
        if fps.size != 1 or not (fps > 0).all() or not np.isfinite(fps).all():
            raise AVQAError(f"{path}: must hold one number, the frames per second; get it again")
        return 1 / float(fps.item())

    def _companion(self, name: str, ending: str) -> Path | None:
        stem = f"{name}{ending}"
        return self.path / f"{stem}.npy" if stem in self.companions else None


def by_second(times: Times, frame_at: float) -> np.ndarray:
    """The row of each second: the last one that starts at or before second + frame_at, as decoding chooses frames."""
    count = max(1, math.ceil(times.end - frame_at))
    rows = np.searchsorted(times.starts, np.arange(count) + frame_at, side="right") - 1
    return np.maximum(rows, 0)


def _base(stem: str, files: Collection[str]) -> str | None:
    """The id of the array beside which a file of times or of a frame rate stands; None for other files."""
    for ending in (TIMESTAMPS, FPS):
        name = stem.removesuffix(ending)
        if name != stem and any(other in files for other in (name, *(f"{name}_{kind}" for kind in KINDS))):
            return name
    return None


def _open(path: Path, mmap_mode: str | None = None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
        reason = "it is an archive of several"
    except (OSError, ValueError, EOFError) as error:
        reason = str(error)
    raise AVQAError(f"{path}: cannot be read as an array ({reason}); get it again")
