"""The same pictures as a full decode shows, from as few packets as the format allows."""

from bisect import bisect_right
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from pipeline import bitstream
from pipeline.bitstream import Unit
from pipeline.mediafile import MediaFile
from pipeline.pictures import RGB, Mistimed, choose_stream, open_container, packets


class Packet(NamedTuple):
    """What the first pass over a file keeps of a packet; times in the stream's unit."""

    pts: int | None
    dts: int | None
    duration: int
    unit: Unit
    hidden: bool  # needed at most as a reference: outside the edit list, or of a picture that is not shown


class PacketTrack:
    """A video track whose packets' timestamps tell what is on show, so that little needs to be decoded.

    Takes the same part in `read_segments` as DecodedTrack. Raises Mistimed where the packets turn out to say
    something else than the decoder: damaged files, missing or wrong timestamps.
    """

    def __init__(self, file: MediaFile, seconds: int, accuracy: str = "exact"):
        self.file = file
        with open_container(file) as container:
            stream = choose_stream(container, file)
            self.complete = True
            self.packets = list(self._scan(container, stream, seconds))
            reorders, unit = stream.codec_context.has_b_frames, stream.time_base
        shown = sorted(n for n, packet in enumerate(self.packets) if not packet.hidden)
        shown.sort(key=lambda n: _pts(self.packets[n]))
        pts = [self.packets[n].pts for n in shown]
        if not shown or len(set(pts)) < len(pts):
            raise Mistimed("there are no frames or two at the same time")
        if reorders and shown == sorted(shown) and not all(packet.unit.referenced for packet in self.packets):
            raise Mistimed("frames come in decoding order")  # their timestamps were lost
        self.shown = shown  # packet numbers in order of presentation
        self.times = [number * unit for number in pts]
        last = self.packets[shown[-1]]
        step = pts[-1] - pts[-2] if len(pts) > 1 else 0
        self.end = (last.pts + (step if last.duration <= 1 < step else last.duration)) * unit
        self.candidates = _candidates([self.packets[n].unit for n in shown], accuracy)

    def _scan(self, container: av.container.InputContainer, stream: av.VideoStream, seconds: int) -> Iterator[Packet]:
        """The packets of a stream in decoding order, up to those that are `seconds` after the first one."""
        codec = stream.codec_context
        understand = bitstream.reader(codec.codec.canonical_name, codec.extradata or b"")
        limit, starts = None, 0
        for packet in packets(container, stream):
            try:
                unit = understand(memoryview(packet)) if understand else Unit(intra=packet.is_keyframe)
            except (ValueError, IndexError):
                unit = Unit()  # not understood: decoded like all others
            starts += unit.starts or (understand is None and packet.is_keyframe)
            if not starts:
                raise Mistimed("the track does not begin with a key frame")
            if limit is None and packet.dts is not None:
                limit = packet.dts + (seconds + 1) / stream.time_base
            yield Packet(
                packet.pts,
                packet.dts,
                packet.duration or 0,
                unit,
                # What leads to the very first start refers to what is not there; decoders leave it out.
                packet.is_discard or not unit.shown or (unit.leading and starts == 1),
            )
            if limit is not None and packet.dts is not None and packet.dts > limit:
                self.complete = False
                return

    def on_show(self, moment: Fraction) -> int:
        """The number of the frame that is on show at a moment; or of the nearest one that `accuracy` allows."""
        if self.candidates is None:
            return max(0, bisect_right(self.times, moment) - 1)
        return min(self.candidates, key=lambda number: abs(self.times[number] - moment))

    def plan(self, wanted: list[int]) -> tuple[list[bool], list[bool]]:
        """For each packet, whether it has to be decoded for these frames, and whether the decoder starts anew."""
        chosen = {self.shown[number] for number in wanted}
        return bitstream.needed([p.unit for p in self.packets], [n in chosen for n in range(len(self.packets))])

    def read(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """The frames with the given numbers (ascending), uint8 height,width,3 RGB, turned upright."""
        keep, fresh = self.plan(wanted)
        convert = RGB()
        left = [self.packets[self.shown[number]].pts for number in reversed(wanted)]
        latest = None
        for frame in self._decode(keep, fresh):
            if frame.pts is None or frame.is_corrupt or (latest is not None and frame.pts <= latest):
                raise Mistimed("a frame is damaged or out of order")
            latest = frame.pts
            if frame.pts == left[-1]:
                yield convert(frame)
                left.pop()
                if not left:
                    return
        raise Mistimed("a frame was not decoded")

    def _decode(self, keep: list[bool], fresh: list[bool]) -> Iterator[av.VideoFrame]:
        last = max(n for n, kept in enumerate(keep) if kept)
        with open_container(self.file) as container:
            stream = choose_stream(container, self.file)
            decoder = stream.codec_context
            try:
                for n, packet in enumerate(packets(container, stream)):
                    if packet.pts != self.packets[n].pts:
                        raise Mistimed("the file reads differently each time")
                    if fresh[n]:
                        yield from decoder.decode(None)
                        decoder.flush_buffers()
                    if keep[n]:
                        yield from decoder.decode(packet)
                    if n == last:
                        yield from decoder.decode(None)
                        return
            except av.MemoryError:
                raise
            except (av.FFmpegError, EOFError) as error:
                raise Mistimed("a packet is damaged") from error


def _pts(packet: Packet) -> int:
    if packet.pts is None:
        raise Mistimed("a packet has no timestamp")
    return packet.pts


def _candidates(units: list[Unit], accuracy: str) -> list[int] | None:
    """Which frames may be shown: all (None), those that others refer to, or those that stand alone."""
    if accuracy == "exact":
        return None
    allowed = [n for n, unit in enumerate(units) if (unit.intra if accuracy == "keyframe" else unit.referenced)]
    return allowed or None
