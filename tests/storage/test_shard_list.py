"""Shard lists: what is written is read, whatever it is, and lists of older versions say what they always said."""

import hashlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.errors import AVQAError
from pipeline.storage.shard_list import Video, digest, read_shard_list, write_shard_list

number = st.sampled_from([0, 0, 1, 1700000000000000000])
video = st.builds(
    Video,
    st.sampled_from(["a", "a_flip", "b c", "ü_flip"]),
    st.sampled_from(["", "x/a.mp4", "x/a_flip/a.mp4", "ü.mp4"]),
    number,
    number,
    st.sampled_from(["", "", "x/a.wav"]),
    number,
    number,
    st.booleans(),
    st.booleans(),
).map(lambda v: v if v.audio_path else v._replace(audio_size=0, audio_mtime_ns=0))


videos_of_a_list = st.lists(video, max_size=4, unique_by=lambda v: v.video_id)


@given(videos_of_a_list)
@example([Video("a", "x/a.mp4", 0, 0)])  # an empty file of a file system without times
def test_what_is_written_is_read(tmp_path_factory, videos):
    path = tmp_path_factory.mktemp("list") / "0.tsv"
    write_shard_list(path, videos)
    assert read_shard_list(path) == videos
    written = path.read_text()
    write_shard_list(path, read_shard_list(path))
    assert path.read_text() == written


@given(st.lists(video, min_size=1, max_size=4), st.data())
def test_what_differs_has_another_digest(videos, data):
    n = data.draw(st.integers(0, len(videos) - 1))
    change = data.draw(st.sampled_from(["gone", "mirrored", "size", "mtime_ns"]))
    value = not getattr(videos[n], change) if change in ("gone", "mirrored") else getattr(videos[n], change) + 1
    assert digest([*videos[:n], videos[n]._replace(**{change: value}), *videos[n + 1 :]]) != digest(videos)


@pytest.mark.parametrize("audio", [False, True])
def test_lists_of_older_versions(tmp_path, audio):
    """Files without size and time had gone; a mirrored video's file did not have its id in the path."""
    lines = ["v\tx/v.mp4\t5\t6", "v_flip\tx/v.mp4\t5\t6", "w_flip\tx/w_flip.mp4\t5\t6", "gone\tx/gone.mp4\t0\t0"]
    header = "video_id\tpath\tsize\tmtime_ns"
    if audio:
        header += "\taudio_path\taudio_size\taudio_mtime_ns"
        lines = [f"{line}\tv.wav\t1\t2" for line in lines] + ["u\tx/u.mp4\t5\t6\tu.wav\t0\t0"]
    (tmp_path / "0.tsv").write_text("\n".join([header, *lines, ""]))
    videos = read_shard_list(tmp_path / "0.tsv")
    assert [v.video_id for v in videos if v.gone] == (["gone", "u"] if audio else ["gone"])
    assert [v.video_id for v in videos if v.mirrored] == ["v_flip"]
    assert digest(videos) == hashlib.sha256("\n".join(lines).encode()).hexdigest()
    write_shard_list(tmp_path / "0.tsv", videos)
    assert (tmp_path / "0.tsv").read_text() == "\n".join([header, *lines, ""])


@pytest.mark.parametrize("text", ["video\tfile\n", "", "a\n\n", b"\xff\xfe\n"])
def test_what_is_no_list_is_an_error_that_names_the_columns(tmp_path, text):
    (tmp_path / "0.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AVQAError, match=r"0\.tsv: not a shard list with the columns video_id, path, size, mtime_ns;"):
        read_shard_list(tmp_path / "0.tsv")


@pytest.mark.parametrize("line", ["a", "a\tb\tc\td", "a\tb\t1\t2\t3", "a\nb\tb.mp4\t1\t2", "a\tb\tb.mp4\t1\t2", ""])
def test_a_line_that_is_no_video_is_named(tmp_path, line):
    """As an id with a line break or a tab makes it."""
    (tmp_path / "0.tsv").write_text(f"video_id\tpath\tsize\tmtime_ns\nx\tx.mp4\t1\t2\n{line}\n")
    with pytest.raises(AVQAError, match=r"0\.tsv: line 3 does not have .*line break"):
        read_shard_list(tmp_path / "0.tsv")


def test_an_id_that_stands_twice_is_named(tmp_path):
    (tmp_path / "0.tsv").write_text("video_id\tpath\tsize\tmtime_ns\nx\tx.mp4\t1\t2\nx\ty.mp4\t1\t2\n")
    with pytest.raises(AVQAError, match=r"0\.tsv: two lines have the id x"):
        read_shard_list(tmp_path / "0.tsv")
