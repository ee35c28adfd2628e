"""What the ffmpeg program reads from a file, and clips made with it on the spot."""

import math
import struct
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import imageio_ffmpeg
import numpy as np

from extractors import AudioInput, FrameInput
from pipeline.media.segments import Segments, read_segments
from pipeline.media.transform import resize_and_crop

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
RATE = 16000
VIDEO = ("-f", "lavfi", "-i", "testsrc2=s=96x64:r=25:d=4")
AUDIO = ("-f", "lavfi", "-i", "aevalsrc=0.4*sin(2*PI*(300+200*t)*t)*gt(mod(t\\,0.5)\\,0.2):s=44100:d=4")
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-pix_fmt", "yuv420p")


class Refused(Exception):
    """ffmpeg could not do it."""


def ffmpeg(*args, data: bytes | None = None) -> bytes:
    """Run the packaged program, with `data` as standard input; its standard output."""
    done = subprocess.run([FFMPEG, "-v", "error", "-y", *map(str, args)], capture_output=True, input=data or b"")
    if done.returncode:
        raise Refused(done.stderr.decode())
    return done.stdout


def clip(path: Path, *args) -> Path:
    """Make a clip with ffmpeg's arguments."""
    ffmpeg(*args, path)
    return path


class Truth(NamedTuple):
    """All frames and samples that ffmpeg decodes. Times in seconds."""

    times: list[Fraction]
    frames: np.ndarray  # N,height,width,3
    audio: np.ndarray  # at `rate`, mono
    audio_start: Fraction | None
    end: Fraction

    @property
    def origin(self) -> Fraction:
        return min(self.times[0], self.audio_start if self.audio_start is not None else self.times[0])

    def count(self, segments: int, at: float = 0.5) -> int:
        return min(segments, max(1, math.ceil(self.end - self.origin - Fraction(at))))

    def frame_at(self, second: int, at: float = 0.5) -> np.ndarray:
        moment = self.origin + second + Fraction(at)
        return self.frames[max([n for n, time in enumerate(self.times) if time <= moment], default=0)]

    def samples(self, seconds: int) -> np.ndarray:
        """The audio of the first seconds after the origin; zeros where there is none."""
        row = np.zeros(seconds * RATE, np.float32)
        if self.audio_start is not None:
            at = round((self.audio_start - self.origin) * RATE)
            part = self.audio[: max(0, len(row) - at)]
            row[at : at + len(part)] = part
        return np.clip(row, -1, 1)


def truth(path: Path) -> Truth:
    """Have ffmpeg decode all frames, their times, and the audio."""
    # One thread: what is put in place of damaged parts depends on their number.
    read = ("-copyts", "-threads", 1, "-i", path)
    keep = ("-an", "-fps_mode", "passthrough", "-enc_time_base", "demux")
    table, unit = _table(ffmpeg(*read, *keep, "-f", "framecrc", "-"))
    width, height = _size(ffmpeg(*read, "-an", "-frames:v", 1, "-c:v", "ppm", "-f", "image2pipe", "-"))
    raw = ffmpeg(*read, *keep, "-pix_fmt", "rgb24", "-f", "rawvideo", "-")
    frames = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    times, ends = [row[0] * unit for row in table], [(row[0] + row[1]) * unit for row in table]
    audio, start = np.zeros(0, np.float32), None
    if subprocess.run([FFMPEG, "-i", path, "-vn", "-t", "0", "-f", "null", "-"], capture_output=True).returncode == 0:
        packets, unit = audio_packets(path)
        if packets:
            start = packets[0][0] * unit
            ends += [(time + duration) * unit for time, duration in packets]
            audio = at_rate(_with_gaps(audio_samples(path), packets, int(1 / unit)), int(1 / unit))
    return Truth(times, frames, audio, start, max(ends))


