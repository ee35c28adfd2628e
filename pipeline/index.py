"""Shards to one logical file: features.h5, and the list of the videos that could not be decoded."""

import csv
import hashlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

from pipeline import __version__
from pipeline.errors import AVQAError
from pipeline.manifest import count_questions, read_manifest
from pipeline.storage.atomic import atomic
from pipeline.storage.contract import DECODED, FAILURE_FIELDS, PER_VIDEO, PROVENANCE, SCHEMA_VERSION, unheard_table
from pipeline.storage.hdf5 import open_hdf5
from pipeline.storage.shard_list import digest, read_shard_list
from pipeline.storage.tables import read_table

log = logging.getLogger(__name__)


def build_index(dataset: str | Path, collection: str | Path, encoders: Sequence[str], *texts: str) -> None:
    """Write features.h5 of a data set from its collection's shards and from the files of the text encoders.

    features.h5 holds video_id, num_segments, has_audio and status of the data set's V videos in the order of their
    shards, where they are (shard, row), <encoder>/<output> V, T, … and, of each text encoder, text_<encoder>/{text,
    words, sentence, length}; text/… is that of the first one. The features stay in their shards. Raises AVQAError if
    shards are missing or do not belong together.
    """
    dataset, collection = Path(dataset), Path(collection)
    manifest = read_manifest(dataset)
    shards = list(manifest["shards"])
    wanted = set(read_table(dataset / "questions.parquet", ["video_id"])["video_id"])
    places = _Places(collection / "shards", manifest["shards"], wanted)
    if len(wanted) != manifest["videos"]:
        raise AVQAError(
            f"{dataset / 'questions.parquet'}: is about {len(wanted)} videos, manifest.json says {manifest['videos']}; "
            "run the workflow again"
        )
    out = dataset / "features.h5"
    # In memory first: the file is small, and HDF5 may crash when its disk is full. In the oldest file version that has
    # what is needed: in later ones, HDF5 cannot read more than 2 MB of strings back (seen with 2.0).
    with h5py.File(out, "w", driver="core", backing_store=False) as index:
        index.attrs.update(schema_version=SCHEMA_VERSION, kind="index", created_by=f"avqa-pipeline {__version__}")
        index.attrs.update(dataset=dataset.name, collection=collection.name)
        index["video_id"], index["shard"], index["row"] = places.video_id, places.shard, places.row
        for encoder in encoders:
            files = [collection / "features" / encoder / f"{shard}.h5" for shard in shards]
            per_video = _link(index, encoder, files, places, dataset)
        for name, values in per_video.items():
            index[name] = values
        _link_text(index, "text", dataset / "text" / f"{texts[0]}.h5")
        for text in texts:
            _link_text(index, f"text_{text}", dataset / "text" / f"{text}.h5")
        index.flush()
        image = index.id.get_file_image()
    with atomic(out) as partial:
        partial.write_bytes(image)
    failed = int((per_video["status"] != DECODED).sum())
    log.info(f"{out}: {len(places.video_id)} videos in {len(shards)} shards, {failed} failed")


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


def _link(index: h5py.File, encoder: str, files: list[Path], places: _Places, dataset: Path) -> dict[str, np.ndarray]:
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
            mine = {name: shard.attrs.get(name) for name in PROVENANCE} | {"outputs": sorted(shard[encoder])}
            first = first or mine
            if differing := [name for name in mine if mine[name] != first[name]]:
                raise AVQAError(
                    f"{path}: {', '.join(differing)} differ from {files[0]}; move one of the two away and run the "
                    "workflow again, so that all shards are made in the same way"
                )
            sources.update(shard.attrs["source"].encode())
            ours, theirs = places.rows(n)
            # Relative to features.h5, so that the results folder can be moved.
            relative = os.path.relpath(path, dataset)
            for name, source in shard[encoder].items():
                layout = layouts.setdefault(name, h5py.VirtualLayout((total, *source.shape[1:]), source.dtype))
                link = h5py.VirtualSource(relative, f"{encoder}/{name}", shape=source.shape, dtype=source.dtype)
                if len(theirs):  # one mapping, however the rows are scattered: HDF5 takes long with many of them
                    layout[ours] = link[theirs]
            for name, values in per_video.items():
                values[ours] = shard[name][:][theirs]
    group.attrs.update({k: v for k, v in first.items() if v is not None and k != "outputs"}, source=sources.hexdigest())
    # Datasets, since an attribute holds 4,000 texts at most.
    group["files"] = [os.path.relpath(path, dataset) for path in files]
    group["sources"] = places.sources  # a file that is made again from other videos is not read for these
    for name, layout in layouts.items():
        # A shard that is lost must not read as zeros, which are features too.
        group.create_virtual_dataset(name, layout, fillvalue=np.nan)
    return per_video


def _link_text(index: h5py.File, name: str, path: Path) -> None:
    group = index.create_group(name)
    relative = f"{path.parent.name}/{path.name}"
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


def gather_failures(dataset: str | Path, collection: str | Path, max_failed_fraction: float) -> None:
    """Write failures.tsv and missing.tsv of a data set, from the tables of the shards that it needs.

    failures.tsv: one line per video that could not be decoded, or was decoded without its sound (stage "audio").
    missing.tsv: how many questions of each kind each video costs that is missing or failed. Raises AVQAError if more
    than `max_failed_fraction` of the shards' videos could not be decoded. Files that have gone since they were first
    listed did not fail: absent.tsv has those that are missing.
    """
    dataset, collection = Path(dataset), Path(collection)
    shards = list(read_manifest(dataset)["shards"])
    videos = [v for shard in shards for v in read_shard_list(collection / "shards" / f"{shard}.tsv")]
    there = {video.video_id for video in videos if not video.gone}
    tables = [collection / "failures" / f"{shard}.tsv" for shard in shards]
    rows = [row for table in tables for row in _read_failures(table) if row["video_id"] in there]
    failed = {row["video_id"] for row in rows}
    unheard = [row for table in tables if unheard_table(table).exists() for row in _read_failures(unheard_table(table))]
    with atomic(dataset / "failures.tsv") as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FAILURE_FIELDS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, *unheard])
    questions = read_table(dataset / "questions.parquet")
    lost = count_questions(questions[questions["video_id"].isin(failed)], "failed")
    absent = pd.read_csv(dataset / "absent.tsv", sep="\t", dtype=str, keep_default_na=False)
    with atomic(dataset / "missing.tsv") as partial:
        pd.concat([absent, lost]).to_csv(partial, sep="\t", index=False)
    if len(failed) > max_failed_fraction * len(there):
        raise AVQAError(
            f"{dataset / 'failures.tsv'}: {len(failed)} of {len(there)} videos failed, more than max_failed_fraction "
            f"({max_failed_fraction:.2%}) allows; mend the files that the table lists, or raise the limit"
        )
    without = f"; {len(unheard)} were decoded without their sound" if unheard else ""
    log.info(f"{dataset / 'failures.tsv'}: {len(failed)} of {len(there)} videos failed{without}")


def _read_failures(path: Path) -> list[dict]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter="\t"))
    except FileNotFoundError:
        raise AVQAError(f"{path}: no such file; run the workflow with --forcerun decode to make it again") from None
