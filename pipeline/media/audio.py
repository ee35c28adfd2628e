"""The audio of a video file: mono, at a given rate, placed by its timestamps. Decoded and resampled by ffmpeg."""

import io
import math
from fractions import Fraction
from typing import NamedTuple

import av
import ffmpeg
import numpy as np

from pipeline.media.container import MediaError, MediaFile
from pipeline.media.program import run_ffmpeg
from pipeline.media.video import open_container

_JITTER = Fraction(1, 1000)  # seconds that a piece may start off the end of the previous one and still be continuous
_BLIP = Fraction(1, 10)  # seconds that a jump of the timestamps must last for the audio itself to jump


class AudioTrack(NamedTuple):
    """Samples float32 in -1…1 from `start` (presentation time in seconds); gaps are zeros."""

    rate: int  # samples per second
    start: Fraction
    samples: np.ndarray

    @property
    def end(self) -> Fraction:
        return self.start + Fraction(len(self.samples), self.rate)

    def segments(self, origin: Fraction, count: int, total: int) -> np.ndarray:
        """The first `count` seconds after `origin`, as float32 total,rate; zeros where there is no audio."""
        rows = np.zeros((total, self.rate), np.float32)
        flat = rows[:count].reshape(-1)
        at = round((self.start - origin) * self.rate)
        part = self.samples[max(0, -at) :][: max(0, len(flat) - max(0, at))]
        flat[max(0, at) : max(0, at) + len(part)] = part
        return rows


def read_audio(file: MediaFile, seconds: int, rate: int) -> AudioTrack | None:
    """The first `seconds` seconds of the audio stream that ffmpeg chooses, at `rate` Hz; None if there is no audio.

    ffmpeg's own timestamps are kept: its Nut output carries them to the sample.
    Raises MediaError if there is an audio stream and nothing of it can be decoded.
    """
    with open_container(file) as container:
        starts = [s.start_time * s.time_base for s in container.streams.audio if s.start_time is not None]
        if not container.streams.audio:
            return None
    # Nut has no negative timestamps. Whole seconds, so that the shift is exact.
    shift = 10 - math.floor(min(starts, default=0))
    process = run_ffmpeg(_arguments(file, seconds, rate, shift))
    if process.returncode < 0:  # what it has written may be incomplete
        raise MediaError(file.path, f"the ffmpeg that decodes the audio was ended by signal {-process.returncode}")
    try:
        pieces = _pieces(process.stdout, shift, rate)
    except (av.FFmpegError, EOFError):
        pieces = []  # cut short: ffmpeg has given up
    if not pieces and process.returncode:
        lines = process.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = lines[-1] if lines else f"ffmpeg ended with code {process.returncode}"
        raise MediaError(file.path, f"the audio cannot be decoded ({reason})", True)
    return _join(pieces, rate) if pieces else None


def _arguments(file: MediaFile, seconds: int, rate: int, shift: int) -> list[str]:
    command = (
        ffmpeg.input(file.url, f=file.container, copyts=None, threads=1, **file.limits)
        .output(
            "pipe:",
            # One second more, so that the last sample is filtered like the others. Unless the largest value is given,
            # ffmpeg adds up the channels of codecs that decode to floats, instead of averaging them.
            af=f"atrim=duration={seconds + 1},aresample={rate}:rematrix_maxval=1,aformat=channel_layouts=mono",
            acodec="pcm_f32le",
            f="nut",
            output_ts_offset=shift,
            fs=2 * seconds * rate * 4 + 2**20,  # a file whose timestamps stand still would never reach its end
            threads=1,
            map_metadata=-1,
            vn=None,
            sn=None,
            dn=None,
        )
        # The time limit is for an ffmpeg that hangs and has lost the process which would have ended it.
        .global_args("-nostdin", "-hide_banner", "-loglevel", "error", "-timelimit", "600")
    )
    return command.get_args()


def _pieces(nut: bytes, shift: int, rate: int) -> list[tuple[int, np.ndarray]]:
    """The packets of a Nut stream as (number of the first sample counted from time 0, samples)."""
    pieces = []
    if nut:
        with av.open(io.BytesIO(nut), format="nut") as container:
            stream = container.streams.audio[0]
            for packet in container.demux(stream):
                if packet.size:
                    at = round((packet.pts * stream.time_base - shift) * rate)
                    pieces.append((at, np.frombuffer(bytes(packet), "<f4")))
    return pieces


def _join(pieces: list[tuple[int, np.ndarray]], rate: int) -> AudioTrack:
    """Place pieces in time: one that follows within 1 ms is continuous, a gap is zeros, an overlap is cut off."""
    first = end = pieces[0][0]
    joined = []
    for n, (at, samples) in enumerate(pieces):
        if abs(at - end) > _JITTER * rate and _lasts(pieces[n:], end, rate):
            if at > end:
                joined.append(np.zeros(at - end, np.float32))
                end = at
            else:
                samples = samples[end - at :]
        joined.append(samples)
        end += len(samples)
    # Lossy codecs overshoot full scale a little; float PCM may hold anything.
    return AudioTrack(rate, Fraction(first, rate), np.clip(np.nan_to_num(np.concatenate(joined)), -1, 1))


def _lasts(pieces: list[tuple[int, np.ndarray]], end: int, rate: int) -> bool:
    """Whether a jump of the timestamps is a jump of the audio: some demuxers err for a few packets (Ogg Vorbis)."""
    start = end
    for at, samples in pieces:
        if abs(at - end) <= _JITTER * rate:
            return False
        end += len(samples)
        if end - start >= _BLIP * rate:
            break
    return True
