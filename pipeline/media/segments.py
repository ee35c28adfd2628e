"""One video to one-second segments: the frames and audio samples of each second that encoders read.

All times are presentation times from the file's timestamps, edit lists applied, counted from the origin: the earlier of
the starts of video and audio. A frame is presented from its timestamp until the next one's. The first frame also stands
for the time before it, the last one for the time after it. An audio file that replaces the video's own audio begins
with the first frame.
"""

import math
import os
from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from extractors import AudioInput, FrameInput, Input
from pipeline.media.audio import AudioTrack, UnheardAudio, read_audio
from pipeline.media.audio_file import read_audio_file
from pipeline.media.container import MachineError, MediaError, MediaFile
from pipeline.media.protection import check_video, encrypted_tracks
from pipeline.media.transform import resize_and_crop
from pipeline.media.video import FullDecoder, UnreliableTimestamps, open_container
from pipeline.media.video_decord import DecordDecoder
from pipeline.media.video_nvdec import NvdecDecoder
from pipeline.media.video_sparse import SparseDecoder

__all__ = ["BACKENDS", "MachineError", "MediaError", "Segments", "read_length", "read_segments"]

# The decoders of a backend, the quickest first; the next one is used where that raises UnreliableTimestamps.
BACKENDS = {"pyav": (SparseDecoder, FullDecoder), "decord": (DecordDecoder,), "nvdec": (NvdecDecoder,)}
# The audio's start and length are rounded to samples of this rate, so that no segment depends on the inputs chosen.
REFERENCE_RATE = 16000


class Segments(NamedTuple):
    """A video cut into T one-second segments."""

    data: dict[str, np.ndarray]  # key of an input -> T,*input.shape
    num_segments: int  # seconds that the video has, at most T; the rest is padding
    has_audio: bool
    unheard: str = ""  # why the video's own audio is not read although there is some


def read_segments(
    path: str | os.PathLike | None,
    *,
    audio_path: str | os.PathLike | None = None,
    segments: int = 60,
    inputs: Sequence[Input] = (FrameInput(224), AudioInput(REFERENCE_RATE)),
    backend: str = "pyav",
    pad: str = "repeat",
    frame_at: float = 0.5,
    frame_selection: str = "exact",
    selective: bool = True,
) -> Segments:
    """Cut the first `segments` seconds of a video into segments.

    The audio is that of the file `audio_path` if there is one, else the video file's own. Without `path` there is the
    audio file alone; then `inputs` must not have frames.

    Second i holds, for a frame input, the frames presented at i + (j + `frame_at`) / fps for j = 0 … fps - 1
    (0 ≤ frame_at < 1), and for an audio input the samples of [i, i + 1), zeros where there is no audio. A second counts
    if i + `frame_at` is before the end of video or audio. Seconds past the end repeat the last one (`pad` "repeat") or
    are zeros ("zero"). With `frame_selection` "reference" a frame is the nearest one that others refer to, with
    "keyframe" the nearest one that is decodable alone; where the packets do not determine them, the exact one.
    Without `selective`, PyAV decodes all frames up to the last wanted one, with the same result.
    Raises MediaError, which names the file and the reason, when video or audio cannot be read, and MachineError if the
    machine is at fault.
    """
    decoders = _decoders(backend, selective)
    if path is None:
        return _read(None, audio_path, segments, inputs, decoders, pad, Fraction(frame_at), frame_selection)
    file = MediaFile.check(path)
    try:
        check_video(file)
        return _read(file, audio_path, segments, inputs, decoders, pad, Fraction(frame_at), frame_selection)
    except MediaError:
        file.check_readable()
        raise


def read_length(path: str | os.PathLike) -> float | None:
    """The video's length in seconds according to its header; None if it has none. Raises MediaError, MachineError."""
    file = MediaFile.check(path)
    try:
        with open_container(file) as container:
            return container.duration / av.time_base if container.duration and container.duration > 0 else None
    except MediaError:
        file.check_readable()
        raise


def _decoders(backend: str, selective: bool) -> tuple[type, ...]:
    return BACKENDS[backend] if selective or backend != "pyav" else (FullDecoder,)


