"""The frames of a video file, decoded by an NVIDIA GPU through torchcodec. Optional, and never the default: the GPU's
colour conversion is not FFmpeg's, so pixels differ from the exact frames (`bench/accuracy.py --nvdec` measures by how
much, and what that changes in the features).

Packets are read and timestamps are chosen as for the exact frames, and frames are resized by Pillow as always;
torchcodec only decodes. Tests run this code with torchcodec's CPU decoder, whose frames are the exact ones. It has not
been run on a GPU: neither its speed nor the differences are known.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from pipeline.media.container import MachineError, MediaError, MediaFile
from pipeline.media.video_sparse import SparseDecoder

FRAMES = 32  # decoded at once, in the GPU's memory
TOLERANCE = 1e-4  # seconds; torchcodec's times are floats


class NvdecDecoder(SparseDecoder):
    """As SparseDecoder, with the frames from torchcodec.

    Raises MachineError without torchcodec or a GPU, and MediaError for what the GPU cannot decode: torchcodec's own CPU
    decoding, whose colours the GPU would convert, gives other pixels.
    """

    device: ClassVar[str] = "cuda"

    def __init__(self, file: MediaFile, seconds: int, frame_selection: str = "exact"):
        self.library = _torchcodec(self.device)
        super().__init__(file, seconds, frame_selection)

    def read(self, wanted: list[int]) -> Iterator[np.ndarray]:
        """The frames with the given numbers (ascending), uint8 height,width,3 RGB."""
        if self.margins:
            raise MediaError(self.file.path, "nvdec does not crop as the container prescribes")
        times = [self.times[number] for number in wanted]
        try:
            decoder = self.library.VideoDecoder(
                self.file.path, stream_index=self.stream.index, dimension_order="NHWC", device=self.device
            )
            self._check(decoder)
            for begin in range(0, len(times), FRAMES):
                yield from self._frames(decoder, times[begin : begin + FRAMES])
        except (RuntimeError, ValueError, IndexError) as error:
            raise MediaError(self.file.path, f"nvdec: {str(error).splitlines()[0]}") from error

    def _check(self, decoder: Any) -> None:
        if decoder.cpu_fallback:
            reason = str(decoder.cpu_fallback)
            if "unavailable" in reason:
                raise MachineError(f"backend nvdec: {reason}; install the driver's video library, or use backend pyav")
            raise MediaError(self.file.path, f"nvdec: {reason}")

    def _frames(self, decoder: Any, times: list[Fraction]) -> np.ndarray:
        batch = decoder.get_frames_played_at([float(time) + TOLERANCE for time in times])
        found = batch.pts_seconds.tolist()
        for time, other in zip(times, found, strict=True):
            if abs(float(time) - other) > TOLERANCE:
                reason = f"nvdec gives the frame of {other:.3f} s for that of {float(time):.3f} s"
                raise MediaError(self.file.path, reason)
        return batch.data.cpu().numpy()


def _torchcodec(device: str) -> Any:
    """torchcodec.decoders, which needs FFmpeg's libraries on the system. Raises MachineError if it cannot be used."""
    try:
        import torch  # takes seconds: imported only when used
        from torchcodec import decoders
    except (ImportError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MachineError(
            f"backend nvdec: torchcodec cannot be loaded ({reason}); pip install 'torchcodec>=0.17', and "
            "FFmpeg's shared libraries from the system's packages, or use backend pyav"
        ) from error
    if device == "cuda" and not torch.cuda.is_available():
        raise MachineError("backend nvdec: PyTorch finds no GPU; use backend pyav")
    return decoders
