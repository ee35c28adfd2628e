"""Have the videos that failed decoded again, where the reason was outside their files: a permission, a time limit, a
network, memory.

A failure is kept: all encoders of a shard must agree on what a video is, whenever each of them reads it. A retry is a
part of what decides a shard, as the time of a file is. The shard has a new name then, and with it all features that are
made of it; none of the former ones is taken for right.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.errors import AVQAError
from pipeline.paths import NotMade, Paths
from pipeline.storage.contract import DECODED
from pipeline.storage.hdf5 import open_hdf5
from pipeline.storage.retries import add_retries
from pipeline.storage.shard_list import read_shard_list
from pipeline.storage.tables import read_failures


def retry(paths: Mapping[str, Paths]) -> dict[Path, list[str]]:
    """Note that all videos which failed are to be decoded again; returns them by collection. The next run does it.

    Raises AVQAError where the questions of a data set were not read since the last retry."""
    failed: dict[Path, set[str]] = {}
    for files in paths.values():
        files.check()
        try:
            failed.setdefault(files.collection, set()).update(failed_videos(files))
        except NotMade as error:
            raise AVQAError(f"{error}, so that nothing is known to have failed; run the workflow first") from None
    for collection, video_ids in failed.items():
        if video_ids:
            add_retries(collection, video_ids)
    return {collection: sorted(video_ids) for collection, video_ids in failed.items()}


def failed_videos(files: Paths) -> set[str]:
    """The videos of a data set's shards that could not be decoded, according to the tables of the shards or, where one
    is lost, to the features. Videos whose file is gone did not fail. Raises NotMade."""
    failed: set[str] = set()
    there: set[str] = set()
    for shard in files.manifest["shards"]:
        listed = read_shard_list(files.shard_list(shard))
        there.update(video.video_id for video in listed if not video.gone)
        failed.update(line["video_id"] for line in read_failures(files.failures_dir / f"{shard}.tsv"))
        for encoder in files.config["encoders"]:
            failed.update(_without_features(files.features_file(encoder, shard)))
    return failed & there


def _without_features(path: Path) -> list[str]:
    if not path.exists():
        return []
    with open_hdf5(path, "features") as file:
        return file["video_id"].asstr()[:][np.flatnonzero(file["status"][:] != DECODED)].tolist()
