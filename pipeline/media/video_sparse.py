"""The same pictures as a full decode shows, from as few packets as the format allows."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np

from pipeline.media import bitstream
from pipeline.media.bitstream import Unit
from pipeline.media.container import MediaFile
from pipeline.media.crop import margins
from pipeline.media.video import RGB, UnreliableTimestamps, choose_stream, open_container, packets

HELD = 64 * 2**20  # bytes of packets that are kept rather than read again


class Packet(NamedTuple):
    """What the first pass over a file keeps of a packet; times in the stream's unit."""

    pts: int | None
    dts: int | None
    duration: int
    unit: Unit
    hidden: bool  # needed at most as a reference: outside the edit list, or of a picture that is not shown


class SparseDecoder:
    """A video track whose packets' timestamps tell what is on show, so that little needs to be decoded.

    Takes the same part in `read_segments` as FullDecoder; `end` is known at once. Raises UnreliableTimestamps where the
    packets turn out to say something else than the decoder: damaged files, missing or wrong timestamps.
    """

    def __init__(self, file: MediaFile, seconds: int, accuracy: str = "exact"):
        self.file, self.accuracy = file, accuracy
        self.container = open_container(file)
        try:
            self.stream = choose_stream(self.container, file)
            self.cut = margins(file, self.stream.index)
            self.held: list[av.Packet] | None = []  # the packets themselves, unless they are too much to keep
            self.complete, self.known_until = True, None
            self.packets = list(self._scan(seconds))
            self._arrange()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give the file back."""
        self.container.close()
        self.held = None

    def _arrange(self) -> None:
        """Bring the frames into order of presentation."""
        self.shown = [n for n, packet in enumerate(self.packets) if not packet.hidden]
        in_decoding_order = self.shown.copy()
        self.shown.sort(key=lambda n: _pts(self.packets[n]))  # packet numbers in order of presentation
        pts = [self.packets[n].pts for n in self.shown]
        if not pts or len(set(pts)) < len(pts):
            raise UnreliableTimestamps("there are no frames or two at the same time")
        droppable = not all(packet.unit.referenced for packet in self.packets)
        if self.shown == in_decoding_order and self.stream.codec_context.has_b_frames and droppable:
            raise UnreliableTimestamps("frames come in decoding order")  # their timestamps were lost
        if not self.complete and any(
            p.dts is not None and p.pts < p.dts for p in (self.packets[n] for n in self.shown)
        ):
            raise UnreliableTimestamps("a frame is presented before it is decoded")
        self.times = [number * self.stream.time_base for number in pts]
        self.start = self.times[0]
        last = self.packets[self.shown[-1]]
        step = pts[-1] - pts[-2] if len(pts) > 1 else 0
        self.end = (last.pts + (step if last.duration <= 1 < step else last.duration)) * self.stream.time_base

    def _scan(self, seconds: int) -> Iterator[Packet]:
        """The packets of the stream in decoding order, until all frames of `seconds` seconds after the first frame
        that is presented have been read. That frame is not in the first packet where an edit list hides packets."""
        codec, unit_of_time = self.stream.codec_context, self.stream.time_base
        understand = bitstream.reader(codec.codec.canonical_name, codec.extradata or b"")
        self.understood = understand is not None
        first_pts, starts, size = None, 0, 0
        for packet in packets(self.container, self.stream):
            if packet.has_sidedata("new_extradata") and bytes(packet.get_sidedata("new_extradata")) != codec.extradata:
                raise UnreliableTimestamps("the codec's parameters change on the way")
            try:
                unit = understand(memoryview(packet)) if understand else Unit(intra=packet.is_keyframe)
            except (ValueError, IndexError):
                unit = Unit()  # not understood: decoded like all others
            starts += unit.starts or (understand is None and packet.is_keyframe)
            if not starts:
                raise UnreliableTimestamps("the track does not begin with a key frame")
            # What leads to the very first start refers to what is not there; decoders leave it out.
            hidden = packet.is_discard or not unit.shown or (unit.leading and starts == 1)
            yield Packet(packet.pts, packet.dts, packet.duration or 0, unit, hidden)
            size += packet.size
            if size > HELD:
                self.held = None
            elif self.held is not None:
                self.held.append(packet)
            if hidden or packet.pts is None or packet.dts is None:
                continue
            first_pts = packet.pts if first_pts is None else min(first_pts, packet.pts)
            # No packet is presented before it is decoded, and packets come in decoding order: what follows is later.
            if packet.dts > first_pts + (seconds + 1) / unit_of_time:
                self.complete, self.known_until = False, packet.dts * unit_of_time
                return

    def show(self, moments: list[Fraction]) -> Iterator[np.ndarray]:
        """What is on show at each of the ascending moments, as FullDecoder.show says; only that is decoded."""
        # No moment that `read_segments` wants is this late. If one ever is, a frame must not be taken for the last one.
        if not self.complete and moments and moments[-1] >= self.known_until:
            raise UnreliableTimestamps("a frame is wanted that is later than the packets that were read")
        numbers = [self.on_show(moment) for moment in moments]
        pictures = self.read(sorted(set(numbers)))
        last = None
        for number in numbers:
            if number != last:
                picture, last = next(pictures), number
            yield picture

    def on_show(self, moment: Fraction) -> int:
        """The number of the frame that is on show at a moment; or of the nearest one that `accuracy` allows."""
        if self.accuracy == "exact":
            return max(0, bisect_right(self.times, moment) - 1)
        units = [self.packets[n].unit for n in self.shown]
        by_itself = self.accuracy == "keyframe"
        allowed = [n for n, unit in enumerate(units) if (unit.intra if by_itself else unit.referenced)]
        return min(allowed or range(len(units)), key=lambda number: abs(self.times[number] - moment))

    def plan(self, wanted: list[int]) -> tuple[list[bool], list[bool]]:
        """For each packet, whether it has to be decoded for these frames, and whether the decoder starts anew."""
        chosen = {self.shown[number] for number in wanted}
        return bitstream.needed([p.unit for p in self.packets], [n in chosen for n in range(len(self.packets))])

    def read(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """The frames with the given numbers (ascending), uint8 height,width,3 RGB, turned upright."""
        convert = RGB(self.cut)
        keep, fresh = self.plan(wanted)
        left = deque(self.packets[self.shown[number]].pts for number in wanted)
        decoded = [self.packets[n].pts for n in self.shown if keep[n]]
        latest = None
        for count, frame in enumerate(self._decode(keep, fresh)):
            if frame.pts is None or frame.is_corrupt or (latest is not None and frame.pts <= latest):
                raise UnreliableTimestamps("a frame is damaged or out of order")
            if not self.understood and decoded[count : count + 1] != [frame.pts]:
                raise UnreliableTimestamps("the decoder left a frame out")
            latest = frame.pts
            if frame.pts == left[0]:
                yield convert(frame)
                left.popleft()
                if not left:
                    return
        raise UnreliableTimestamps("a frame was not decoded")

    def _decode(self, keep: list[bool], fresh: list[bool]) -> Iterator[av.VideoFrame]:
        last = max(n for n, kept in enumerate(keep) if kept)
        decoder = self.stream.codec_context
        decoder.flush_buffers()
        level = av.logging.get_level()
        av.logging.set_level(av.logging.PANIC)  # prints nothing, but counts errors
        complaints = av.logging.get_last_error()[0]
        try:
            for n, packet in enumerate(self._again()):
                if packet.pts != self.packets[n].pts:
                    raise UnreliableTimestamps("the file reads differently each time")
                frames = []
                if fresh[n]:
                    frames += decoder.decode(None)
                    decoder.flush_buffers()
                if keep[n]:
                    frames += decoder.decode(packet)
                if n == last:
                    frames += decoder.decode(None)
                if av.logging.get_last_error()[0] > complaints:
                    raise UnreliableTimestamps("the decoder complains")  # and makes the best of whatever frames it has
                yield from frames
                if n == last:
                    return
        except av.MemoryError:
            raise
        except (av.FFmpegError, EOFError) as error:
            raise UnreliableTimestamps("a packet is damaged") from error
        finally:
            av.logging.set_level(level)

    def _again(self) -> Iterator[av.Packet]:
        """The packets once more."""
        if self.held is not None:
            yield from self.held
            return
        with open_container(self.file) as container:
            yield from packets(container, choose_stream(container, self.file))


def _pts(packet: Packet) -> int:
    if packet.pts is None:
        raise UnreliableTimestamps("a packet has no timestamp")
    return packet.pts
