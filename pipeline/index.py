"""Shards to one logical file: features.h5, and the list of the videos that could not be decoded."""

import csv
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from pipeline import __version__
from pipeline.errors import AVQAError
from pipeline.manifest import count_questions, read_manifest
from pipeline.storage.atomic import atomic, copy_file
from pipeline.storage.contract import (
    DECODED,
    FAILURE_FIELDS,
    MANIFEST,
    PER_VIDEO,
    PROVENANCE,
    SCHEMA_VERSION,
    comparable,
    unheard_table,
)
from pipeline.storage.hdf5 import open_hdf5
from pipeline.storage.shard_list import digest, read_shard_list
from pipeline.storage.tables import read_failures, read_table

log = logging.getLogger(__name__)


def build_index(
    manifest: str | Path,
    collection: str | Path,
    features: Mapping[str, Sequence[str]],
    texts: Mapping[str, str | Path],
    out: str | Path,
    key: str = "",
) -> None:
    """Write features.h5, and a copy of the questions that it belongs to, to the folder `out`.

    `manifest` is the folder that `build_manifest` wrote. `features` says for each encoder/output in which folders of
    the collection's features it is, the first that has a shard's file; `texts` has the file of each text encoder.
    features.h5 holds video_id, num_segments, has_audio and status of the data set's V videos in the order of their
    shards, where they are (shard, row), <encoder>/<output> V, T, … and, of each text encoder, text_<encoder>/{text,
    words, sentence, length}; text/… is that of the first one. The features stay in their shards. Raises AVQAError if
    shards are missing or do not belong together.
    """
    manifest, collection, out = Path(manifest), Path(collection), Path(out)
    described = read_manifest(manifest)
    wanted = set(read_table(manifest / "questions.parquet", ["video_id"])["video_id"])
    places = _Places(collection / "shards", described["shards"], wanted)
    if len(wanted) != described["videos"]:
        path = manifest / "questions.parquet"
        raise AVQAError(
            f"{path}: is about {len(wanted)} videos, manifest.json says {described['videos']}; run the workflow again"
        )
    outputs: dict[str, list[str]] = {}
    for name in features:
        outputs.setdefault(name.split("/")[0], []).append(name.split("/")[1])
    # In memory first: the file is small, and HDF5 may crash when its disk is full. In the oldest file version that has
    # what is needed: in later ones, HDF5 cannot read more than 2 MB of strings back (seen with 2.0).
    with h5py.File(out / "features.h5", "w", driver="core", backing_store=False) as index:
        index.attrs.update(schema_version=SCHEMA_VERSION, kind="index", created_by=f"avqa-pipeline {__version__}")
        index.attrs.update(dataset=described.get("dataset", ""), collection=collection.name, key=key)
        index["video_id"], index["shard"], index["row"] = places.video_id, places.shard, places.row
        for encoder, names in outputs.items():
            folders = [collection / "features" / folder for folder in features[f"{encoder}/{names[0]}"]]
            files = [find_features(folders, f"{shard}.h5") for shard in described["shards"]]
            per_video = _link(index, encoder, names, files, places, out)
        for name, values in per_video.items():
            index[name] = values
        for n, (encoder, path) in enumerate(texts.items()):
            if n == 0:
                _link_text(index, "text", Path(path), out)
            _link_text(index, f"text_{encoder}", Path(path), out)
        index.flush()
        image = index.id.get_file_image()
    for name in MANIFEST:
        if (manifest / name).exists() and manifest != out:
            copy_file(manifest / name, out / name)
    with atomic(out / "features.h5") as partial:
        partial.write_bytes(image)
    failed = int((per_video["status"] != DECODED).sum())
    log.info(f"{out}: {len(places.video_id)} videos in {len(described['shards'])} shards, {failed} failed")


class _Places:
    """Where the wanted videos are: in which of the shards, in which row."""

    def __init__(self, folder: Path, shards: dict[str, str], wanted: set[str]):
        videos = {shard: read_shard_list(folder / f"{shard}.tsv") for shard in shards}
        self.sources = [digest(listed) for listed in videos.values()]
        self.lists = [[video.video_id for video in listed] for listed in videos.values()]
        found = [(v, s, r) for s, ids in enumerate(self.lists) for r, v in enumerate(ids) if v in wanted]
        if lacking := wanted - {video_id for video_id, _, _ in found}:
            raise AVQAError(
                f"{folder}: {len(lacking)} videos are in no shard, as {min(lacking)}; run the workflow again"
            )
        self.video_id = [video_id for video_id, _, _ in found]
        self.shard = np.array([shard for _, shard, _ in found], "int32")
        self.row = np.array([row for _, _, row in found], "int32")

    def rows(self, shard: int) -> tuple[slice, np.ndarray]:
        """The rows of features.h5 that are a shard's, and the rows of the shard that these are."""
        begin, end = np.searchsorted(self.shard, [shard, shard + 1])
        return slice(begin, end), self.row[begin:end]


def find_features(folders: Sequence[Path], name: str) -> Path:
    """A shard's features, in the first of the folders that has them. Raises AVQAError."""
    found = next((folder / name for folder in folders if (folder / name).exists()), None)
    if found is None:
        raise AVQAError(f"{folders[0] / name}: no such file; run the workflow again")
    return found


