"""The frames of a video file, decoded by PyAV (FFmpeg's libraries) exactly as the ffmpeg program decodes them."""

import re
import struct
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
import numpy as np

from pipeline.media.container import VIDEO_CODECS, MediaError, MediaFile
from pipeline.media.crop import Margins, find_margins
from pipeline.media.program import run_ffmpeg


class UnreliableTimestamps(Exception):
    """The packets of a file do not determine its frames, so that it must be decoded in full."""


def open_container(file: MediaFile) -> av.container.InputContainer:
    """Open a file with only its own demuxer and the allowed codecs. Raises MediaError."""
    try:
        container = av.open(
            file.url, format=file.container, options=file.limits | {"threads": "1"}, metadata_errors="replace"
        )
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(file.path, f"cannot be opened as {file.container} ({_reason(error)})", True) from error
    # PyAV makes the demuxer generate timestamps where the file has none; the ffmpeg program does not.
    container.flags &= ~av.container.Flags.gen_pts.value
    return container


def choose_stream(container: av.container.InputContainer, file: MediaFile) -> av.VideoStream:
    """The video stream that ffmpeg chooses; never cover art.

    Raises MediaError (final) if there is no video stream or its codec is not allowed.
    """
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise MediaError(file.path, "has no video stream", True)
    chosen = _index_that_ffmpeg_chooses(file) if len(streams) > 1 else None
    stream = next((s for s in streams if s.index == chosen), streams[0])
    if stream.codec_context is None or stream.codec_context.codec.name not in VIDEO_CODECS:
        name = "unknown" if stream.codec_context is None else stream.codec_context.codec.name
        raise MediaError(file.path, f"the video codec {name} is not allowed; convert the file", True)
    stream.codec_context.thread_count = 1
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return stream


def _index_that_ffmpeg_chooses(file: MediaFile) -> int | None:
    """The choice depends on size, disposition and on what happens to be at the beginning of the file."""
    nothing = ("-an", "-sn", "-dn", "-c", "copy", "-t", "0", "-f", "null", "-")
    log = run_ffmpeg([*file.arguments, *nothing]).stderr.decode("utf-8", "replace")
    found = re.search(r"^  Stream #0:(\d+) -> #0:0 ", log, re.MULTILINE)
    return int(found[1]) if found else None


