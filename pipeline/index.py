"""Shards to one logical file: features.h5, virtual datasets over all features of a data set."""

import csv
import hashlib
from pathlib import Path

import h5py
import numpy as np

from pipeline import __version__
from pipeline.errors import AVQAError
from pipeline.storage.atomic import atomic
from pipeline.storage.contract import SCHEMA_VERSION
from pipeline.storage.hdf5 import open_hdf5
from pipeline.storage.shard_list import read_shard_list

PROVENANCE = ("encoder", "weights", "weights_sha256", "pretrained", "config")
FACTS = ("num_segments", "has_audio", "status")


def build_index(folder: str | Path, encoders: list[str], text: str, max_failed_fraction: float) -> None:
    """Write features.h5 and failures.tsv of a data set's results folder.

    features.h5 holds video_id, num_segments, has_audio and status of all videos in manifest order,
    <encoder>/<output> N, T, … and text/{text, words, sentence, length}; the features stay in their shards.
    Raises AVQAError if shards do not belong together or more than `max_failed_fraction` of the videos failed.
    """
    folder = Path(folder)
    shards = sorted((folder / "shards").glob("*.tsv"))
    if not shards:
        raise AVQAError(f"{folder / 'shards'}: no shards; run `avqa manifest` first")
    expected = [[video.video_id for video in read_shard_list(tsv)] for tsv in shards]
    out = folder / "features.h5"
    with atomic(out) as partial:
        # In memory first: the file is small, and HDF5 may crash when its disk is full.
        with h5py.File(partial, "w", libver="latest", driver="core", backing_store=False) as index:
            index.attrs.update(schema_version=SCHEMA_VERSION, kind="index", created_by=f"avqa-pipeline {__version__}")
            index.attrs["dataset"] = folder.name
            for encoder in encoders:
                files = [folder / encoder / f"{tsv.stem}.h5" for tsv in shards]
                facts = _link(index, encoder, files, expected)
            index["video_id"] = [video_id for shard in expected for video_id in shard]
            for name in FACTS:
                index[name] = facts[name]
            _link_text(index, folder / text / "text.h5")
            index.flush()
            partial.write_bytes(index.id.get_file_image())
        _gather_failures(folder, shards, facts["status"], max_failed_fraction)


def _link(index: h5py.File, encoder: str, files: list[Path], expected: list[list[str]]) -> dict[str, np.ndarray]:
    """Add an encoder's outputs as virtual datasets; returns the facts about all videos."""
    total = sum(map(len, expected))
    group, layouts, facts, first = index.create_group(encoder), {}, {name: [] for name in FACTS}, None
    source_of_all = hashlib.sha256()
    for path, videos, start in zip(files, expected, np.cumsum([0, *map(len, expected)]), strict=False):
        with open_hdf5(path, "features") as shard:
            if list(shard["video_id"].asstr()[:]) != videos:
                raise AVQAError(f"{path}: its videos are not those of its shard; delete it and run again")
            about = {name: shard.attrs[name] for name in PROVENANCE}
            first = first or about
            if about != first:
                differing = [name for name in PROVENANCE if about[name] != first[name]]
                raise AVQAError(f"{path}: {', '.join(differing)} differ from {files[0]}; delete one and run again")
            source_of_all.update(shard.attrs["source"].encode())
            for name in FACTS:
                facts[name].append(shard[name][:])
            for name, source in shard[encoder].items():
                if name not in layouts:
                    layouts[name] = h5py.VirtualLayout((total, *source.shape[1:]), source.dtype)
                # Relative to features.h5, so that the results folder can be moved.
                link = h5py.VirtualSource(f"{encoder}/{path.name}", f"{encoder}/{name}", shape=source.shape)
                layouts[name][start : start + len(videos)] = link
    group.attrs.update(first, source=source_of_all.hexdigest())
    for name, layout in layouts.items():
        # A shard that is lost must not read as zeros, which are features too.
        group.create_virtual_dataset(name, layout, fillvalue=np.nan)
    return {name: np.concatenate(values) for name, values in facts.items()}


def _link_text(index: h5py.File, path: Path) -> None:
    group = index.create_group("text")
    with open_hdf5(path, "text") as text:
        group.attrs.update({name: text.attrs[name] for name in PROVENANCE})
        for name in ("text", "length"):
            group[name] = text[name][:]
        for name in ("words", "sentence"):
            layout = h5py.VirtualLayout(text[name].shape, text[name].dtype)
            layout[:] = h5py.VirtualSource(f"{path.parent.name}/{path.name}", name, shape=text[name].shape)
            group.create_virtual_dataset(name, layout, fillvalue=np.nan)


def _gather_failures(folder: Path, shards: list[Path], status: np.ndarray, max_failed_fraction: float) -> None:
    """One failures.tsv of the shards' own; an error if there are too many."""
    failed = int((status != 0).sum())
    if failed > max_failed_fraction * len(status):
        raise AVQAError(
            f"{folder / 'failures'}: {failed} of {len(status)} videos failed, more than max_failed_fraction "
            f"({max_failed_fraction:.2%}) allows; mend the files that the tables there list, or raise the limit"
        )
    header, rows = ["video_id", "stage", "reason", "seconds"], []
    for path in (folder / "failures" / shard.name for shard in shards):
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows += list(csv.DictReader(file, delimiter="\t"))
    with atomic(folder / "failures.tsv") as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, header, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(status)} videos indexed, {failed} failed")
