"""The TSV that lists a shard's videos: row n of every file of the shard belongs to video n of the list."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import AVQAError
from pipeline.storage.atomic import write_if_changed

TSV_FIELDS = ("video_id", "path", "size", "mtime_ns")


class Video(NamedTuple):
    """One line of a shard list: a file as the manifest found it. A file that has gone has size and time 0."""

    video_id: str
    path: str
    size: int  # bytes
    mtime_ns: int

    @property
    def gone(self) -> bool:
        """Whether the manifest did not find the file any more: the row stays, so that no other row moves."""
        return not self.mtime_ns


def read_shard_list(tsv: str | Path) -> list[Video]:
    """The videos of a shard in row order. Raises AVQAError if the file is not a shard list."""
    try:
        header, *lines = Path(tsv).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if tuple(header.split("\t")) == TSV_FIELDS:
            values = (line.split("\t") for line in lines)
            return [Video(video_id, path, int(size), int(mtime_ns)) for video_id, path, size, mtime_ns in values]
    except FileNotFoundError:
        raise AVQAError(f"{tsv}: no such shard list; `avqa manifest` makes it") from None
    except ValueError:
        pass  # the same sentence as for other columns
    raise AVQAError(f"{tsv}: not a shard list with the columns {', '.join(TSV_FIELDS)}; `avqa manifest` makes it")


def write_shard_list(tsv: str | Path, videos: list[Video]) -> None:
    """Write a shard list, unless it already says the same: an untouched file makes nothing due again."""
    write_if_changed(tsv, _text(videos, header=True))


def digest(videos: list[Video]) -> str:
    """Identifies what a shard was made from: the sha256 of its list's lines."""
    return hashlib.sha256(_text(videos, header=False).encode()).hexdigest()


def _text(videos: list[Video], header: bool) -> str:
    lines = ["\t".join(map(str, video)) for video in videos]
    return "\n".join(["\t".join(TSV_FIELDS), *lines, ""] if header else lines)
