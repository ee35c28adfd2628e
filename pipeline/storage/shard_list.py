"""The TSV that lists a shard's videos: row n of every file of the shard belongs to video n of the list."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import AVQAError
from pipeline.storage.atomic import write_if_changed

FLIP = "_flip"  # ends the id of a mirrored video


class Video(NamedTuple):
    """One line of a shard list: a video's files as the manifest found them. A file that has gone has size and time 0.

    Without a video file (audio alone) `path` is empty; without an audio file `audio_path` is, and the audio is that of
    the video file.
    """

    video_id: str
    path: str
    size: int  # bytes
    mtime_ns: int
    audio_path: str = ""
    audio_size: int = 0
    audio_mtime_ns: int = 0

    @property
    def gone(self) -> bool:
        """Whether the manifest did not find a file any more: the row stays, so that no other row moves."""
        return bool((self.path and not self.mtime_ns) or (self.audio_path and not self.audio_mtime_ns))

    @property
    def mirrored(self) -> bool:
        """Whether the file is the original of a mirrored video, so that its frames have to be mirrored."""
        return self.video_id.endswith(FLIP) and self.video_id not in self.path


TSV_FIELDS = Video._fields
FIELDS_WITHOUT_AUDIO = TSV_FIELDS[:4]  # of lists without audio files, so that these are as they always were


def read_shard_list(tsv: str | Path) -> list[Video]:
    """The videos of a shard in row order. Raises AVQAError if the file is not a shard list."""
    try:
        header, *lines = Path(tsv).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        fields = tuple(header.split("\t"))
        if fields in (TSV_FIELDS, FIELDS_WITHOUT_AUDIO):
            return [_video(fields, line.split("\t")) for line in lines]
    except FileNotFoundError:
        raise AVQAError(f"{tsv}: no such shard list; `avqa manifest` makes it") from None
    except ValueError:
        pass  # the same sentence as for other columns
    raise AVQAError(
        f"{tsv}: not a shard list with the columns {', '.join(FIELDS_WITHOUT_AUDIO)}; `avqa manifest` makes it"
    )


def write_shard_list(tsv: str | Path, videos: list[Video]) -> None:
    """Write a shard list, unless it already says the same: an untouched file makes nothing due again."""
    write_if_changed(tsv, _text(videos, header=True))


def digest(videos: list[Video]) -> str:
    """Identifies what a shard was made from: the sha256 of its list's lines."""
    return hashlib.sha256(_text(videos, header=False).encode()).hexdigest()


def _text(videos: list[Video], header: bool) -> str:
    fields = TSV_FIELDS if any(video.audio_path for video in videos) else FIELDS_WITHOUT_AUDIO
    lines = ["\t".join(map(str, video[: len(fields)])) for video in videos]
    return "\n".join(["\t".join(fields), *lines, ""] if header else lines)


def _video(fields: tuple[str, ...], values: list[str]) -> Video:
    types = Video.__annotations__
    return Video(**{name: types[name](value) for name, value in zip(fields, values, strict=True)})
