"""Encrypted videos and photos are refused with their reason, and files that only look a little like them are not."""

import os
import struct
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media.oracle import AUDIO, VIDEO, X264, box, clip, rebuilt

from extractors import AudioInput, FrameInput
from pipeline.media.segments import MediaError, read_segments

INPUTS = (FrameInput(16), AudioInput(16000))
KEY, NAME = "00112233445566778899aabbccddeeff", "112233445566778899aabbccddeeff00"
ENCRYPTED = ("-encryption_scheme", "cenc-aes-ctr", "-encryption_key", KEY, "-encryption_kid", NAME)
PACKET = 188


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return clip(folder / "av.mp4", "-t", 2, *VIDEO, "-t", 2, *AUDIO, *X264, "-c:a", "aac")


def refused(path, reason, **options):
    """An encrypted video fails; encrypted audio costs the sound, and the reason is said."""
    if "audio" in reason:
        got = read_segments(path, segments=2, inputs=INPUTS, **options)
        assert (got.num_segments, got.has_audio, got.unheard) == (2, False, "the audio is encrypted")
        assert not got.data[INPUTS[1].key].any() and got.data[INPUTS[0].key].any()
        return
    with pytest.raises(MediaError, match=reason) as error:
        read_segments(path, segments=2, inputs=INPUTS, **options)
    assert error.value.final


def decoded(path, **options):
    got = read_segments(path, segments=2, inputs=INPUTS, **options)
    assert got.num_segments == 2 and got.has_audio and not got.unheard


@pytest.mark.parametrize("flags", [(), ("-movflags", "frag_keyframe+empty_moov"), ("-movflags", "faststart")])
def test_mp4_that_ffmpeg_encrypts(plain, tmp_path, flags):
    coding = ("-i", plain, "-c", "copy", *flags)
    refused(clip(tmp_path / "both.mp4", *coding, *ENCRYPTED), "the video is encrypted")
    refused(clip(tmp_path / "silent.mp4", "-an", *coding, *ENCRYPTED), "the video is encrypted")
    decoded(clip(tmp_path / "plain.mp4", *coding))


def protect(data, kinds, clear_entry_first=False):
    """An MP4 whose sample entries of these kinds are said to be encrypted by scheme cbcs (ISO/IEC 14496-12, 8.12)."""
    encrypted = {b"avc1": b"encv", b"mp4a": b"enca"}

    def change(kind, body):
        if kind != b"stsd" or body[12:16] not in kinds:
            return body
        (size,), format = struct.unpack(">I", body[8:12]), body[12:16]
        information = box(
            b"sinf", box(b"frma", format), box(b"schm", bytes(4), b"cbcs", bytes.fromhex("00010000")), box(b"schi")
        )
        entry = box(encrypted[format], body[16 : 8 + size], information)
        entries = [body[8 : 8 + size], entry] if clear_entry_first else [entry]
        return body[:4] + struct.pack(">I", len(entries)) + b"".join(entries)

    return rebuilt(data, change)


@pytest.mark.parametrize("clear_entry_first", [False, True])
@pytest.mark.parametrize(
    ("kinds", "reason"), [((b"avc1", b"mp4a"), "video"), ((b"avc1",), "video"), ((b"mp4a",), "audio")]
)
def test_a_track_of_which_a_part_is_encrypted(plain, tmp_path, kinds, reason, clear_entry_first):
    tail = clip(tmp_path / "tail.mp4", "-i", plain, "-c", "copy")  # its header is at the end: offsets stay right
    path = tmp_path / "protected.mp4"
    path.write_bytes(protect(tail.read_bytes(), kinds, clear_entry_first))
    refused(path, f"the {reason} is encrypted")
    path.write_bytes(protect(tail.read_bytes(), ()))
    decoded(path)


def test_encrypted_audio_that_a_file_replaces_costs_nothing(plain, tmp_path):
    tail = clip(tmp_path / "tail.mp4", "-i", plain, "-c", "copy")
    (tmp_path / "enca.mp4").write_bytes(protect(tail.read_bytes(), (b"mp4a",)))
    clip(tmp_path / "a.wav", "-i", plain, "-vn")
    decoded(tmp_path / "enca.mp4", audio_path=tmp_path / "a.wav")


def element(kind, *parts):
    """A Matroska element with a size of eight bytes."""
    body = b"".join(parts)
    return bytes.fromhex(kind) + b"\x01" + len(body).to_bytes(7, "big") + body


