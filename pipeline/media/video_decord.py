"""The frames of a video file, decoded by decord: for comparison, and as a second try where PyAV fails.

decord 0.6.0 counts frames that are never presented, and gives wrong times to frames. So the timestamps are those of
FFmpeg's demuxer, and decord's count must agree with them.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.media.container import MediaError
from pipeline.media.video_sparse import SparseDecoder


class DecordDecoder(SparseDecoder):
    """As SparseDecoder, with the frames from decord."""

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
            for number in wanted:
                yield reader[number].asnumpy()
        except (decord.DECORDError, RuntimeError) as error:
            raise MediaError(self.file.path, f"decord: {str(error).splitlines()[0]}") from error
