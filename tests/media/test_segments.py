"""Segments of one file, against the frames and samples that the ffmpeg program decodes."""

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media.oracle import AUDIO, RATE, VIDEO, X264, assert_same_frames, box, clip, ffmpeg, rebuilt, truth
from PIL import Image

from extractors import AudioInput, FrameInput, Transform
from pipeline.media.segments import MediaError, read_segments
from pipeline.media.transform import resize_and_crop

SMALL = FrameInput(32)
MONO = AudioInput(RATE)
SHARED = (
    "v_GGSY1Qvo990.mp4 vid2.mp4 flipping_a_pancake.mkv nasa_13013_rotated.mp4 test_non_zero_start.mp4 h265_video.mp4 "
    "av1_video.mkv testsrc2_mpeg4.avi corrupted.mp4"
)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with the clips that others are made from: {v} has B-frames and a GOP of 1 s, {av} audio as well."""
    folder = tmp_path_factory.mktemp("clips")
    clip(folder / "v.mp4", *VIDEO, *X264, "-g", 25)
    clip(folder / "av.mp4", "-i", folder / "v.mp4", *AUDIO, "-c:v", "copy", "-c:a", "aac")
    clip(folder / "big.mp4", "-f", "lavfi", "-i", "testsrc=s=160x120:r=25:d=4", *X264)
    clip(folder / "red.jpg", "-f", "lavfi", "-i", "color=red:s=600x600:d=1", "-frames:v", 1)
    return folder


def make(made, name, args):
    path = made / name
    if not path.exists():
        known = {other.stem: other for other in made.iterdir()}
        clip(path, *(arg.format(**known) for arg in args.split()))
    return path


def agrees(path, segments=6, at=0.5):
    """Same frames in every bit, audio within 1e-4, same length."""
    want = truth(path)
    got = assert_same_frames(path, want, segments, SMALL, frame_at=at)
    samples = got.data[MONO.key][: got.num_segments].reshape(-1)
    assert np.abs(samples - want.samples(got.num_segments)).max() <= 1e-4
    assert got.has_audio == (want.audio_start is not None)
    return got


@pytest.mark.parametrize("name", SHARED.split())
def test_real_clips(shared, name):
    agrees(shared / "videos" / name, 20)


@pytest.mark.parametrize("at", [0, 0.25, 0.999])
def test_another_moment_of_the_second(made, at):
    agrees(made / "av.mp4", at=at)


TURNS = [f"-display_rotation {turn} {flip}" for turn in (90, 180, 270, 30) for flip in ("", "-display_hflip")]


@pytest.mark.parametrize("turn", [*TURNS, "-display_vflip", "-display_hflip -display_vflip"])
def test_display_rotation(made, turn):
    agrees(make(made, f"turn{turn.replace(' ', '')}.mp4", turn + " -i {v} -c copy"), 1)


@pytest.mark.parametrize("name", ["cropped.mp4", "cropped.mkv", "cropped_and_turned.mkv"])
def test_cropping_by_the_container(made, name):
    """QuickTime's clean aperture: 60 by 44 of 96 by 64 pixels, off the middle."""

    def crop(kind, body):
        if kind != b"stsd" or b"avc1" not in body:
            return body
        return body[:8] + box(b"avc1", body[16:], box(b"clap", struct.pack(">8i", 60, 1, 44, 1, 6, 1, -4, 1)))

    (made / "aperture.mp4").write_bytes(rebuilt((made / "v.mp4").read_bytes(), crop))
    path = make(made, name, ("-display_rotation 90 " if "turned" in name else "") + "-i {aperture} -c copy")
    assert truth(path).frames.shape[1:3] in ((44, 60), (60, 44))
    agrees(path)


def test_cropping_stated_late_in_a_matroska_file(made):
    """Two megabytes of nothing come before the tracks."""
    test_cropping_by_the_container(made, "cropped.mkv")
    data = (made / "cropped.mkv").read_bytes()
    at = data.index(bytes.fromhex("18538067")) + 4
    assert data[at] == 1  # the segment's size, in eight bytes
    void = b"\xec\x01" + (2**21).to_bytes(7, "big") + bytes(2**21)
    size = int.from_bytes(data[at + 1 : at + 8], "big") + len(void)
    late = made / "late_crop.mkv"
    late.write_bytes(data[: at + 1] + size.to_bytes(7, "big") + void + data[at + 8 :])
    agrees(late)