def _read(
    file: MediaFile | None,
    audio_path: str | os.PathLike | None,
    segments: int,
    inputs: Sequence[Input],
    decoders: Sequence[type],
    pad: str,
    frame_at: Fraction,
    frame_selection: str,
) -> Segments:
    unheard = ""
    try:
        audio = _read_audio(file, audio_path, segments, REFERENCE_RATE)
    except UnheardAudio as error:
        audio, unheard = None, str(error)
    if file is None:
        timeline = _Timeline([audio], segments, frame_at)
        data, count = {}, timeline.count()
    else:
        frame_inputs = {item.key: item for item in inputs if isinstance(item, FrameInput)}
        for kind in decoders:
            try:
                with closing(kind(file, segments, frame_selection)) as decoder:
                    track = audio._replace(start=decoder.start) if audio_path else audio
                    timeline = _Timeline([decoder, track] if track else [decoder], segments, frame_at)
                    data = _frames(decoder, timeline, list(frame_inputs.values()))
                    count = timeline.count()
                break
            except UnreliableTimestamps as error:
                reason = str(error)
        else:
            raise MediaError(file.path, f"{kind.__name__} cannot read it reliably: {reason}")
    for rate in sorted({item.rate for item in inputs if isinstance(item, AudioInput)}):
        track = audio if audio is None or rate == REFERENCE_RATE else _read_audio(file, audio_path, segments, rate)
        origin = track.start if audio_path else timeline.origin
        rows = track.segments(origin, count, segments) if track else np.zeros((segments, rate), np.float32)
        data[AudioInput(rate).key] = rows
    for rows in data.values():
        rows[count:] = rows[count - 1] if pad == "repeat" else 0
    return Segments(data, count, audio is not None, unheard)


def _read_audio(
    file: MediaFile | None, audio_path: str | os.PathLike | None, seconds: int, rate: int
) -> AudioTrack | None:
    if audio_path:
        return read_audio_file(audio_path, seconds, rate)
    if "audio" in encrypted_tracks(file):
        raise UnheardAudio("the audio is encrypted")
    return read_audio(file, seconds, rate)


class _Timeline:
    """Where a video's seconds begin and how many there are."""

    def __init__(self, streams: Sequence[FullDecoder | SparseDecoder | AudioTrack], segments: int, frame_at: Fraction):
        self.streams, self.segments, self.frame_at = streams, segments, frame_at
        self.origin = min(stream.start for stream in streams)

    def count(self) -> int:
        """The seconds that begin, up to `frame_at`, before the end; all while a decoder does not know its end."""
        ends = [stream.end for stream in self.streams]
        if None in ends:
            return self.segments
        return min(self.segments, max(1, math.ceil(max(ends) - self.origin - self.frame_at)))

    def moments(self, fps: int) -> list[Fraction]:
        """The presentation times of `fps` frames per second, for each second that there may be."""
        return [self.origin + (n + self.frame_at) / fps for n in range(self.count() * fps)]


def _frames(
    decoder: FullDecoder | SparseDecoder, timeline: _Timeline, inputs: Sequence[FrameInput]
) -> dict[str, np.ndarray]:
    """All frame inputs from one pass over the video: key -> uint8 T,*input.shape."""
    if not inputs:
        decoder.read_until(timeline.moments(1)[-1])  # so that its end is known
        return {}
    rows = [_FrameRows(item, timeline.segments, timeline.moments(item.fps)) for item in inputs]
    moments = sorted({moment for part in rows for moment in part.numbers})
    for moment, frame in zip(moments, decoder.frames_at(moments), strict=True):
        for part in rows:
            part.put(moment, frame)
    return {part.wanted.key: part.rows for part in rows}


class _FrameRows:
    """The frames of one input, filled in order of presentation."""

    def __init__(self, wanted: FrameInput, segments: int, moments: Sequence[Fraction]):
        self.wanted, self.source, self.image = wanted, None, None
        self.rows = np.zeros((segments, *wanted.shape), np.uint8)
        self.flat = self.rows.reshape(-1, wanted.size, wanted.size, 3)
        self.numbers = {moment: number for number, moment in enumerate(moments)}

    def put(self, moment: Fraction, frame: np.ndarray) -> None:
        """Store the frame of a moment, if it is one of this input's."""
        if moment not in self.numbers:
            return
        if frame is not self.source:
            self.source, self.image = frame, resize_and_crop(frame, self.wanted)
        self.flat[self.numbers[moment]] = self.image
