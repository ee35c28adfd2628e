"""Published .npy folders to our shards, so that training can start from features that others extracted."""

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.config import collection_dir, dataset_dir
from pipeline.data.layouts import LAYOUTS, Folder, Layout
from pipeline.errors import AVQAError
from pipeline.export import IDS, RECORD, VIDEOS
from pipeline.index import build_index
from pipeline.manifest import build_manifest, read_manifest, read_questions
from pipeline.storage.contract import DECODED, FAILED, PER_VIDEO, DatasetSpec
from pipeline.storage.finite import all_finite
from pipeline.storage.hdf5 import ShardWriter
from pipeline.storage.shard_list import Video, digest, read_shard_list
from pipeline.storage.tables import read_table
from pipeline.text import read_texts

UNKNOWN = {"weights": "unknown", "weights_sha256": "", "pretrained": True, "libraries": "{}"}

log = logging.getLogger(__name__)


def import_features(root: str | Path, layout: str, config: dict) -> None:
    """Write features, text features and index of a data set from the folders of a layout (a row of LAYOUTS).

    The configuration says which annotations the features belong to, and the names of data set and collection; where the
    data set has no manifest yet, those videos make it that have an array. Arrays of more than `decode.segments` seconds
    are cut, shorter ones are padded as `decode.pad` says; their numbers stay as they are, float32 or float16. Raises
    AVQAError naming the file that does not fit, where annotations changed since the manifest was made, and where
    features that were extracted here would be replaced.
    """
    source = _Source(Path(root), LAYOUTS[layout], layout, config["decode"])
    dataset, collection = dataset_dir(config), collection_dir(config)
    if not (dataset / "manifest.json").exists():
        arrays = {"folder": str(source.video_folders[0].path), "pattern": "{video_id}.npy", "follow_links": True}
        build_manifest(config | {"videos": config["videos"] | arrays})
    encoders, shards = source.outputs, read_manifest(dataset)["shards"]
    for shard, encoder in product(shards, encoders):
        _refuse_ours(collection / "features" / encoder / f"{shard}.h5")
    _refuse_other_questions(config, dataset)
    for shard in tqdm(shards, desc="import", unit="shard", mininterval=2, disable=None):
        videos = read_shard_list(collection / "shards" / f"{shard}.tsv")
        for encoder in encoders:
            _write_shard(source, encoder, collection, shard, videos)
    known = set(read_table(dataset / "questions.parquet", ["video_id"])["video_id"])
    if lacking := sorted(known - source.complete):
        log.warning(f"{len(lacking)} videos lack an array in one of the folders and count as failed, as {lacking[0]}")
    if not source.text_encoder:
        log.info(f"{layout} has no text features: make them with `avqa text`, then run `avqa index`")
        return
    _write_text(source, dataset)
    build_index(dataset, collection, list(encoders), source.text_encoder)


@dataclass(frozen=True)
class _Folder:
    """A folder of arrays that is there: its features, in the order in which their tokens stand in an array."""

    path: Path
    features: tuple[str, ...]
    per: str

    def load(self, key: str) -> np.ndarray:
        """One array as it is on the disk. Raises AVQAError naming the file."""
        path = self.path / f"{key}.npy"
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise AVQAError(f"{path}: cannot be read as an array ({error}); get it again") from error
        if array.dtype not in (np.float16, np.float32, np.float64) or not all_finite(array):
            raise AVQAError(f"{path}: holds {array.dtype} or numbers that are not finite; get it again")
        return array

    @cached_property
    def names(self) -> set[str]:
        """The keys of the arrays that are there."""
        return {path.stem for path in self.path.glob("*.npy")}


