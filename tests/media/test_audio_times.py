"""Timestamps that wobble, drift, jump or are wrong, against the samples that ffmpeg writes to an audio file."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media.oracle import RATE, at_rate, audio_packets, audio_samples, clip, video_packets

from extractors import AudioInput
from pipeline.media.segments import read_segments

LENGTH = 12  # seconds
SOUND = f"aevalsrc=0.4*sin(2*PI*(200+90*t)*t)*gt(mod(t\\,0.7)\\,0.2)+0.1*(random(0)-0.5):s={{rate}}:d={LENGTH}"
CODECS = {  # name -> rate, coding, container
    "aac": (44100, "aac", "mkv"),
    "aac_in_mp4": (44100, "aac", "mp4"),
    "opus": (48000, "libopus", "mkv"),
    "mp3": (16000, "libmp3lame", "mkv"),
    "pcm": (16000, "pcm_s16le", "mkv"),
    "pcm_in_mov": (44100, "pcm_s16le", "mov"),
    "vorbis": (32000, "libvorbis", "mkv"),
}
MONO = AudioInput(RATE)
many = settings(deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """A still picture with a sound, in each coding."""
    folder = tmp_path_factory.mktemp("times")
    for name, (rate, coding, container) in CODECS.items():
        picture = ("-f", "lavfi", "-i", f"color=red:s=16x16:r=2:d={LENGTH}", "-c:v", "mpeg4")
        sound = ("-f", "lavfi", "-i", SOUND.format(rate=rate), "-c:a", coding, "-b:a", "64k")
        clip(folder / f"{name}.{container}", *picture, *sound)
    return folder


def retimed(sources, codec, filters):
    """The file of a codec with other packets or timestamps of the sound."""
    container = CODECS[codec][2]
    source, path = sources / f"{codec}.{container}", sources / f"retimed.{container}"
    return clip(path, "-i", source, "-map", 0, "-c", "copy", "-bsf:a", filters)


def read(path):
    """All that is read of the sound, from its own start on; the picture begins at 0."""
    got = read_segments(path, segments=LENGTH + 8, inputs=(MONO,), pad="zero")
    assert got.has_audio
    begins = [packets[0][0] * unit for packets, unit in (audio_packets(path), video_packets(path))]
    start = round((begins[0] - min(begins)) * RATE)
    return got.data[MONO.key].reshape(-1)[start : got.num_segments * RATE]


def assert_equal(got, samples, rate):
    """Equal to the last sample, but for what a video's length cuts off; a start between two samples is rounded."""
    want = np.clip(at_rate(samples, rate), -1, 1)
    length = min(len(got), len(want))
    assert length > len(want) - RATE
    assert np.abs(got[:length] - want[:length]).max() < 1e-5
    assert not got[length:].any()


def setts(expression):
    """A filter that gives each packet N another time, in seconds, computed from its own, T."""
    time = expression.replace("T", "PTS*TB").replace("N*PTS*TB", "N*T")
    return f"setts=pts='({time})/TB':dts='({time})/TB'"


def rate_of(path):
    return int(1 / audio_packets(path)[1])


WOBBLES = {
    "a clock of 10 ms": "floor(T/0.01)*0.01",
    "a clock of 20 ms": "floor(T/0.02)*0.02",
    "a clock of 40 ms": "floor(T/0.04)*0.04",
    "a phone's": "T+0.02*mod(N\\,7)/7-0.009*mod(N\\,3)",
    "jitter of 10 ms": "T+0.01*(2*random(1)-1)",
    "jitter of 25 ms": "T+0.025*(2*random(1)-1)",
    "a clock that is 0.05 % fast": "T*1.0005",
    "a clock that is 0.05 % slow": "T*0.9995",
    "a clock that is 0.3 % fast": "T*1.003",
    "three times too fast": "T*3",
    "a hundred times too fast": "max(T\\,0)*100",
    "a hundred times too slow": "T/100",
    "standing still": "0",
    "half of it at the times of the other half": "T-5*gt(T\\,6)",
    "a step of 40 ms": "T+0.04*gt(T\\,6)",
    "steps of 10 ms": "T+0.01*floor(T/3)",
    "one wrong packet in two seconds": "T+0.3*eq(mod(N\\,90)\\,80)",
    "half a second that is late": "T+0.2*between(T\\,4\\,4.5)",
}


