"""The same frames as a full decode gives, from as few packets as the format allows."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import NamedTuple

import av
import numpy as np

from pipeline.media import bitstream
from pipeline.media.bitstream import Unit
from pipeline.media.container import MediaFile
from pipeline.media.crop import find_margins
from pipeline.media.video import (
    RGBConverter,
    UnreliableTimestamps,
    choose_stream,
    frame_duration,
    open_container,
    packets,
    usual_duration,
)

HELD = 64 * 2**20  # bytes of packets that are kept rather than read again
# No format reorders more: at most 16 frames may precede a frame in decoding order and follow it in presentation order
# (H.264, A.3.1; HEVC, A.4.1), which are 32 packets if each holds one field.
REORDERED = 32


class Packet(NamedTuple):
    """What the first pass over a file keeps of a packet; times in the stream's unit."""

    pts: int | None
    duration: int
    unit: Unit
    hidden: bool  # needed at most as a reference: outside the edit list, or of a frame that is not presented


class SparseDecoder:
    """A video stream whose packets' timestamps determine its frames, so that only few packets must be decoded.

    Takes the same part in `read_segments` as FullDecoder; `end` is known at once. Raises UnreliableTimestamps where
    packets and decoder disagree: damaged files, missing or wrong timestamps.
    """

    def __init__(self, file: MediaFile, seconds: int, frame_selection: str = "exact"):
        self.file, self.frame_selection = file, frame_selection
        self.container = open_container(file)
        try:
            self.stream = choose_stream(self.container, file)
            self.margins = find_margins(file, self.stream.index)
            self.held: list[av.Packet] | None = []  # the packets themselves, unless they are too much to keep
            self.known_until: Fraction | None = None  # frames up to here are known; None: all frames are
            self.packets = list(self._scan(seconds))
            self._arrange()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.container.close()
        self.held = None

    def _scan(self, seconds: int) -> Iterator[Packet]:
        """The packets of the stream in decoding order, until all frames up to `seconds` seconds after the first
        presented frame are among them. The first packets may be hidden by an edit list, up to a GOP before that frame.
        """
        codec = self.stream.codec_context
        parse = bitstream.reader(codec.codec.canonical_name, codec.extradata or b"")
        self.understood = parse is not None
        first = None
        starts = later = size = 0
        for packet in packets(self.container, self.stream, self.file):
            if packet.has_sidedata("new_extradata") and bytes(packet.get_sidedata("new_extradata")) != codec.extradata:
                raise UnreliableTimestamps("the codec's parameters change in the middle")
            # What a decoder puts in place of what is lost depends on all that it has decoded.
            if packet.is_corrupt:
                raise UnreliableTimestamps("a packet is damaged")
            try:
                unit = parse(memoryview(packet)) if parse else Unit(intra=packet.is_keyframe)
            except (ValueError, IndexError):
                unit = Unit()  # not understood: decoded like all others
            if unit.lost:
                raise UnreliableTimestamps("a frame is missing")
            starts += unit.starts or (parse is None and packet.is_keyframe)
            if not starts:
                raise UnreliableTimestamps("the stream does not begin with a key frame")
            # What leads to the very first start refers to what is not there; decoders leave it out.
            hidden = packet.is_discard or not unit.presented or (unit.leading and starts == 1)
            yield Packet(packet.pts, packet.duration or 0, unit, hidden)
            size += packet.size
            if size > HELD:
                self.held = None
            elif self.held is not None:
                self.held.append(packet)
            if hidden or packet.pts is None:
                continue
            first = packet.pts if first is None else min(first, packet.pts)
            limit = first + seconds / self.stream.time_base
            later += packet.pts > limit
            if later > REORDERED:  # a frame that has not been read yet cannot be presented before all of these
                self.known_until = limit * self.stream.time_base
                return

    def _arrange(self) -> None:
        """Bring the frames into order of presentation."""
        self.presented = [n for n, packet in enumerate(self.packets) if not packet.hidden]
        in_decoding_order = self.presented.copy()
        self.presented.sort(key=lambda n: _pts(self.packets[n]))  # packet numbers in order of presentation
        pts = [self.packets[n].pts for n in self.presented]
        if not pts or len(set(pts)) < len(pts):
            raise UnreliableTimestamps("there are no frames, or two at the same time")
        self._check_order(in_decoding_order, pts)
        unit = self.stream.time_base
        self.times = [number * unit for number in pts]
        self.start = self.times[0]
        last = self.packets[self.presented[-1]]
        self.allowed = self._allowed()
        step = pts[-1] - pts[-2] if len(pts) > 1 else 0
        self.end = (last.pts + frame_duration(last.duration, step, usual_duration(self.stream))) * unit

    def _allowed(self) -> Sequence[int]:
        """The numbers of the frames that `frame_selection` allows; all where it allows none."""
        numbers = range(len(self.presented))
        if self.frame_selection == "exact":
            return numbers
        keyframe = self.frame_selection == "keyframe"
        units = [self.packets[n].unit for n in self.presented]
        return [n for n in numbers if (units[n].intra if keyframe else units[n].referenced)] or numbers

    def _check_order(self, in_decoding_order: list[int], pts: list[int]) -> None:
        """Raises UnreliableTimestamps if the decoder will output frames in another order than that of their times."""
        reordered = self.stream.codec_context.has_b_frames
        droppable = not all(packet.unit.referenced for packet in self.packets)
        if self.presented == in_decoding_order and reordered and droppable:
            raise UnreliableTimestamps("frames come in decoding order")  # their timestamps were lost
        # Remuxing repairs timestamps that go backwards by adding one to the last one, in decoding order.
        if reordered and usual_duration(self.stream) > 2 and any(b - a == 1 for a, b in pairwise(pts)):
            raise UnreliableTimestamps("frames are one unit of time apart")
        # No frame before a start in decoding order, also before one that is hidden, is presented after what follows it.
        latest = before_start = None
        for packet in self.packets:
            if packet.unit.starts:
                before_start = latest
            if packet.hidden:
                continue
            if before_start is not None and packet.pts < before_start and not packet.unit.leading:
                raise UnreliableTimestamps("a frame is presented after one that follows the next start")
            latest = packet.pts if latest is None else max(latest, packet.pts)

    def frames_at(self, moments: list[Fraction]) -> Iterator[np.ndarray]:
        """The frames presented at the ascending moments, as from FullDecoder.frames_at; only what they need is decoded.

        With `frame_selection` "reference" or "keyframe", the nearest frames that it allows.
        """
        # `read_segments` wants nothing this late. If it ever does, no earlier frame may stand in for the right one.
        if moments and self.known_until is not None and moments[-1] > self.known_until:
            raise UnreliableTimestamps("a frame is wanted that is later than the packets that were read")
        numbers = [self.frame_number_at(moment) for moment in moments]
        frames = self.read(sorted(set(numbers)))
        last = None
        for number in numbers:
            if number != last:
                frame, last = next(frames), number
            yield frame

    def read_until(self, moment: Fraction) -> None:
        """Nothing is left to read: `end` is known at once."""

    def frame_number_at(self, moment: Fraction) -> int:
        """The number of the frame that is presented at a moment, or of the nearest that `frame_selection` allows."""
        at = bisect_right(self.allowed, moment, key=self.times.__getitem__)  # the first allowed frame after the moment
        if self.frame_selection == "exact":
            return max(0, at - 1)
        around = self.allowed[max(0, at - 1) : at + 1]
        return min(around, key=lambda number: abs(self.times[number] - moment))

    def plan(self, wanted: list[int]) -> tuple[list[bool], list[bool]]:
        """For each packet, whether these frames need it, and whether the decoder must be flushed before it."""
        chosen = {self.presented[number] for number in wanted}
        return bitstream.needed([p.unit for p in self.packets], [n in chosen for n in range(len(self.packets))])

    def read(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """The frames with the given numbers (ascending), uint8 height,width,3 RGB, rotated upright."""
        convert = RGBConverter(self.margins)
        keep, fresh = self.plan(wanted)
        left = deque(self.packets[self.presented[number]].pts for number in wanted)
        decoded = [self.packets[n].pts for n in self.presented if keep[n]]
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
        errors = av.logging.get_last_error()[0]
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
                if av.logging.get_last_error()[0] > errors:
                    raise UnreliableTimestamps("the decoder reports an error")  # and conceals it with other frames
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
            yield from packets(container, choose_stream(container, self.file), self.file)


def _pts(packet: Packet) -> int:
    if packet.pts is None:
        raise UnreliableTimestamps("a packet has no timestamp")
    return packet.pts
