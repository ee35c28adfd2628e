"""The TSV that lists a shard's videos: row n of every file of the shard belongs to video n of the list."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

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
    gone: bool = False  # the manifest did not find a file any more: the row stays, so that no other row moves
    mirrored: bool = False  # the file is the original of a mirrored video: its frames have to be mirrored


_FILE, _AUDIO, _STATE = Video._fields[:4], Video._fields[4:7], Video._fields[7:]


_HEADERS = [_FILE + audio + state for audio in ((), _AUDIO) for state in ((), _STATE)]


def read_shard_list(tsv: str | Path) -> list[Video]:
    """The videos of a shard in row order. Raises AVQAError if the file is not a shard list."""
    try:
        header, *lines = Path(tsv).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        fields = tuple(header.split("\t"))
        if fields in _HEADERS:
            return [_video(fields, line.split("\t")) for line in lines]
    except FileNotFoundError:
        raise AVQAError(f"{tsv}: no such shard list; `avqa manifest` makes it") from None
    except ValueError:
        pass  # the same sentence as for other columns
    raise AVQAError(f"{tsv}: not a shard list with the columns {', '.join(_FILE)}; `avqa manifest` makes it")


def write_shard_list(tsv: str | Path, videos: list[Video]) -> None:
    """Write a shard list, unless it already says the same: an untouched file makes nothing due again."""
    write_if_changed(tsv, _text(videos, header=True))


def digest(videos: list[Video]) -> str:
    """Identifies what a shard was made from: the sha256 of its list's lines."""
    return hashlib.sha256(_text(videos, header=False).encode()).hexdigest()


def _text(videos: list[Video], header: bool) -> str:
    fields: tuple[str, ...] = _FILE
    if any(video.audio_path for video in videos):
        fields += _AUDIO
    if any(video != _with_usual_state(video) for video in videos):
        fields += _STATE
    lines = ["\t".join(str(_plain(getattr(video, name))) for name in fields) for video in videos]
    return "\n".join(["\t".join(fields), *lines, ""] if header else lines)


def _plain(value: str | int) -> str | int:
    return value if isinstance(value, str) else int(value)


def _video(fields: tuple[str, ...], values: list[str]) -> Video:
    types = Video.__annotations__
    found: dict[str, Any] = dict(zip(fields, values, strict=True))
    video = Video(**{name: value if types[name] is str else types[name](int(value)) for name, value in found.items()})
    return video if _STATE[0] in fields else _with_usual_state(video)


def _with_usual_state(video: Video) -> Video:
    """What a list without a column for it says: files without size and time have gone, and a mirrored video's file is
    its own if it has the id in its path. Lists have such columns only where that is wrong for one of their videos, so
    that the others stay as they always were, and with them the features that were made from them."""
    files = ((video.path, video.size, video.mtime_ns), (video.audio_path, video.audio_size, video.audio_mtime_ns))
    gone = any(path and not size and not mtime for path, size, mtime in files)
    mirrored = bool(video.path) and video.video_id.endswith(FLIP) and video.video_id not in video.path
    return video._replace(gone=gone, mirrored=mirrored)
