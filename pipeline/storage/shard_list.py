"""The TSV that lists a shard's videos: row n of every file of the shard belongs to video n of the list."""

import collections
import errno
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import AVQAError
from pipeline.storage.atomic import write_if_changed

FLIP = "_flip"  # ends the id of a mirrored video
UNLISTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")  # what no line of a table holds: control characters, no UTF-8


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
    retries: int = 0  # how often it was asked to be decoded again (`avqa retry`)


_FILE, _AUDIO, _STATE, _RETRIES = (Video._fields[m:n] for m, n in ((0, 4), (4, 7), (7, 9), (9, 10)))
_HEADERS = [_FILE + a + s + r for a in ((), _AUDIO) for s in ((), _STATE) for r in ((), _RETRIES)]


def read_shard_list(tsv: str | Path) -> list[Video]:
    """The videos of a shard in row order. Raises AVQAError if the file is not a shard list."""
    try:
        header, *lines = Path(tsv).read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except FileNotFoundError:
        raise AVQAError(f"{tsv}: no such shard list; `avqa manifest` makes it") from None
    except UnicodeDecodeError:
        header, lines = "", []
    fields = tuple(header.split("\t"))
    if fields not in _HEADERS:
        raise AVQAError(f"{tsv}: not a shard list with the columns {', '.join(_FILE)}; `avqa manifest` makes it")
    videos = []
    for n, line in enumerate(lines, 2):
        try:
            videos.append(_video(fields, line.split("\t")))
        except ValueError:
            raise AVQAError(
                f"{tsv}: line {n} does not have the columns {', '.join(fields)}, as where an id or a path has a line "
                "break or a tab in it; `avqa manifest` makes the list again"
            ) from None
    if repeated := _repeated([video.video_id for video in videos]):
        raise AVQAError(f"{tsv}: two lines have the id {repeated}; `avqa manifest` makes the list again")
    return videos


def list_files(names: Sequence[str]) -> list[Video]:
    """Video files as a shard list would have them. The id is a file's name without its ending, and the path as given
    where files would share it. Raises AVQAError naming the first file that is not there or cannot be listed."""
    if repeated := _repeated(names):
        raise AVQAError(f"{repeated}: is given twice")
    stems = collections.Counter(Path(name).stem for name in names)
    return [_of_file(name, Path(name).stem if stems[Path(name).stem] == 1 else name) for name in names]


def _of_file(name: str, video_id: str) -> Video:
    if UNLISTABLE.search(name):
        raise AVQAError(f"{name!r}: has a line break, or bytes that are no UTF-8, in its name; rename the file")
    try:
        info = Path(name).stat()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
            raise
        raise AVQAError(f"{name}: no such video ({error.strerror})") from None
    if Path(name).is_dir():
        raise AVQAError(f"{name}: is a folder; give its files, as {name.rstrip('/')}/*.mp4")
    return Video(video_id, name, info.st_size, info.st_mtime_ns)


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in collections.Counter(names).items() if count > 1), None)


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
    if any(video.retries for video in videos):
        fields += _RETRIES
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
