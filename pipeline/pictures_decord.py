"""The pictures of a video file, decoded by decord: for comparison, and never trusted blindly.

decord 0.6.0 counts frames that are never shown and is silent about it, so its count must agree with the
timestamps that FFmpeg's demuxer gives, and these say when each frame is on show.
"""

from collections.abc import Iterator

import numpy as np

from pipeline.mediafile import MediaError
from pipeline.pictures import DecodedTrack


class DecordTrack(DecodedTrack):
    """As DecodedTrack, with the frames from decord."""

    def read(self, wanted: list[int]) -> Iterator[np.ndarray]:
        import decord  # loads its own copy of FFmpeg: only where it is asked for

        try:
            reader = decord.VideoReader(self.file.path, num_threads=1)
            if len(reader) < len(self.times):
                raise MediaError(self.file.path, f"decord counts {len(reader)} frames, {len(self.times)} are shown")
            for number in wanted:
                yield reader[number].asnumpy()
        except decord.DECORDError as error:
            raise MediaError(self.file.path, f"decord: {str(error).splitlines()[0]}") from error
