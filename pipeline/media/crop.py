"""Cropping that a container prescribes (QuickTime's clean aperture, Matroska's PixelCrop), as ffmpeg applies it.

PyAV does not report it. The ffmpeg program does, and is run only if the header mentions cropping, which is rare.
"""

import re
from typing import NamedTuple

from pipeline.media.container import MediaFile
from pipeline.media.header import read_header
from pipeline.media.program import run_ffmpeg

_MARKS = {"mov": (b"clap",), "matroska": (b"\x54\xaa", b"\x54\xbb", b"\x54\xcc", b"\x54\xdd")}


class Margins(NamedTuple):
    """Pixels to crop from each side of the coded frame."""

    left: int
    right: int
    top: int
    bottom: int


def find_margins(file: MediaFile, stream: int) -> Margins | None:
    """What the container crops from the video stream with this index; None if nothing. Raises MachineError."""
    marks = _MARKS.get(file.container, ())
    header = read_header(file) if marks else b""
    if not any(mark in header for mark in marks):
        return None
    log = run_ffmpeg(file.arguments).stderr.decode("utf-8", "replace")
    for part in re.split(r"^  Stream #0:", log, flags=re.MULTILINE)[1:]:
        found = re.search(r"^ +Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$", part, re.MULTILINE)
        if found and int(re.match(r"\d+", part)[0]) == stream:
            return Margins(*map(int, found.groups()))
    return None