def test_a_matroska_element_that_is_larger_than_any_disk(made):
    whole = make(made, "plain.mkv", "-i {v} -c copy").read_bytes()
    at = whole.index(bytes.fromhex("18538067")) + 12
    (made / "lies.mkv").write_bytes(whole[:at] + b"\xec\x01" + b"\xff" * 6 + b"\x7f" + whole[at:])
    agrees(made / "lies.mkv")


@pytest.mark.parametrize("name", ["two.mkv", "two.mp4", "two.ts"])
@pytest.mark.parametrize("default", [0, 1])
def test_several_video_streams(made, name, default):
    disposition = f"-disposition:v:{default} default -disposition:v:{1 - default} 0"
    agrees(make(made, f"{default}{name}", "-i {v} -i {big} -map 0 -map 1 -c copy " + disposition), 1)


@pytest.mark.parametrize(
    ("name", "args"),
    {
        "late_start.mkv": "-i {av} -c copy -output_ts_offset 1000",
        "late_start.ts": "-i {av} -c copy -output_ts_offset 1000",
        "cut.mp4": "-ss 1.37 -i {av} -c copy",  # begins within a GOP: an edit list
        "cut.mkv": "-ss 1.37 -i {av} -c copy",
        "fragments.mp4": "-i {av} -c copy -movflags frag_keyframe+empty_moov",
        "stream.flv": "-i {av} -c copy",
        "no_times.avi": "-i {v} -c copy",  # AVI has no presentation times
        "lost_times.mp4": "-i {v} -c copy -bsf:v setts=pts=DTS",
        "audio_late.mp4": "-i {v} -itsoffset 1.2345 -i {av} -map 0:v -map 1:a -c copy",
        "audio_late.mkv": "-i {v} -itsoffset 1.2345 -i {av} -map 0:v -map 1:a -c copy",
        "audio_first.mkv": "-itsoffset 1.5 -i {v} -i {av} -map 0:v -map 1:a -c copy",
        "audio_short.mp4": "-i {v} -t 1.7 -i {av} -map 0:v -map 1:a -c copy",
        "audio_long.mp4": "-t 1.1 -i {v} -i {av} -map 0:v -map 1:a -c copy",
        "cover.mp4": "-i {av} -i {red} -map 0 -map 1 -c copy -disposition:v:1 attached_pic",
        "vfr.mp4": "-i {v} -vf select=not(mod(n\\,3))+gt(n\\,50) -fps_mode vfr -c:v libx264",
        "mpeg4.avi": "-i {av} -c:v mpeg4 -bf 2 -c:a libmp3lame",
        "mpeg2.mpg": "-i {av} -c:v mpeg2video -bf 2 -c:a mp2",
        "theora.ogv": "-i {av} -c:v libtheora -c:a libvorbis",
        "wmv.wmv": "-i {av} -c:v wmv2 -c:a wmav2",
        "vp8.webm": "-i {av} -c:v libvpx -deadline realtime -cpu-used 8 -c:a libopus",
        "interlaced.mp4": "-i {v} -c:v libx264 -flags +ilme+ildct",
        "ten_bit.mp4": "-i {v} -c:v libx264 -pix_fmt yuv420p10",
        "bt709.mp4": "-i {v} -c:v libx264 -colorspace bt709 -color_range tv",
        "full_range.mp4": "-i {v} -c:v libx264 -pix_fmt yuvj420p -colorspace bt470bg",
        "rgb.mp4": "-i {v} -c:v libx264rgb",
        "odd.mkv": "-i {v} -vf scale=97:65 -c:v ffv1 -pix_fmt yuv444p",
        "odd_chroma.mkv": "-i {v} -vf scale=97:65 -c:v ffv1 -pix_fmt yuv420p",
        "thin.mp4": "-i {v} -vf scale=400:16 -c:v libx264",
        "one_frame.mp4": "-i {v} -frames:v 1 -c:v libx264",
    }.items(),
)
def test_made_clips(made, name, args):
    agrees(make(made, name, args))


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000, 96000])
def test_audio_of_any_source_rate(made, rate, channels):
    path = make(made, f"{channels}x{rate}.mkv", f"-i {{av}} -c:v copy -c:a pcm_s16le -ar {rate} -ac {channels}")
    assert np.abs(agrees(path).data[MONO.key]).max() > 0.05


