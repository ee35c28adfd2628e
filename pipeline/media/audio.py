"""The sound of a video file: mono, 16 kHz, placed by its timestamps. Decoded and resampled by ffmpeg."""

import io
import math
from fractions import Fraction
from typing import NamedTuple

import av
import ffmpeg
import imageio_ffmpeg
import numpy as np

from pipeline.media.container import MediaError, MediaFile
from pipeline.media.video import open_container

RATE = 16000
_JITTER = RATE // 1000  # samples that a piece may be off the end of the one before and still follow on
_BLIP = RATE // 10  # samples for which the timestamps must have jumped for the sound to jump


class Sound(NamedTuple):
    """Samples float32 in −1…1 at 16 kHz from `start` on (presentation time in seconds); gaps are zeros."""

    start: Fraction
    samples: np.ndarray

    @property
    def end(self) -> Fraction:
        return self.start + Fraction(len(self.samples), RATE)


def read_sound(file: MediaFile, seconds: int) -> Sound | None:
    """The first `seconds` seconds of the sound track that ffmpeg chooses; None if there is no sound.

    ffmpeg's own timestamps are kept: its Nut output carries them to the sample.
    Raises MediaError if there is a sound track and nothing of it can be decoded.
    """
    with open_container(file) as container:
        starts = [s.start_time * s.time_base for s in container.streams.audio if s.start_time is not None]
        if not container.streams.audio:
            return None
    # Nut has no negative timestamps. Whole seconds, so that the shift is exact.
    shift = 10 - math.floor(min(starts, default=0))
    command = (
        ffmpeg.input(file.url, f=file.container, copyts=None, threads=1, **file.limits)
        .output(
            "pipe:",
            af=f"atrim=duration={seconds + 1}",  # one more, so that the last sample is filtered like the others
            ac=1,
            ar=RATE,
            acodec="pcm_f32le",
            f="nut",
            output_ts_offset=shift,
            fs=2 * seconds * RATE * 4 + 2**20,  # a file whose timestamps stand still would never reach its end
            threads=1,
            map_metadata=-1,
            vn=None,
            sn=None,
            dn=None,
        )
        # The time limit is for an ffmpeg that hangs and has lost the process which would have ended it.
        .global_args("-nostdin", "-hide_banner", "-loglevel", "error", "-timelimit", "600")
    )
    process = command.run_async(cmd=imageio_ffmpeg.get_ffmpeg_exe(), pipe_stdout=True, pipe_stderr=True)
    out, log = process.communicate()
    try:
        pieces = _pieces(out, shift)
    except (av.FFmpegError, EOFError):
        pieces = []  # cut short: ffmpeg has given up
    if not pieces and process.returncode:
        reason = log.decode("utf-8", "replace").strip().splitlines() or [f"ffmpeg ended with {process.returncode}"]
        raise MediaError(file.path, f"the sound cannot be decoded ({reason[-1]})", True)
    return _join(pieces) if pieces else None


def _pieces(nut: bytes, shift: int) -> list[tuple[int, np.ndarray]]:
    """The packets of a Nut stream as (first sample's number counted from time 0, samples)."""
    pieces = []
    if nut:
        with av.open(io.BytesIO(nut), format="nut") as container:
            stream = container.streams.audio[0]
            for packet in container.demux(stream):
                if packet.size:
                    at = round((packet.pts * stream.time_base - shift) * RATE)
                    pieces.append((at, np.frombuffer(bytes(packet), "<f4")))
    return pieces


def _join(pieces: list[tuple[int, np.ndarray]]) -> Sound:
    """Lay pieces out in time: what follows on within 1 ms is continuous, a gap is zeros, an overlap is cut off."""
    first = end = pieces[0][0]
    laid = []
    for n, (at, samples) in enumerate(pieces):
        if abs(at - end) > _JITTER and _lasting(pieces[n:], end):
            if at > end:
                laid.append(np.zeros(at - end, np.float32))
                end = at
            else:
                samples = samples[end - at :]
        laid.append(samples)
        end += len(samples)
    # Lossy codecs overshoot full scale a little; float PCM may hold anything.
    return Sound(Fraction(first, RATE), np.clip(np.nan_to_num(np.concatenate(laid)), -1, 1))


def _lasting(pieces: list[tuple[int, np.ndarray]], end: int) -> bool:
    """Whether a jump of the timestamps is one of the sound: some demuxers are off for a few packets (Ogg Vorbis)."""
    start = end
    for at, samples in pieces:
        if abs(at - end) <= _JITTER:
            return False
        end += len(samples)
        if end - start >= _BLIP:
            break
    return True
