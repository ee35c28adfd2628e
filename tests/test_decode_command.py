"""`avqa decode` of files given by name: clear errors and lines, and what its exit code says."""

import csv
import os

import h5py
import pytest
from media.oracle import VIDEO, X264, clip

from pipeline.cli import main

OPTIONS = ["--encoder", "vggish", "--segments", "2", "--workers", "1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Works in a folder with a good video, copies of it and files that are no videos."""
    clip(tmp_path / "good.mp4", "-t", 2, *VIDEO, *X264)
    for name in ("a/clip.mp4", "b/clip.mp4", "c/clip.mkv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("no video")
    (tmp_path / "a" / "clip.mp4").write_bytes((tmp_path / "good.mp4").read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def decode(*names):
    return main(["decode", *names, "--out", "s.h5", *OPTIONS])


def failures():
    with open("s.h5.failures.tsv", newline="") as file:
        return {line["video_id"]: line["reason"] for line in csv.DictReader(file, delimiter="\t")}


def refused(names, capsys):
    """The one line of the error, before anything is made."""
    assert decode(*names) == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err and not os.path.exists("s.h5") and not os.path.exists("s.h5.failures.tsv")
    (line,) = said.err.splitlines()
    return line


def test_files_that_are_not_there_or_cannot_be_listed(folder, capsys):
    (folder / "loop.mp4").symlink_to("loop.mp4")
    (folder / "first.mp4").symlink_to("second.mp4")
    (folder / "second.mp4").symlink_to("first.mp4")
    (folder / "nowhere.mp4").symlink_to("gone.mp4")
    for name in ("loop.mp4", "first.mp4", "nowhere.mp4", "gone.mp4", "good.mp4/x.mp4", "x" * 300 + ".mp4"):
        assert refused(["good.mp4", name], capsys).startswith(f"avqa decode: {name}: no such video (")
    assert refused(["a"], capsys) == "avqa decode: a: is a folder; give its files, as a/*.mp4"
    assert refused(["good.mp4", "good.mp4"], capsys) == "avqa decode: good.mp4: is given twice"


@pytest.mark.parametrize("name", [b"\xff\xfe.mp4", b"new\nline.mp4", b"tab\t.mp4", b"\xff/clip.mp4", b"\xc3\x28.mp4"])
def test_names_that_no_table_can_hold(folder, capsys, name):
    path = os.fsencode(folder) + b"/" + name
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write((folder / "good.mp4").read_bytes())
    line = refused(["good.mp4", os.fsdecode(name)], capsys)
    assert line.endswith(": has a line break, or bytes that are no UTF-8, in its name; rename the file")
    assert line.isascii() and line.isprintable()


def test_each_file_has_an_id_of_its_own(folder, capsys):
    names = ["a/clip.mp4", "b/clip.mp4", "good.mp4", "c/clip.mkv"]
    assert decode(*names) == 0
    assert list(failures()) == ["b/clip.mp4", "c/clip.mkv"]
    with h5py.File("s.h5") as file:
        assert list(file["video_id"].asstr()) == ["a/clip.mp4", "b/clip.mp4", "good", "c/clip.mkv"]
        assert file["status"][:].tolist() == [0, 1, 0, 1]
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in said if "begin like" in line] == ["b/clip.mp4", "c/clip.mkv"]


@pytest.mark.parametrize("names", [["b/clip.mp4"], ["b/clip.mp4", "c/clip.mkv"], ["b/clip.mp4", "c"]])
def test_nothing_decoded_is_an_error_that_names_each_file(folder, capsys, names):
    names = [f"{name}/clip.mkv" if name == "c" else name for name in names]
    for _ in range(2):  # and again, since nothing is kept
        assert decode(*names) == 1
        said = capsys.readouterr()
        for name in names:
            assert f"{name}: pyav: does not begin like" in said.out
        assert f"none of the {len(names)} videos can be decoded" in said.err
        assert not os.path.exists("s.h5") and not os.path.exists("s.h5.failures.tsv")


def test_a_shard_of_one_video_may_fail(folder):
    """The run goes on without it; how many may fail is asked of the collection."""
    (folder / "00007.tsv").write_text("video_id\tpath\tsize\tmtime_ns\nx\tb/clip.mp4\t1\t2\n")
    assert decode("00007.tsv") == 0
    assert list(failures()) == ["x"]
