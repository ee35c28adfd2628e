"""A process that decodes one video at a time, and the handle by which its owner limits, kills and replaces it.

Native decoders may crash, hang with the interpreter lock held, or allocate all memory; a process cannot protect itself
from that. The handle and the process exchange JSON lines and raw arrays over pipes: nothing that a compromised decoder
could send is ever executed.
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
from dataclasses import asdict, dataclass
from typing import BinaryIO

import av
import numpy as np
import psutil

from extractors import AudioInput, FrameInput, Input, Transform
from pipeline.media.segments import MachineError, MediaError, read_length, read_segments

_PR_SET_PDEATHSIG = 1
_LINE = 2**16  # bytes that a message may have
_STARTS = 3  # times that a process is started anew if somebody kills it before it is ready


class WorkerFailure(Exception):
    """A video could not be decoded.

    `again`: another try may end otherwise, since the process was lost or lacked memory, which it may have lost to
    earlier videos. `killed`: it was killed from outside, as the kernel does when the machine's memory is used up.
    """

    def __init__(self, reason: str, again: bool = False, killed: bool = False):
        super().__init__(reason)
        self.reason, self.again, self.killed = reason, again, killed


@dataclass(frozen=True)
class Limits:
    """What decoding one video may cost: seconds, plus so many for each second of it that is read, and memory."""

    seconds: float = 60.0
    seconds_per_second: float = 5.0
    memory: int = 4 * 2**30  # bytes of address space of the worker, and as many of the ffmpeg that it starts
    start: float = 300.0  # seconds until a new process has imported what it needs; not counted as a video's


class Worker:
    """The owner's handle. Starts a process when it is first needed and again after each failure."""

    def __init__(self, limits: Limits):
        self.limits, self.process, self.stopped = limits, None, False

    def read(
        self, path: str | None, inputs: Sequence[Input], segments: int, **options
    ) -> tuple[dict, dict[str, np.ndarray]]:
        """Have `read_segments` run with these arguments.

        Returns num_segments, has_audio and unheard by name, and the arrays by input key. Raises WorkerFailure with the
        reason; a process that hangs or died is gone by then. Raises MachineError if the machine failed and not the
        video.
        """
        self.start()
        began, self.allowed = time.monotonic(), self.limits.seconds
        self.deadline = began + self.allowed
        request = {"path": path, "inputs": inputs_to_json(inputs), "options": options | {"segments": segments}}
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            reply = self._message()
            if "length" in reply:
                length = segments if reply["length"] is None else min(reply["length"], segments)
                self.allowed += self.limits.seconds_per_second * max(0, length)
                self.deadline = began + self.allowed
                reply = self._message()
            if "error" in reply:
                self._raise(reply)
            scalars = {"num_segments": int(reply["num_segments"]), "has_audio": bool(reply["has_audio"])}
            scalars["unheard"] = str(reply["unheard"])
            data = {item.key: self._array((segments, *item.shape), item.dtype) for item in _different(inputs)}
            if reply["memory"] > self.limits.memory / 2:
                self.close()  # decoders leak memory; the next video must have its full share
            return scalars, data
        except TimeoutError:
            self.close()
            raise WorkerFailure(f"took longer than its limit of {self.allowed:.0f} s", again=True) from None
        except (BrokenPipeError, EOFError):
            raise self._death() from None
        except (ValueError, KeyError, TypeError) as error:
            self.close()
            raise WorkerFailure(f"the decoder sent an invalid reply ({error})", again=True) from error
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Start a process and wait until it is ready, unless there is one. Raises MachineError if that fails."""
        if self.process is not None and self.process.poll() is None:
            return
        for _ in range(_STARTS):
            if self.stopped:
                raise WorkerFailure("the decoder was stopped")
            self._spawn()
            self.deadline = time.monotonic() + self.limits.start
            try:
                self._message()
                return
            except TimeoutError:
                reason, killed = f"was not ready within {self.limits.start:.0f} s", False
            except (EOFError, ValueError):
                failure = self._death()
                reason, killed = failure.reason, failure.killed
            self.close()
            if not killed:
                break
        raise MachineError(f"a decoder process cannot be started: {reason}; see its messages above")

    def _raise(self, reply: dict) -> None:
        reason = str(reply["error"])
        if reply["machine"]:
            raise MachineError(reason)
        if not reply["final"]:
            self.close()  # what is left of a decoder that failed is not known
        raise WorkerFailure(reason, again=bool(reply["memory"]))

    def stop(self) -> None:
        """End the process and the ffmpeg that it may have started, for good; may be called from any thread."""
        self.stopped = True
        self._kill()

    def close(self) -> int | None:
        """End the process, release its pipes and return its exit code."""
        self._kill()
        process, self.process = self.process, None
        if process is None:
            return None
        process.stdin.close()
        process.stdout.close()
        return process.wait()

    def _kill(self) -> None:
        process = self.process
        if process is not None:
            with suppress(ProcessLookupError):  # it has ended already
                os.killpg(process.pid, signal.SIGKILL)

    def _spawn(self) -> None:
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

    def _death(self) -> WorkerFailure:
        try:
            code = self.process.wait(5)  # it may end a little later than its pipe
        except subprocess.TimeoutExpired:
            return WorkerFailure("the decoder stopped answering", again=True)
        finally:
            self.close()
        if code >= 0:
            return WorkerFailure(f"the decoder ended with code {code}", again=True)
        known = {number.value: number.name for number in signal.Signals}
        reason = f"the decoder died of {known.get(-code, -code)}"
        return WorkerFailure(reason, again=True, killed=-code == signal.SIGKILL)

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


def inputs_to_json(inputs: Sequence[Input]) -> list[dict]:
    """Inputs as plain values; `inputs_from_json` is the inverse."""
    return [{"kind": "frames" if isinstance(item, FrameInput) else "audio"} | asdict(item) for item in inputs]


def inputs_from_json(values: Sequence[dict]) -> list[Input]:
    """What `inputs_to_json` was given."""
    inputs = []
    for value in values:
        fields = {name: item for name, item in value.items() if name != "kind"}
        if value["kind"] == "frames":
            fields["transform"] = Transform(**fields["transform"])
            inputs.append(FrameInput(**fields))
        else:
            inputs.append(AudioInput(**fields))
    return inputs


def _different(inputs: Sequence[Input]) -> list[Input]:
    """One input for each key, in order."""
    return list({item.key: item for item in inputs}.values())


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """The loop of the process: reads a request, decodes, replies, until the requests end."""
    _send(replies, {"ready": True})
    for line in requests:
        request = json.loads(line)
        inputs = inputs_from_json(request["inputs"])
        try:
            _send(replies, {"length": None if request["path"] is None else read_length(request["path"])})
            result = read_segments(request["path"], inputs=inputs, **request["options"])
        except MachineError as error:
            _send_error(replies, error, machine=True)
        except MediaError as error:
            _send_error(replies, error.reason, final=error.final)
        except MemoryError as error:
            _send_error(replies, f"needs more memory than its limit ({error})", memory=True)
        except Exception as error:
            traceback.print_exc()
            # PyAV's errors are OSErrors too where FFmpeg uses the system's numbers, but those are about the file.
            machine = isinstance(error, OSError) and not isinstance(error, av.FFmpegError)
            _send_error(replies, f"{type(error).__name__}: {error}", machine=machine)
        else:
            memory = psutil.Process().memory_info().vms
            scalars = {"num_segments": result.num_segments, "has_audio": result.has_audio, "unheard": result.unheard}
            _send(replies, scalars | {"memory": memory})
            for item in _different(inputs):
                replies.write(memoryview(result.data[item.key]).cast("B"))
            replies.flush()


def _send(replies: BinaryIO, message: dict) -> None:
    replies.write(json.dumps(message).encode() + b"\n")
    replies.flush()


def _send_error(
    replies: BinaryIO, reason: object, final: bool = False, machine: bool = False, memory: bool = False
) -> None:
    error = str(reason)[: _LINE // 16]
    _send(replies, {"error": error, "final": final, "machine": machine, "memory": memory})


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
    # Libraries print to standard output; the pipe is for replies only.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
