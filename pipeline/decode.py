"""A shard's videos to one HDF5 file of segments, in worker processes whose failure does no harm."""

import csv
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

import numpy as np
from tqdm import tqdm

from extractors import FrameInput, Input, major_minor
from pipeline.errors import AVQAError
from pipeline.media.segments import MachineError
from pipeline.media.transform import mirror
from pipeline.media.worker import Limits, Worker, WorkerFailure, inputs_to_json
from pipeline.storage.atomic import atomic
from pipeline.storage.contract import (
    DECODED,
    DECODER_VERSION,
    FAILED,
    FAILURE_FIELDS,
    PER_VIDEO,
    UNHEARD,
    DatasetSpec,
    unheard_table,
)
from pipeline.storage.hdf5 import ShardWriter, open_hdf5
from pipeline.storage.shard_list import Video, digest
from pipeline.storage.tables import read_failures
from pipeline.timing import Stopwatch

log = logging.getLogger(__name__)

UNLIMITED = 2**60  # bytes
AUDIO_CHUNK = 60  # seconds; each batch of an encoder reads whole chunks
BACKEND = "S8"  # type of the dataset that names the backend of each row


def decode_shard(
    videos: Sequence[Video],
    out: str | Path,
    *,
    inputs: Sequence[Input],
    collection: str,
    shard: str,
    segments: int,
    backend: str,
    pad: str,
    frame_at: float,
    frame_selection: str,
    selective: bool,
    workers: int,
    failures: str | Path,
    limits: Limits | None = None,
    timing: str | Path | None = None,
    key: str = "",
) -> None:
    """Decode videos in `workers` processes and write the segments file `out`: row n is video n, one dataset per input.

    A video that `backend` cannot decode is a row of zeros with status 1 and a line in the table `failures`; no other
    backend is tried, since its frames may be others. Where the process was lost or lacked memory, a new one tries once
    more. A video that is decoded without its sound has a line in the table beside it (`unheard_table`). A run that was
    interrupted resumes. With `key`, the text of what decides the segments (`pipeline.keys`), a video that the table
    `failures` has already is not tried again: encoders that have read the shard before have zeros for it, and all must
    agree (`pipeline.retry`). Raises MachineError if the machine fails and not a video, also where a video's process is
    killed from outside twice, and AVQAError if no video at all can be decoded (the only one of a named `shard` may be a
    failed row); neither leaves a row for the videos concerned. The file `timing` then says how long decoders and
    writing took (`pipeline.timing`).
    """
    inputs = list({item.key: item for item in inputs}.values())
    options = {
        "segments": segments,
        "pad": pad,
        "frame_at": frame_at,
        "frame_selection": frame_selection,
        "selective": selective,
    }
    attributes = {
        "kind": "segments",
        "collection": collection,
        "shard": shard,
        "source": digest(list(videos)),
        "config": options | {"inputs": inputs_to_json(inputs), "backend": backend},
        "key": key,
        "libraries": {
            "decoder": DECODER_VERSION,
            **{name: major_minor(name) for name in _libraries(videos, backend)},
        },
    }
    ids, watch = [video.video_id for video in videos], Stopwatch()
    with ShardWriter(out, len(videos), _datasets(inputs, segments), attributes, {"video_id": ids}) as writer:
        if writer.published and Path(failures).exists():
            return
        done = {ids[n] for n in np.flatnonzero(writer.done)}
        record, unheard = _Record(writer.parts / "failures.tsv", done), _Record(writer.parts / "unheard.tsv", done)
        if writer.published:
            record.recover(out, ids)
        known = {line["video_id"]: line["reason"] for line in read_failures(failures)} if key else {}
        pool = _Pool(workers, limits or Limits(), inputs, backend, options)
        shard_in_work = _Shard(videos, writer, record, unheard, pool, watch, known)
        shard_in_work.decode()
        for video in videos:
            if video.video_id in record.lines and not writer.published:
                log.warning(f"{video.path or video.audio_path}: {record.lines[video.video_id][2]}")
        present = [video for video in videos if not video.gone]
        if len(present) > bool(shard) and not writer.published and len(record.lines) == len(videos):
            shutil.rmtree(writer.parts)  # so that the next run tries again
            raise AVQAError(
                f"{out}: none of the {len(present)} videos can be decoded; the first is "
                f"{present[0].path or present[0].audio_path}: {record.lines[present[0].video_id][2]}. "
                "Mend or leave out these videos, or the storage that holds them, and run again"
            )
        if unheard.lines:
            unheard.publish(unheard_table(failures), ids)
            log.warning(f"{unheard_table(failures)}: {len(unheard.lines)} videos were decoded without their sound")
        else:
            unheard_table(failures).unlink(missing_ok=True)
        record.publish(failures, ids)
        ended = time.monotonic()
    watch.add("writing", time.monotonic() - ended)  # of the finished file, from the rows
    watch.write(timing, shard_in_work.seconds)