def audio_packets(path: Path) -> tuple[list[tuple[int, int]], Fraction]:
    """Time and duration of each packet that the decoded audio comes in, and their unit, one sample of the stream."""
    return _table(ffmpeg("-copyts", "-i", path, "-vn", "-c:a", "pcm_f32le", "-f", "framecrc", "-"))


def video_packets(path: Path) -> tuple[list[tuple[int, int]], Fraction]:
    """Time and duration of each packet of the video, and their unit."""
    return _table(ffmpeg("-copyts", "-i", path, "-an", "-c", "copy", "-f", "framecrc", "-"))


def audio_samples(path: Path) -> np.ndarray:
    """All samples that ffmpeg writes to an audio file, at the stream's own rate, channels averaged."""
    packets, _ = audio_packets(path)
    raw = np.frombuffer(ffmpeg("-i", path, "-vn", "-f", "f32le", "-"), "<f4")
    return raw.reshape(sum(duration for _, duration in packets), -1).mean(1, dtype=np.float64)


def at_rate(samples: np.ndarray, rate: int, wanted: int = RATE) -> np.ndarray:
    """Mono samples as ffmpeg resamples them."""
    if rate == wanted:
        return samples.astype(np.float32)
    source = ("-f", "f32le", "-ar", rate, "-ac", 1, "-i", "pipe:0")
    return np.frombuffer(
        ffmpeg(*source, "-ar", wanted, "-f", "f32le", "-", data=samples.astype("<f4").tobytes()), "<f4"
    )


def _with_gaps(audio: np.ndarray, packets: list[tuple[int, int]], rate: int) -> np.ndarray:
    """Put zeros where the packets (time and duration in samples) leave more than 50 ms free."""
    parts, at, end = [], 0, packets[0][0]
    for time, duration in packets:
        if time - end > rate // 20:
            parts.append(np.zeros(time - end, np.float32))
            end = time
        parts.append(audio[at : at + duration])
        at, end = at + duration, end + duration
    return np.concatenate(parts)


def _table(text: bytes) -> tuple[list[tuple[int, int]], Fraction]:
    """Time and duration of each line of ffmpeg's framecrc format, and their unit."""
    rows, unit = [], None
    for line in text.decode().splitlines():
        if line.startswith("#tb 0:"):
            unit = Fraction(line.split()[-1])
        elif not line.startswith("#"):
            fields = [field.strip() for field in line.split(",")]
            rows.append((int(fields[2]), int(fields[3])))
    return rows, unit


def _size(ppm: bytes) -> tuple[int, int]:
    return tuple(map(int, ppm.split(maxsplit=4)[1:3]))


def box(kind: bytes, *parts: bytes) -> bytes:
    """An MP4 box."""
    body = b"".join(parts)
    return struct.pack(">I", len(body) + 8) + kind + body


def rebuilt(data: bytes, change: Callable[[bytes, bytes], bytes]) -> bytes:
    """An MP4's boxes, with `change(kind, body)` applied to the innermost ones."""
    out, at = [], 0
    while at + 8 <= len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + size]
        inner = kind in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"stbl")
        out.append(box(kind, rebuilt(body, change) if inner else change(kind, body)))
        at += size
    return b"".join(out)


def assert_same_frames(path: Path, truth: Truth, segments: int, wanted: FrameInput, **options) -> Segments:
    """Segments of a file have the oracle's length, and each frame equals the oracle's in every bit."""
    got = read_segments(path, segments=segments, inputs=(wanted, AudioInput(RATE)), **options)
    at = options.get("frame_at", 0.5)
    assert got.num_segments == truth.count(segments, at)
    frames = got.data[wanted.key].reshape(segments, wanted.fps, wanted.size, wanted.size, 3)
    for second in range(got.num_segments):
        for j in range(wanted.fps):
            expected = resize_and_crop(truth.frame_at(second, (j + Fraction(at)) / wanted.fps), wanted)
            assert np.array_equal(frames[second, j], expected), f"{path.name}: second {second}, frame {j}"
    return got
