"""One video file to one-second segments: the frame on show and the 16,000 sound samples of each second.

All times are presentation times from the file's timestamps, edit lists applied, counted from the origin: the
earlier of the starts of picture and sound. A frame is on show from its timestamp until the next one's; before
the first frame the first one stands in, after the last one the last one stays.
"""

import math
import os
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from pipeline.mediafile import MediaError, MediaFile
from pipeline.pictures import DecodedTrack, open_container
from pipeline.pictures_decord import DecordTrack
from pipeline.sound import RATE, read_sound

__all__ = ["BACKENDS", "MediaError", "Segments", "read_segments"]

# A backend is made with (file, seconds) and has `times`, `end`, `on_show` and `read`, as DecodedTrack says.
BACKENDS = {"pyav": DecodedTrack, "decord": DecordTrack}


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
    [i, i + 1). Seconds past the end repeat the last one (`pad` "repeat") or are zeros ("zero").
    Raises MediaError, which names the file and the reason, when picture or sound cannot be read.
    """
    file = MediaFile.check(path)
    track = BACKENDS[backend](file, segments)
    sound = read_sound(file, segments)
    origin, end = track.times[0], track.end
    if sound:
        origin, end = min(origin, sound.start), max(end, sound.end)
    # The last i with i + frame_at < duration.
    count = min(segments, max(1, math.ceil(end - origin - Fraction(frame_at))))

    frames = {size: np.zeros((segments, size, size, 3), np.uint8) for size in sizes}
    shown = [track.on_show(origin + i + Fraction(frame_at)) for i in range(count)]
    pictures = track.read(sorted(set(shown)))
    for i, number in enumerate(shown):
        if i and number == shown[i - 1]:
            for rows in frames.values():
                rows[i] = rows[i - 1]
        else:
            image = Image.fromarray(next(pictures))
            for size, rows in frames.items():
                rows[i] = clip_crop(image, size)

    audio = np.zeros((segments, RATE), np.float32)
    if sound:
        _place(audio.reshape(-1), sound.samples, round((sound.start - origin) * RATE))
    if pad == "repeat":
        for rows in (audio, *frames.values()):
            rows[count:] = rows[count - 1]
    else:
        audio[count:] = 0
    return Segments(frames, audio, count, sound is not None)


def read_length(path: str | os.PathLike) -> float:
    """The video's length in seconds as its header tells it; 0 if it does not. Raises MediaError."""
    with open_container(MediaFile.check(path)) as container:
        return max(0, container.duration or 0) / av.time_base


def clip_crop(image: Image.Image, size: int) -> Image.Image:
    """CLIP's own preparation of a picture: short side to `size` (bicubic, antialiased), then the centre square."""
    width, height = image.size
    short = min(width, height)
    target = (int(size * width / short), int(size * height / short))
    if target != image.size:
        image = image.resize(target, Image.Resampling.BICUBIC)
    left, top = (round((length - size) / 2) for length in target)
    return image.crop((left, top, left + size, top + size))


def _place(row: np.ndarray, samples: np.ndarray, at: int) -> None:
    """Copy samples into a row from position `at` ≥ 0 on, as far as the row goes."""
    part = samples[: max(0, len(row) - at)]
    row[at : at + len(part)] = part