def _libraries(videos: Sequence[Video], backend: str) -> tuple[str, ...]:
    """The packages that decide the segments' numbers. Raises MachineError if one is not there."""
    of_audio_files = ("soundfile", "soxr") if any(video.audio_path for video in videos) else ()
    of_backend = {"nvdec": ("torchcodec",), "decord": ("decord",)}.get(backend, ())
    if backend == "nvdec" and find_spec("torchcodec") is None:
        raise MachineError("backend nvdec: torchcodec is not installed: pip install 'torchcodec>=0.17'")
    return ("av", "imageio-ffmpeg", "pillow", *of_audio_files, *of_backend)


def _datasets(inputs: Sequence[Input], segments: int) -> dict[str, DatasetSpec]:
    """The datasets of a segments file. Frames are read one by one, so each is a chunk; audio by the batch."""
    datasets = {}
    for item in inputs:
        shape = (segments, *item.shape)
        frame = (*[1] * (len(shape) - 3), *shape[-3:]) if isinstance(item, FrameInput) else None
        datasets[item.key] = DatasetSpec(shape, item.dtype, frame or (min(segments, AUDIO_CHUNK), *item.shape))
    return datasets | {name: DatasetSpec((), dtype) for name, dtype in (PER_VIDEO | {"backend": BACKEND}).items()}


class _Pool:
    """Worker processes, each of which decodes one video at a time."""

    def __init__(self, workers: int, limits: Limits, inputs: Sequence[Input], backend: str, options: dict):
        self.inputs, self.backend, self.options = inputs, backend, options
        if backend == "nvdec":  # CUDA reserves more addresses than a decoder may have
            limits = replace(limits, memory=UNLIMITED)
        self.workers = [Worker(limits) for _ in range(workers)]
        self.idle: SimpleQueue[Worker] = SimpleQueue()
        for worker in self.workers:
            self.idle.put(worker)
        self.stopping = Event()

    def read(self, video: Video) -> tuple[dict | None, str]:
        """A video's row and "", or None and the reason why it has none."""
        worker = self.idle.get()
        try:
            return self._try_twice(worker, video)
        finally:
            self.idle.put(worker)

    def stop(self) -> None:
        """Interrupt what is being decoded; further videos fail at once."""
        self.stopping.set()
        for worker in self.workers:
            worker.stop()

    def close(self) -> None:
        """Release the processes."""
        for worker in self.workers:
            worker.close()

    def _try_twice(self, worker: Worker, video: Video) -> tuple[dict | None, str]:
        path, options = video.path or None, self.options | {"audio_path": video.audio_path or None}
        failures: list[WorkerFailure] = []
        while not self.stopping.is_set():
            try:
                scalars, data = worker.read(path, self.inputs, backend=self.backend, **options)
                return data | scalars | {"backend": self.backend}, ""
            except WorkerFailure as failure:
                failures.append(failure)
                if len(failures) == 2 or not failure.again:
                    break
        if len(failures) == 2 and all(failure.killed for failure in failures) and not self.stopping.is_set():
            raise MachineError(
                f"{path or video.audio_path}: its decoder was killed twice from outside (SIGKILL), as the system does "
                "when memory is used up; this is no fault of the video: give the job more memory or set decode.workers "
                "lower, and run again"
            )
        return None, f"{self.backend}: {'; then '.join(failure.reason for failure in failures)}"


