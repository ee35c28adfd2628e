"""Locks that end with the process that holds them."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNSUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)

log = logging.getLogger(__name__)


def lock_file(path: str | Path, wait: bool = False) -> int:
    """Take the exclusive lock on a file, which is made if need be; returns the descriptor that holds it.

    Raises BlockingIOError if another process holds the lock, unless `wait` is true. On a file system without locks
    (some set-ups of NFS and Lustre) this warns, and the caller works without one.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            os.close(descriptor)
            raise
        log.warning("%s: this file system has no locks (%s); do not start two runs at once", path, error.strerror)
    return descriptor


@contextmanager
def exclusive(path: str | Path) -> Iterator[None]:
    """Hold the lock on a file, which is there only meanwhile; wait while another process holds it."""
    path = Path(path)
    while True:
        try:
            descriptor = lock_file(path)
        except BlockingIOError:
            log.info("%s: another process is at work here; waiting for it to end", path.parent)
            descriptor = lock_file(path, wait=True)
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            break
        os.close(descriptor)  # the other process has removed the lock file that this one waited for
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
