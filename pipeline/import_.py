"""Published .npy folders to our shards, so that training can start from features that others extracted."""

import logging
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from tqdm import tqdm

from pipeline.config import collection_dir, dataset_dir, text_encoders
from pipeline.data.layouts import Layout
from pipeline.errors import AVQAError
from pipeline.import_source import Source
from pipeline.import_texts import find_texts, write_texts
from pipeline.index import build_index
from pipeline.manifest import build_manifest, read_manifest, read_questions
from pipeline.storage.contract import DECODED, FAILED, PER_VIDEO, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter
from pipeline.storage.shard_list import Video, digest, read_shard_list
from pipeline.storage.tables import read_table

log = logging.getLogger(__name__)


def import_features(root: str | Path, layout: Layout, name: str, config: dict) -> None:
    """Write features, text features and index of a data set from the folders of a layout, below `root`.

    The configuration says which annotations the features belong to, and the names of data set and collection; where the
    data set has no manifest yet, those videos make it that have an array. Arrays of more than `decode.segments` seconds
    are cut, shorter ones are padded as `decode.pad` says; their numbers stay as they are, float32 or float16. A layout
    without texts has its index made from the text files that `avqa text` has written.

    Everything but the numbers themselves is checked before anything is written. Raises AVQAError naming the file that
    does not fit, where annotations changed since the manifest was made, and where features that were extracted here
    would be replaced.
    """
    dataset, collection = dataset_dir(config), collection_dir(config)
    published = read_questions(config)
    source = Source(Path(root), layout, name, config["decode"], set(published["video_id"]))
    made = (dataset / "manifest.json").exists()
    shards = _shards(dataset, collection) if made else {}
    for encoder, shard in product(source.outputs, shards):
        _refuse_ours(collection / "features" / encoder / f"{shard}.h5")
    if made:
        _refuse_other_questions(published, dataset)
    source.check_videos({*published["video_id"], *(video.video_id for videos in shards.values() for video in videos)})
    _refuse_lesser(source, collection, shards)
    arrays = source.video_folders[0].arrays
    absent = (set(published["video_id"]) - arrays.files.keys()) | source.absent
    text_file, texts = dataset / "text" / f"{source.text_encoder}.h5", {}
    if source.text_encoder:
        _refuse_ours(text_file)
        there = read_table(dataset / "questions.parquet") if made else published[~published["video_id"].isin(absent)]
        texts = find_texts(source, there, published)

    if not made:
        files = {"folder": str(arrays.path), "pattern": arrays.pattern, "follow_links": True, "absent": absent}
        build_manifest(config | {"videos": config["videos"] | files})
        shards = _shards(dataset, collection)
    for shard in tqdm(shards, desc="import", unit="shard", mininterval=2, disable=None):
        for encoder in source.outputs:
            _write_shard(source, encoder, collection, shard, shards[shard])
    wanted = set(read_table(dataset / "questions.parquet", ["video_id"])["video_id"])
    if lacking := sorted(wanted - source.complete):
        log.warning(f"{len(lacking)} videos lack an array in one of the folders and count as failed, as {lacking[0]}")
    encoders = [*source.outputs, *_others(source, collection, shards)]
    configured = text_encoders(config)
    encoded = sorted((path.stem for path in (dataset / "text").glob("*.h5")), key=lambda name: name not in configured)
    if source.text_encoder:
        write_texts(source, texts, text_file, dataset.name)
        _index(dataset, collection, encoders, [source.text_encoder])
    elif encoded:
        _index(dataset, collection, encoders, encoded)
    else:
        log.info(
            f"{name} has no text features: write {dataset / 'text' / 'ENCODER.h5'} with `avqa text`, then import "
            "again, which makes features.h5"
        )


def _index(dataset: Path, collection: Path, encoders: list[str], texts: list[str]) -> None:
    """features.h5 in the data set's folder, of all outputs that were imported."""
    features, first = {}, next(iter(read_manifest(dataset)["shards"]))
    for encoder in encoders:
        with h5py.File(collection / "features" / encoder / f"{first}.h5") as file:
            features |= {f"{encoder}/{output}": [encoder] for output in file[encoder]}
    files = {name: dataset / "text" / f"{name}.h5" for name in texts}
    build_index(dataset, collection, features, files, dataset)


def _shards(dataset: Path, collection: Path) -> dict[str, list[Video]]:
    """The videos of each shard that the data set needs."""
    return {
        shard: read_shard_list(collection / "shards" / f"{shard}.tsv") for shard in read_manifest(dataset)["shards"]
    }


