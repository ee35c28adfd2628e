"""The frames of a video file decoded by decord, for comparison; never without being asked for.

decord 0.6.0 gives wrong times to frames, counts frames that are never presented, and seeks and skips to wrong places.
So the timestamps are those of FFmpeg's demuxer, decord's count must agree with them, and it gives all frames in order.
Where its frames were found to differ from the ffmpeg program's nevertheless, it is refused.
"""

from collections.abc import Iterator

import av
import numpy as np

from pipeline.media.container import MediaError, MediaFile
from pipeline.media.video import choose_stream, display_matrix, open_container
from pipeline.media.video_sparse import SparseDecoder

_TOLERANCE = 5e-3  # seconds
_CONTAINERS = ("mpegts", "mpeg", "mpegvideo")  # whose frames it gives late, or not at all
# The formats that prescribe every bit of a decoded frame; its older FFmpeg rounds others in another way.
_CODECS = ("h264", "hevc", "vp8", "vp9")
# Pixel formats whose frames were found to be right; with 10 bits they are not.
_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gbrp", "gray")
# The display matrices that it applies as ffmpeg does, where an MP4 states them: a, b, c, d of no turn and of
# 90°, 180° and 270°.
_TURNS = ((1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0))


class DecordDecoder(SparseDecoder):
    """As SparseDecoder, with the frames from decord. Raises MediaError (final) where they are known to differ."""

    def __init__(self, file: MediaFile, seconds: int, frame_selection: str = "exact"):
        if reason := _known_to_differ(file):
            raise MediaError(file.path, f"decord is known to give other frames than ffmpeg for {reason}", True)
        super().__init__(file, seconds, frame_selection)

    def read(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """The frames with the given numbers (ascending), uint8 height,width,3 RGB."""
        import decord  # loads its own copy of FFmpeg: imported only when used

        decord.logging.set_level(decord.logging.QUIET)
        try:
            reader = decord.VideoReader(self.file.path, num_threads=1)
            if self.margins:
                raise MediaError(self.file.path, "decord does not crop as the container prescribes")
            hidden, complete = len(self.packets) - len(self.times), self.known_until is None
            if hidden or len(reader) < len(self.times) or (complete and len(reader) > len(self.times)):
                reason = f"decord counts {len(reader)} frames, {len(self.times)} are presented"
                raise MediaError(self.file.path, reason)
            shifts = reader.get_frame_timestamp(range(len(self.times)))[:, 0] - np.array(self.times, float)
            if np.ptp(shifts) > _TOLERANCE:
                raise MediaError(self.file.path, "decord counts other frames than FFmpeg's demuxer")
            for number in range(wanted[-1] + 1):
                frame = reader.next()
                if number in wanted:
                    yield frame.asnumpy()
        except (decord.DECORDError, RuntimeError, StopIteration) as error:
            raise MediaError(self.file.path, f"decord: {(str(error) or 'no more frames').splitlines()[0]}") from error


def _known_to_differ(file: MediaFile) -> str | None:
    """The property of a file for which decord's frames differ from the ffmpeg program's; None if it has none such."""
    if file.container in _CONTAINERS:
        return f"the container {file.container}"
    with open_container(file) as container:
        stream = choose_stream(container, file)
        if stream.codec_context.name not in _CODECS:
            return f"the codec {stream.codec_context.name}"
        if len(container.streams.video) > 1:
            return "files with several video streams"
        stream.codec_context.skip_frame = "NONKEY"
        layouts = set()
        try:
            for frame in container.decode(stream):
                layouts.add((frame.width, frame.height, frame.format.name, display_matrix(frame)))
        except av.FFmpegError:
            return "damaged files"
    if len(layouts) > 1:
        return "a picture whose size or format changes"
    for width, height, pixels, matrix in layouts:
        if width % 2 or height % 2:
            return "an odd width or height"
        if pixels not in _FORMATS:
            return f"the pixel format {pixels}"
        if matrix and (file.container != "mov" or tuple(matrix[n] / 2**16 for n in (0, 1, 3, 4)) not in _TURNS):
            return "a picture that is mirrored, or turned in another way than MP4's by 90°, 180° or 270°"
    return None
