"""Which sound is read, and how its channels are mixed, against the samples that the ffmpeg program decodes."""

import struct

import numpy as np
import pytest
from media.oracle import AUDIO, RATE, VIDEO, X264, at_rate, clip, ffmpeg
from media.test_segments import agrees, make

from extractors import AudioInput, FrameInput
from pipeline.media.segments import MediaError, read_segments

SMALL = FrameInput(32)
MONO = AudioInput(RATE)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    clip(folder / "v.mp4", *VIDEO, *X264, "-g", 25)
    clip(folder / "av.mp4", "-i", folder / "v.mp4", *AUDIO, "-c:v", "copy", "-c:a", "aac")
    return folder


def test_audio_that_cannot_be_decoded_is_an_error(made):
    path = make(made, "no_audio.avi", "-i {v} -i {av} -map 0:v -map 1:a -c:v mpeg4 -c:a ac3")
    data = bytearray(path.read_bytes())
    at, end = data.index(b"movi"), data.rindex(b"idx1")
    while (at := data.find(b"01wb", at, end)) >= 0:
        size = struct.unpack_from("<I", data, at + 4)[0]
        data[at + 8 : at + 8 + size] = bytes(size)
        at += 8 + size
    (made / "no_sound.avi").write_bytes(data)
    with pytest.raises(MediaError, match="audio cannot be decoded"):
        read_segments(made / "no_sound.avi")


@pytest.mark.parametrize("channels", range(1, 9))
@pytest.mark.parametrize("alone", [False, True])
def test_each_channel_counts_the_same(made, channels, alone):
    """Of a stream and of a file; ffmpeg's own mixture has weights, 0 for the low frequencies."""
    for loud in range(channels):
        one = "|".join("0.5*sin(2*PI*300*t)" if n == loud else "0" for n in range(channels))
        sound = ("-f", "lavfi", "-i", f"aevalsrc={one}:s=16000:d=2")
        name = made / f"{channels}-{loud}.{'wav' if alone else 'mkv'}"
        clip(name, *(() if alone else ("-i", made / "v.mp4")), *sound, "-c:v", "copy", "-c:a", "pcm_f32le")
        got = read_segments(None if alone else name, audio_path=name if alone else None, segments=2, inputs=(MONO,))
        wanted = 0.5 * np.sin(2 * np.pi * 300 * np.arange(2 * RATE) / RATE) / channels
        assert np.abs(got.data[MONO.key].reshape(-1) - wanted).max() < 1e-6


CODECS_OF_SOUND = {
    "dts.ts": "-c:a dca -strict -2",
    "truehd.mkv": "-c:a truehd -strict -2",
    "mlp.mkv": "-c:a mlp -strict -2",
    "tta.mkv": "-c:a tta",
    "wavpack.mkv": "-c:a wavpack",
    "ac3.ts": "-c:a ac3",
    "eac3.mp4": "-c:a eac3",
    "alac.mp4": "-c:a alac",
    "flac.mkv": "-c:a flac -ar 96000",
    "amr.3gp": "-c:a libopencore_amrnb -ar 8000",
    "s302m.ts": "-c:a s302m -strict -2 -ac 2",
}


@pytest.mark.parametrize("name", CODECS_OF_SOUND)
def test_codecs_of_sound(made, name):
    args = "-i {v} -i {av} -map 0:v -map 1:a -c:v copy -ar 48000 " + CODECS_OF_SOUND[name]
    assert agrees(make(made, name, args)).has_audio


@pytest.mark.parametrize("name", ["not_allowed.mkv", "unknown.mp4"])
def test_sound_in_a_form_that_is_not_read_costs_the_sound_alone(made, name):
    if name == "unknown.mp4":  # a codec that FFmpeg knows and cannot decode
        path, reason = made / name, "ac4"
        path.write_bytes((made / "av.mp4").read_bytes().replace(b"mp4a", b"ac-4").replace(b"esds", b"free"))
    else:
        path, reason = make(made, name, "-i {av} -c:v copy -c:a g722 -ar 16000"), "adpcm_g722"
    got, silent = (read_segments(p, segments=4, inputs=(SMALL, MONO)) for p in (path, made / "v.mp4"))
    assert reason in got.unheard and not got.has_audio and not silent.unheard
    assert all(np.array_equal(got.data[key], silent.data[key]) for key in (SMALL.key, MONO.key))


def test_a_track_that_is_announced_and_never_comes(made):
    """Its packets are taken out of the transport stream; the table of programs still names it."""
    data = make(made, "announced.ts", "-i {av} -c copy").read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    path = made / "never.ts"
    path.write_bytes(b"".join(p for p in packets if int.from_bytes(p[1:3], "big") & 0x1FFF != 257))
    got, silent = (read_segments(p, segments=4, inputs=(SMALL, MONO)) for p in (path, made / "v.mp4"))
    assert not got.has_audio and not got.unheard
    assert all(np.array_equal(got.data[key], silent.data[key]) for key in (SMALL.key, MONO.key))


@pytest.mark.parametrize("seconds", [10, 16])
def test_audio_that_begins_after_what_ffmpeg_looks_at(made, seconds):
    """ffmpeg looks for 7 seconds. What begins after the seconds that are read is no audio."""
    video = ("-f", "lavfi", "-i", "testsrc2=s=48x32:r=5:d=15")
    sound = ("-itsoffset", 11.4, "-i", made / "av.mp4", "-map", "0:v", "-map", "1:a", "-c:a", "copy")
    path = clip(made / "late.ts", *video, *sound, *X264)
    got = read_segments(path, segments=seconds, inputs=(MONO,), pad="zero")
    sound = got.data[MONO.key][: got.num_segments].reshape(-1)
    assert got.has_audio == sound.any() == (seconds > 11)
    if seconds > 11:
        raw = ffmpeg("-analyzeduration", "30M", "-i", path, "-vn", "-ac", 1, "-f", "f32le", "-")
        want = at_rate(np.frombuffer(raw, "<f4"), 44100)
        begins = [int(np.flatnonzero(np.abs(values) > 0.01)[0]) for values in (sound, want)]
        assert abs((begins[0] - begins[1]) / RATE - 11.4) < 0.05  # the encoder's delay
        length = min(len(want) - begins[1], len(sound) - begins[0])
        assert np.abs(sound[begins[0] :][:length] - want[begins[1] :][:length]).max() < 1e-4
