"""Files that appear under their name only when they are complete."""

import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipeline.errors import AVQAError, forbidden

LONGEST = 255  # bytes of a file name


def write_if_changed(path: str | Path, text: str) -> None:
    """Write a text file as one step, and only when its content differs from what is there."""
    path = Path(path)
    if path.is_file() and path.read_bytes() == text.encode():
        return
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


os.umask(_UMASK := os.umask(0o077))  # it cannot be read without being set


def partial_path(path: Path) -> Path:
    """The name, beside `path`, of its content while this process writes it."""
    ending = f".{socket.gethostname()}.{os.getpid()}.partial"
    name = path.name
    if len(os.fsencode(f".{name}{ending}")) > LONGEST:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return path.with_name(f".{name}{ending}")


def check_writable(folder: str | Path) -> None:
    """Raises AVQAError if no file can be made in a folder, or where it has to be made first. For before long work."""
    folder = place = Path(folder)
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        if not forbidden(error):
            raise
        reason = f"{place} is a file" if place.is_file() else f"{place}: {error.strerror}"
        raise AVQAError(
            f"{folder}: nothing can be written there ({reason}); change its permissions, or name another folder"
        ) from error


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`: renamed to it when the block ends well, removed when it does not.

    Raises AVQAError if its folder may not be written."""
    path = Path(path)
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    try:
        yield partial
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file in one step."""
    with atomic(path) as partial:
        shutil.copyfile(source, partial)


def link(path: Path, target: Path) -> None:
    """Make `path` a relative link to `target`, in one step; what is there and no link stays."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aim = os.path.relpath(os.path.realpath(target), os.path.realpath(path.parent))
    if os.readlink(path) == aim if path.is_symlink() else path.exists():
        return
    partial = partial_path(path)
    partial.unlink(missing_ok=True)
    partial.symlink_to(aim)
    os.replace(partial, path)


def link_all(folder: Path, targets: Mapping[str, str | Path]) -> None:
    """Make a link below `folder` for each name whose target is there."""
    for name, target in targets.items():
        if os.path.exists(target):
            link(folder / name, Path(target))


def remove_abandoned(folder: str | Path) -> None:
    """Remove the half-written files below a folder whose process on this machine has ended. Others are left alone."""
    for partial in Path(folder).rglob(f".*.{socket.gethostname()}.*.partial"):
        process = partial.name.split(".")[-2]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Rename once the content is on the disk, so that a power cut cannot leave an empty file under the name. Others
    may read the file as the umask says, whatever a library made of it."""
    if partial.is_file():
        partial.chmod(0o666 & ~_UMASK)
    for name, target in ((partial, None), (path.parent, (partial, path))):
        if target:
            os.replace(*target)
        descriptor = os.open(name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
