"""Cropping that a container asks for (QuickTime's clean aperture, Matroska's PixelCrop), as ffmpeg applies it.

PyAV does not pass it on, so the ffmpeg program is asked; but only where the header mentions it, which is rare.
"""

import re
import subprocess
from typing import NamedTuple

import imageio_ffmpeg

from pipeline.mediafile import MediaFile

_HEADER = 2**20  # bytes of a Matroska file in which its tracks are described
_MOOV = 2**26  # bytes of an MP4 header that are looked at
_MARKS = {"mov": (b"clap",), "matroska": (b"\x54\xaa", b"\x54\xbb", b"\x54\xcc", b"\x54\xdd")}


class Margins(NamedTuple):
    """Pixels to cut off each side of the picture as it is coded."""

    left: int
    right: int
    top: int
    bottom: int


def margins(file: MediaFile, stream: int) -> Margins | None:
    """What the container has cut off the video stream with this index."""
    header = _header(file)
    if not any(mark in header for mark in _MARKS.get(file.container, ())):
        return None
    limits = [word for name, value in file.limits.items() for word in (f"-{name}", value)]
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-nostdin",
        "-hide_banner",
        "-f",
        file.container,
        *limits,
        "-i",
        file.url,
    ]
    told = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).stderr.decode("utf-8", "replace")
    for part in re.split(r"^  Stream #0:", told, flags=re.MULTILINE)[1:]:
        found = re.search(r"^ +Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$", part, re.MULTILINE)
        if found and int(re.match(r"\d+", part)[0]) == stream:
            return Margins(*map(int, found.groups()))
    return None


def _header(file: MediaFile) -> bytes:
    """The part of the file in which its tracks are described."""
    with open(file.path, "rb") as data:
        if file.container != "mov":
            return data.read(_HEADER)
        while len(start := data.read(8)) == 8:
            size, kind = int.from_bytes(start[:4], "big"), start[4:]
            if kind == b"moov":
                return data.read(min(size, _MOOV))
            if size == 1:
                size = int.from_bytes(data.read(8), "big") - 8
            if size < 8:
                break
            data.seek(size - 8, 1)
    return b""
