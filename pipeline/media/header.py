"""The part of a video file that describes its tracks: boxes of MP4 and MOV, elements of Matroska."""

from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from pipeline.media.container import MediaFile

SEGMENT, TRACKS = 0x18538067, 0x1654AE6B  # Matroska's elements
_LARGEST = 2**26  # bytes of a header that are read
_SKIPPED = 2**16  # boxes or elements before it


def read_header(file: MediaFile) -> bytes:
    """The body of MP4's moov box or of Matroska's Tracks; the file's first MiB in other containers, and where a
    Matroska file has no Tracks at its beginning."""
    if file.container == "mov":
        return read_boxes(file).get(b"moov", b"")
    with open(file.path, "rb") as data, suppress(OSError, ValueError, OverflowError):  # a wrong size
        if file.container == "matroska" and (tracks := _tracks(data)) is not None:
            return tracks
        data.seek(0)
        return data.read(2**20)
    return b""


def read_boxes(file: MediaFile) -> dict[bytes, bytes]:
    """The bodies of an MP4's moov box, and of a meta box beside it: the items of a HEIF or AVIF file."""
    found: dict[bytes, bytes] = {}
    with open(file.path, "rb") as data, suppress(OSError, ValueError, OverflowError):
        for _ in range(_SKIPPED):
            start = data.read(8)
            size, kind, head = int.from_bytes(start[:4], "big"), start[4:], 8
            if size == 1:
                size, head = int.from_bytes(data.read(8), "big"), 16
            if kind == b"moof" or len(start) < 8 or (size and size < head):
                break
            begin = data.tell()
            if kind in (b"moov", b"meta") and kind not in found:
                found[kind] = data.read(min(size - head, _LARGEST) if size else _LARGEST)
            if not size:  # up to the end of the file
                break
            data.seek(begin + size - head)
    return found


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each box of MP4 in a row of them; a box that claims to be longer ends with the data."""
    at = 0
    while at + 8 <= len(data):
        size, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if size == 1:
            size, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        size = size or len(data) - at
        if size < head:
            return
        yield kind, data[at + head : at + size]
        at += size


def inner(data: bytes, *path: bytes) -> Iterator[bytes]:
    """The bodies of the boxes that are reached through boxes of these kinds."""
    for kind, body in boxes(data):
        if kind == path[0]:
            yield from inner(body, *path[1:]) if path[1:] else [body]


def elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and body of each element of Matroska in a row of them (RFC 8794); the last one may lack its end."""
    at = 0
    while (kind := _number(data, at, keep_marker=True)) and (size := _number(data, at + kind[1])):
        at += kind[1] + size[1]
        if kind[0] is None:
            return
        end = len(data) if size[0] is None else at + size[0]
        yield kind[0], data[at:end]
        at = end


def _tracks(data: BinaryIO) -> bytes | None:
    """The Tracks element (RFC 9559, 5.1.4); None where it is not found."""
    for _ in range(_SKIPPED):
        begin = data.tell()
        head = data.read(16)
        if not (kind := _number(head, 0, keep_marker=True)) or not (size := _number(head, kind[1])):
            return None
        data.seek(begin + kind[1] + size[1])
        if kind[0] == SEGMENT:
            continue
        if size[0] is None:
            return None
        if kind[0] == TRACKS:
            return data.read(min(size[0], _LARGEST))
        data.seek(size[0], 1)
    return None


def _number(data: bytes, at: int, keep_marker: bool = False) -> tuple[int | None, int] | None:
    """A variable-size integer (RFC 8794, 4) and its length; the integer is None for a size that is not known. None at
    the end of the data."""
    if at >= len(data) or not data[at]:
        return None
    length = 9 - data[at].bit_length()
    if at + length > len(data):
        return None
    value = int.from_bytes(data[at : at + length], "big")
    if keep_marker:
        return value, length
    value -= 1 << 7 * length
    return (None if value == (1 << 7 * length) - 1 else value), length
