"""Frames that are to be turned or mirrored, and frames with side data of which PyAV has no name."""

import struct
from contextlib import closing
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from media.oracle import X264, assert_same_frames, clip, ffmpeg, rebuilt, truth

from extractors import FrameInput
from pipeline.media.container import MediaFile
from pipeline.media.segments import read_segments
from pipeline.media.transform import resize_and_crop
from pipeline.media.video import FullDecoder

SMALL = FrameInput(32)
VIDEO = ("-f", "lavfi", "-i", "testsrc2=s=66x48:r=5:d=2")
many = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("turned")
    clip(folder / "v.mov", *VIDEO, *X264)
    return folder


def agrees(path, **options):
    """Both decoders give all bits that the program gives."""
    want = truth(path)
    for selective in (True, False):
        got = assert_same_frames(path, want, 3, SMALL, selective=selective)
    with closing(FullDecoder(MediaFile.check(path), 3)) as decoder:  # without a resized frame's rounding
        (frame,) = decoder.frames_at([decoder.start + Fraction(1, 2)])
    assert np.array_equal(frame, want.frame_at(0))
    return got


def exif(orientation, little):
    """A JPEG's APP1 segment that states an orientation."""
    order = "<" if little else ">"
    head = (b"II" if little else b"MM") + struct.pack(order + "HIH", 42, 8, 1)
    entry = struct.pack(order + "HHIHHI", 0x112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + head + entry
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize("pixels", ["yuvj420p", "yuvj422p", "yuvj444p"])
@pytest.mark.parametrize("orientation", range(10))  # 1 to 8 have a meaning
def test_exif_orientation(tmp_path, orientation, pixels):
    coding = ("-pix_fmt", pixels, "-c:v", "mjpeg", "-q:v", 3, "-f", "image2pipe", "-")
    raw = ffmpeg(*VIDEO, *coding)
    for little, ending in ((True, "avi"), (False, "mov"), (True, "mkv")):
        (tmp_path / "v.mjpg").write_bytes(raw.replace(b"\xff\xd8", b"\xff\xd8" + exif(orientation, little)))
        path = clip(tmp_path / f"v.{ending}", "-r", 5, "-f", "mjpeg", "-i", tmp_path / "v.mjpg", "-c", "copy")
        agrees(path)
        assert (truth(path).frames.shape[1] == 66) == (5 <= orientation <= 8)


def test_exif_orientation_and_a_display_matrix(tmp_path):
    raw = ffmpeg(*VIDEO, "-pix_fmt", "yuvj420p", "-c:v", "mjpeg", "-f", "image2pipe", "-")
    (tmp_path / "v.mjpg").write_bytes(raw.replace(b"\xff\xd8", b"\xff\xd8" + exif(6, True)))
    plain = clip(tmp_path / "v.mov", "-r", 5, "-f", "mjpeg", "-i", tmp_path / "v.mjpg", "-c", "copy")
    agrees(clip(tmp_path / "both.mov", "-display_rotation", 180, "-i", plain, "-c", "copy"))


number = st.one_of(st.sampled_from([0, 1, -1, 0.5, -0.5]), st.floats(-2, 2))


@given(st.tuples(number, number, number, number))
@example((0, 0, 0, 0))
@example((0, 1, 1, 0))
@example((0.7071, 0.7071, -0.7071, 0.7071))
@example((1, 0, 0, 0))
@settings(many, max_examples=30)
def test_any_matrix_in_the_track_header(folder, numbers):
    a, b, c, d = (round(n * 2**16) for n in numbers)

    def turn(kind, body):
        if kind != b"tkhd":
            return body
        return body[:40] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 2**30) + body[76:]

    path = folder / "matrix.mov"
    path.write_bytes(rebuilt((folder / "v.mov").read_bytes(), turn))
    agrees(path)


FORMATS = (
    "yuv420p yuv422p yuv440p yuv444p yuv411p yuv410p yuva420p gray gray10le yuv420p10le yuv422p12le bgr0 gbrp gbrp10le"
)


@pytest.mark.parametrize("turn", ["0", "90", "180 -display_hflip", "270 -display_hflip", "37"])
@pytest.mark.parametrize("pixels", FORMATS.split())
def test_any_pixel_format_turned(folder, pixels, turn):
    """Some formats cannot be turned as they are: libavfilter chooses which conversion comes before."""
    plain = folder / f"{pixels}.mov"
    if not plain.exists():
        clip(plain, *VIDEO, "-c:v", "ffv1", "-strict", -2, "-pix_fmt", pixels)
    path = folder / "turned.mov"
    agrees(clip(path, "-display_rotation", *turn.split(), "-i", plain, "-c", "copy", "-strict", -2))


# A registered message (ITU-T T.35) of V-Nova's, as its LCEVC encoder writes it: 00 00 is followed by an escape.
LCEVC = bytes.fromhex("060417b40050000003000179ff42804280aabbccddeeff112233445580")


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
def test_side_data_of_which_pyav_has_no_name(tmp_path, ending):
    """The frames are those without it: what LCEVC adds, the program dithers anew in each second of the clock."""
    raw = ffmpeg(*VIDEO, *X264, "-bf", 0, "-f", "h264", "-")
    units = [b"\0\0\1" + unit for unit in raw.split(b"\0\0\1")[1:]]
    marked = b"".join(b"\0\0\1" + LCEVC + unit if unit[3] & 31 in (1, 5) else unit for unit in units)
    frames = []
    for name, data in (("plain", raw), ("marked", marked)):
        (tmp_path / name).write_bytes(data)
        path = clip(tmp_path / f"{name}.{ending}", "-r", 5, "-f", "h264", "-i", tmp_path / name, "-c", "copy")
        for selective in (True, False):
            frames.append(read_segments(path, segments=2, inputs=(SMALL,), selective=selective).data[SMALL.key])
    with closing(FullDecoder(MediaFile.check(path), 3)) as decoder:
        assert 28 in [data.type.value for data in next(decoder.frames)[2].side_data]
    assert all(np.array_equal(frames[0], other) for other in frames[1:])


def test_real_frames_with_an_enhancement_layer(shared):
    """Those of the base layer, at the right moments: near the enhanced ones, which are another picture each time."""
    path = shared / "videos" / "corpus" / "lcevc_sei.ts"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    got = read_segments(path, segments=5, inputs=(SMALL,)).data[SMALL.key].astype(int)
    keep = ("-an", "-fps_mode", "passthrough", "-vf", "select=eq(mod(n\\,30)\\,15),scale=1920:1080,scale=960:540")
    raw = ffmpeg("-threads", 1, "-i", path, *keep, "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    want = [resize_and_crop(frame, SMALL) for frame in np.frombuffer(raw, np.uint8).reshape(-1, 540, 960, 3)]
    assert len(want) == 5 and max(np.abs(g - w).max() for g, w in zip(got, want, strict=True)) <= 12
    assert min(np.abs(got[n] - want[m]).max() for n in range(5) for m in range(5) if n != m) > 24
