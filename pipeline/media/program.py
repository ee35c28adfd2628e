"""The packaged ffmpeg program."""

import errno
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

import imageio_ffmpeg

from pipeline.media.container import MachineError

_LOG = 2**16  # bytes of the end of ffmpeg's messages that are kept


class RunningFFmpeg:
    """A running ffmpeg: `output` is its standard output. The other attributes are set when it has ended."""

    def __init__(self, output: BinaryIO):
        self.output = output
        self.returncode: int | None = None  # None also if it was stopped before its end
        self.log = ""  # the end of its messages


def run_ffmpeg(arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg and keep its output. Raises MachineError if the program cannot be started."""
    with _starting():
        command = [imageio_ffmpeg.get_ffmpeg_exe(), *arguments]
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)


@contextmanager
def stream_ffmpeg(arguments: Sequence[str]) -> Iterator[RunningFFmpeg]:
    """Run ffmpeg for as long as its output is read. Raises MachineError if the program cannot be started."""
    with tempfile.TemporaryFile() as messages:  # a pipe that nobody reads would stop ffmpeg when it is full
        with _starting():
            command = [imageio_ffmpeg.get_ffmpeg_exe(), *arguments]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=messages)
        running, ended = RunningFFmpeg(process.stdout), False
        try:
            yield running
            ended = not process.stdout.read(1)
        finally:
            if not ended:
                process.kill()
            process.stdout.close()
            code = process.wait()
            messages.seek(max(0, messages.seek(0, 2) - _LOG))
            running.log = messages.read().decode("utf-8", "replace")
            running.returncode = code if ended else None


@contextmanager
def _starting() -> Iterator[None]:
    remedy = "install imageio-ffmpeg again, or let IMAGEIO_FFMPEG_EXE name an ffmpeg program"
    try:
        yield
    except (OSError, RuntimeError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        # imageio-ffmpeg raises RuntimeError if it finds no program.
        raise MachineError(f"the ffmpeg program cannot be run ({error}); {remedy}") from error
