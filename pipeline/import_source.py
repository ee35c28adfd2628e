"""The folders that are imported: what is there, and whether it is what it is said to be, before anything is written."""

import hashlib
import json
import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from extractors import ENCODERS
from pipeline.data.array_folder import ArrayFolder, Times, by_second
from pipeline.data.layouts import Folder, Layout, T
from pipeline.errors import AVQAError
from pipeline.export import IDS, RECORD, VIDEOS

TOKENS = ("tome_vit_l16_384/tokens",)
SAMPLED = 10  # frames of a video, where TSPM's script for merged tokens runs with its default
SLACK = 2  # rows that an array may have beyond the layout's seconds: 60 s are 62 rows of 0.96 s
FEW = 5  # files that one line names

log = logging.getLogger(__name__)


def layout_of(folders: Iterable[str]) -> Layout:
    """The layout of folders that are given one by one, ENCODER/OUTPUT=DIR. Raises AVQAError for another form."""
    rows: list[Folder] = []
    for given in folders:
        feature, _, path = given.partition("=")
        encoder, _, output = feature.partition("/")
        if not path or not encoder or not output or "/" in output or encoder.startswith((".", "text")):
            raise AVQAError(
                f"{given}: is not ENCODER/OUTPUT=DIR, such as vggish/embedding=feats/vggish; or give --layout"
            )
        if encoder in ENCODERS and output not in ENCODERS[encoder].outputs:
            raise AVQAError(f"{given}: {encoder} has no output {output}; it has {', '.join(ENCODERS[encoder].outputs)}")
        if feature in {row.features[0] for row in rows}:
            raise AVQAError(f"{given}: {feature} is given twice")
        shape = (T, *ENCODERS[encoder].outputs[output]) if encoder in ENCODERS else ()
        rows.append(Folder(str(Path(path).absolute()), feature, (feature,), shape))
    return Layout("the given folders", tuple(rows), ())


