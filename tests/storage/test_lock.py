"""Locks: one holder at a time, and a warning where the file system has none."""

import errno
import fcntl
import os

import pytest
from storage.test_hdf5 import ROWS, check, write

from pipeline.storage.lock import lock_file


def test_a_lock_has_one_holder(tmp_path):
    first = lock_file(tmp_path / "lock")
    with pytest.raises(BlockingIOError):
        lock_file(tmp_path / "lock")
    os.close(first)
    os.close(lock_file(tmp_path / "lock"))


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with caplog.at_level("WARNING"):
        write(tmp_path / "a.h5", range(ROWS))
    check(tmp_path / "a.h5")
    assert "this file system has no locks" in caplog.text and "a.h5" in caplog.text
    assert os.listdir(tmp_path) == ["a.h5"]


def test_another_error_is_not_taken_for_that(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output error"):
        lock_file(tmp_path / "lock")
