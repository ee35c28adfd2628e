"""The pictures of a video file, decoded by PyAV (FFmpeg's libraries) exactly as the ffmpeg program decodes them."""

import struct
from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
import numpy as np

from pipeline.media.container import VIDEO_CODECS, MediaError, MediaFile
from pipeline.media.crop import Margins, margins


class UnreliableTimestamps(Exception):
    """The packets of a file do not tell its frames; a full decode has to."""


def open_container(file: MediaFile) -> av.container.InputContainer:
    """Open a file with nothing but its own demuxer and the allowed codecs. Raises MediaError."""
    try:
        container = av.open(
            file.url, format=file.container, options=file.limits | {"threads": "1"}, metadata_errors="replace"
        )
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(file.path, f"cannot be opened as {file.container} ({_reason(error)})", True) from error
    # PyAV asks the demuxer to invent timestamps where the file has none; the ffmpeg program does not.
    container.flags &= ~av.container.Flags.gen_pts.value
    return container


def choose_stream(container: av.container.InputContainer, file: MediaFile) -> av.VideoStream:
    """The stream that ffmpeg would choose: the default one, else the one with the most pixels; no cover art.

    Raises MediaError (final) if there is no moving picture or its codec is not allowed.
    """
    streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not streams:
        raise MediaError(file.path, "has no video stream", True)

    def score(stream: av.VideoStream) -> int:
        if stream.codec_context is None:
            return -1
        default = bool(stream.disposition & av.stream.Disposition.default)
        return stream.codec_context.width * stream.codec_context.height + 5_000_000 * default

    stream = max(streams, key=score)
    if stream.codec_context is None or stream.codec_context.codec.name not in VIDEO_CODECS:
        name = "unknown" if stream.codec_context is None else stream.codec_context.codec.name
        raise MediaError(file.path, f"the video codec {name} is not allowed; convert the file", True)
    stream.codec_context.thread_count = 1
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return stream


class FullDecoder:
    """A video track read by decoding all of it; the definition that quicker ways are measured by.

    `start`: when the first frame appears; `end`: when the last one goes, which is known once `show` is through.
    Times are presentation times in seconds.
    """

    def __init__(self, file: MediaFile, seconds: int, accuracy: str = "exact"):
        self.file, self.end = file, None
        self.decoding = self._decode()
        first = next(self.decoding, None)
        if first is None:
            raise MediaError(file.path, "no frame can be decoded")
        self.frames = chain([first], self.decoding)  # time, duration and content of each
        self.start = first[0]

    def close(self) -> None:
        """Give the file back."""
        self.decoding.close()

    def show(self, moments: list[Fraction]) -> Iterator[np.ndarray]:
        """What is on show at each of the ascending moments: the last frame with a timestamp ≤ it.

        uint8 height,width,3 RGB, turned upright; the same array again while the same frame is on show. Before the
        first frame that one stands in; the last one stays after its end.
        """
        convert, left = RGB(self.cut), deque(moments)
        shown = picture = None
        for time, duration, frame in self.frames:
            while shown is not None and left and left[0] < time:
                picture = convert(shown) if picture is None else picture
                left.popleft()
                yield picture
            shown, picture, self.end = frame, None, time + duration
            if not left:
                return
        for _ in left:
            picture = convert(shown) if picture is None else picture
            yield picture

    def _decode(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        with open_container(self.file) as container:
            stream = choose_stream(container, self.file)
            self.cut = margins(self.file, stream.index)
            clock = Clock(stream)
            for frame in decode(container, stream):
                yield *clock(frame), frame


def packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream in decoding order. Like ffmpeg, takes a read error as the end of the file."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.MemoryError:
        raise
    except (av.FFmpegError, EOFError):
        return


def decode(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """All frames of a stream. Like ffmpeg, goes on after a damaged packet: the frame before it stays on show."""
    for packet in chain(packets(container, stream), [None]):
        try:
            yield from stream.codec_context.decode(packet)
        except av.MemoryError:
            raise
        except (av.FFmpegError, EOFError):
            continue


class Clock:
    """Presentation times as the ffmpeg program finds them, also where the container has none or wrong ones."""

    def __init__(self, stream: av.VideoStream):
        self.unit = stream.time_base
        rate = stream.codec_context.framerate or stream.average_rate or stream.guessed_rate
        self.usual = max(1, round(1 / rate / self.unit)) if rate else 1
        self.last_pts = self.last_dts = self.last = None
        self.faults_pts = self.faults_dts = 0
        self.duration = 1

    def __call__(self, frame: av.VideoFrame) -> tuple[Fraction, Fraction]:
        """Time and duration, in seconds, of the next frame in output order."""
        pts, dts = frame.pts, frame.dts
        # Believe the decoding timestamps once they have gone backwards less often than the others.
        if dts is not None:
            self.faults_dts += self.last_dts is not None and dts <= self.last_dts
            self.last_dts = dts
        if pts is not None:
            self.faults_pts += self.last_pts is not None and pts <= self.last_pts
            self.last_pts = pts
        time = pts if pts is not None and (dts is None or self.faults_pts <= self.faults_dts) else dts
        if time is None:
            time = 0 if self.last is None else self.last + self.duration
        # The demuxer makes a duration of 1 up where it knows none; then the distance of two frames is better.
        step = 0 if self.last is None else time - self.last
        told = 0 if frame.duration == 1 and step > 2 else frame.duration
        self.duration = told or max(0, step) or frame.duration or self.usual
        self.last = time
        return time * self.unit, self.duration * self.unit


class RGB:
    """Converts frames to RGB and turns them upright with the filters that the ffmpeg program inserts."""

    def __init__(self, cut: Margins | None):
        self.cut, self.made_for, self.graph = cut, None, None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 height,width,3."""
        matrix = next((bytes(d) for d in frame.side_data if d.type == _MATRIX), None)
        look = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, matrix)
        if look != self.made_for:
            self.graph, self.made_for = _graph(self.cut, *look), look
        self.graph.push(frame)
        return self.graph.pull().to_ndarray()


_MATRIX = av.sidedata.sidedata.Type.DISPLAYMATRIX


def _graph(
    cut: Margins | None, width: int, height: int, pixels: str, colorspace: int, color_range: int, matrix: bytes | None
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
    if cut:
        inside = f"w=iw-{cut.left}-{cut.right}:h=ih-{cut.top}-{cut.bottom}:x={cut.left}:y={cut.top}"
        nodes.append(graph.add("crop", inside))
    nodes += [graph.add(name, args) for name, args in _upright(matrix)]
    nodes += [graph.add("scale", flags="bicubic"), graph.add("format", pix_fmts="rgb24"), graph.add("buffersink")]
    graph.link_nodes(*nodes)
    graph.configure()
    return graph


def _upright(matrix: bytes | None) -> list[tuple[str, str | None]]:
    """The filters (name, arguments) with which the ffmpeg program applies a display matrix (nine 16.16 numbers)."""
    if matrix is None:
        return []
    a, b, _, c, d = struct.unpack("=9i", matrix)[:5]
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
