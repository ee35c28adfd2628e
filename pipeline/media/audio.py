"""The audio of a video file: mono, at a given rate, placed by its timestamps; decoded and resampled by ffmpeg."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import BinaryIO, NamedTuple

import av
import ffmpeg
import numpy as np

from pipeline.media.container import AUDIO_CODECS, MediaError, MediaFile
from pipeline.media.placement import place
from pipeline.media.program import run_ffmpeg, stream_ffmpeg
from pipeline.media.video import open_container

RATES = range(1000, 768_001)  # sampling rates that audio has; a damaged header may have any
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
        decoders = {stream.codec_context.codec.name if stream.codec_context else "" for stream in streams}
        if streams and not decoders & AUDIO_CODECS:
            raise _unheard(file)
        # A stream that is only announced at the beginning of the file has no properties yet.
        if not any(stream.rate and stream.channels for stream in streams if stream.codec_context):
            packet = _first_packet(container, seconds) if streams else None
            if packet is None:
                return None
            file = replace(file, probe=packet)
    # Nut has no negative timestamps. Whole seconds, so that the shift is exact.
    shift = 10 - math.floor(min(starts, default=0))
    try:
        decoded = _decode(file, shift, seconds, rate, {})
        jumps = {} if decoded is None else place(decoded.stamps, decoded.sizes, decoded.own_rate, seconds)
        if jumps:  # rare; all samples at their own rate would need much memory
            decoded = _decode(file, shift, seconds, rate, jumps)
    except MediaError as error:
        if decoders - AUDIO_CODECS:
            raise _unheard(file) from error
        raise
    if decoded is None:
        return None
    start = math.floor((decoded.start - shift) * decoded.rate + Fraction(1, 2))  # the nearest sample
    # Lossy codecs overshoot full scale a little; float PCM may hold anything.
    samples = decoded.samples[: (seconds + 1) * decoded.rate]
    np.clip(np.nan_to_num(samples, copy=False), -1, 1, out=samples)
    return AudioTrack(decoded.rate, Fraction(start, decoded.rate), samples, decoded.length)


def _unheard(file: MediaFile) -> UnheardAudio:
    # The program knows also the names of codecs that it cannot decode.
    log = run_ffmpeg(file.arguments).stderr.decode("utf-8", "replace")
    names = sorted(set(re.findall(r"^ *Stream #0:.*?: Audio: ([^,\n]+)", log, re.MULTILINE)))
    return UnheardAudio(f"the audio codec {', '.join(names) or 'unknown'} is not among those that are read")


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


class _Decoded(NamedTuple):
    """All samples that were decoded, mono at `rate` Hz, and the packets that they came in."""

    own_rate: int  # that of packets
    stamps: np.ndarray  # when each packet begins by its timestamp, and its length, in samples of its own rate
    sizes: np.ndarray
    rate: int
    samples: np.ndarray

    @property
    def start(self) -> Fraction:
        return Fraction(int(self.stamps[0]), self.own_rate)

    @property
    def length(self) -> Fraction:
        """In seconds, by timestamps."""
        return Fraction(int((self.stamps + self.sizes).max()), self.own_rate) - self.start


def _decode(file: MediaFile, shift: int, seconds: int, rate: int | None, jumps: dict[int, int]) -> _Decoded | None:
    """What ffmpeg decodes; None if there is nothing. Raises MediaError."""
    with stream_ffmpeg(_arguments(file, shift)) as process:
        decoded = _read_nut(process.output, seconds + 3, rate, jumps)
    if process.returncode is not None and process.returncode < 0:  # what it has written may be incomplete
        raise MediaError(file.path, f"the ffmpeg that decodes the audio was ended by signal {-process.returncode}")
    if decoded is None and process.returncode != 0:
        lines = process.log.strip().splitlines()
        reason = lines[-1] if lines else f"ffmpeg ended with code {process.returncode}"
        raise MediaError(file.path, f"the audio cannot be decoded ({reason})", True)
    return decoded


def _read_nut(output: BinaryIO, seconds: int, rate: int | None, jumps: dict[int, int]) -> _Decoded | None:
    """The first `seconds` seconds by timestamps as well as by samples; None if there are none."""
    stamps, sizes, parts, read, latest = [], [], [], 0, 0
    try:
        with av.open(output, format="nut") as container:
            stream = container.streams.audio[0]
            if stream.rate not in RATES:
                raise UnheardAudio(f"the audio has an impossible sampling rate, {stream.rate} Hz")
            wanted = seconds * stream.rate
            resampler = av.AudioResampler("flt", rate=rate or stream.rate)  # ffmpeg's own; of all channels
            for frame in container.decode(stream):
                for part in _moved(frame, min(wanted, jumps.get(len(stamps), 0))):
                    parts += _mixed(resampler.resample(part))
                stamp = round(frame.pts * stream.time_base * stream.rate)
                # Nut's timestamps ascend: one that does not has become the one before and 1.
                is_moved = bool(stamps) and stamp == latest + 1 < latest + sizes[-1]
                stamps.append(stamps[-1] if is_moved else stamp)
                sizes.append(frame.samples)
                latest = stamp
                read += frame.samples
                enough = min(read, stamps[-1] + sizes[-1] - stamps[0]) >= wanted
                if enough or read >= 2 * wanted:  # timestamps may stand still
                    break
    except av.MemoryError:
        raise
    except (av.FFmpegError, EOFError):
        return None  # nothing, or cut short: ffmpeg has given up
    if not stamps:
        return None
    samples = np.concatenate([np.zeros(0, np.float32), *parts, *_mixed(resampler.resample(None))])
    return _Decoded(stream.rate, np.array(stamps), np.array(sizes), rate or stream.rate, samples)


def _moved(frame: av.AudioFrame, samples: int) -> Iterator[av.AudioFrame]:
    """A frame after so many samples of silence, or without so many of its own at its beginning (negative)."""
    channels = frame.layout.nb_channels
    if not samples:
        yield frame
        return
    content = frame.to_ndarray()
    silence = np.zeros((1, max(0, samples) * channels), np.float32)
    moved = np.concatenate([silence, content[:, max(0, -samples) * channels :]], 1)
    if moved.size:
        made = av.AudioFrame.from_ndarray(moved, format="flt", layout=frame.layout.name)
        made.sample_rate = frame.sample_rate
        yield made


def _mixed(frames: list[av.AudioFrame]) -> list[np.ndarray]:
    """The plain mean of all channels of each frame, which for two is ffmpeg's own; more of them it would weight."""
    samples = [frame.to_ndarray().reshape(-1, frame.layout.nb_channels) for frame in frames]
    return [part.mean(1, dtype=np.float64).astype(np.float32) for part in samples]
