"""The packaged ffmpeg program."""

import errno
import subprocess
from collections.abc import Sequence

import imageio_ffmpeg

from pipeline.media.container import MachineError


def run_ffmpeg(arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg and keep its output. Raises MachineError if the program cannot be started."""
    remedy = "install imageio-ffmpeg again, or let IMAGEIO_FFMPEG_EXE name an ffmpeg program"
    try:
        command = [imageio_ffmpeg.get_ffmpeg_exe(), *arguments]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        # imageio-ffmpeg raises RuntimeError if it finds no program.
        raise MachineError(f"the ffmpeg program cannot be run ({error}); {remedy}") from error