class FullDecoder:
    """A video stream read by decoding all of it. This defines the frames that quicker decoders must give.

    `start`: time of the first frame. `end`: end of the last frame that has been read; of the last one of all, if fewer
    were read than `frames_at` or `read_until` needed. Times are presentation times in seconds.
    """

    def __init__(self, file: MediaFile, seconds: int, frame_selection: str = "exact"):
        self.file, self.end = file, None
        self.decoding = self._decode()
        first = next(self.decoding, None)
        if first is None:
            raise MediaError(file.path, "no frame can be decoded")
        self.frames = chain([first], self.decoding)  # time, duration and content of each
        self.start = first[0]

    def close(self) -> None:
        """Close the file."""
        self.decoding.close()

    def frames_at(self, moments: list[Fraction]) -> Iterator[np.ndarray]:
        """The frame presented at each of the ascending moments: the last one with a timestamp ≤ the moment.

        uint8 height,width,3 RGB, rotated upright; the same array again for the same frame. A moment before the first
        frame gets the first one, a moment after the last frame the last one.
        """
        convert, left = RGBConverter(self.margins), deque(moments)
        current = rgb = None
        for time, duration, frame in self.frames:
            while current is not None and left and left[0] < time:
                rgb = convert(current) if rgb is None else rgb
                left.popleft()
                yield rgb
            current, rgb, self.end = frame, None, time + duration
            if not left:
                return
        for _ in left:
            rgb = convert(current) if rgb is None else rgb
            yield rgb

    def read_until(self, moment: Fraction) -> None:
        """Read on until `end` is final or later than `moment`, without converting frames."""
        for time, duration, _ in self.frames:
            self.end = time + duration
            if time > moment:
                return

    def _decode(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        with open_container(self.file) as container:
            stream = choose_stream(container, self.file)
            self.margins = find_margins(self.file, stream.index)
            clock = Clock(stream)
            for frame in decode(container, stream, self.file):
                yield *clock(frame), frame


def packets(container: av.container.InputContainer, stream: av.VideoStream, file: MediaFile) -> Iterator[av.Packet]:
    """The packets of a stream in decoding order. Like ffmpeg, takes an error of the demuxer as the end of the file.

    Raises MachineError if the storage fails.
    """
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.MemoryError:
        raise
    except (av.FFmpegError, EOFError):
        pass
    file.check_readable()  # otherwise a failed read would make the video shorter without a word


def decode(container: av.container.InputContainer, stream: av.VideoStream, file: MediaFile) -> Iterator[av.VideoFrame]:
    """All frames of a stream. Like ffmpeg, continues after a damaged packet; the frame before it lasts longer."""
    for packet in chain(packets(container, stream, file), [None]):
        try:
            yield from stream.codec_context.decode(packet)
        except av.MemoryError:
            raise
        except (av.FFmpegError, EOFError):
            continue


class Clock:
    """Presentation times as the ffmpeg program computes them, also where the container has none or wrong ones."""

    def __init__(self, stream: av.VideoStream):
        self.unit = stream.time_base
        self.usual = usual_duration(stream)
        self.last_pts = self.last_dts = self.last = None
        self.faults_pts = self.faults_dts = 0
        self.duration = 1

    def __call__(self, frame: av.VideoFrame) -> tuple[Fraction, Fraction]:
        """Time and duration, in seconds, of the next frame in output order."""
        pts, dts = frame.pts, frame.dts
        # Use the decoding timestamps once they have gone backwards less often than the presentation timestamps.
        if dts is not None:
            self.faults_dts += self.last_dts is not None and dts <= self.last_dts
            self.last_dts = dts
        if pts is not None:
            self.faults_pts += self.last_pts is not None and pts <= self.last_pts
            self.last_pts = pts
        time = pts if pts is not None and (dts is None or self.faults_pts <= self.faults_dts) else dts
        if time is None:
            time = 0 if self.last is None else self.last + self.duration
        step = 0 if self.last is None else max(0, time - self.last)
        time = time if self.last is None else max(time, self.last)  # presentation never goes backwards
        self.duration = frame_duration(frame.duration, step, self.usual)
        self.last = time
        return time * self.unit, self.duration * self.unit


def frame_duration(stated: int, step: int, usual: int) -> int:
    """How long a frame lasts, in the stream's unit; `step`: the time since the frame before it (0 if unknown).

    The demuxer states 1 where it knows no duration; then the distance of two frames is better.
    """
    trusted = 0 if stated == 1 and step > 2 else stated
    return trusted or step or stated or usual


def usual_duration(stream: av.VideoStream) -> int:
    """One frame at the stream's frame rate, in the stream's unit."""
    rate = stream.codec_context.framerate or stream.average_rate or stream.guessed_rate
    return max(1, round(1 / rate / stream.time_base)) if rate else 1


class RGBConverter:
    """Converts frames to RGB and rotates them upright with the filters that the ffmpeg program inserts."""

    def __init__(self, margins: Margins | None):
        self.margins, self.made_for, self.graph = margins, None, None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 height,width,3."""
        matrix = display_matrix(frame)
        layout = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, matrix)
        if layout != self.made_for:
            self.graph, self.made_for = _graph(self.margins, *layout), layout
        self.graph.push(frame)
        return self.graph.pull().to_ndarray()


def display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    """The nine 16.16 numbers that say how a frame is to be turned or mirrored; None if nothing says so. An EXIF
    orientation has become such a matrix in the decoder."""
    data = next((bytes(data) for data in frame.side_data if data.type == _MATRIX), None)
    return struct.unpack("=9i", data[:36]) if data else None


_MATRIX = av.sidedata.sidedata.Type.DISPLAYMATRIX


def _unnamed(cls: type, value: int) -> object:
    """A side data type that PyAV has no name for (LCEVC, EXIF, the view of MV-HEVC): its table would refuse all of the
    frame's side data."""
    member = object.__new__(cls)
    member._name_, member._value_ = f"TYPE_{value}", value
    return member


av.sidedata.sidedata.Type._missing_ = classmethod(_unnamed)


def _graph(
    margins: Margins | None,
    width: int,
    height: int,
    pixels: str,
    colorspace: int,
    color_range: int,
    matrix: tuple[int, ...] | None,
) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [
        graph.add(
            "buffer",
            video_size=f"{width}x{height}",
            pix_fmt=pixels,
            time_base="1/1000",
            pixel_aspect="1/1",
            colorspace=str(colorspace),
            range=str(color_range),
        )
    ]
    if margins:
        left, right, top, bottom = margins
        nodes.append(graph.add("crop", f"w=iw-{left}-{right}:h=ih-{top}-{bottom}:x={left}:y={top}"))
    nodes += [graph.add(name, args) for name, args in _upright(matrix)]
    nodes += [graph.add("format", pix_fmts="rgb24"), graph.add("buffersink")]
    graph.link_nodes(*nodes)
    graph.configure()
    return graph


def _upright(matrix: tuple[int, ...] | None) -> list[tuple[str, str | None]]:
    """The filters (name, arguments) with which the ffmpeg program applies a display matrix."""
    if matrix is None:
        return []
    a, b, _, c, d = matrix[:5]
    scale = np.hypot(a, c), np.hypot(b, d)
    if not all(scale):
        return []
    # av_display_rotation_get: counter-clockwise, rounded; the filters count clockwise, from 0 to 360.
    angle = round(np.degrees(np.arctan2(b / scale[1], a / scale[0]))) % 360
    if angle == 90:
        return [("transpose", "cclock_flip" if c > 0 else "clock")]
    if angle == 270:
        return [("transpose", "clock_flip" if c < 0 else "cclock")]
    if angle == 180:
        return [("hflip", None)] * (a < 0) + [("vflip", None)] * (d < 0)
    if angle:
        return [("rotate", f"{angle}*PI/180")]
    return [("vflip", None)] * (d < 0)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
