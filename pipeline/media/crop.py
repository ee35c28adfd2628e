"""Cropping that a container prescribes (QuickTime's clean aperture, Matroska's PixelCrop), as ffmpeg applies it.

PyAV does not report it. The ffmpeg program does, and is run only if the header mentions cropping, which is rare.
"""

import re
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from pipeline.media.container import MediaFile
from pipeline.media.program import run_ffmpeg

_HEADER = 2**26  # bytes of a header that are searched
_SEGMENT, _TRACKS = 0x18538067, 0x1654AE6B  # Matroska's elements
_ELEMENTS = 2**16  # that are skipped before the tracks
_MARKS = {"mov": (b"clap",), "matroska": (b"\x54\xaa", b"\x54\xbb", b"\x54\xcc", b"\x54\xdd")}


class Margins(NamedTuple):
    """Pixels to crop from each side of the coded frame."""

    left: int
    right: int
    top: int
    bottom: int


def find_margins(file: MediaFile, stream: int) -> Margins | None:
    """What the container crops from the video stream with this index; None if nothing. Raises MachineError."""
    header = _header(file)
    if not any(mark in header for mark in _MARKS.get(file.container, ())):
        return None
    log = run_ffmpeg(file.arguments).stderr.decode("utf-8", "replace")
    for part in re.split(r"^  Stream #0:", log, flags=re.MULTILINE)[1:]:
        found = re.search(r"^ +Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$", part, re.MULTILINE)
        if found and int(re.match(r"\d+", part)[0]) == stream:
            return Margins(*map(int, found.groups()))
    return None


def _header(file: MediaFile) -> bytes:
    """The part of the file that describes its tracks."""
    with open(file.path, "rb") as data, suppress(OSError, ValueError, OverflowError):  # a wrong size
        return _moov(data) if file.container == "mov" else _tracks(data)
    return b""


def _moov(data: BinaryIO) -> bytes:
    while len(start := data.read(8)) == 8:
        size, kind = int.from_bytes(start[:4], "big"), start[4:]
        if size == 1:
            size = int.from_bytes(data.read(8), "big") - 8
        if kind == b"moov":
            return data.read(min(size, _HEADER))
        if size < 8:
            break
        data.seek(size - 8, 1)
    return b""


def _tracks(data: BinaryIO) -> bytes:
    """The Tracks element (RFC 9559, 5.1.4); where it is not found, the beginning of the file."""
    for _ in range(_ELEMENTS):
        kind, size = _number(data, keep_marker=True), _number(data)
        if kind == _TRACKS and size is not None:
            return data.read(min(size, _HEADER))
        if kind == _SEGMENT:
            continue
        if kind is None or size is None:
            break
        data.seek(size, 1)
    data.seek(0)
    return data.read(2**20)


def _number(data: BinaryIO, keep_marker: bool = False) -> int | None:
    """A variable-size integer (RFC 8794, 4); None at the end of the file, and for a size that is not known."""
    first = data.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    rest = data.read(length - 1)
    if len(rest) < length - 1:
        return None
    value = int.from_bytes(first + rest, "big")
    if keep_marker:
        return value
    value -= 1 << 7 * length
    return None if value == (1 << 7 * length) - 1 else value
