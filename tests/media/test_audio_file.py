"""Audio files in place of a video's own audio, against the samples that the ffmpeg program decodes."""

import errno
import os
import stat
import struct

import numpy as np
import pytest
import soundfile
from media.oracle import X264, clip, ffmpeg
from media.test_hostile import TEXTS, untouched

from extractors import AudioInput, FrameInput
from pipeline.media.container import MachineError, MediaError
from pipeline.media.segments import read_segments

STEREO = "aevalsrc=0.4*sin(2*PI*(300+200*t)*t)*gt(mod(t\\,0.5)\\,0.2)|0.5*sin(2*PI*700*t):s={rate}:d=4.3"
INPUTS = (AudioInput(16000), AudioInput(32000))
CODINGS = {
    "pcm.wav": "",
    "pcm24.wav": "-c:a pcm_s24le",
    "float.wav": "-c:a pcm_f32le",
    "six.wav": "-ac 6",
    "a.flac": "",
    "vorbis.ogg": "-c:a libvorbis",
    "opus.ogg": "-c:a libopus -ar 48000",
    "a.mp3": "",
    "tagged.mp3": "-metadata title=x -id3v2_version 3",
    "of_unstated_length.mp3": "-q:a 5 -write_xing 0",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tmp_path_factory.mktemp("audio")


def make(made, name, rate=44100):
    path = made / f"{rate}-{name}"
    return path if path.exists() else clip(path, "-f", "lavfi", "-i", STEREO.format(rate=rate), *CODINGS[name].split())


def tag(size):
    """An ID3v2 tag with that many bytes in it."""
    return b"ID3\x04\0\0" + bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(size)


def crc(page):
    """That of an Ogg page (RFC 3533)."""
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x104C11DB7 if value & 2**31 else 0)) & 2**32 - 1
    return value


def speex():
    """Speex in Ogg: 100 frames of 20 ms at 8 kHz of arbitrary bits, in mode 3."""
    about = b"Speex   1.2".ljust(28, b"\0") + struct.pack("<13i", 1, 80, 8000, 0, 4, 1, -1, 160, 0, 1, 0, 0, 0)
    bits = np.random.default_rng(0).integers(0, 256, (100, 20), np.uint8)
    bits[:, 0] = 3 << 3 | bits[:, 0] & 7  # narrowband, mode 3
    bits[:, 2] |= 1  # the gain, five bits, so that it is not too loud
    bits[:, 3] = 5 << 4 | bits[:, 3] & 15
    packets, pages = [about, bytes(8), *map(bytes, bits)], b""
    for n, packet in enumerate(packets):
        flags = 2 * (n == 0) | 4 * (n == len(packets) - 1)
        head = struct.pack("<4sBBqIII", b"OggS", 0, flags, max(0, n - 1) * 160, 1, n, 0) + bytes([1, len(packet)])
        page = head + packet
        pages += page[:22] + struct.pack("<I", crc(page)) + page[26:]
    return pages


