"""Files that decoders take for video and that are not: encrypted ones, which become noise, and photos, of which ffmpeg
takes one tile or the first picture."""

import re
from collections.abc import Iterator

import numpy as np

from pipeline.media.container import MediaError, MediaFile
from pipeline.media.header import SEGMENT, TRACKS, boxes, elements, inner, read_boxes, read_header
from pipeline.media.video import open_container

_HANDLERS = {b"vide": "video", b"soun": "audio"}
_PROTECTED = re.compile(rb"sinf....(frma|schm|schi)", re.DOTALL)  # ISO/IEC 14496-12, 8.12.1
_ENTRY, _TYPE, _ENCODINGS, _ENCODING, _ENCODING_TYPE = 0xAE, 0x83, 0x6D80, 0x6240, 0x5033  # RFC 9559, 5.1.4
_TRACK_TYPES = {1: "video", 2: "audio"}
# ASF's objects Content Encryption, Extended Content Encryption and Advanced Content Encryption.
_ASF_OBJECTS = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),
    bytes.fromhex("338505438169e6499b74ad12cb86d58c"),
)
_TS_PACKETS, _TS_LAYOUTS = 20_000, ((188, 0), (192, 4), (204, 0))  # how many are looked at; size, bytes before each
_SAMPLE_AES = (0xDB, 0xCF, 0xC1, 0xC2)  # stream types of encrypted H.264, AAC, AC-3, E-AC-3


def check_video(file: MediaFile) -> None:
    """Raises MediaError (final) for photos in place of a video, and for encrypted video."""
    if file.container == "mov" and any(kind == b"iprp" for kind, _ in boxes(read_boxes(file).get(b"meta", b"")[4:])):
        raise MediaError(file.path, "is a photo or a sequence of photos (HEIF, AVIF), not a video", True)
    if "video" in encrypted_tracks(file):
        raise MediaError(file.path, "the video is encrypted; replace the file by one without copy protection", True)


def encrypted_tracks(file: MediaFile) -> set[str]:
    """ "video" and "audio", if the file has tracks of that kind that are encrypted."""
    if file.container == "mov":
        return set(_in_mp4(read_header(file)))
    if file.container == "matroska":
        return set(_in_matroska(read_header(file)))
    if file.container == "mpegts":
        return set(_in_transport_stream(file))
    if file.container == "asf" and any(guid in read_header(file) for guid in _ASF_OBJECTS):
        return {"video", "audio"}
    return set()


def _in_mp4(moov: bytes) -> Iterator[str]:
    for track in inner(moov, b"trak"):
        kind = next((_HANDLERS.get(body[8:12]) for body in inner(track, b"mdia", b"hdlr")), None)
        for body in inner(track, b"mdia", b"minf", b"stbl", b"stsd"):
            for format, entry in boxes(body[8:]):
                if kind and (format[:3] in (b"enc", b"drm") or _PROTECTED.search(entry)):
                    yield kind


def _in_matroska(header: bytes) -> Iterator[str]:
    for kind, body in elements(header):
        if kind in (SEGMENT, TRACKS):
            yield from _in_matroska(body)
        elif kind == _ENTRY:
            fields = dict(elements(body))
            for name, encoding in elements(fields.get(_ENCODINGS, b"")):
                encryption = int.from_bytes(dict(elements(encoding)).get(_ENCODING_TYPE, b""), "big") == 1
                track = _TRACK_TYPES.get(int.from_bytes(fields.get(_TYPE, b""), "big"))
                if name == _ENCODING and encryption and track:
                    yield track


def _in_transport_stream(file: MediaFile) -> Iterator[str]:
    """The kinds of which each stream is encrypted: announced as such, or scrambled in most of its packets."""
    with open(file.path, "rb") as data:
        content = data.read(_TS_PACKETS * 188)
    size, skip = next(((s, k) for s, k in _TS_LAYOUTS if content[k::s][:5] == b"GGGGG"), _TS_LAYOUTS[0])
    packets = np.frombuffer(content, np.uint8, len(content) // size * size).reshape(-1, size)[:, skip : skip + 188]
    pids = packets[:, 1].astype(int) % 32 * 256 + packets[:, 2]
    scrambled = packets[:, 3] >= 64  # ISO/IEC 13818-1, 2.4.3.3
    announced = {pid for packet in packets[packets[:, 1] & 0x40 > 0] for pid in _sample_encrypted(packet.tobytes())}
    if not announced and not scrambled.any():
        return
    with open_container(file) as container:
        for kind, streams in (("video", container.streams.video), ("audio", container.streams.audio)):
            if streams and all(s.id in announced or _most(scrambled[pids == s.id]) for s in streams):
                yield kind


def _most(flags: np.ndarray) -> bool:
    return 2 * int(flags.sum()) > len(flags)


def _sample_encrypted(packet: bytes) -> Iterator[int]:
    """The PIDs to which a packet with a program map (ISO/IEC 13818-1, 2.4.4.8) gives types of HLS's SAMPLE-AES."""
    at = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
    at += 1 + packet[at] if at < len(packet) else 0
    section = packet[at : at + 3 + int.from_bytes(packet[at + 1 : at + 3], "big") % 4096 - 4]
    if section[:1] != b"\x02":
        return
    at = 12 + int.from_bytes(section[10:12], "big") % 4096
    while at + 5 <= len(section):
        if section[at] in _SAMPLE_AES:
            yield int.from_bytes(section[at + 1 : at + 3], "big") % 8192
        at += 5 + int.from_bytes(section[at + 3 : at + 5], "big") % 4096