@pytest.mark.parametrize("name", ["gap.mkv", "gap.mp4"])
def test_gap_in_the_audio(made, name):
    """The oracle here is the audio without the gap: what follows must stay in its place."""
    whole = read_segments(made / "av.mp4", segments=4, inputs=(MONO,)).data[MONO.key].reshape(-1)
    args = "-i {av} -c:v copy -af aselect=not(between(t\\,1\\,2.2)) -c:a aac -b:a 256k"
    got = read_segments(make(made, name, args), segments=4, inputs=(MONO,)).data[MONO.key].reshape(-1)
    assert not got[int(1.1 * RATE) : int(2.1 * RATE)].any()
    for part in (slice(0, int(0.95 * RATE)), slice(int(2.3 * RATE), int(3.9 * RATE))):
        lags = range(-RATE // 100, RATE // 100 + 1)
        match = {lag: np.corrcoef(np.roll(got, -lag)[part], whole[part])[0, 1] for lag in lags}
        assert abs(max(match, key=match.get)) <= RATE // 1000


def test_padding(made):
    inputs = (SMALL, FrameInput(48, fps=2), MONO)
    repeated = read_segments(made / "av.mp4", segments=7, inputs=inputs)
    zero = read_segments(made / "av.mp4", segments=7, inputs=inputs, pad="zero")
    assert repeated.num_segments == zero.num_segments == 4
    for item in inputs:
        padded, plain = repeated.data[item.key], zero.data[item.key]
        assert padded.shape == (7, *item.shape) and padded.dtype == item.dtype
        assert np.array_equal(padded[:4], plain[:4])
        assert (padded[4:] == padded[3]).all() and not plain[4:].any()


def test_three_hours(made):
    """Only the beginning of a long file is read, but its length must not confuse anything."""
    video = ("-f", "lavfi", "-i", "testsrc2=s=16x16:r=1:d=72")
    audio = ("-f", "lavfi", "-i", "aevalsrc=0.5*sin(t*(400+t)):s=8000:d=72")
    begin = clip(made / "begin.mp4", *video, *audio, *X264, "-c:a", "aac", "-b:a", "16k")
    path = clip(made / "long.mp4", "-stream_loop", 149, "-i", begin, "-c", "copy")
    want = truth(begin)
    got = assert_same_frames(path, want, 60, SMALL)
    assert got.num_segments == 60
    assert np.abs(got.data[MONO.key].reshape(-1) - want.samples(60)).max() <= 1e-4


@pytest.mark.parametrize("frame_selection", ["reference", "keyframe"])
def test_other_frame_selections_give_frames_nearby(made, frame_selection):
    exact, inexact = truth(made / "v.mp4"), 0
    all_frames = [resize_and_crop(frame, SMALL) for frame in exact.frames]
    for at in (0.09, 0.25, 0.29, 0.37, 0.45):  # soon after a frame appears, so that it is the nearest of all
        options = {"frame_selection": frame_selection, "frame_at": at}
        frames = read_segments(made / "v.mp4", segments=4, inputs=(SMALL,), **options).data[SMALL.key]
        for second in range(4):
            matches = [n for n, frame in enumerate(all_frames) if np.array_equal(frame, frames[second])]
            nearest = min((abs(float(exact.times[n]) - second - at) for n in matches), default=None)
            assert nearest is not None and nearest <= (0.5 if frame_selection == "keyframe" else 0.2)
            # One GOP is one second.
            assert frame_selection == "reference" or any(exact.times[n] % 1 == 0 for n in matches)
            inexact += nearest > 0.02
    assert inexact


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.sampled_from([8, 32, 224, 336]),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_default_transform_is_open_clips_own(width, height, size, seed):
    if max(width, height) / min(width, height) * size > 5000:
        return  # an absurd shape, and a very large image in between
    import torch
    from open_clip.transform import image_transform

    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    want = image_transform(size, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))(image)
    got = torch.from_numpy(resize_and_crop(np.asarray(image), FrameInput(size)).copy()).permute(2, 0, 1).float() / 255
    assert torch.equal(got, want)


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.sampled_from([(224, 256), (224, None), (32, 37), (31, 36), (8, 8), (112, 171)]),
    name=st.sampled_from(["bilinear", "bicubic"]),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_transforms_are_torchvisions(width, height, size, name, seed):
    (side, short_side) = size
    if max(width, height) / min(width, height) * (short_side or side) > 5000:
        return
    from torchvision import transforms

    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    mode = transforms.InterpolationMode(name)
    torchvision = [transforms.Resize(short_side or side, mode, antialias=True), transforms.CenterCrop(side)]
    got = resize_and_crop(np.asarray(image), FrameInput(side, transform=Transform(name, short_side)))
    assert np.array_equal(got, np.asarray(transforms.Compose(torchvision)(image)))