def _others(source: Source, collection: Path, shards: dict[str, list[Video]]) -> list[str]:
    """The encoders of the collection that earlier imports wrote."""
    folders = sorted(path for path in (collection / "features").glob("*") if path.name not in source.outputs)
    return [
        folder.name
        for folder in folders
        if all((path := folder / f"{shard}.h5").exists() and _is_imported(path) for shard in shards)
    ]


def _refuse_lesser(source: Source, collection: Path, shards: dict[str, list[Video]]) -> None:
    """What earlier imports into the collection say of its videos is so in this one too: how long they are, and which
    failed. Raises AVQAError where this one lacks a video or a second of those."""
    failed, lesser = set(), []
    for encoder, shard in product(_others(source, collection, shards), shards):
        path = collection / "features" / encoder / f"{shard}.h5"
        with h5py.File(path) as file:
            names, values = file["video_id"].asstr()[:], {name: file[name][:] for name in PER_VIDEO}
        for n, video_id in enumerate(names):
            if values["status"][n] != DECODED:
                failed.add(video_id)
                continue
            seconds = int(values["num_segments"][n])
            source.videos[video_id] = {"num_segments": str(seconds), "has_audio": str(bool(values["has_audio"][n]))}
            if source.seconds.get(video_id, 0) < seconds:
                lesser.append(f"{video_id} ({source.seconds.get(video_id, 0)} seconds beside {seconds} of {encoder})")
    source.complete -= failed
    if lesser:
        raise AVQAError(
            f"{source.video_folders[0].arrays.path}: {len(lesser)} videos have fewer seconds than features that were "
            f"imported before, as {', '.join(lesser[:3])}; import all folders in one command, into a new collection"
        )


def _write_shard(source: Source, encoder: str, collection: Path, shard: str, videos: list[Video]) -> None:
    path = collection / "features" / encoder / f"{shard}.h5"
    specs = {name: DatasetSpec((), dtype) for name, dtype in PER_VIDEO.items()}
    for output, (folder, part) in source.outputs[encoder].items():
        shape = source.shape_of_part(folder, part)
        spec = DatasetSpec(
            (source.decode["segments"], *shape), folder.stored_dtype, (1, *shape) if len(shape) > 1 else None
        )
        specs[f"{encoder}/{output}"] = spec
    attributes = {"kind": "features", "collection": collection.name, "shard": shard, "source": digest(videos)}
    attributes |= {
        "encoder": encoder,
        "arrays": source.stamp_of(encoder, [v.video_id for v in videos]),
        **source.provenance(encoder),
    }
    with ShardWriter(path, len(videos), specs, attributes, {"video_id": [v.video_id for v in videos]}) as writer:
        for n in np.flatnonzero(~writer.done).tolist():
            writer.write(n, _row(source, encoder, videos[n].video_id, specs))


def _row(source: Source, encoder: str, video_id: str, specs: dict[str, DatasetSpec]) -> dict[str, object]:
    """A video's features, padded to the shard's seconds; zeros where an array of it is missing."""
    row: dict[str, object] = {name: np.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    if video_id not in source.complete:
        return row | {"num_segments": 0, "has_audio": False, "status": FAILED}
    arrays = {folder: source.read(folder, video_id) for folder, _ in source.outputs[encoder].values()}
    for output, (folder, part) in source.outputs[encoder].items():
        values = source.part(folder, part, arrays[folder])
        padded = np.zeros_like(row[f"{encoder}/{output}"])
        padded[: len(values)] = values
        padded[len(values) :] = values[-1] if source.decode["pad"] == "repeat" else 0
        row[f"{encoder}/{output}"] = padded
    known = source.videos.get(video_id, {"num_segments": source.seconds[video_id], "has_audio": "True"})
    seconds = min(source.seconds[video_id], int(known["num_segments"]))
    return row | {"num_segments": seconds, "has_audio": known["has_audio"] == "True", "status": DECODED}


def _is_imported(path: Path) -> bool:
    with h5py.File(path) as file:
        return bool(file.attrs.get("imported", False))


def _refuse_ours(path: Path) -> None:
    """Never replace features that were extracted here."""
    if path.exists() and not _is_imported(path):
        raise AVQAError(f"{path}: was extracted here; give another dataset and videos.collection in the configuration")


def _refuse_other_questions(now: pd.DataFrame, dataset: Path) -> None:
    """Arrays of questions are found by the ids of the manifest's questions, which must be those of the annotations."""
    made = read_table(dataset / "questions.parquet")
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
