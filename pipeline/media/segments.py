"""One video file to one-second segments: the frame on show and the 16,000 sound samples of each second.

All times are presentation times from the file's timestamps, edit lists applied, counted from the origin: the
earlier of the starts of picture and sound. A frame is on show from its timestamp until the next one's; before
the first frame the first one stands in, after the last one the last one stays.
"""

import math
import os
from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from pipeline.media.audio import RATE, Sound, read_sound
from pipeline.media.container import MediaError, MediaFile
from pipeline.media.video import FullDecoder, UnreliableTimestamps, open_container
from pipeline.media.video_decord import DecordDecoder
from pipeline.media.video_sparse import SparseDecoder

__all__ = ["BACKENDS", "MediaError", "Segments", "read_segments"]

# What a backend reads a video track with, the quickest way first; the next one where that raises UnreliableTimestamps.
BACKENDS = {"pyav": (SparseDecoder, FullDecoder), "decord": (DecordDecoder,)}


class Segments(NamedTuple):
    """A video cut into T one-second segments."""

    frames: dict[int, np.ndarray]  # size -> uint8 T,size,size,3: resized and cropped as CLIP does
    audio: np.ndarray  # float32 T,16000: mono, 16 kHz, −1…1; zeros where there is no sound
    num_segments: int  # seconds that the video has, at most T; the rest is padding
    has_audio: bool


def read_segments(
    path: str | os.PathLike,
    *,
    segments: int = 60,
    sizes: Sequence[int] = (224,),
    backend: str = "pyav",
    pad: str = "repeat",
    frame_at: float = 0.5,
    accuracy: str = "exact",
) -> Segments:
    """Cut the first `segments` seconds of a video file into segments.

    Second i shows the frame that is on show at i + `frame_at` (0 ≤ frame_at < 1) and holds the sound of
    [i, i + 1). Seconds past the end repeat the last one (`pad` "repeat") or are zeros ("zero"). With `accuracy`
    "reference" it is the nearest frame that others refer to, with "keyframe" the nearest that stands alone; where a
    file's packets do not tell them apart, the exact one.
    Raises MediaError, which names the file and the reason, when picture or sound cannot be read.
    """
    file = MediaFile.check(path)
    sound = read_sound(file, segments)
    for kind in BACKENDS[backend]:
        try:
            with closing(kind(file, segments, accuracy)) as track:
                origin = min(track.start, sound.start) if sound else track.start
                frames, count = _pictures(track, origin, sound, segments, sizes, Fraction(frame_at))
            break
        except UnreliableTimestamps as error:
            reason = str(error)
    else:
        raise MediaError(file.path, f"{backend} cannot be trusted with it: {reason}")
    audio = np.zeros((segments, RATE), np.float32)
    if sound:
        at = round((sound.start - origin) * RATE)
        part = sound.samples[: max(0, count * RATE - at)]
        audio.reshape(-1)[at : at + len(part)] = part
    for rows in (audio, *frames.values()):
        rows[count:] = rows[count - 1] if pad == "repeat" else 0
    return Segments(frames, audio, count, sound is not None)


def _pictures(
    track: FullDecoder | SparseDecoder,
    origin: Fraction,
    sound: Sound | None,
    segments: int,
    sizes: Sequence[int],
    at: Fraction,
) -> tuple[dict[int, np.ndarray], int]:
    """What is on show at `at` of each second, as CLIP wants it: size -> uint8 T,size,size,3; and the true seconds."""

    def seconds() -> int:
        """How many there are: those whose moment is before the end of both, as far as that is known yet."""
        if track.end is None:
            return segments
        end = max(track.end, sound.end) if sound else track.end
        return min(segments, max(1, math.ceil(end - origin - at)))

    frames = {size: np.zeros((segments, size, size, 3), np.uint8) for size in sizes}
    last = None
    for second, picture in enumerate(track.show([origin + second + at for second in range(seconds())])):
        if picture is last:
            for rows in frames.values():
                rows[second] = rows[second - 1]
        else:
            image, last = Image.fromarray(picture), picture
            for size, rows in frames.items():
                rows[second] = resize_and_crop(image, size)
    return frames, seconds()


def read_length(path: str | os.PathLike) -> float:
    """The video's length in seconds as its header tells it; 0 if it does not. Raises MediaError."""
    with open_container(MediaFile.check(path)) as container:
        return max(0, container.duration or 0) / av.time_base


def resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    """CLIP's own preparation of a picture: short side to `size` (bicubic, antialiased), then the centre square."""
    width, height = image.size
    short = min(width, height)
    target = (int(size * width / short), int(size * height / short))
    if target != image.size:
        image = image.resize(target, Image.Resampling.BICUBIC)
    left, top = (round((length - size) / 2) for length in target)
    return image.crop((left, top, left + size, top + size))
