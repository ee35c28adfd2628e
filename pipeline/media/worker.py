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
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import psutil

from pipeline.media.segments import MediaError, read_length, read_segments

_PR_SET_PDEATHSIG = 1
_LINE = 2**16  # bytes that a message may have


class WorkerFailure(Exception):
    """A video could not be decoded: the reason, whether another backend need not try, and whether somebody else
    killed the process, which says nothing about video or backend."""

    def __init__(self, reason: str, final: bool = False, killed: bool = False):
        super().__init__(reason)
        self.reason, self.final, self.killed = reason, final, killed


@dataclass(frozen=True)
class Limits:
    """What decoding one video may cost: seconds, plus so many for each second of it that is read, and memory."""

    seconds: float = 60.0
    seconds_per_second: float = 5.0
    memory: int = 4 * 2**30  # bytes of address space of the worker, and as many of the ffmpeg that it starts


class Worker:
    """The owner's handle. Starts a process when it is first needed and again after each failure."""

    def __init__(self, limits: Limits):
        self.limits, self.process = limits, None

    def read(self, path: str, arrays: Sequence[tuple[tuple[int, ...], str]], **options) -> tuple[dict, list]:
        """Have `read_segments(path, **options)` run; returns its scalars, and its arrays of these shapes and types.

        Raises WorkerFailure with the reason; a process that hangs or died is gone by then.
        """
        if self.process is None or self.process.poll() is not None:
            self._start()
        began, self.allowed = time.monotonic(), self.limits.seconds
        self.deadline = began + self.allowed
        try:
            self.process.stdin.write(json.dumps({"path": path, "options": options}).encode() + b"\n")
            self.process.stdin.flush()
            reply = self._message()
            if "length" in reply:
                self.allowed += self.limits.seconds_per_second * max(0, min(reply["length"], options["segments"]))
                self.deadline = began + self.allowed
                reply = self._message()
            if "error" in reply:
                raise WorkerFailure(str(reply["error"]), bool(reply["final"]))
            facts = {"num_segments": int(reply["num_segments"]), "has_audio": bool(reply["has_audio"])}
            data = [self._array(*spec) for spec in arrays]
            if reply["memory"] > self.limits.memory / 2:
                self.close()  # decoders leak; the next video is to have its full share
            return facts, data
        except WorkerFailure as failure:
            if not failure.final:
                self.close()
            raise
        except TimeoutError:
            self.close()
            raise WorkerFailure(f"took longer than its limit of {self.allowed:.0f} s") from None
        except (BrokenPipeError, EOFError):
            raise self._obituary() from None
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise WorkerFailure(f"the decoder gave an answer that is none ({error})") from error
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """End the process and the ffmpeg that it may have started; may be called from any thread."""
        process = self.process
        if process is not None:
            with suppress(ProcessLookupError):  # it is gone already
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> int | None:
        """Stop the process, release its pipes and return its exit code."""
        self.stop()
        process, self.process = self.process, None
        if process is None:
            return None
        process.stdin.close()
        process.stdout.close()
        return process.wait()

    def _start(self) -> None:
        self.close()
        # A new session, so that one signal reaches its children too; our own import path, whatever that is.
        path = os.pathsep.join(folder or os.getcwd() for folder in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.media.worker", str(self.limits.memory), str(os.getpid())],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1"},
        )

    def _obituary(self) -> WorkerFailure:
        try:
            code = self.process.wait(5)  # its end may be a little later than its pipe's
        except subprocess.TimeoutExpired:
            return WorkerFailure("the decoder stopped answering")
        finally:
            self.close()
        if code >= 0:
            return WorkerFailure(f"the decoder ended with code {code}")
        known = {number.value: number.name for number in signal.Signals}
        return WorkerFailure(f"the decoder died of {known.get(-code, -code)}", killed=-code == signal.SIGKILL)

    def _fill(self, buffer: memoryview) -> int:
        left = max(0.0, self.deadline - time.monotonic())
        if not select.select([self.process.stdout], [], [], left)[0]:
            raise TimeoutError
        count = os.readv(self.process.stdout.fileno(), [buffer])
        if not count:
            raise EOFError
        return count

    def _message(self) -> dict:
        line = bytearray()
        letter = bytearray(1)
        while not line.endswith(b"\n") and len(line) < _LINE:
            self._fill(memoryview(letter))
            line += letter
        return json.loads(line)

    def _array(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        array = np.empty(shape, dtype)
        view = memoryview(array).cast("B")
        at = 0
        while at < len(view):
            at += self._fill(view[at:])
        return array


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """The process's loop: read a request, decode, reply; until the requests end."""

    def say(message: dict) -> None:
        replies.write(json.dumps(message).encode() + b"\n")
        replies.flush()

    def fail(reason: object, final: bool = False) -> None:
        say({"error": str(reason)[: _LINE // 16], "final": final})

    for line in requests:
        request = json.loads(line)
        try:
            say({"length": read_length(request["path"])})
            result = read_segments(request["path"], **request["options"])
        except MediaError as error:
            fail(error.reason, error.final)
        except MemoryError as error:
            fail(f"needs more memory than its limit ({error})")
        except Exception as error:
            traceback.print_exc()
            fail(f"{type(error).__name__}: {error}")
        else:
            memory = psutil.Process().memory_info().vms
            say({"num_segments": result.num_segments, "has_audio": result.has_audio, "memory": memory})
            for array in (*result.frames.values(), result.audio):
                replies.write(memoryview(array).cast("B"))
            replies.flush()


def main() -> None:
    """Entry point of the process: arguments are the memory limit in bytes and the owner's process id."""
    memory, owner = map(int, sys.argv[1:])
    if sys.platform == "linux":
        # Never outlive the owner, however it ends.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != owner:
            return
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Libraries print; the pipe is for replies only.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
