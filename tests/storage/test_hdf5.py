"""The HDF5 writer: complete or not there, and a kill loses no finished row."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import AVQAError
from pipeline.storage.contract import DatasetSpec
from pipeline.storage.hdf5 import ShardWriter, open_hdf5
from pipeline.storage.shard_list import Video, read_shard_list, write_shard_list

ROWS = 6
DATASETS = {"audio": DatasetSpec((4, 50), "float32"), "frames/8": DatasetSpec((4, 8, 8, 3), "uint8", (1, 8, 8, 3))}
DATASETS["status"] = DatasetSpec((), "int32")
ATTRIBUTES = {"kind": "segments", "collection": "c", "shard": "00000", "config": {"pad": "repeat"}, "source": "s"}
IDS = {"video_id": [f"vidéo{n}" for n in range(ROWS)]}


def row(n, salt=0):
    rng = np.random.default_rng((n, salt))
    return {
        "audio": rng.standard_normal((4, 50)).astype("float32"),
        "frames/8": rng.integers(0, 255, (4, 8, 8, 3), dtype="uint8"),
        "status": 0,
    }


def write(path, rows, attributes=ATTRIBUTES, salt=0):
    with ShardWriter(path, ROWS, DATASETS, attributes, IDS) as writer:
        already = writer.done.copy()
        for n in rows:
            if not writer.done[n]:
                writer.write(n, row(n, salt))
    return already


def check(path, salt=0):
    with open_hdf5(path, "segments") as file:
        assert list(file["video_id"].asstr()[:]) == IDS["video_id"]
        for n in range(ROWS):
            for name, value in row(n, salt).items():
                np.testing.assert_array_equal(file[name][n], value)


def test_rows_in_any_order(tmp_path):
    write(tmp_path / "a.h5", [3, 0, 5, 1, 2, 4])
    check(tmp_path / "a.h5")
    assert os.listdir(tmp_path) == ["a.h5"]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=st.sets(st.integers(0, ROWS - 1)))
def test_an_interrupted_file_goes_on_where_it_stopped(tmp_path_factory, first):
    path = tmp_path_factory.mktemp("s") / "a.h5"
    with pytest.raises(KeyboardInterrupt), ShardWriter(path, ROWS, DATASETS, ATTRIBUTES, IDS) as writer:
        for n in first:
            writer.write(n, row(n))
        raise KeyboardInterrupt
    assert not path.exists()
    assert set(np.flatnonzero(write(path, range(ROWS)))) == first
    check(path)


def test_a_process_killed_at_any_moment_loses_no_finished_row(tmp_path):
    program = textwrap.dedent(f"""
        import sys; sys.path[:0] = {[os.path.dirname(__file__), os.getcwd()]!r}
        from test_hdf5 import *
        import time
        with ShardWriter({str(tmp_path / "a.h5")!r}, ROWS, DATASETS, ATTRIBUTES, IDS) as writer:
            for n in np.flatnonzero(~writer.done):
                writer.write(n, row(n)); print(n, flush=True); time.sleep(0.01)
            time.sleep(60)
    """)
    for stop_after in (2, 4):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        while int(process.stdout.readline()) < stop_after - 1:
            pass
        time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "a.h5").exists()
    assert write(tmp_path / "a.h5", range(ROWS)).sum() >= 4
    check(tmp_path / "a.h5")


def test_a_partial_file_of_other_videos_or_settings_is_not_resumed(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt), ShardWriter(path, ROWS, DATASETS, ATTRIBUTES, IDS) as writer:
        writer.write(0, row(0, salt=9))
        raise KeyboardInterrupt
    assert not write(path, range(ROWS), ATTRIBUTES | {"source": "another"}).any()
    check(path)


def test_damaged_parts_are_made_anew(tmp_path):
    path = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt), ShardWriter(path, ROWS, DATASETS, ATTRIBUTES, IDS) as writer:
        for n in range(3):
            writer.write(n, row(n))
        raise KeyboardInterrupt
    parts = sorted(tmp_path.rglob("*.npz"))
    parts[0].write_bytes(b"")
    parts[1].write_bytes(parts[1].read_bytes()[:700])
    assert write(path, range(ROWS)).sum() == 1
    check(path)


def test_a_finished_file_of_the_same_things_is_left_alone(tmp_path):
    write(tmp_path / "a.h5", range(ROWS))
    before = (tmp_path / "a.h5").stat().st_mtime_ns
    assert write(tmp_path / "a.h5", range(ROWS)).all()
    assert (tmp_path / "a.h5").stat().st_mtime_ns == before


def test_missing_rows_are_an_error_and_publish_nothing(tmp_path):
    with pytest.raises(AVQAError, match=r"a\.h5: 5 of 6 rows"):
        write(tmp_path / "a.h5", [2])
    assert not (tmp_path / "a.h5").exists()


def test_two_writers_at_once_end_in_one_good_file(tmp_path):
    program = textwrap.dedent(f"""
        import sys; sys.path[:0] = {[os.path.dirname(__file__), os.getcwd()]!r}
        from test_hdf5 import *
        import time
        with ShardWriter({str(tmp_path / "a.h5")!r}, ROWS, DATASETS, ATTRIBUTES, IDS) as writer:
            for n in np.flatnonzero(~writer.done):
                writer.write(n, row(n)); time.sleep(0.05)
    """)
    both = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    check(tmp_path / "a.h5")
    assert os.listdir(tmp_path) == ["a.h5"]


def test_a_flipped_byte_is_an_error_and_not_a_number(tmp_path):
    path = tmp_path / "a.h5"
    write(path, range(ROWS))
    with h5py.File(path) as file:
        where = file["audio"].id.get_chunk_info(3).byte_offset
    content = bytearray(path.read_bytes())
    content[where + 11] ^= 4
    path.write_bytes(content)
    with pytest.raises(AVQAError, match=r"a\.h5: damaged"), open_hdf5(path, "segments") as file:
        file["audio"][:]


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", b"\x89HDF\r\n\x1a\n" + b"\0" * 90])
def test_other_files_are_refused_by_name(tmp_path, content):
    (tmp_path / "odd.h5").write_bytes(content)
    with pytest.raises(AVQAError, match=r"odd\.h5: (not an HDF5|damaged)"), open_hdf5(tmp_path / "odd.h5", "segments"):
        pass


def test_another_kind_of_file_is_refused(tmp_path):
    write(tmp_path / "a.h5", range(ROWS))
    with (
        pytest.raises(AVQAError, match=r"kind is 'segments'.*expected 'features'"),
        open_hdf5(tmp_path / "a.h5", "features"),
    ):
        pass


def test_shard_lists(tmp_path):
    videos = [Video("a", "x/a.mp4", 3, 4), Video("b c", "x/b c.mp4", 5, 6)]
    write_shard_list(tmp_path / "0.tsv", videos)
    assert read_shard_list(tmp_path / "0.tsv") == videos
    before = (tmp_path / "0.tsv").stat().st_mtime_ns
    write_shard_list(tmp_path / "0.tsv", videos)
    assert (tmp_path / "0.tsv").stat().st_mtime_ns == before
    (tmp_path / "1.tsv").write_text("video\tfile\n")
    with pytest.raises(AVQAError, match=r"1\.tsv"):
        read_shard_list(tmp_path / "1.tsv")
