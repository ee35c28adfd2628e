"""The TSV that lists a shard's videos: row n of every file of the shard is about video n of the list."""

import csv
import hashlib
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import AVQAError
from pipeline.storage.atomic import write_if_changed

TSV_FIELDS = ("video_id", "path", "size", "mtime_ns")


class Video(NamedTuple):
    """One line of a shard's TSV: a file as the manifest found it (size in bytes, time in nanoseconds)."""

    video_id: str
    path: str
    size: int
    mtime_ns: int


def read_shard_list(tsv: str | Path) -> list[Video]:
    """The videos of a shard in row order. Raises AVQAError if the file is not a shard's TSV."""
    with open(tsv, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file, delimiter="\t")
        if tuple(reader.fieldnames or ()) != TSV_FIELDS:
            raise AVQAError(f"{tsv}: the columns must be {', '.join(TSV_FIELDS)}; run `avqa manifest` to write it anew")
        return [Video(r["video_id"], r["path"], int(r["size"]), int(r["mtime_ns"])) for r in reader]


def write_shard_list(tsv: str | Path, videos: list[Video]) -> None:
    """Write a shard's TSV, unless it already says the same: an untouched file makes nothing due again."""
    lines = ["\t".join(TSV_FIELDS), *("\t".join(map(str, video)) for video in videos)]
    write_if_changed(tsv, "\n".join(lines) + "\n")


def digest(videos: list[Video]) -> str:
    """Identifies what a shard was made from: the sha256 of its TSV's lines."""
    return hashlib.sha256("\n".join("\t".join(map(str, v)) for v in videos).encode()).hexdigest()