def entries(tracks):
    """The elements of a Tracks element: kind (hexadecimal) and body, as ffmpeg writes them."""
    at = 0
    while at < len(tracks):
        length = 9 - tracks[at + 1].bit_length()
        size = int.from_bytes(tracks[at + 1 : at + 1 + length], "big") - (1 << 7 * length)
        yield tracks[at : at + 1].hex(), tracks[at + 1 + length : at + 1 + length + size]
        at += 1 + length + size


def with_encodings(data, encoding, track):
    """A Matroska file with a ContentEncoding in one of its tracks, and sizes that say so."""
    segment = data.index(bytes.fromhex("18538067"))
    start = data.index(
        bytes.fromhex("1654ae6b"), data.index(bytes.fromhex("1654ae6b")) + 4
    )  # behind the list of places
    length = 9 - data[start + 4].bit_length()
    size = int.from_bytes(data[start + 4 : start + 4 + length], "big") - (1 << 7 * length)
    body = data[start + 4 + length : start + 4 + length + size]
    parts = []
    for number, (kind, entry) in enumerate((k, b) for k, b in entries(body) if k == "ae"):
        parts.append(element(kind, entry, *([element("6d80", element("6240", *encoding))] if number == track else [])))
    tracks = element("1654ae6b", *parts)
    rest = data[segment + 12 : start] + tracks + data[start + 4 + length + size :]
    return data[:segment] + bytes.fromhex("18538067") + b"\x01" + b"\xff" * 7 + rest  # a size that is not known


AES = element("5035", element("47e1", b"\x05"), element("47e2", bytes(16)))  # ContentEncryption: algorithm, key
STRIPPED = element("5034", element("4254", b"\x03"), element("4255", b""))  # ContentCompression: of no bytes


@pytest.mark.parametrize(("track", "reason"), [(0, "video"), (1, "audio")])
def test_matroska_with_content_encryption(plain, tmp_path, track, reason):
    data = clip(tmp_path / "v.mkv", "-i", plain, "-c", "copy").read_bytes()
    path = tmp_path / "encrypted.mkv"
    path.write_bytes(with_encodings(data, [element("5033", b"\x01"), AES], track))
    refused(path, f"the {reason} is encrypted")
    path.write_bytes(with_encodings(data, [element("5033", b"\x00"), STRIPPED], track))
    decoded(path)


def test_asf_with_content_encryption(plain, tmp_path):
    data = clip(tmp_path / "v.wmv", "-i", plain, "-c:v", "wmv2", "-c:a", "wmav2").read_bytes()
    size, count = struct.unpack("<QI", data[16:28])
    path = tmp_path / "encrypted.wmv"
    for guid, change in (
        ("fbb3112223bdd211b4b700a0c955fc6e", refused),  # Content Encryption
        ("14e68a292226174cb935dae07ee9289c", refused),  # Extended Content Encryption
        ("74d40618dfca0945a4ba9aabcb96aae8", decoded),  # Padding
    ):
        added = bytes.fromhex(guid) + struct.pack("<Q", 40) + bytes(16)
        head = data[:16] + struct.pack("<QI", size + len(added), count + 1) + data[28:30]
        path.write_bytes(head + added + data[30:])
        change(path, *(["encrypted"] if change is refused else []))


def scrambled(data, pids, share=1.0):
    """A transport stream with the contents of these PIDs scrambled, in a share of the packets."""
    data, count = bytearray(data), 0
    for at in range(0, len(data), PACKET):
        pid = int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF
        if pid in pids and data[at + 3] & 0x10:
            count += 1
            if count * share % 1 < share and share:
                begin = at + 4 + (1 + data[at + 4] if data[at + 3] & 0x20 else 0)
                data[at + 3] |= 0x80
                data[begin : at + PACKET] = os.urandom(at + PACKET - begin)
    return bytes(data)


@pytest.mark.parametrize(
    ("pids", "share", "reason"),
    [({256, 257}, 1, "video"), ({256}, 1, "video"), ({257}, 1, "audio"), ({256}, 0, None), ({17, 4096}, 0, None)],
)
def test_scrambled_transport_streams(plain, tmp_path, pids, share, reason):
    path = clip(tmp_path / "v.ts", "-i", plain, "-c", "copy")
    path.write_bytes(scrambled(path.read_bytes(), pids, share))
    if reason:
        refused(path, f"the {reason} is encrypted")
    else:
        decoded(path)


def test_a_transport_stream_in_which_a_few_bits_are_wrong_is_not_encrypted(plain, tmp_path):
    path = clip(tmp_path / "v.ts", "-i", plain, "-c", "copy")
    data = bytearray(path.read_bytes())
    for at in range(40 * PACKET, len(data), 23 * PACKET):
        data[at + 3] |= 0xC0
    path.write_bytes(data)
    decoded(path)


