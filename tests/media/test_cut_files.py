"""Cut, joined and remuxed files: their timestamps do not begin at 0, nor with a frame that is presented."""

import hashlib
import struct
from contextlib import closing
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from media.oracle import RATE, X264, Refused, assert_same_frames, box, clip, ffmpeg, truth

from extractors import AudioInput, FrameInput
from pipeline.media import segments as segments_module
from pipeline.media.container import MediaFile
from pipeline.media.segments import MediaError, read_segments
from pipeline.media.video import FullDecoder, UnreliableTimestamps
from pipeline.media.video_sparse import SparseDecoder

SMALL, MONO = FrameInput(16), AudioInput(RATE)
LENGTH = 30  # seconds of the films
# name -> frames per second, seconds per GOP, consecutive B-frames, open GOPs, audio
FILMS = {
    "plain": (5, 1, 0, 0, False),
    "long": (5, 12, 3, 0, True),
    "open": (10, 3, 3, 1, True),
    "slow": (2, 6, 8, 0, False),  # the frames of one mini-GOP span 4 s
    "slow_open": (1, 8, 3, 1, True),
}
many = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)


def make_film(path, rate, gop, b_frames, open_gop, audio, source="testsrc2"):
    inputs = ["-f", "lavfi", "-i", f"{source}=s=48x32:r={rate}:d={LENGTH}"]
    if audio:
        inputs += ["-f", "lavfi", "-i", f"aevalsrc=0.4*sin(300*t*t):s=16000:d={LENGTH}", "-c:a", "aac"]
    structure = f"keyint={gop * rate}:open-gop={open_gop}:scenecut=0:b-adapt=0:bframes={b_frames}:b-pyramid=normal"
    return clip(path, *inputs, *X264, "-x264-params", structure)


@pytest.fixture(scope="session")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for name, structure in FILMS.items():
        make_film(folder / f"{name}.mp4", *structure)
    return folder


def agrees(path, wanted_segments, at=0.5):
    """Selective and full decoding both give what the ffmpeg program decodes."""
    try:
        want = truth(path)
    except (Refused, ValueError):  # it has no frame that ffmpeg could decode
        return
    for segments in wanted_segments:
        for selective in (True, False):
            assert_same_frames(path, want, segments, SMALL, frame_at=at, selective=selective)


@given(
    film=st.sampled_from(list(FILMS)),
    ending=st.sampled_from(["mp4", "mov", "mkv", "ts"]),
    start=st.integers(0, 1000 * (LENGTH - 2)),
    length=st.integers(1000, 1000 * LENGTH),
    below=st.integers(1, 6),
    at=st.sampled_from([0, 0.5, 0.9]),
)
@settings(many, max_examples=20)
def test_any_cut_by_stream_copy(films, film, ending, start, length, below, at):
    cut = ("-ss", start / 1000, "-i", films / f"{film}.mp4", "-t", length / 1000, "-c", "copy")
    path = clip(films / f"cut.{ending}", *cut)
    seconds = min(length, 1000 * LENGTH - start) // 1000
    agrees(path, {below, max(1, seconds), seconds + 3}, at)


@pytest.mark.parametrize("film", FILMS)
def test_only_the_needed_part_of_a_long_file_is_read(films, film):
    decoder = SparseDecoder(MediaFile.check(films / f"{film}.mp4"), 3)
    assert (decoder.known_until is None) == (film == "slow_open")  # all its 30 frames are read
    agrees(films / f"{film}.mp4", (3, LENGTH - 1, LENGTH, LENGTH + 1))


@pytest.mark.parametrize("ending", ["mkv", "mp4"])
@pytest.mark.parametrize("default", [0, 1])
def test_cut_with_two_video_streams_and_subtitles(films, tmp_path, ending, default):
    (tmp_path / "s.srt").write_text("1\n00:00:01,000 --> 00:00:29,000\ntext\n")
    both = ("-i", films / "long.mp4", "-i", films / "open.mp4", "-i", tmp_path / "s.srt")
    maps = ("-map", "0:v", "-map", "1:v", "-map", "1:a", "-map", "2:s", "-c", "copy")
    subtitles = ("-c:s", "srt" if ending == "mkv" else "mov_text")
    disposition = (f"-disposition:v:{default}", "default", f"-disposition:v:{1 - default}", 0)
    whole = clip(tmp_path / f"whole.{ending}", *both, *maps, *subtitles, *disposition)
    cut = clip(tmp_path / f"cut.{ending}", "-ss", 7.3, "-i", whole, "-map", 0, "-t", 14, "-c", "copy", *disposition)
    agrees(cut, (4, 14, 20))


