"""The audio of a video file: mono, at a given rate, placed by its timestamps. Decoded by ffmpeg, and resampled by it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import BinaryIO, NamedTuple

import av
import ffmpeg
import numpy as np

from pipeline.media.container import AUDIO_CODECS, MediaError, MediaFile
from pipeline.media.placement import Run, place
from pipeline.media.program import stream_ffmpeg
from pipeline.media.video import open_container

RATES = range(1000, 768_001)  # sampling rates that audio has; a damaged header may have any
_BLOCK = 2**20  # samples that are resampled at a time
_INTERLEAVING = 5  # seconds by which audio may stand after video of the same time


class UnheardAudio(Exception):
    """A file has audio in a form that is not read; its video can be read all the same."""


class AudioTrack(NamedTuple):
    """Samples float32 in -1…1 from `start` (presentation time in seconds); gaps are zeros."""

    rate: int  # samples per second
    start: Fraction
    samples: np.ndarray
    length: Fraction  # in seconds, by timestamps

    @property
    def end(self) -> Fraction:
        return self.start + self.length

    def segments(self, origin: Fraction, count: int, total: int) -> np.ndarray:
        """The first `count` seconds after `origin`, as float32 total,rate; zeros where there is no audio."""
        rows = np.zeros((total, self.rate), np.float32)
        flat = rows[:count].reshape(-1)
        at = round((self.start - origin) * self.rate)
        part = self.samples[max(0, -at) :][: max(0, len(flat) - max(0, at))]
        flat[max(0, at) : max(0, at) + len(part)] = part
        return rows


def read_audio(file: MediaFile, seconds: int, rate: int | None = None) -> AudioTrack | None:
    """The first `seconds` seconds, and one more, of the audio stream that ffmpeg chooses; None if there is no audio.

    `rate` is in Hz, the stream's own if None. Channels are averaged. Samples and timestamps are those that the ffmpeg
    program gives to an audio file; `placement` says which timestamps count.
    Raises UnheardAudio if the audio is of a form that is not read, MediaError if nothing of it can be decoded.
    """
    with open_container(file) as container:
        streams = container.streams.audio
        starts = [stream.start_time * stream.time_base for stream in streams if stream.start_time is not None]
        names = {stream.codec_context.codec.name if stream.codec_context else "unknown" for stream in streams}
        if names and not names & AUDIO_CODECS:
            raise UnheardAudio(f"the audio codec {', '.join(sorted(names))} is not allowed")
        # A stream that is only announced at the beginning of the file has no properties yet.
        if not any(stream.rate and stream.channels for stream in streams if stream.codec_context):
            packet = _first_packet(container, seconds) if streams else None
            if packet is None:
                return None
            file = replace(file, probe=packet)
    # Nut has no negative timestamps. Whole seconds, so that the shift is exact.
    shift = 10 - math.floor(min(starts, default=0))
    with stream_ffmpeg(_arguments(file, shift)) as process:
        stream = _read_nut(process.output, seconds + 2)
    if process.returncode < 0:  # what it has written may be incomplete
        raise MediaError(file.path, f"the ffmpeg that decodes the audio was ended by signal {-process.returncode}")
    if stream is None and process.returncode:
        lines = process.log.strip().splitlines()
        reason = lines[-1] if lines else f"ffmpeg ended with code {process.returncode}"
        if barred := names - AUDIO_CODECS:
            raise UnheardAudio(f"the audio codec {', '.join(sorted(barred))} is not allowed")
        raise MediaError(file.path, f"the audio cannot be decoded ({reason})", True)
    if stream is None:
        return None
    if stream.rate not in RATES:
        raise UnheardAudio(f"the audio has an impossible sampling rate, {stream.rate} Hz")
    return _in_place(stream, seconds + 1, rate or stream.rate, shift)


def _first_packet(container: av.container.InputContainer, seconds: int) -> tuple[float, int] | None:
    """When (seconds from the start) and where (bytes) the first audio packet is; None if not in these seconds."""
    start = Fraction(container.start_time or 0, av.time_base)
    try:
        for packet in container.demux():
            time = 0 if packet.dts is None else packet.dts * packet.time_base - start
            if packet.size and packet.stream.type == "audio":
                return (float(time), packet.pos or 0) if time < seconds else None
            if time > seconds + _INTERLEAVING:
                break
    except (av.FFmpegError, EOFError):
        pass
    return None


def _arguments(file: MediaFile, shift: int) -> list[str]:
    command = (
        ffmpeg.input(file.url, f=file.container, copyts=None, threads=1, **file.limits)
        .output(
            "pipe:",
            acodec="pcm_f32le",
            f="nut",
            output_ts_offset=shift,
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


class _Stream(NamedTuple):
    """Decoded packets: when each begins, by its timestamp, and its length, in samples; all samples, mono float32."""

    rate: int
    stamps: np.ndarray
    sizes: np.ndarray
    samples: np.ndarray


def _read_nut(output: BinaryIO, seconds: int) -> _Stream | None:
    """The first `seconds` seconds by timestamps as well as by samples; None if there are none."""
    stamps, parts, read = [], [], 0
    try:
        with av.open(output, format="nut") as container:
            stream = container.streams.audio[0]
            rate, channels = stream.rate, stream.channels
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                stamps.append(round(packet.pts * stream.time_base * rate))
                # The plain mean of two channels is also that of the ffmpeg program; it gives others weights.
                samples = np.frombuffer(bytes(packet), "<f4").reshape(-1, channels)
                parts.append(samples.mean(1, dtype=np.float64).astype(np.float32))
                read += len(samples)
                enough = min(read, stamps[-1] + len(samples) - stamps[0]) >= seconds * rate
                if enough or read >= 2 * seconds * rate:  # timestamps may stand still
                    break
    except (av.FFmpegError, EOFError):
        return None  # nothing, or cut short: ffmpeg has given up
    if not parts:
        return None
    return _Stream(rate, np.array(stamps), np.array([len(part) for part in parts]), np.concatenate(parts))


def _in_place(stream: _Stream, seconds: int, rate: int, shift: int) -> AudioTrack:
    """The first `seconds` seconds at `rate` Hz: each contiguous run of samples at its place, to the nearest sample.

    Timestamps are `shift` seconds late. As in the ffmpeg program, resampling goes on over the gaps between runs.
    """
    runs = place(stream.stamps, stream.sizes, stream.rate, seconds)
    # A number that is not finite would spread over its neighbours.
    samples = np.nan_to_num(stream.samples, posinf=0, neginf=0)
    first = Fraction(int(stream.stamps[0]), stream.rate) - shift
    start, read, end, pieces = _nearest(first * rate), 0, 0, []
    for run, piece in zip(runs, _resampled(samples, runs, stream.rate, rate), strict=True):
        gaps = Fraction(run.position - read, stream.rate)  # all up to here
        pieces.append((end + _nearest((first + gaps) * rate) - start, piece))
        read, end = read + run.last - run.first, end + len(piece)
    placed = np.zeros(max(at + len(piece) for at, piece in pieces), np.float32)
    for at, piece in pieces:
        placed[at : at + len(piece)] = piece
    length = int((stream.stamps + stream.sizes).max() - stream.stamps[0])
    # Lossy codecs overshoot full scale a little; float PCM may hold anything.
    placed = np.clip(np.nan_to_num(placed), -1, 1)
    return AudioTrack(rate, Fraction(start, rate), placed, Fraction(length, stream.rate))


def _nearest(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def _resampled(samples: np.ndarray, runs: list[Run], source: int, rate: int) -> Iterator[np.ndarray]:
    """The runs at another rate, as ffmpeg's library resamples it; the last one has also what is left at the end."""
    resampler = av.AudioResampler("flt", "mono", rate)
    for number, run in enumerate(runs, 1):
        parts = [np.zeros(0, np.float32)]
        for at in range(run.first, run.last, _BLOCK):
            block = samples[None, at : min(run.last, at + _BLOCK)]
            frame = av.AudioFrame.from_ndarray(block, format="flt", layout="mono")
            frame.sample_rate = source
            parts += [out.to_ndarray()[0] for out in resampler.resample(frame)]
        if number == len(runs):
            parts += [out.to_ndarray()[0] for out in resampler.resample(None)]
        yield np.concatenate(parts)