OTHERS = {  # what libsndfile refuses -> arguments, and what is done with the bytes
    "of_unknown_length.flac": ("-f flac", None),
    "tagged.flac": ("", lambda data: tag(3000) + data),
    "tagged_twice.flac": ("", lambda data: tag(10) + tag(0) + data),
    "after_zeros.mp3": ("-write_xing 0 -id3v2_version 0", lambda data: bytes(3000) + data),
    "after_zeros_and_tags.mp3": ("-write_xing 0", lambda data: bytes(100) + tag(500) + bytes(50) + data),
    "rf64.wav": ("-rf64 always", None),
    "of_unknown_length.wav": ("-f wav", None),
    "flac.ogg": ("-c:a flac", None),
    "speex.ogg": ("", None),
    "adpcm.wav": ("-c:a adpcm_ms", None),
    "mp2.wav": ("-c:a mp2", None),
    "six_of_unknown_length.flac": ("-ac 6 -f flac", None),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_libsndfile_refuses_is_read_by_ffmpeg(tmp_path, name):
    args, change = OTHERS[name]
    path, source = tmp_path / name, ("-f", "lavfi", "-i", STEREO.format(rate=44100), *args.split())
    if name == "speex.ogg":
        path.write_bytes(speex())
    elif args.endswith(("-f flac", "-f wav")):  # through a pipe, so that the length cannot be filled in at the end
        path.write_bytes(ffmpeg(*source, "-"))
    else:
        clip(path, *source)
    if change:
        path.write_bytes(change(path.read_bytes()))
    got = read_segments(None, audio_path=path, segments=6, inputs=INPUTS, pad="zero")
    for item in INPUTS:
        want = decoded(path, item.rate, 6 if "six" in name else 1 if "speex" in name else 2)
        assert np.abs(want).max() > 0.05
        want = want[: got.num_segments * item.rate]
        samples = got.data[item.key].reshape(-1)
        assert np.abs(samples[: len(want)] - want).max() < 5e-4
        assert not samples[len(want) :].any()


def decoded(path, rate, channels=2):
    """All samples by ffmpeg, channels averaged."""
    mean = "+".join(f"{1 / channels}*c{n}" for n in range(channels))
    chain = f"pan=mono|c0={mean},aresample={rate}:resampler=soxr:precision=20"
    return np.frombuffer(ffmpeg("-i", path, "-af", chain, "-f", "f32le", "-"), "<f4")


@pytest.mark.parametrize("rate", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("name", CODINGS)
def test_samples_are_ffmpegs(made, name, rate):
    if name == "opus.ogg" and rate != 48000:
        pytest.skip("Opus has 48 kHz")
    path = make(made, name, rate)
    got = read_segments(None, audio_path=path, segments=6, inputs=INPUTS, pad="zero")
    assert got.has_audio
    for item in INPUTS:
        want = decoded(path, item.rate, 6 if name == "six.wav" else 2)
        assert got.num_segments == int(np.ceil(len(want) / item.rate - 0.5))
        want = want[: got.num_segments * item.rate]
        samples = got.data[item.key].reshape(-1)
        assert np.abs(samples[: len(want)] - want).max() < 5e-4
        assert not samples[len(want) :].any()


def test_only_the_seconds_that_are_read_and_the_next_matter(made):
    path = make(made, "pcm.wav")
    want = read_segments(None, audio_path=path, segments=6, inputs=INPUTS).data[INPUTS[0].key]
    got = read_segments(None, audio_path=path, segments=2, inputs=INPUTS)
    assert got.num_segments == 2
    np.testing.assert_allclose(got.data[INPUTS[0].key], want[:2], atol=1e-6)


@pytest.mark.parametrize("own", ["", "-f lavfi -i sine=90:d=3"])
def test_in_place_of_the_videos_own_audio(made, own):
    """The file begins with the first frame, whatever the video's timestamps and its own audio say."""
    video = ("-itsoffset", 1.5, "-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=3.2")
    path = clip(made / f"late{len(own)}.mkv", *own.split(), *video, *X264, "-c:a", "aac")
    sound = make(made, "pcm.wav")
    inputs = (FrameInput(32), *INPUTS)
    got = read_segments(path, audio_path=sound, segments=6, inputs=inputs, pad="zero")
    alone = read_segments(None, audio_path=sound, segments=6, inputs=INPUTS, pad="zero")
    silent = read_segments(clip(made / "silent.mkv", "-i", path, "-an", "-c", "copy"), segments=3, inputs=inputs[:1])
    assert got.num_segments == alone.num_segments == 4 and silent.num_segments == 3
    np.testing.assert_array_equal(got.data[inputs[0].key][:3], silent.data[inputs[0].key])
    for item in INPUTS:
        np.testing.assert_array_equal(got.data[item.key], alone.data[item.key])


@pytest.mark.parametrize("pad", ["repeat", "zero"])
def test_padding(made, pad):
    path = clip(made / f"short-{pad}.wav", "-f", "lavfi", "-i", "sine=500:d=0.3:r=16000")
    got = read_segments(None, audio_path=path, segments=3, inputs=INPUTS[:1], pad=pad).data[INPUTS[0].key]
    assert got[0, :4800].any() and not got[0, 4800:].any()
    assert np.array_equal(got[1], got[0] if pad == "repeat" else np.zeros_like(got[0]))


def test_numbers_that_are_not_finite_do_not_spread(made):
    values = np.full(32000, 0.25, np.float32)
    values[[100, 20000]] = np.nan, np.inf
    soundfile.write(made / "nan.wav", values, 32000, subtype="FLOAT")
    got = read_segments(None, audio_path=made / "nan.wav", segments=1, inputs=INPUTS[:1]).data[INPUTS[0].key]
    assert np.isfinite(got).all() and np.abs(got[0, 5000:9000] - 0.25).max() < 0.01


def hostile(folder, name, victim):
    path = folder / name
    if name in TEXTS:
        path.write_text(TEXTS[name].format(file=victim, url=f"file://{victim}", port=1))
    elif name in ("aiff", "w64", "au", "caf", "mat5"):
        soundfile.write(path, np.zeros(100), 16000, format=name.upper())
    elif name == "mp3 tag before another format":
        soundfile.write(path, np.zeros(100), 16000, format="AU")
        path.write_bytes(b"ID3\x03\0\0\0\0\0\0" + path.read_bytes())
    elif name == "two recordings in one ogg":
        path.write_bytes(2 * make(folder, "vorbis.ogg").read_bytes())
    elif name == "no samples":
        soundfile.write(path, np.zeros(0), 16000, format="WAV")
    elif name == "cut flac":
        data = make(folder, "a.flac").read_bytes()
        path.write_bytes(data[: len(data) // 2])
    elif name == "impossible rate":
        soundfile.write(path, np.zeros(100), 16000, format="WAV")
        path.write_bytes(path.read_bytes().replace(struct.pack("<I", 16000), struct.pack("<I", 2**31 - 1), 1))
    elif name == "a video":
        clip(folder / "video.mp4", "-f", "lavfi", "-i", "testsrc2=s=96x64:d=1").rename(path)
    elif name == "folder":
        path.mkdir()
    elif name == "pipe":
        os.mkfifo(path)
    elif name == "empty":
        path.touch()
    return path


HOSTILE = "aiff;w64;au;caf;mat5;mp3 tag before another format;two recordings in one ogg;no samples;cut flac"
HOSTILE += ";impossible rate;a video;folder;pipe;empty;gone;" + ";".join(TEXTS)


@pytest.mark.parametrize("name", HOSTILE.split(";"))
def test_other_files_are_refused_for_good(made, tmp_path, name):
    victim = make(made, "pcm.wav")
    path = hostile(tmp_path, name, victim)
    with untouched(victim), pytest.raises(MediaError, match=name) as refused:
        read_segments(None, audio_path=path, segments=2, inputs=INPUTS)
    assert refused.value.final


@pytest.mark.parametrize("name", ["pcm.wav", "a.flac", "vorbis.ogg", "a.mp3"])
def test_a_read_that_fails_is_no_end_of_the_audio(made, tmp_path, monkeypatch, name):
    """The libraries take both for the end of the file."""
    data = make(made, name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) * 2 // 3])
    read = os.read

    def failing(descriptor, count):
        if stat.S_ISREG(os.fstat(descriptor).st_mode) and os.lseek(descriptor, 0, os.SEEK_CUR) >= 2048:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, min(count, 2048))

    monkeypatch.setattr(os, "read", failing)
    with pytest.raises(MachineError, match=rf"{name}: cannot be read"):
        read_segments(None, audio_path=tmp_path / name, segments=6, inputs=INPUTS)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EACCES, errno.ESTALE, errno.EIO])
def test_a_file_that_the_machine_cannot_open(made, monkeypatch, number):
    path = make(made, "pcm.wav")

    def failing(path, *args):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", failing)
    with pytest.raises(MachineError, match=r"pcm\.wav: cannot be opened"):
        read_segments(None, audio_path=path, segments=1, inputs=INPUTS)