def with_edits(data, entries):
    """An MP4 with its header at the end and one track: its edit list replaced by (duration, media time) in ms."""
    start = data.index(b"elst") - 4
    size = struct.unpack_from(">I", data, start)[0]
    table = b"".join(struct.pack(">IiI", *entry, 0x10000) for entry in entries)
    new = box(b"elst", bytes(4), struct.pack(">I", len(entries)), table)
    out = bytearray(data[:start] + new + data[start + size :])
    for kind in (b"edts", b"trak", b"moov"):
        at = out.rindex(kind, 0, start) - 4
        struct.pack_into(">I", out, at, struct.unpack_from(">I", out, at)[0] + len(new) - size)
    return bytes(out)


# Not shorter than a frame: a part in which no frame begins has, in FFmpeg's demuxer, a frame of another time, which the
# ffmpeg program then moves as it repairs timestamps that jump back. Neither is what the edit list says.
edit = st.tuples(st.integers(600, 9000), st.one_of(st.just(-1), st.integers(0, 20000)))


@example("slow", [(330, -1), (5680, 10502), (604, 10128)], 8)  # ends with a frame that has an earlier time
@example("slow", [(600, 901), (600, 1501)], 1)  # the second part's key frame is hidden, and its frame earlier
@example("slow", [(600, 900), (600, 1500)], 1)
@given(st.sampled_from(list(FILMS)), st.lists(edit, min_size=1, max_size=4), st.integers(1, 25))
@settings(many, max_examples=10)
def test_edit_lists_of_several_parts(films, film, edits, segments):
    scales = ("-video_track_timescale", 1000, "-movie_timescale", 1000)
    whole = clip(films / "ms.mp4", "-i", films / f"{film}.mp4", "-c", "copy", "-an", *scales)
    (films / "edited.mp4").write_bytes(with_edits(whole.read_bytes(), edits))
    agrees(films / "edited.mp4", (segments,))


@pytest.mark.parametrize("second_start", [0, 4.1, 5.1, 40])
def test_two_recordings_joined_as_bytes(films, tmp_path, second_start):
    """The second one's timestamps lie between the first one's, before them, or far after them."""
    make_film(tmp_path / "other.mp4", *FILMS["plain"], source="testsrc")
    first = clip(tmp_path / "a.ts", "-i", films / "plain.mp4", "-t", 10, "-c", "copy")
    second = ("-i", tmp_path / "other.mp4", "-t", 10, "-c", "copy", "-output_ts_offset", second_start)
    (tmp_path / "joined.ts").write_bytes(first.read_bytes() + clip(tmp_path / "b.ts", *second).read_bytes())
    want = read_segments(tmp_path / "joined.ts", segments=12, inputs=(SMALL,), selective=False)
    got = read_segments(tmp_path / "joined.ts", segments=12, inputs=(SMALL,))
    assert np.array_equal(got.data[SMALL.key], want.data[SMALL.key]) and got[1:] == want[1:]
    agrees(tmp_path / "joined.ts", (3, 12))


@pytest.mark.parametrize(
    ("film", "pts", "dts"),  # after so many packets, so many milliseconds back
    [
        ("plain", (22, 400), (22, 400)),
        ("plain", (44, 700), (17, 1000)),
        ("open", (22, 1100), (22, 1100)),
        ("slow", (22, 4600), (22, 4600)),
        ("slow", (27, 600), (40, 3200)),
        ("slow", (15, 800), (23, 4100)),
        ("slow_open", (7, 1200), (54, 8800)),
    ],
)
def test_timestamps_that_go_backwards_and_were_repaired_by_a_remux(films, tmp_path, film, pts, dts):
    """Matroska has no decoding timestamps: what is left of them is one or two frames a millisecond apart."""
    setts = "setts=pts=PTS-gt(N\\,{})*{}:dts=DTS-gt(N\\,{})*{}".format(*pts, *dts)
    whole = clip(tmp_path / "whole.mkv", "-i", films / f"{film}.mp4", "-an", "-c", "copy")
    agrees(clip(tmp_path / "back.mkv", "-i", whole, "-c", "copy", "-bsf:v", setts), (5, 12, 35))


@pytest.mark.parametrize("film", ["plain", "slow"])
def test_presentation_times_that_are_wrong_for_a_while(films, tmp_path, film):
    """The decoding timestamps are right, so some frames are presented after a key frame that follows them."""
    setts = "setts=pts=PTS+between(N\\,8\\,16)*3.3/TB"
    coding = ("-an", "-c", "copy", "-bsf:v", setts)
    agrees(clip(tmp_path / "wrong.mp4", "-i", films / f"{film}.mp4", *coding), (5, 12, 35))