class _Source:
    """The folders of a layout below a root, and what is known of how their features were made."""

    def __init__(self, root: Path, layout: Layout, name: str, decode: dict[str, Any]):
        self.root, self.layout, self.name = root, layout, name
        self.seconds, self.pad = decode["segments"], decode["pad"]
        record = json.loads((root / RECORD).read_text(encoding="utf-8")) if (root / RECORD).exists() else {}
        self.made, self.exported = record.get("features", {}), record.get("folders", {})
        folders = [found for folder in layout.folders if (found := self._find(folder))]
        known: set[str] = set()
        self.folders = []
        for folder in folders:  # a feature that two folders hold is read from the first
            if not known.issuperset(folder.features):
                self.folders.append(folder)
            known.update(folder.features)
        self.video_folders = [folder for folder in self.folders if folder.per == "video"]
        self.text_encoder = self.made.get("text", {}).get("encoder", layout.text_encoder)
        videos, ids = (_read_csv(root / name) for name in (VIDEOS, IDS))
        self.ids = ids
        self.known_videos = {} if videos is None else videos.set_index("video_id").to_dict("index")

    def _find(self, folder: Folder) -> _Folder | None:
        if not (self.root / folder.path).is_dir():
            if folder.optional:
                return None
            raise AVQAError(
                f"{self.root / folder.path}: no such folder; {self.name} has arrays of shape {folder.shape} there "
                f"({folder.option}): put them there, or make a link of that name to where they are"
            )
        features = self.exported.get(folder.path, folder.features)  # a forced export has those of other encoders
        return _Folder(self.root / folder.path, tuple(features), folder.per)

    @cached_property
    def outputs(self) -> dict[str, dict[str, tuple[_Folder, int]]]:
        """encoder -> output -> its folder, and which of the folder's features it is."""
        found: dict[str, dict[str, tuple[_Folder, int]]] = {}
        for folder in self.video_folders:
            for n, name in enumerate(folder.features):
                encoder, output = name.split("/")
                found.setdefault(encoder, {})[output] = (folder, n)
        return found

    @cached_property
    def complete(self) -> set[str]:
        """The videos that every folder has."""
        return set.intersection(*(folder.names for folder in self.video_folders))

    def read(self, encoder: str, output: str, video_id: str) -> np.ndarray:
        """T, … of a video, as many seconds as its array has."""
        folder, part = self.outputs[encoder][output]
        array = folder.load(video_id)
        if len(folder.features) > 1:
            array = array[:, 0] if part == 0 else array[:, 1:]  # a vector counts as one token and comes first
        if array.ndim < 2 or not len(array):
            raise AVQAError(f"{folder.path / video_id}.npy: has shape {array.shape}, expected seconds first")
        return array

    def provenance(self, encoder: str) -> dict[str, Any]:
        """What a features or text file says about its origin."""
        made = UNKNOWN | self.made.get(encoder, {})
        config = {"imported": self.name, "decode": {"segments": self.seconds, "pad": self.pad}}
        config["source"] = json.loads(made.get("config", "{}"))
        attributes = {name: made[name] for name in UNKNOWN} | {"config": config, "imported": True}
        return attributes | {"weights": f"imported: {made['weights']}"}