def _link(
    index: h5py.File, encoder: str, outputs: Sequence[str], files: Sequence[Path], places: _Places, out: Path
) -> dict[str, np.ndarray]:
    """Add an encoder's outputs as virtual datasets; returns the arrays over all videos that every shard has."""
    total, group = len(places.video_id), index.create_group(encoder)
    layouts: dict[str, h5py.VirtualLayout] = {}
    first, sources = None, hashlib.sha256()
    per_video = {name: np.zeros(total, dtype) for name, dtype in PER_VIDEO.items()}
    for n, path in enumerate(files):
        with open_hdf5(path, "features") as shard:
            if list(shard["video_id"].asstr()[:]) != places.lists[n]:
                raise AVQAError(f"{path}: its videos are not those of its shard list; run the workflow again")
            if shard.attrs["source"] != places.sources[n]:
                raise AVQAError(f"{path}: was made from other files than its shard list says; run the workflow again")
            mine = {name: shard.attrs.get(name) for name in PROVENANCE}
            first = first or mine
            if differing := [n for n in mine if comparable(n, mine[n]) != comparable(n, first[n])]:
                raise AVQAError(
                    f"{path}: {', '.join(differing)} differ from {files[0]}; move one of the two away and run the "
                    "workflow again, so that all shards are made in the same way"
                )
            sources.update(shard.attrs["source"].encode())
            ours, theirs = places.rows(n)
            # Relative to features.h5, so that the results folder can be moved.
            relative = os.path.relpath(path, out)
            for name in outputs:
                source = shard[encoder][name]
                layout = layouts.setdefault(name, h5py.VirtualLayout((total, *source.shape[1:]), source.dtype))
                link = h5py.VirtualSource(relative, f"{encoder}/{name}", shape=source.shape, dtype=source.dtype)
                if len(theirs):  # one mapping, however the rows are scattered: HDF5 takes long with many of them
                    layout[ours] = link[theirs]
            for name, values in per_video.items():
                values[ours] = shard[name][:][theirs]
    group.attrs.update({k: v for k, v in first.items() if v is not None}, source=sources.hexdigest())
    # Datasets, since an attribute holds 4,000 texts at most.
    group["files"] = [os.path.relpath(path, out) for path in files]
    group["sources"] = places.sources  # a file that is made again from other videos is not read for these
    for name, layout in layouts.items():
        # A shard that is lost must not read as zeros, which are features too.
        group.create_virtual_dataset(name, layout, fillvalue=np.nan)
    return per_video


def _link_text(index: h5py.File, name: str, path: Path, out: Path) -> None:
    group = index.create_group(name)
    relative = os.path.relpath(path, out)
    with open_hdf5(path, "text") as text:
        if list(text["text"].asstr()[:]) != list(
            (index["text/text"] if "text/text" in index else text["text"]).asstr()[:]
        ):
            raise AVQAError(f"{path}: has other questions than the first text encoder's; run the workflow again")
        group.attrs.update({name: text.attrs[name] for name in PROVENANCE if name in text.attrs})
        group["files"] = [relative]
        for name, values in text.items():
            if values.ndim == 1:  # text and length: small enough to be copied
                group[name] = values[:]
                continue
            layout = h5py.VirtualLayout(values.shape, values.dtype)
            layout[:] = h5py.VirtualSource(relative, name, shape=values.shape)
            group.create_virtual_dataset(name, layout, fillvalue=np.nan)


def gather_failures(data: str | Path, collection: str | Path, tables: str | Path, max_failed_fraction: float) -> None:
    """Write failures.tsv and missing.tsv of what `build_index` wrote to the folder `data`.

    failures.tsv: one line per video that could not be decoded, with the reason from `tables`, the tables of the shards,
    or was decoded without its sound (stage "audio"). missing.tsv: how many questions of each kind each video costs that
    is missing or failed. Raises AVQAError if more than one video and more than `max_failed_fraction` of the shards'
    videos could not be decoded. Files that have gone since they were first listed did not fail: absent.tsv has those
    that are missing.
    """
    data, collection, tables = Path(data), Path(collection), Path(tables)
    shards = list(read_manifest(data)["shards"])
    videos = [v for shard in shards for v in read_shard_list(collection / "shards" / f"{shard}.tsv")]
    there = {video.video_id for video in videos if not video.gone}
    rows = [row for shard in shards for row in read_failures(tables / f"{shard}.tsv") if row["video_id"] in there]
    failed = {row["video_id"] for row in rows}
    with open_hdf5(data / "features.h5", "index") as index:
        undecoded = set(index["video_id"].asstr()[:][index["status"][:] != DECODED])
    for video_id in sorted((undecoded & there) - failed):
        rows.append({"video_id": video_id, "stage": "decode", "reason": "failed; the table with the reason is lost"})
        failed.add(video_id)
    unheard = [row for shard in shards for row in read_failures(unheard_table(tables / f"{shard}.tsv"))]
    questions = read_table(data / "questions.parquet")
    lost = count_questions(questions[questions["video_id"].isin(failed)], "failed")
    absent = pd.read_csv(data / "absent.tsv", sep="\t", dtype=str, keep_default_na=False)
    with atomic(data / "missing.tsv") as partial:
        pd.concat([absent, lost]).to_csv(partial, sep="\t", index=False)
    too_many = len(failed) > max(1, max_failed_fraction * len(there))
    table = data / ("too_many_failures.tsv" if too_many else "failures.tsv")
    with atomic(table) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FAILURE_FIELDS, delimiter="\t", lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows([*rows, *unheard])
    if too_many:
        raise AVQAError(
            f"{table}: {len(failed)} of {len(there)} videos failed, more than max_failed_fraction "
            f"({max_failed_fraction:.2%}) allows; mend the files that the table lists, or raise the limit; where the "
            "files are well and something else failed, `avqa retry` has them decoded again"
        )
    without = f"; {len(unheard)} were decoded without their sound" if unheard else ""
    log.info(f"{table}: {len(failed)} of {len(there)} videos failed{without}")