@pytest.mark.parametrize("name", ["v.mp4", "av.mp4"])
@pytest.mark.parametrize("at", [0, 0.5, 0.99])
@pytest.mark.parametrize("selective", [True, False])
def test_several_frame_inputs_in_one_pass(made, name, at, selective):
    """Each is what it is alone, and what ffmpeg decodes."""
    imagenet = FrameInput(16, 3, Transform("bilinear", 24))
    inputs = (FrameInput(32), FrameInput(48), FrameInput(32, 2), imagenet, FrameInput(32, 30), FrameInput(32))
    want, options = truth(made / name), {"frame_at": at, "selective": selective}
    together = read_segments(made / name, segments=6, inputs=inputs, **options)
    assert len(together.data) == 5 and together.has_audio == (name == "av.mp4")
    for item in inputs:
        alone = assert_same_frames(made / name, want, 6, item, **options)
        assert np.array_equal(alone.data[item.key], together.data[item.key])
        assert alone.num_segments == together.num_segments


@pytest.mark.parametrize("selective", [True, False])
@pytest.mark.parametrize("name", ["av.mp4", "audio_late.mkv", "audio_first.mkv", "audio_short.mp4", "audio_long.mp4"])
def test_length_and_origin_do_not_depend_on_the_inputs(made, name, selective):
    args = {
        "audio_late.mkv": "-i {v} -itsoffset 1.2345 -i {av} -map 0:v -map 1:a -c copy",
        "audio_first.mkv": "-itsoffset 1.5 -i {v} -i {av} -map 0:v -map 1:a -c copy",
        "audio_short.mp4": "-i {v} -t 1.7 -i {av} -map 0:v -map 1:a -c copy",
        "audio_long.mp4": "-t 1.1 -i {v} -i {av} -map 0:v -map 1:a -c copy",
    }
    path = made / name if name == "av.mp4" else make(made, name, args[name])
    want = agrees(path)
    for inputs in ((), (MONO,), (SMALL,), (AudioInput(44100), AudioInput(RATE, 10))):
        got = read_segments(path, segments=6, inputs=inputs, selective=selective)
        assert got[1:] == want[1:] and set(got.data) == {item.key for item in inputs}
        assert all(np.array_equal(got.data[key], want.data[key]) for key in set(got.data) & set(want.data))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
@pytest.mark.parametrize("name", ["av.mp4", "late.mkv"])
def test_audio_at_another_rate(made, name, rate):
    """Against ffmpeg's own resampling of the audio, put in its place."""
    path = make(made, name, "-i {v} -itsoffset 0.0071 -i {av} -map 0:v -map 1:a -c copy")
    item, start = AudioInput(rate), float(truth(path).audio_start) - float(truth(path).origin)
    got = read_segments(path, segments=6, inputs=(item,)).data[item.key][:4].reshape(-1)
    raw = ffmpeg("-i", path, "-vn", "-ac", 1, "-ar", rate, "-f", "f32le", "-")
    samples = np.frombuffer(raw, "<f4")
    differences = []
    for at in (round(start * rate) + n for n in (-1, 0, 1)):
        expected = np.concatenate([np.zeros(max(0, at)), samples[max(0, -at) :], np.zeros(len(got))])
        differences.append(np.abs(got - expected[: len(got)]).max())
    assert min(differences) <= 1e-4


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("audio_only.m4a", "-i {av} -vn -c copy", "no video stream"),
        ("cover_only.m4a", "-i {av} -i {red} -map 0:a -map 1 -c copy -disposition:v attached_pic", "no video stream"),
        ("empty_track.mp4", "-i {v} -frames:v 0 -c copy", "video"),
        ("old.avi", "-i {v} -c:v huffyuv", "huffyuv is not allowed"),
    ],
)
def test_no_video(made, name, args, reason):
    with pytest.raises(MediaError, match=f"{name}: .*{reason}"):
        read_segments(make(made, name, args))


def test_bytes_on_standard_output_are_frames():
    """The oracle itself: one red frame."""
    raw = ffmpeg(
        "-f", "lavfi", "-i", "color=red:s=8x8:d=0.04", "-frames:v", 1, "-pix_fmt", "rgb24", "-f", "rawvideo", "-"
    )
    assert len(raw) == 8 * 8 * 3 and raw[0] > 250 and raw[1] < 5
