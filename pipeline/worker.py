"""A process that decodes one video at a time, and the handle by which its owner limits, kills and replaces it.

Native decoders may crash, hang with the interpreter lock held, or ask for all memory; none of that can be helped
from within the process. The handle and the process talk over pipes in JSON lines and raw arrays: nothing that a
subverted decoder could send is ever executed.
"""

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_PR_SET_PDEATHSIG = 1
_MESSAGE = 2**16  # bytes that a JSON line may have


class WorkerFailure(Exception):
    """A video could not be decoded: the reason, and whether that is the last word on the file."""

    def __init__(self, reason: str, final: bool = False):
        super().__init__(reason)
        self.final = final


@dataclass(frozen=True)
class Limits:
    """What decoding one video may cost: seconds, plus so many for each second of it that is read, and memory."""

    seconds: float = 60.0
    seconds_per_second: float = 10.0
    memory: int = 4 * 2**30  # bytes of address space of the worker, and of ffmpeg


class Worker:
    """The owner's handle. Starts a process when it is first needed and again after each failure."""

    def __init__(self, limits: Limits):
        self.limits, self.process = limits, None

    def read(self, path: str, arrays: Sequence[tuple[tuple[int, ...], str]], **options) -> tuple[dict, list]:
        """Have `read_segments(path, **options)` run; returns the scalars and the arrays (of given shape and type).

        Raises WorkerFailure with the reason, and leaves no process behind that is not ready for the next video.
        """
        if self.process is None or self.process.poll() is not None:
            self._start()
        self.deadline = time.monotonic() + self.limits.seconds
        try:
            self.process.stdin.write(json.dumps({"path": path, "options": options}).encode() + b"\n")
            self.process.stdin.flush()
            while "length" in (reply := self._message()):
                self.deadline += self.limits.seconds_per_second * min(reply["length"], options["segments"])
            if "error" in reply:
                raise WorkerFailure(reply["error"], reply["final"])
            return reply, [self._array(*spec) for spec in arrays]
        except WorkerFailure:
            raise
        except (OSError, EOFError):
            raise WorkerFailure(self._obituary()) from None
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """End the process and the ffmpeg that it may have started."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it is gone already
            self.process.wait()
            self.process.stdin.close()
            self.process.stdout.close()
            self.process = None

    def _start(self) -> None:
        self.kill()
        # A new session, so that one signal reaches its children too; our own import path, wherever that is.
        env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.worker", str(self.limits.memory), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=env,
        )

    def _obituary(self) -> str:
        self.kill_after = None
        code = self.process.wait()
        self.kill()
        return f"the decoder died of {signal.Signals(-code).name}" if code < 0 else f"the decoder ended with {code}"

    def _receive(self, into: memoryview) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
            self.kill()
            raise WorkerFailure(f"took longer than the limit of {self.deadline_seconds:.0f} s")
        count = os.readv(self.process.stdout.fileno(), [into])
        if not count:
            raise EOFError
        return count