@dataclass(eq=False)
class FeatureFolder:
    """A folder of arrays that is there: its features, in the order in which their tokens stand in an array."""

    arrays: ArrayFolder
    row: Folder
    features: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]  # that a second, or a text, may have; empty where nothing says so
    rows: dict[str, int] = field(default_factory=dict)  # of the arrays that were checked
    lengths: frozenset[int] = frozenset()
    row_shape: tuple[int, ...] = ()
    dtype: np.dtype = field(default_factory=lambda: np.dtype("float32"))

    @property
    def stored_dtype(self) -> str:
        """Of the arrays in shards; float64 is what NumPy makes of lists of float32 numbers."""
        return "float32" if self.dtype == np.float64 else self.dtype.name

    @property
    def names(self) -> Collection[str]:
        """The ids of the arrays that are there."""
        return self.arrays.files.keys()

    def check(self, names: Iterable[str]) -> None:
        """Whether all arrays are numbers of one type and of one of the shapes. Raises AVQAError naming the file."""
        found: tuple[tuple[int, ...], np.dtype] | None = None
        for name in names:
            shape, dtype = self.arrays.header(name)
            path, per_row = self.arrays.files[name], self.shape_of_row(shape)
            if dtype not in (np.float16, np.float32, np.float64):
                raise AVQAError(f"{path}: holds {dtype}, expected floating-point numbers; get it again")
            fits = per_row in self.shapes if self.shapes else len(per_row) in (1, 2)
            if 0 in shape or not fits:
                raise AVQAError(f"{path}: has shape {shape}, expected {self._expected()}")
            found = found or (per_row, dtype)
            if found != (per_row, dtype):
                raise AVQAError(
                    f"{path}: is {dtype} {shape}, others are {found[1]} {found[0]} in each row; get it again"
                )
            self.rows[name], self.dtype, self.row_shape = shape[0], dtype, per_row
        self.lengths = frozenset(self.rows.values())

    def shape_of_row(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one second, or of a text, which may have an axis of length 1 before it."""
        if self.row.per == "video":
            return shape[1:]
        return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape

    def _expected(self) -> str:
        rows = ("T",) if self.row.per == "video" else ("1",)
        shapes = [f"({', '.join([*rows, *map(str, shape)])})" for shape in self.shapes] or ["(T, D) or (T, N, D)"]
        what = f" of {' and '.join(self.features)}"
        return " or ".join(shapes) + what + (", a row for each second" if self.row.per == "video" else "")


class Source:
    """The folders of a layout below a root, and what is known of how their features were made.

    `known` are the ids of videos that the annotations name. Raises AVQAError naming a folder that is missing.
    """

    def __init__(self, root: Path, layout: Layout, name: str, decode: dict[str, Any], known: Collection[str]):
        self.root, self.layout, self.name, self.decode = root, layout, name, decode
        record = json.loads((root / RECORD).read_text(encoding="utf-8")) if (root / RECORD).is_file() else {}
        self.made, self.exported = record.get("features", {}), record.get("folders", {})
        self.text_encoder = self.made.get("text", {}).get("encoder", layout.text_encoder)
        self.folders: list[FeatureFolder] = []
        seen: set[tuple[str, str]] = set()
        for row in layout.folders:  # a feature that two folders hold is read from the first
            names = {(row.text, feature) for feature in self._features(row)}
            if not names <= seen and (found := self._find(row, known)):
                self.folders.append(found)
                seen |= names
        if all(folder.row.per == "video" for folder in self.folders):
            self.text_encoder = None
        self.video_folders = [folder for folder in self.folders if folder.row.per == "video"]
        self.ids, videos = (_read_csv(root / table) for table in (IDS, VIDEOS))
        self.videos: dict[str, dict[str, str]] = {}
        if videos is not None:
            self.videos = videos.set_index("video_id").to_dict("index")
        # An export has zeros where the video was missing (as if it were not there) or had failed.
        self.zeros = {video_id for video_id, row in self.videos.items() if row.get("left_out")}
        self.absent = {video_id for video_id in self.zeros if self.videos[video_id]["left_out"] != "failed"}
        self.complete = set.intersection(*(set(folder.names) for folder in self.video_folders)) - self.zeros
        self.seconds: dict[str, int] = {}  # true ones, of each video that was checked

    def _features(self, row: Folder) -> tuple[str, ...]:
        """Those of the layout; a forced export has those of other encoders."""
        return tuple(self.exported.get(row.path, row.features))

    def _find(self, row: Folder, known: Collection[str]) -> FeatureFolder | None:
        path = self.root / row.path
        if not path.is_dir():
            if row.optional:
                return None
            raise AVQAError(
                f"{path}: no such folder; {self.name} has arrays of shape {row.shape} there ({row.option}): put them "
                "there, or make a link of that name to where they are"
            )
        features = self._features(row)
        shapes = [row.shape[1:]] if row.shape and features == row.features else []
        outputs = [self._shape(feature) for feature in features]
        if all(shape is not None for shape in outputs):
            shapes.append(_joined([shape for shape in outputs if shape is not None]))
        arrays = ArrayFolder(path, features[0].split("/")[1], known if row.per == "video" else ())
        return FeatureFolder(arrays, row, features, tuple(dict.fromkeys(shapes)))

    def _shape(self, feature: str) -> tuple[int, ...] | None:
        """Of one row, where the table of encoders has the feature."""
        encoder, output = feature.split("/")
        if encoder == "text":
            spec = ENCODERS.get(self.text_encoder or "")
            return spec.text_outputs.get(output) if spec else None
        return ENCODERS[encoder].outputs.get(output) if encoder in ENCODERS else None

    @cached_property
    def outputs(self) -> dict[str, dict[str, tuple[FeatureFolder, int]]]:
        """encoder -> output -> its folder, and which of the folder's features it is."""
        found: dict[str, dict[str, tuple[FeatureFolder, int]]] = {}
        for folder in self.video_folders:
            for n, name in enumerate(folder.features):
                encoder, output = name.split("/")
                found.setdefault(encoder, {})[output] = (folder, n)
        return found

    def check_videos(self, wanted: Collection[str]) -> None:
        """Whether the arrays of the wanted videos are what the layout says, by their headers, and how many seconds each
        video has. Raises AVQAError naming the file."""
        self.complete.intersection_update(wanted)
        if not (there := sorted(self.complete)):
            raise AVQAError(
                f"{self.video_folders[0].arrays.path}: has arrays of none of the videos that the annotations name, in "
                "every folder; files must be named <video_id>.npy"
            )
        for folder in self.video_folders:
            folder.check(there)
        longest = max(self.layout.seconds, self.decode["segments"]) + SLACK
        cut, unequal = [], []
        for video_id in there:
            counts = {folder: self._count(folder, video_id) for folder in self._whole_folders(video_id)}
            for folder, count in counts.items():
                path = folder.arrays.files[video_id]
                if count > longest:
                    raise AVQAError(
                        f"{path}: has {count} rows, expected one for each second, {longest - SLACK} at most; if they "
                        f"are seconds, set decode.segments: {count}; if not, get features of one row a second"
                    )
                cut += [path] if count > self.decode["segments"] else []
            seconds = [min(count, self.decode["segments"]) for count in counts.values()]
            self.seconds[video_id] = min(seconds, default=self.decode["segments"])
            if len(set(seconds)) > 1:
                short, long = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
                files = [f"{folder.arrays.files[video_id]} ({counts[folder]} rows)" for folder in (short, long)]
                unequal.append(" beside ".join(files))
        if cut:
            log.info(f"{len(cut)} arrays have more than {self.decode['segments']} rows, which are cut, {_few(cut)}")
        if unequal:
            log.warning(
                f"{len(unequal)} videos have arrays of different lengths, {_few(unequal)}: their true seconds are "
                f"those that all arrays have; what an array lacks is filled (decode.pad: {self.decode['pad']})"
            )
        if sampled := [folder for folder in self.video_folders if any(self._sampled_from(folder, v) for v in there)]:
            log.warning(
                f"{sampled[0].arrays.path}: arrays of {SAMPLED} rows are taken for as many frames of a whole video, as "
                "TSPM's script samples them by default; each second gets the frame that is nearest"
            )

    def _count(self, folder: FeatureFolder, video_id: str) -> int:
        """The seconds of a video's array."""
        times = self._times(folder, video_id)
        return folder.rows[video_id] if times is None else len(by_second(times, self.decode["frame_at"]))

    def _times(self, folder: FeatureFolder, video_id: str) -> Times | None:
        spec = ENCODERS.get(folder.features[0].split("/")[0])
        if spec and spec.inputs[0].hop:  # its rows are no seconds here either
            return None
        times = folder.arrays.times(video_id, folder.rows[video_id])
        if times is None and folder.arrays.kind:
            raise AVQAError(
                f"{folder.arrays.files[video_id]}: has no _timestamps_ms.npy beside it, so that nothing says which "
                "second a row is of; if each row is a second, make links of the name <video_id>.npy"
            )
        return times

    def _whole_folders(self, video_id: str) -> list[FeatureFolder]:
        """The folders whose arrays say how long a video is."""
        return [folder for folder in self.video_folders if not self._sampled_from(folder, video_id)]

    def _sampled_from(self, folder: FeatureFolder, video_id: str) -> int:
        """Of how many seconds an array holds SAMPLED frames; 0 if it has a row for each second."""
        if folder.features != TOKENS or folder.rows[video_id] != SAMPLED:
            return 0
        others = [other.rows[video_id] for other in self.video_folders if other.features != TOKENS]
        if not others and folder.lengths != {SAMPLED}:
            return 0
        seconds = min(others, default=self.decode["segments"])
        return seconds if seconds > SAMPLED else 0

    def read(self, folder: FeatureFolder, video_id: str) -> np.ndarray:
        """T, … of a video: a row for each second that its array has, at most `decode.segments`."""
        array = folder.arrays.load(video_id)
        if array.shape != (folder.rows[video_id], *folder.row_shape):
            raise AVQAError(f"{folder.arrays.files[video_id]}: changed while it was imported; import again")
        array = array.astype(folder.stored_dtype, copy=False)
        if seconds := self._sampled_from(folder, video_id):
            # The script takes the frames in the order of its file system's list, which is taken for theirs in time.
            sampled = np.linspace(0, seconds - 2, SAMPLED, dtype=int)
            array = array[np.abs(np.arange(seconds)[:, None] - sampled).argmin(1)]
        elif times := self._times(folder, video_id):
            array = array[by_second(times, self.decode["frame_at"])]
        return array[: self.decode["segments"]]

    @staticmethod
    def part(folder: FeatureFolder, part: int, array: np.ndarray) -> np.ndarray:
        """T, … of one of the features that are joined in an array: the first is a vector, which counts as a token."""
        if len(folder.features) == 1:
            return array
        return array[:, 0] if part == 0 else array[:, 1:]

    def shape_of_part(self, folder: FeatureFolder, part: int) -> tuple[int, ...]:
        """Of one second of a feature."""
        return self.part(folder, part, np.empty((1, *folder.row_shape), bool)).shape[1:]

    def stamp_of(self, encoder: str, videos: Iterable[str]) -> str:
        """Changes when an array of the videos is replaced."""
        folders = dict.fromkeys(folder for folder, _ in self.outputs[encoder].values())
        return stamp(folder.arrays.files[v] for folder in folders for v in videos if v in self.complete)

    def provenance(self, encoder: str) -> dict[str, Any]:
        """What a features or text file says about its origin."""
        unknown = {"weights": "unknown", "weights_sha256": "", "pretrained": True, "libraries": "{}"}
        made = unknown | self.made.get(encoder, {})
        config = {
            "imported": self.name,
            "decode": {name: self.decode[name] for name in ("segments", "pad", "frame_at")},
        }
        config["source"] = json.loads(made.get("config", "{}"))
        attributes = {name: made[name] for name in unknown} | {"config": config, "imported": True}
        return attributes | {"weights": f"imported: {made['weights']}"}


def _joined(shapes: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Of several features that are joined along their token axis, a vector counting as one token."""
    if len(shapes) == 1:
        return shapes[0]
    return (sum(shape[0] if len(shape) == 2 else 1 for shape in shapes), shapes[0][-1])


def stamp(files: Iterable[Path]) -> str:
    """Changes when one of the files is replaced."""
    lines = [f"{file} {(info := file.stat()).st_size} {info.st_mtime_ns}" for file in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _few(values: list) -> str:
    more = f" and {len(values) - FEW} more" if len(values) > FEW else ""
    return "as " + ", ".join(map(str, values[:FEW])) + more


def _read_csv(path: Path) -> pd.DataFrame | None:
    """A table of texts, in which "null" and "nan" are texts like others; None where there is no file."""
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else None
