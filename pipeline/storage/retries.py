"""How often each video of a collection was asked to be decoded again: for failures whose reason is outside its file."""

import json
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import AVQAError
from pipeline.storage.atomic import write_if_changed
from pipeline.storage.lock import exclusive


def read_retries(collection: str | Path) -> dict[str, int]:
    """The number by video id, of those that have one. Raises AVQAError if the file is damaged."""
    path = _path(collection)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {str(video_id): int(count) for video_id, count in found.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError, TypeError) as error:
        raise AVQAError(f"{path}: cannot be read ({error}); move it away and call `avqa retry` again") from error


def add_retries(collection: str | Path, video_ids: Iterable[str]) -> None:
    """Raise the numbers of these videos by one."""
    with exclusive(Path(collection, ".shards.lock")):
        counts = read_retries(collection)
        counts |= {video_id: counts.get(video_id, 0) + 1 for video_id in video_ids}
        write_if_changed(_path(collection), json.dumps(counts, indent=1, sort_keys=True) + "\n")


def _path(collection: str | Path) -> Path:
    return Path(collection, "retries.json")
