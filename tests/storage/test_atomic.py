"""Files that appear only when they are complete."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.storage.atomic import atomic, write_if_changed

ROOT = Path(__file__).resolve().parent.parent.parent
# safetensors makes files that only their owner may read.
CODE = """
import numpy, sys
from safetensors.numpy import save_file
from pipeline.storage.atomic import atomic, write_if_changed
with atomic(sys.argv[1]) as partial:
    save_file({"x": numpy.zeros(3)}, partial)
"""


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_may_be_read_by_those_whom_the_umask_allows(tmp_path, umask, mode):
    path = tmp_path / "checkpoint.safetensors"
    subprocess.run([sys.executable, "-c", CODE, path], check=True, umask=umask, env={"PYTHONPATH": str(ROOT)})
    assert path.stat().st_mode & 0o777 == mode


def test_a_file_that_is_not_finished_does_not_replace_the_one_before(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("whole")
    with pytest.raises(ZeroDivisionError), atomic(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "whole" and [p.name for p in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.parametrize("name", ["v" * 255, "é" * 127, "v" * 230])
def test_a_name_as_long_as_the_file_system_allows(tmp_path, name):
    with atomic(tmp_path / name) as partial:
        partial.write_text("whole")
        assert partial.name.startswith(".") and partial.name.endswith(".partial")
    assert (tmp_path / name).read_text() == "whole"


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b"", b"text", b"text\r\n", "täxt\n".encode("latin-1")])
def test_a_file_is_written_where_its_bytes_differ_and_left_alone_where_not(tmp_path, damage):
    path = tmp_path / "record.json"
    path.write_bytes(damage)
    write_if_changed(path, "täxt\n")
    assert path.read_bytes() == "täxt\n".encode()
    before = path.stat()
    write_if_changed(path, "täxt\n")
    assert path.stat().st_ino == before.st_ino