def crc(section):
    """ISO/IEC 13818-1, annex A."""
    value = 0xFFFFFFFF
    for byte in section:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value.to_bytes(4, "big")


@pytest.mark.parametrize(("types", "reason"), [({0x1B: 0xDB}, "video"), ({0x0F: 0xCF}, "audio"), ({}, None)])
def test_sample_encryption_of_hls(plain, tmp_path, types, reason):
    """The program map gives encrypted H.264 and AAC types of their own."""
    path = clip(tmp_path / "v.ts", "-i", plain, "-c", "copy")
    data = bytearray(path.read_bytes())
    for at in range(0, len(data), PACKET):
        if int.from_bytes(data[at + 1 : at + 3], "big") & 0x1FFF == 0x1000:
            begin = at + 5
            end = begin + 3 + (int.from_bytes(data[begin + 1 : begin + 3], "big") & 0xFFF) - 4
            for old, new in types.items():
                place = data.index(bytes([old, 0xE1]), begin, end)
                data[place] = new
            data[end : end + 4] = crc(data[begin:end])
    path.write_bytes(data)
    if reason:
        refused(path, f"the {reason} is encrypted")
    else:
        decoded(path)


@pytest.mark.parametrize("name", ["photo.avif", "photo.mp4", "sequence.avif", "sequence.mp4"])
def test_photos_are_no_videos(tmp_path, name):
    """ffmpeg takes the first picture, or of a HEIC photo the first tile."""
    frames = ("-frames:v", 1) if name.startswith("photo") else ()
    path = clip(tmp_path / name, *VIDEO, *frames, "-c:v", "libaom-av1", "-cpu-used", 8, "-f", "avif")
    refused(path, "is a photo or a sequence of photos")


def test_a_photo_of_tiles(tmp_path):
    """The boxes of a HEIC file (ISO/IEC 23008-12): two tiles of a grid, which is the picture."""
    items = [
        box(b"infe", b"\2\0\0\0", struct.pack(">HH", n, 0), kind, b"\0") for n, kind in ((1, b"hvc1"), (2, b"grid"))
    ]
    meta = box(
        b"meta",
        bytes(4),
        box(b"hdlr", bytes(8), b"pict", bytes(13)),
        box(b"pitm", bytes(4), b"\0\2"),
        box(b"iinf", bytes(4), b"\0\2", *items),
        box(b"iprp", box(b"ipco", box(b"ispe", bytes(4), struct.pack(">II", 64, 64)))),
    )
    path = tmp_path / "photo.mp4"
    path.write_bytes(box(b"ftyp", b"heic", bytes(4), b"mif1heic") + meta + box(b"mdat", bytes(100)))
    refused(path, "is a photo")


@pytest.mark.parametrize("place", ["before", "behind"])
def test_a_video_with_metadata_beside_its_tracks_is_no_photo(plain, tmp_path, place):
    """Cameras write XML there, without properties of pictures."""
    meta = box(b"meta", bytes(4), box(b"hdlr", bytes(8), b"nrtm", bytes(13)), box(b"xml ", bytes(4), b"<iprp/>\0"))
    flags = "frag_keyframe+empty_moov+default_base_moof"  # nothing in it says where it is in the file
    data = clip(tmp_path / "v.mp4", "-i", plain, "-c", "copy", "-movflags", flags).read_bytes()
    at = int.from_bytes(data[:4], "big") if place == "before" else len(data)
    (tmp_path / "meta.mp4").write_bytes(data[:at] + meta + data[at:])
    decoded(tmp_path / "meta.mp4")


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_damaged_headers_do_no_harm(plain, tmp_path_factory, data):
    """Whatever sizes the boxes and elements claim, a file is decoded or refused."""
    folder = tmp_path_factory.mktemp("damaged")
    ending = data.draw(st.sampled_from(["mp4", "mkv", "ts", "wmv"]))
    whole = clip(
        folder / f"v.{ending}", "-t", 1, "-i", plain, *(() if ending == "wmv" else ("-c", "copy"))
    ).read_bytes()
    changed = bytearray(whole)
    starts = [at for at in range(len(whole) - 12) if whole[at + 4 : at + 8] in (b"moov", b"trak", b"stsd", b"meta")]
    places = st.sampled_from(starts) if starts else st.integers(40, min(len(whole), 1500))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(places)
        changed[at : at + 4] = data.draw(
            st.binary(min_size=4, max_size=4) | st.sampled_from([b"\0\0\0\0", b"\0\0\0\1"])
        )
    path = folder / f"damaged.{ending}"
    path.write_bytes(changed)
    with suppress(MediaError):
        read_segments(path, segments=1, inputs=INPUTS)
