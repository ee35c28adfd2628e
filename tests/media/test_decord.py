"""decord: its frames are the ffmpeg program's, or the file is refused with the reason."""

import numpy as np
import pytest
from media.oracle import VIDEO, X264, assert_same_frames, clip, truth

from extractors import FrameInput
from pipeline.media.segments import MediaError, read_segments

SMALL = FrameInput(32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decord")
    clip(folder / "v.mp4", *VIDEO, *X264, "-g", 25)
    clip(folder / "big.mp4", "-f", "lavfi", "-i", "testsrc=s=160x120:r=25:d=4", *X264)
    return folder


def make(folder, name, args):
    known = {path.stem: path for path in folder.glob("*.mp4")}
    return clip(folder / name, *(arg.format(**known) for arg in args.split()))


X265 = "-c:v libx265 -x265-params log-level=none"


@pytest.mark.parametrize(
    ("name", "args"),
    {
        "b_frames.mp4": "-i {v} -c:v libx264 -bf 3",
        "b_frames.mkv": "-i {v} -c:v libx264 -bf 3",
        "open_gop.mp4": "-i {v} -c:v libx264 -x264-params open-gop=1:keyint=12:bframes=3",
        "open_gop.mkv": f"-i {{v}} {X265}:open-gop=1:keyint=12",
        "hevc.mp4": f"-i {{v}} {X265}",
        "vp8.webm": "-i {v} -c:v libvpx -deadline realtime -cpu-used 8",
        "vp9.webm": "-i {v} -c:v libvpx-vp9 -deadline realtime -cpu-used 8",
        "stream.flv": "-i {v} -c copy",
        "fragments.mp4": "-i {v} -c copy -movflags frag_keyframe+empty_moov",
        "uneven.mp4": "-i {v} -vf select=not(mod(n\\,3))+gt(n\\,50) -fps_mode vfr -c:v libx264",
        "late.mkv": "-i {v} -c copy -output_ts_offset 1000",
        "full_range.mp4": "-i {v} -c:v libx264 -pix_fmt yuvj420p -colorspace bt470bg",
        "chroma.mp4": "-i {v} -c:v libx264 -pix_fmt yuv422p",
        "turned_90.mp4": "-display_rotation 90 -i {v} -c copy",
        "turned_180.mp4": "-display_rotation 180 -i {v} -c copy",
        "turned_270.mp4": "-display_rotation 270 -i {v} -c copy",
    }.items(),
)
def test_what_it_decodes_is_what_ffmpeg_decodes(folder, name, args):
    path = make(folder, name, args)
    assert_same_frames(path, truth(path), 5, SMALL, backend="decord")


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("stream.ts", "-i {v} -c copy", "container mpegts"),
        ("stream.mpg", "-i {v} -c:v mpeg2video", "container mpeg"),
        ("two.mp4", "-i {v} -i {big} -map 0 -map 1 -c copy -disposition:v:1 default", "several video streams"),
        ("two.mkv", "-i {v} -i {big} -map 1 -map 0 -c copy", "several video streams"),
        ("mirrored.mp4", "-display_hflip -i {v} -c copy", "mirrored"),
        ("turned_and_mirrored.mp4", "-display_rotation 90 -display_hflip -i {v} -c copy", "mirrored"),
        ("turned.mkv", "-display_rotation 90 -i {v} -c copy", "turned"),
        ("turned_by_30.mp4", "-display_rotation 30 -i {v} -c copy", "turned"),
        ("odd.webm", "-i {v} -vf scale=97:65 -c:v libvpx-vp9 -deadline realtime -cpu-used 8", "odd width"),
        ("ten_bit.mp4", "-i {v} -c:v libx264 -pix_fmt yuv420p10", "pixel format yuv420p10le"),
        ("old.mp4", "-i {v} -c:v mpeg4 -bf 2", "codec mpeg4"),
        ("cut.mp4", "-ss 1.37 -i {v} -c copy", "are presented"),
    ],
)
def test_what_it_is_known_to_decode_otherwise_is_refused(folder, name, args, reason):
    path = make(folder, name, args)
    with pytest.raises(MediaError, match=reason):
        read_segments(path, segments=4, inputs=(SMALL,), backend="decord")
    assert_same_frames(path, truth(path), 4, SMALL)  # the default decodes it


def test_a_picture_whose_size_changes_is_refused(folder):
    listed = folder / "list.txt"
    listed.write_text("ffconcat version 1.0\nfile v.webm\nfile big.webm\n")
    for name in ("v", "big"):
        make(folder, f"{name}.webm", f"-t 2 -i {{{name}}} -c:v libvpx -deadline realtime -cpu-used 8")
    path = clip(folder / "sizes.mkv", "-f", "concat", "-i", listed, "-c", "copy")
    with pytest.raises(MediaError, match="size or format changes"):
        read_segments(path, segments=4, inputs=(SMALL,), backend="decord")
    frames = read_segments(path, segments=4, inputs=(SMALL,)).data[SMALL.key]
    for second, name in ((0, "v"), (3, "big")):
        want = read_segments(folder / f"{name}.webm", segments=2, inputs=(SMALL,)).data[SMALL.key]
        assert np.array_equal(frames[second], want[second % 2])
