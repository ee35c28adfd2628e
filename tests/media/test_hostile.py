"""Hostile files: refused with a reason, and nothing but the file itself is opened."""

import ctypes
import os
import socket
import struct
from contextlib import contextmanager, suppress

import pytest
from media.oracle import AUDIO, VIDEO, X264, box, clip, rebuilt

from pipeline.media.segments import BACKENDS, MediaError, read_segments

IN_OPEN = 0x20


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "v.mp4"
    return clip(path, "-t", 1, *VIDEO, "-t", 1, *AUDIO, *X264, "-c:a", "aac")


@contextmanager
def untouched(path):
    """Fails if anybody opens the file meanwhile (inotify tells)."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, os.fsencode(path), IN_OPEN) >= 0
    try:
        yield
        with pytest.raises(BlockingIOError):
            os.read(watch, 4096)
    finally:
        os.close(watch)


@contextmanager
def unvisited():
    """A port that nobody may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


def test_opening_a_file_is_detected(tmp_path):
    (tmp_path / "canary").write_text("x")
    with pytest.raises(pytest.fail.Exception), untouched(tmp_path / "canary"):
        (tmp_path / "canary").read_text()


TEXTS = {
    "playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{file}\n#EXTINF:9,\n{url}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{file}'\nfile '{url}'\n",
    "session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\n",
    "manifest": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    "<Representation><BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "subtitle": "1\n00:00:00,000 --> 00:00:09,000\n{file}\n",
    "idx": "# VobSub index file, v7\nid: en, index: 0\ntimestamp: 00:00:01:000, filepos: 000000000\n{file}\n",
    "asx": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "script": 'AVISource("{file}")\n',
    "imf": '<?xml version="1.0"?><CompositionPlaylist xmlns="http://www.smpte-ra.org/schemas/2067-3/2016"/>',
}
ENDINGS = {"playlist": "m3u8", "concat": "ffconcat", "session": "sdp", "manifest": "mpd", "idx": "idx", "script": "avs"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("disguised", [True, False])
@pytest.mark.parametrize("kind", TEXTS)
def test_text_that_names_others_is_refused(tmp_path, video, kind, disguised, backend):
    path = tmp_path / f"clip.{'mp4' if disguised else ENDINGS.get(kind, 'txt')}"
    with unvisited() as port:
        path.write_text(TEXTS[kind].format(file=video, url=f"http://127.0.0.1:{port}/v.mp4", port=port))
        with untouched(video), pytest.raises(MediaError, match="does not begin like") as refused:
            read_segments(path, backend=backend)
    assert refused.value.final


@pytest.mark.parametrize("backend", BACKENDS)
def test_text_behind_a_video_header_is_no_playlist(tmp_path, video, backend):
    """Probing might see the playlist; the first bytes alone decide."""
    head = video.read_bytes()[:32]
    for text in (TEXTS["playlist"], TEXTS["concat"], TEXTS["session"]):
        with unvisited() as port:
            url = f"http://127.0.0.1:{port}/v.mp4"
            path = tmp_path / "clip.m3u8"
            path.write_bytes(head + b"\n" + text.format(file=video, url=url, port=port).encode())
            with untouched(video), pytest.raises(MediaError):
                read_segments(path, backend=backend)


def test_a_movie_whose_samples_are_in_another_file(tmp_path, video):
    """QuickTime's data references may name any path; they are not followed."""
    target = os.fsencode(video)
    record = bytes(10) + b"\x04disk" + bytes(23) + bytes(12) + b"\x05v.mp4" + bytes(58) + bytes(16)
    record += struct.pack(">hh", 1, 1) + bytes(16)
    record += struct.pack(">hh", 2, len(target)) + target + b"\0" * (len(target) % 2) + struct.pack(">hh", -1, 0)

    def elsewhere(kind, body):
        return bytes(4) + struct.pack(">I", 1) + box(b"alis", bytes(4), record) if kind == b"dref" else body

    path = tmp_path / "clip.mov"
    path.write_bytes(rebuilt(video.read_bytes().replace(b"mdat", b"free"), elsewhere))
    with untouched(video), suppress(MediaError):
        read_segments(path, segments=1)


def test_what_is_not_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "empty.mp4").touch()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(tmp_path / "socket.mp4"))
        for name in (
            "/dev/zero",
            "/dev/tty",
            "/dev/null",
            "pipe.mp4",
            "folder.mp4",
            "socket.mp4",
            "empty.mp4",
            "gone.mp4",
        ):
            with pytest.raises(MediaError, match=name) as refused:
                read_segments(tmp_path / name)
            assert refused.value.final


NAMES = [
    "concat:a.mp4|b.mp4",
    "-y.mp4",
    "http:__x.mp4",
    "%03d.mp4",
    "a b\n'c.mp4",
    "видео.mp4",
    "x.m3u8",
    "x",
    "pipe:0",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_mean_nothing(tmp_path, video, name, monkeypatch):
    (tmp_path / name).write_bytes(video.read_bytes())
    monkeypatch.chdir(tmp_path)
    for backend in set(BACKENDS) - {"nvdec"}:  # which decodes on a GPU
        assert read_segments(name, segments=1, backend=backend).has_audio


def test_a_name_that_is_no_text(tmp_path, video):
    path = os.fsencode(tmp_path) + b"/\xff\xfe.mp4"
    with open(path, "wb") as file:
        file.write(video.read_bytes())
    with pytest.raises(MediaError, match="cannot be opened"):
        read_segments(os.fsdecode(path), segments=1)