def test_a_recording_that_continues_earlier_and_within_a_gop(films, tmp_path):
    """Packets were lost, and with them the start of the second part; all its times are earlier, none the same."""
    coding = ("-map", "0:v", "-c", "copy")
    first = clip(tmp_path / "a.ts", "-i", films / "long.mp4", "-t", 8, *coding)
    second = clip(tmp_path / "b.ts", "-ss", 12, "-i", films / "long.mp4", *coding, "-output_ts_offset", 3.1)
    data = second.read_bytes()
    starts = [at for at in range(0, len(data), 188) if data[at + 1] & 0x40 and data[at + 3] & 0x10]
    video = [at for at in starts if int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF == 256]
    (tmp_path / "joined.ts").write_bytes(first.read_bytes() + data[video[2] :])
    agrees(tmp_path / "joined.ts", (3, 8, 12))


def test_a_cut_within_a_long_gop_needs_no_full_decode(tmp_path):
    """The scan starts up to a GOP before the first frame that is presented, and must go on as far after it."""
    film = make_film(tmp_path / "film.mp4", 25, 10, 3, 0, False)
    cut = clip(tmp_path / "cut.mp4", "-ss", 9, "-i", film, "-t", 15, "-c", "copy")
    with closing(SparseDecoder(MediaFile.check(cut), 3)) as decoder:
        assert sum(packet.hidden for packet in decoder.packets) > 200
        assert decoder.known_until == decoder.start + 3
    agrees(cut, (3, 14))


def test_timestamps_that_wrap_around(films, tmp_path):
    """MPEG-TS counts to 2^33 at 90 kHz."""
    wrap = ("-output_ts_offset", 2**33 / 90000 - 6)
    agrees(clip(tmp_path / "wrap.ts", "-i", films / "open.mp4", "-t", 15, "-c", "copy", *wrap), (4, 12, 20))


def test_a_frame_past_an_unfinished_scan_is_never_guessed(films, monkeypatch):
    class Hasty(SparseDecoder):
        def __init__(self, file, seconds, *args):
            super().__init__(file, 3, *args)
            stopped.append(self.known_until)

    stopped, path = [], films / "long.mp4"
    with closing(SparseDecoder(MediaFile.check(path), 3)) as decoder:
        assert decoder.known_until == decoder.start + 3
        assert len(list(decoder.frames_at([decoder.known_until]))) == 1
        with pytest.raises(UnreliableTimestamps, match="later than"):
            list(decoder.frames_at([decoder.start, decoder.known_until + 1]))
    monkeypatch.setitem(segments_module.BACKENDS, "pyav", (Hasty, FullDecoder))
    assert_same_frames(path, truth(path), 12, SMALL)
    assert stopped[0] is not None
    monkeypatch.setitem(segments_module.BACKENDS, "pyav", (Hasty,))
    with pytest.raises(MediaError, match="later than"):
        read_segments(path, segments=12, inputs=(SMALL,))


def test_real_clips_below_at_and_above_their_length(shared):
    """The selective decoder against the full one, for AVQA's clips also against the ffmpeg program's frames."""
    folder, wanted = shared / "videos", FrameInput(16)
    clips = [path for path in folder.iterdir() if path.suffix in (".mp4", ".mkv", ".avi")]
    for path in (*clips, *(folder / "avqa").glob("*.mp4")):
        full = read_segments(path, segments=62, inputs=(wanted,), selective=False)
        hashes = frame_hashes(path) if path.parent.name == "avqa" else None
        for segments in {full.num_segments // 2, full.num_segments, full.num_segments + 1} - {0}:
            sparse = read_segments(path, segments=segments, inputs=(wanted,))
            assert np.array_equal(sparse.data[wanted.key], full.data[wanted.key][:segments]), path
            assert sparse.num_segments == min(segments, full.num_segments)
            if hashes:
                with closing(SparseDecoder(MediaFile.check(path), segments)) as decoder:
                    moments = [decoder.start + n + Fraction(1, 2) for n in range(segments)]
                    for moment, frame in zip(moments, decoder.frames_at(moments), strict=True):
                        expected = max((time, digest) for time, digest in hashes if time <= moment)[1]
                        assert hashlib.md5(frame).hexdigest() == expected, path


def frame_hashes(path):
    """Time and MD5 of the RGB bytes of each frame that the ffmpeg program decodes."""
    keep = ("-an", "-fps_mode", "passthrough", "-enc_time_base", "demux", "-pix_fmt", "rgb24")
    lines = ffmpeg("-copyts", "-threads", 1, "-i", path, *keep, "-f", "framemd5", "-").decode().splitlines()
    unit = Fraction(next(line for line in lines if line.startswith("#tb 0:")).split()[-1])
    rows = [[field.strip() for field in line.split(",")] for line in lines if not line.startswith("#")]
    return [(int(row[2]) * unit, row[-1]) for row in rows]
