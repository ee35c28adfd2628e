"""Which packets of a video stream can be left out without changing a single pixel of the wanted frames.

Only what the formats guarantee is used. H.264 (7.4.1) and HEVC (7.4.2.2) mark for each frame whether later ones may
refer to it, HEVC also by temporal layer; AV1 (5.9.2) lists the reference slots that keep a frame. At an IDR or other
random access frame, and at a key frame of VP8, VP9 and AV1, decoding can start: nothing after it needs anything before
it, except the leading frames of an HEVC CRA. In MPEG-4 Part 2 (6.3.5) nothing refers to B-VOPs, and decoding can start
at an I-VOP, except for the B-VOPs directly after it. A packet that is not understood counts as needed by all that
follow.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

KEY_FRAME = 0  # AV1 and VP9 frame_type


class Unit(NamedTuple):
    """What a packet holds, as far as other packets may depend on it."""

    starts: bool = False  # decoding can start here; only `leading` packets that follow may need what is before
    referenced: bool = True  # later frames of its own temporal layer may need it, else only those of higher layers
    layer: int = 0  # temporal layer: needed by no frame of a lower one
    leading: bool = False  # presented before the start that it follows, and may need what is before that
    presented: bool = True  # the packet outputs a frame
    parameters: bytes = b""  # parameter sets, which everything that follows may need
    intra: bool = False  # decodable by itself
    lost: bool = False  # a frame before it is not there to which it may refer


Reader = Callable[[memoryview], Unit]


def needed(units: Sequence[Unit], wanted: Sequence[bool]) -> tuple[list[bool], list[bool]]:
    """Which packets to decode, in decoding order, and before which of them the decoder must be flushed.

    Goes backwards: a packet is needed if it is wanted, or if a needed one may refer to it.
    """
    keep, alone = [False] * len(units), [False] * len(units)
    layer = leading = -1  # highest temporal layer that is needed after this packet, and among leading frames
    changed = _changes(units)
    for n in range(len(units) - 1, -1, -1):
        unit = units[n]
        if wanted[n] or changed[n] or (unit.layer <= layer if unit.referenced else unit.layer < layer):
            keep[n] = True
            layer = max(layer, unit.layer)
            if unit.leading:
                leading = max(leading, unit.layer)
        if unit.starts:
            alone[n] = leading < 0
            layer, leading = leading, -1
    fresh, gap = [], False
    for unit, kept, start in zip(units, keep, alone, strict=True):
        fresh.append(kept and start and gap)
        gap = (gap and not fresh[-1]) or (unit.referenced and not kept)
    return keep, fresh


def _changes(units: Sequence[Unit]) -> list[bool]:
    """Where parameter sets differ from the ones before them: such a packet must reach the decoder."""
    changes, last = [], None
    for unit in units:
        changes.append(bool(unit.parameters) and unit.parameters != last)
        last = unit.parameters or last
    return changes


def reader(codec: str, extradata: bytes) -> Reader | None:
    """A function that parses packets of a codec (FFmpeg's name); None if only its key frames can be recognised."""
    if codec == "h264":
        return _H264(extradata)
    if codec == "hevc":
        return _HEVC(extradata)
    return {"mpeg4": _MPEG4(extradata), "vp8": _vp8, "vp9": _vp9, "av1": _AV1()}.get(codec)


class _Bits:
    """Reads numbers from the most significant bit on. Raises ValueError well past the end."""

    def __init__(self, data: bytes):
        self.value, self.left = int.from_bytes(data + bytes(8), "big"), 8 * len(data) + 64

    def __call__(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise ValueError("header is cut off")
        return self.value >> self.left & ((1 << count) - 1)

    def exp_golomb(self) -> int:
        zeros = 0
        while not self(1):
            zeros += 1
        return (1 << zeros) - 1 + self(zeros)

    def signed(self) -> int:
        k = self.exp_golomb()
        return (k + 1) // 2 if k & 1 else -(k // 2)


def _units(data: memoryview, length_size: int) -> Iterator[memoryview]:
    """The NAL units of a packet, with lengths in front (length_size > 0) or start codes between."""
    if length_size:
        at = 0
        while at < len(data):
            size = int.from_bytes(data[at : at + length_size], "big")
            at += length_size
            if size:
                yield data[at : at + size]
            at += size
        if at != len(data):
            raise ValueError("lengths do not add up")
        return
    raw = bytes(data)
    at = raw.find(b"\0\0\1")
    while at >= 0:
        following = raw.find(b"\0\0\1", at + 3)
        if nal := data[at + 3 : following if following >= 0 else len(raw)]:
            yield nal
        at = following


def _rbsp(nal: bytes) -> bytes:
    return nal.replace(b"\0\0\3", b"\0\0")


class _H264:
    IDR, SPS = 5, 7
    SLICES = (1, 5)
    HARMLESS = (6, 9, 10, 11, 12, 14, 20)  # SEI, delimiters, ends, filler, scalable extensions that are not decoded

    def __init__(self, extradata: bytes):
        configured = extradata[:1] == b"\1" and len(extradata) > 6
        self.length_size = (extradata[4] & 3) + 1 if configured else 0
        self.frames_only = True  # a field of a pair cannot be left out alone
        self.number_bits: int | None = None  # of frame_num; None: not known
        self.planes = 0  # bits before it
        self.last_number = 0  # of the last reference frame
        data = memoryview(extradata)
        if configured:
            count, data = data[5] & 31, data[6:]
            for _ in range(count):
                size = int.from_bytes(data[:2], "big")
                self._read_parameters(data[2 : 2 + size])
                data = data[2 + size :]
        else:
            for nal in _units(data, 0):
                self._read_parameters(nal)

    def __call__(self, packet: memoryview) -> Unit:
        idr = referenced = lost = False
        intra, number = True, self.last_number
        parameters = []
        for nal in _units(packet, self.length_size):
            kind = nal[0] & 31
            if kind in self.SLICES:
                idr |= kind == self.IDR
                referenced |= nal[0] >> 5 & 3 != 0
                bits = _Bits(_rbsp(bytes(nal[1:24])))
                bits.exp_golomb()  # first_mb_in_slice
                intra &= bits.exp_golomb() % 5 == 2
                bits.exp_golomb()  # pic_parameter_set_id
                if self.number_bits:
                    bits(self.planes)
                    number = bits(self.number_bits)
                    follows = (number - self.last_number) % (1 << self.number_bits) <= 1
                    lost |= kind != self.IDR and not follows  # 7.4.3: else every reference frame counts one on
            elif kind not in self.HARMLESS:
                parameters.append(bytes(nal))
                self._read_parameters(nal)
        if referenced:
            self.last_number = number
        return Unit(idr, referenced or not self.frames_only, parameters=b"".join(parameters), intra=intra, lost=lost)

    def _read_parameters(self, nal: memoryview) -> None:
        if nal and nal[0] & 31 == self.SPS:
            self.number_bits, self.planes, frames_only = _sequence(_Bits(_rbsp(bytes(nal[1:]))))
            self.frames_only &= frames_only


def _sequence(bits: _Bits) -> tuple[int, int, bool]:
    """Of an H.264 sequence parameter set (7.3.2.1.1): the bits of frame_num, those of colour_plane_id before it, and
    frame_mbs_only_flag."""
    planes = 0
    profile = bits(8)
    bits(16)
    bits.exp_golomb()
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        chroma = bits.exp_golomb()
        if chroma == 3:
            planes = 2 * bits(1)
        bits.exp_golomb(), bits.exp_golomb(), bits(1)
        if bits(1):
            for n in range(12 if chroma == 3 else 8):
                if bits(1):
                    last = following = 8
                    for _ in range(16 if n < 6 else 64):
                        if following:
                            following = (last + bits.signed()) % 256
                        last = following or last
    number_bits = bits.exp_golomb() + 4
    order = bits.exp_golomb()
    if order == 0:
        bits.exp_golomb()
    elif order == 1:
        bits(1), bits.signed(), bits.signed()
        for _ in range(bits.exp_golomb()):
            bits.signed()
    bits.exp_golomb(), bits(1), bits.exp_golomb(), bits.exp_golomb()
    return number_bits, planes, bool(bits(1))


class _HEVC:
    SLICES = range(32)
    RANDOM_ACCESS = range(16, 24)  # BLA, IDR, CRA
    LEADING = (8, 9)  # RASL
    HARMLESS = (35, 36, 37, 38, 39, 40, 62, 63)  # delimiter, ends, filler, SEI, Dolby Vision

    def __init__(self, extradata: bytes):
        configured = extradata[:1] == b"\1" and len(extradata) > 22
        self.length_size = (extradata[21] & 3) + 1 if configured else 0

    def __call__(self, packet: memoryview) -> Unit:
        kinds, layer, parameters = set(), 0, []
        for nal in _units(packet, self.length_size):
            kind = nal[0] >> 1 & 63
            if kind in self.SLICES:
                if (nal[0] & 1) << 5 | nal[1] >> 3 == 0:  # of the base layer
                    kinds.add(kind)
                    layer = (nal[1] & 7) - 1
            elif kind not in self.HARMLESS:
                parameters.append(bytes(nal))
        if len(kinds) != 1:
            return Unit(parameters=b"".join(parameters))
        kind = kinds.pop()
        return Unit(
            starts=kind in self.RANDOM_ACCESS,
            referenced=kind > 14 or kind % 2 == 1,
            layer=layer,
            leading=kind in self.LEADING,
            parameters=b"".join(parameters),
            intra=kind in self.RANDOM_ACCESS,
        )


class _MPEG4:
    START, VOP, GROUP = b"\0\0\1", b"\0\0\1\xb6", b"\0\0\1\xb3"
    INTRA, BIDIRECTIONAL = 0, 2  # vop_coding_type

    def __init__(self, extradata: bytes):
        self.known: bytes | None = extradata  # the decoder starts with these; None once it has read others
        self.behind_start = False

    def __call__(self, packet: memoryview) -> Unit:
        headers, *vops = bytes(packet).split(self.VOP)
        if len(vops) != 1:  # several at once, as DivX packs them
            self.behind_start = False
            raise ValueError("not one frame")
        kind = vops[0][0] >> 6
        b_vop = kind == self.BIDIRECTIONAL
        if not b_vop:
            self.behind_start = kind == self.INTRA
        # The header of a group holds only a time.
        parameters = self.START.join(h for h in headers.split(self.START) if not h.startswith(self.GROUP[3:]))
        if parameters == self.known:
            parameters = b""
        elif parameters:
            self.known = None
        return Unit(
            starts=kind == self.INTRA,
            referenced=not b_vop,
            leading=b_vop and self.behind_start,
            parameters=parameters,
            intra=kind == self.INTRA,
        )


def _vp8(packet: memoryview) -> Unit:
    key = not packet[0] & 1
    return Unit(starts=key, presented=bool(packet[0] & 0x10), intra=key)


def _vp9(packet: memoryview) -> Unit:
    bits = _Bits(bytes(packet[:2]))
    bits(2)
    if bits(1) + 2 * bits(1) == 3:
        bits(1)
    existing = bits(1)
    key = not existing and bits(1) == KEY_FRAME
    several = packet[-1] & 0xE0 == 0xC0  # a superframe: hidden frames and the presented one
    return Unit(starts=key, presented=bool(existing or bits(1) or several), intra=key)


class _AV1:
    SEQUENCE, DELIMITER, FRAME_HEADER, METADATA, FRAME, REDUNDANT, PADDING = 1, 2, 3, 5, 6, 7, 15
    SWITCH_FRAME = 3

    def __init__(self):
        self.sequence = None  # the header's bytes, and what follows from it for frame headers
        self.screen, self.integer_mv, self.hint_bits = 0, 0, None

    def __call__(self, packet: memoryview) -> Unit:
        starts = presented = referenced = False
        frames = 0
        for kind, payload in self._obus(packet):
            if kind == self.SEQUENCE:
                self._read_sequence(payload)
            elif kind in (self.FRAME, self.FRAME_HEADER):
                key, visible, kept = self._read_frame(payload)
                frames += 1
                starts = frames == 1 and key and visible
                presented |= visible
                referenced |= kept
        return Unit(starts=starts, referenced=referenced or not frames, presented=presented or not frames, intra=starts)

    @staticmethod
    def _obus(packet: memoryview) -> Iterator[tuple[int, bytes]]:
        at = 0
        while at < len(packet):
            header = packet[at]
            at += 1 + (header >> 2 & 1)
            size, shift = len(packet) - at, 0
            if header & 2:
                size = 0
                while at < len(packet):
                    byte = packet[at]
                    at += 1
                    size |= (byte & 127) << shift
                    shift += 7
                    if not byte & 128:
                        break
            yield header >> 3 & 15, bytes(packet[at : at + min(size, 256)])
            at += size

    def _read_sequence(self, payload: bytes) -> None:
        if payload == self.sequence:
            return
        self.sequence, self.hint_bits = payload, None
        bits = _Bits(payload)
        bits(4)
        if bits(1):  # still_picture
            return
        if bits(1):  # timing
            bits(64)
            if bits(1):
                bits.exp_golomb()
            if bits(1):  # decoder model: adds fields to frame headers
                return
        delay = bits(1)
        for _ in range(bits(5) + 1):
            bits(12)
            if bits(5) > 7:
                bits(1)
            if delay and bits(1):
                bits(4)
        width, height = bits(4) + 1, bits(4) + 1
        bits(width + height)
        if bits(1):  # frame ids: likewise
            return
        bits(7)
        hints = bits(1)
        if hints:
            bits(2)
        self.screen = 2 if bits(1) else bits(1)
        self.integer_mv = 2 if not self.screen or bits(1) else bits(1)
        self.hint_bits = bits(3) + 1 if hints else 0

    def _read_frame(self, payload: bytes) -> tuple[bool, bool, bool]:
        """Whether a frame is a key frame, is presented, and is kept as a reference."""
        bits = _Bits(payload[:32])
        if bits(1):  # show_existing_frame costs nothing, and of a key frame it resets the rest
            return False, True, True
        kind, presented = bits(2), bool(bits(1))
        key = kind == KEY_FRAME
        if self.hint_bits is None or kind == self.SWITCH_FRAME or (key and presented):
            return key, presented, True
        if not presented:
            bits(1)
        resilient = bits(1)
        bits(1)
        screen = bits(1) if self.screen == 2 else self.screen
        if screen and self.integer_mv == 2:
            bits(1)
        bits(1 + self.hint_bits)
        if kind not in (KEY_FRAME, 2) and not resilient:
            bits(3)
        return key, presented, bits(8) != 0
