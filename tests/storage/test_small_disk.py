"""A disk that becomes full while HDF5 writes: an error, never a crash, and the space of a file that is being joined is
kept for it. On a small tmpfs, which takes root; without root the last test remains."""

import os
import resource
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from pipeline.errors import out_of_space
from pipeline.storage.contract import DatasetSpec
from pipeline.storage.hdf5 import ShardWriter, open_hdf5

ROWS, NUMBERS = 16, 2**16  # 4 MiB of float32 per file, and as much in parts before it is joined
DATASETS = {"audio": DatasetSpec((NUMBERS,), "float32")}
ATTRIBUTES = {"kind": "segments", "source": "s"}
WRITER = textwrap.dedent(f"""
    import sys, time; sys.path[:0] = {[os.path.dirname(os.path.dirname(__file__)), os.getcwd()]!r}
    from pathlib import Path
    from storage.test_small_disk import write
    from pipeline.storage.hdf5 import ShardWriter
    folder, name, mate = Path(sys.argv[1]), *sys.argv[2:]
    reserve = ShardWriter._reserve
    def reserve_and_meet(self, *arguments):
        # Wait for the other writer before the space is taken, and afterwards until it has taken its own or failed.
        (folder / f"{{name}}.ready").touch()
        while not (folder / f"{{mate}}.ready").exists():
            time.sleep(0.01)
        try:
            reserve(self, *arguments)
        finally:
            (folder / f"{{name}}.reserved").touch()
        while not (folder / f"{{mate}}.reserved").exists():
            time.sleep(0.01)
    ShardWriter._reserve = reserve_and_meet
    write(folder / f"{{name}}.h5")
""")


def values(n):
    return np.random.default_rng(n).standard_normal(NUMBERS).astype("float32")


def write(path):
    with ShardWriter(path, ROWS, DATASETS, ATTRIBUTES, {}) as writer:
        for n in np.flatnonzero(~writer.done):
            writer.write(n, {"audio": values(n)})


def check(path):
    with open_hdf5(path, "segments") as file:
        for n in range(ROWS):
            np.testing.assert_array_equal(file["audio"][n], values(n))


@pytest.fixture
def small_disk(tmp_path):
    """13 MiB: room for the parts of two files and one file."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=13m", "avqa-test", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_two_writers_of_which_one_fits(small_disk):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, small_disk, *names], stderr=subprocess.PIPE, text=True)
        for names in (("a", "b"), ("b", "a"))
    ]
    errors = [writer.communicate(timeout=120)[1] for writer in writers]
    assert sorted(writer.returncode for writer in writers) == [0, 1], errors  # a signal would be negative
    full = next(n for n, writer in enumerate(writers) if writer.returncode)
    assert "No space left on device" in errors[full]
    assert not (small_disk / f"{'ab'[full]}.h5").exists()
    check(small_disk / f"{'ba'[full]}.h5")
    write(small_disk / f"{'ab'[full]}.h5")  # the other one's parts have gone
    check(small_disk / f"{'ab'[full]}.h5")


def test_the_space_of_a_file_is_its_own_while_it_is_written(small_disk, monkeypatch):
    """The disk is filled to its last byte as soon as the space has been taken."""
    reserve = ShardWriter._reserve

    def reserve_and_fill(self, *arguments):
        reserve(self, *arguments)
        with open(small_disk / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
            while True:
                filler.write(bytes(4096))

    monkeypatch.setattr(ShardWriter, "_reserve", reserve_and_fill)
    write(small_disk / "a.h5")
    check(small_disk / "a.h5")


def test_a_file_larger_than_allowed_is_an_error(tmp_path):
    """A quota, in effect; the part that is too large is not taken for a finished row."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(OSError) as error:
            write(tmp_path / "a.h5")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert out_of_space(error.value) and not (tmp_path / "a.h5").exists()
    write(tmp_path / "a.h5")
    check(tmp_path / "a.h5")