class _Shard:
    """The videos of a shard on their way into its file."""

    def __init__(
        self,
        videos: Sequence[Video],
        writer: ShardWriter,
        record: "_Record",
        unheard: "_Record",
        pool: _Pool,
        watch: Stopwatch,
        known: Mapping[str, str],
    ):
        self.videos, self.writer, self.pool, self.watch = videos, writer, pool, watch
        self.record, self.unheard, self.known = record, unheard, known
        self.writing = Lock()
        self.seconds = 0  # of video that were decoded

    def decode(self) -> None:
        """Decode all videos that have no row yet. Raises MachineError; the rows that are finished remain."""
        self.watch.started()
        due = [int(n) for n in np.flatnonzero(~self.writer.done)]
        threads = ThreadPoolExecutor(len(self.pool.workers))
        count = len(self.videos)
        with tqdm(total=count, initial=count - len(due), desc="decode", unit="video") as bar:
            try:
                for future in as_completed([threads.submit(self._decode_one, n) for n in due]):
                    future.result()
                    bar.update()
            finally:
                self.pool.stop()
                threads.shutdown(cancel_futures=True)
                self.pool.close()

    def _decode_one(self, n: int) -> None:
        start = time.monotonic()
        with self.watch.part("decoders", lanes=len(self.pool.workers)):
            reason = self.known.get(self.videos[n].video_id)
            row, reason = (None, reason) if reason is not None else self.pool.read(self.videos[n])
        with self.writing, self.watch.part("writing"):
            if row is None:
                if self.pool.stopping.is_set():
                    return  # its process was stopped, which is no failure of the video
                self.record.add(self.videos[n].video_id, "decode", reason, time.monotonic() - start)
                row = {name: np.zeros(spec.shape, spec.dtype) for name, spec in self.writer.datasets.items()}
                row["status"] = FAILED
            else:
                row["status"] = DECODED
                if row["unheard"]:
                    self.unheard.add(self.videos[n].video_id, UNHEARD, row["unheard"], time.monotonic() - start)
                self.seconds += int(row["num_segments"])
                if self.videos[n].mirrored:
                    mirror(row)
            self.writer.write(n, row)


class _Record:
    """The lines of a table of failures, stored beside the finished rows, so that an interrupted run leaves both."""

    def __init__(self, path: Path, done: set[str]):
        self.path, self.lines = path, {}
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                # A line whose row is not finished, and which may be incomplete, belongs to a video that is due again.
                self.lines = {line[0]: line for line in csv.reader(file, "excel-tab") if line and line[0] in done}

    def add(self, video_id: str, stage: str, reason: str, seconds: float) -> None:
        """Must be called before the row is written, so that no row lacks its reason."""
        # One line per failure, whatever a library puts into its message.
        self.lines[video_id] = [video_id, stage, " ".join(reason.split()), f"{seconds:.1f}"]
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, "excel-tab", lineterminator="\n").writerow(self.lines[video_id])

    def recover(self, segments: str | Path, ids: list[str]) -> None:
        """Note the failed rows of a finished segments file."""
        with open_hdf5(segments, "segments") as finished:
            for n in np.flatnonzero(finished["status"][:] != DECODED):
                self.lines[ids[n]] = [ids[n], "decode", "failed in an earlier run, whose table is lost", ""]

    def publish(self, target: str | Path, order: list[str]) -> None:
        """Write the table under its final name."""
        with atomic(target) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, "excel-tab", lineterminator="\n")
            table.writerow(FAILURE_FIELDS)
            table.writerows(self.lines[name] for name in order if name in self.lines)