def _write_shard(source: _Source, encoder: str, collection: Path, shard: str, videos: list[Video]) -> None:
    path = collection / "features" / encoder / f"{shard}.h5"
    there = [video.video_id for video in videos if video.video_id in source.complete]
    if not there:
        raise AVQAError(f"{source.root}: has arrays of none of the videos of {collection / 'shards' / shard}.tsv")
    specs = {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
    for output in source.outputs[encoder]:
        first = source.read(encoder, output, there[0])
        shape = first.shape[1:]
        specs[f"{encoder}/{output}"] = DatasetSpec(
            (source.seconds, *shape), first.dtype.name, (1, *shape) if len(shape) > 1 else None
        )
    attributes = {"kind": "features", "collection": collection.name, "shard": shard, "source": digest(videos)}
    attributes |= {"encoder": encoder, **source.provenance(encoder)}
    with ShardWriter(path, len(videos), specs, attributes, {"video_id": [v.video_id for v in videos]}) as writer:
        for n in np.flatnonzero(~writer.done).tolist():
            writer.write(n, _row(source, encoder, videos[n].video_id, specs))


def _row(source: _Source, encoder: str, video_id: str, specs: dict[str, DatasetSpec]) -> dict[str, object]:
    """A video's features, padded to the shard's seconds; zeros where an array of it is missing."""
    row: dict[str, object] = {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    if video_id not in source.complete:
        return row | {"num_segments": 0, "has_audio": False, "status": FAILED}
    seconds = source.seconds
    for output in source.outputs[encoder]:
        name = f"{encoder}/{output}"
        values = source.read(encoder, output, video_id)[: source.seconds]
        if values.shape[1:] != specs[name].shape[1:] or values.dtype.name != specs[name].dtype:
            path = source.outputs[encoder][output][0].path / f"{video_id}.npy"
            raise AVQAError(
                f"{path}: is {values.dtype} {values.shape[1:]} per second, others {specs[name].dtype} "
                f"{specs[name].shape[1:]}; get it again"
            )
        padded = np.zeros(specs[name].shape, specs[name].dtype)
        padded[: len(values)] = values
        padded[len(values) :] = values[-1] if source.pad == "repeat" else 0
        row[name], seconds = padded, min(seconds, len(values))
    known = source.known_videos.get(video_id, {"num_segments": seconds, "has_audio": "True"})
    seconds = min(seconds, int(known["num_segments"]))
    return row | {"num_segments": seconds, "has_audio": known["has_audio"] == "True", "status": DECODED}


def _write_text(source: _Source, dataset: Path) -> None:
    """The text file of a data set: for each different question the arrays of the first of its ids that has them."""
    path = dataset / "text" / f"{source.text_encoder}.h5"
    _refuse_ours(path)
    texts = read_texts(dataset / "questions.parquet")
    folders = {folder.features[0].split("/")[1]: folder for folder in source.folders if folder.per == "question"}
    keys = _question_keys(source, dataset, set.intersection(*(folder.names for folder in folders.values())))
    if lacking := [text for text in texts if text not in keys]:
        raise AVQAError(
            f"{next(iter(folders.values())).path}: has no array for {len(lacking)} questions, as {lacking[0]!r}; "
            "a file's name must be a question_id of the annotations"
        )
    first = {name: _text_array(folder, keys[texts[0]]) for name, folder in folders.items()}
    specs = {name: DatasetSpec(array.shape, array.dtype.name) for name, array in first.items()}
    specs["length"] = DatasetSpec((), "int32")
    attributes = {"kind": "text", "dataset": dataset.name, "shard": "", "encoder": source.text_encoder}
    attributes |= source.provenance("text")
    with ShardWriter(path, len(texts), specs, attributes, {"text": texts}) as writer:
        for n in np.flatnonzero(~writer.done).tolist():
            row: dict[str, object] = {}
            for name, folder in folders.items():
                row[name] = array = _text_array(folder, keys[texts[n]])
                if array.shape != first[name].shape or array.dtype != first[name].dtype:
                    raise AVQAError(
                        f"{folder.path / keys[texts[n]]}.npy: is {array.dtype} {array.shape}, unlike others"
                    )
            writer.write(n, row | {"length": len(row["words"]) if "words" in row else 0})


def _read_csv(path: Path) -> pd.DataFrame | None:
    """A table of texts, in which "null" and "nan" are texts like others; None where there is no file."""
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else None


def _question_keys(source: _Source, dataset: Path, names: set[str]) -> dict[str, str]:
    """Text -> the name of its arrays."""
    if source.ids is not None:
        table = source.ids[["question", "export_id"]]
    else:
        table = read_table(dataset / "questions.parquet", ["question", "question_id"]).dropna()
    table.columns = ["question", "key"]
    there = table[table["key"].isin(names)].drop_duplicates("question")
    return dict(zip(there["question"], there["key"], strict=True))


def _text_array(folder: _Folder, key: str) -> np.ndarray:
    """D of a sentence, tokens, D of words; published arrays have an axis of length 1 before that."""
    array = folder.load(key)
    return array[0] if array.ndim > 1 and len(array) == 1 else array


def _refuse_ours(path: Path) -> None:
    """Never replace features that were extracted here."""
    if not path.exists():
        return
    with h5py.File(path) as file:
        imported = bool(file.attrs.get("imported", False))
    if not imported:
        raise AVQAError(f"{path}: was extracted here; give another dataset and videos.collection in the configuration")


def _refuse_other_questions(config: dict, dataset: Path) -> None:
    """Arrays of questions are found by the ids of the manifest's questions, which must be those of the annotations."""
    made, now = read_table(dataset / "questions.parquet"), read_questions(config)
    absent = dataset / "absent.tsv"
    if absent.exists():
        left_out = pd.read_csv(absent, sep="\t", dtype=str, keep_default_na=False)["video_id"]
        now = now[~now["video_id"].isin(left_out)]
    columns = ["split", "video_id", "question", "answer", "question_id"]
    if sorted(map(str, made[columns].to_numpy().tolist())) != sorted(map(str, now[columns].to_numpy().tolist())):
        raise AVQAError(
            f"{dataset / 'questions.parquet'}: was made from other annotations than the configuration names now; move "
            f"{dataset} away and import again, or run `avqa manifest` first where the videos are there"
        )