@pytest.mark.parametrize(("number", "wobble"), list(enumerate(WOBBLES)))
def test_samples_are_contiguous_where_none_is_missing(sources, number, wobble):
    for codec in list(CODECS)[number % 3 :: 3]:
        path = retimed(sources, codec, setts(WOBBLES[wobble]))
        assert_equal(read(path), audio_samples(path), rate_of(path))


def with_one_gap(path):
    """The samples, with zeros where the packets' timestamps jump most."""
    packets, _ = audio_packets(path)
    times, durations = map(np.array, zip(*packets, strict=True))
    packet = 1 + int(np.argmax(times[1:] - times[:-1] - durations[:-1]))
    before, samples = durations[:packet].sum(), audio_samples(path)
    silence = np.zeros(times[packet] - times[0] - before)
    return np.concatenate([samples[:before], silence, samples[before:]])


@given(
    codec=st.sampled_from(list(CODECS)),
    wobble=st.sampled_from(["T", "floor(T/0.01)*0.01", "T+0.01*(2*random(1)-1)"]),
    at=st.floats(0.5, LENGTH - 0.3),
    missing=st.one_of(st.floats(0.12, 2.5), st.just(0.3)),
    cut_out=st.booleans(),
)
@settings(many, max_examples=15)
def test_a_gap_is_at_its_place_and_so_is_what_follows(sources, codec, wobble, at, missing, cut_out):
    """Either packets are lost, or the timestamps go on later."""
    later = f"+{missing}*gte(T\\,{at})"
    lost = f"noise=amount=0:drop='between(pts*tb\\,{at}\\,{min(at + missing, LENGTH - 0.2)})'"
    filters = f"{lost},{setts(wobble)}" if cut_out else setts(wobble + later)
    path = retimed(sources, codec, filters)
    assert_equal(read(path), with_one_gap(path), rate_of(path))


@given(at=st.floats(1, LENGTH - 2), overlap=st.floats(0.06, 0.16), wobble=st.sampled_from(["T", "floor(T/0.01)*0.01"]))
@settings(many, max_examples=10)
def test_a_small_overlap_is_cut_so_that_what_follows_is_in_place(sources, at, overlap, wobble):
    path = retimed(sources, "pcm", setts(f"{wobble}-{overlap}*gte(T\\,{at})"))
    got, samples = read(path), audio_samples(path)
    before = int((at - overlap) * RATE)
    np.testing.assert_array_equal(got[:before], samples[:before].astype(np.float32))
    tail = samples[-RATE:].astype(np.float32)
    place = len(samples) - RATE - int(overlap * RATE)
    found = [
        n
        for n in range(place - RATE // 18, place + RATE // 18)
        if np.array_equal(got[n : n + RATE // 2], tail[: RATE // 2])
    ]
    assert found


def test_two_rates_in_one_stream(tmp_path):
    """Transport streams joined as bytes: stereo, then mono at half the rate; the sound goes on as ffmpeg writes it."""
    picture = ("-f", "lavfi", "-i", "color=red:s=16x16:r=5:d=3", "-c:v", "mpeg2video")
    parts = [("aevalsrc=0.4*sin(2*PI*300*t)|0.4*sin(2*PI*300*t):s=44100:d=3", 0), ("sine=300:r=22050:d=3", 3)]
    data = b""
    for n, (sound, later) in enumerate(parts):
        coding = ("-c:a", "aac", "-output_ts_offset", later)
        data += clip(tmp_path / f"{n}.ts", *picture, "-f", "lavfi", "-i", sound, *coding).read_bytes()
    (tmp_path / "joined.ts").write_bytes(data)
    got, want = read(tmp_path / "joined.ts"), at_rate(audio_samples(tmp_path / "joined.ts"), 44100)
    assert np.abs(got[: 3 * RATE] - want[: 3 * RATE]).max() < 1e-5
    for second in range(5):
        part = got[second * RATE : (second + 1) * RATE]
        assert 0.05 < np.sqrt(np.mean(part**2)) < 0.3
        assert np.mean(np.abs(part) < 1e-3) < 0.1
