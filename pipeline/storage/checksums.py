"""sha256 of files, remembered by size, time and inode, so that weights of gigabytes are read once."""

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

from pipeline.storage.atomic import atomic


def content_digest(path: str | Path) -> str:
    """The sha256 of a file's content. Raises OSError if it cannot be read."""
    state = os.stat(path)
    return _digest(os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ino)


@cache
def _digest(path: str, size: int, mtime_ns: int, inode: int) -> str:
    remembered, state = _remembered(), [size, mtime_ns, inode]
    known = remembered.get(path)
    if isinstance(known, list) and known[:-1] == state:
        return known[-1]
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if size >= LARGE:
        with suppress(OSError), atomic(_cache_file()) as partial:  # without a cache it is read again
            partial.write_text(json.dumps(remembered | {path: [*state, digest]}, indent=1))
    return digest


LARGE = 2**24  # bytes; smaller files are read faster than they are looked up


def _cache_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "avqa", "sha256.json")


def _remembered() -> dict:
    try:
        found = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
