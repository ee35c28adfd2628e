"""A shard's videos to one HDF5 file of segments, in worker processes that may fail without harm."""

import csv
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock

import numpy as np
from tqdm import tqdm

from pipeline.media.audio import RATE
from pipeline.media.segments import BACKENDS
from pipeline.media.worker import Limits, Worker, WorkerFailure
from pipeline.storage.atomic import atomic
from pipeline.storage.contract import DECODED, FAILED, DatasetSpec
from pipeline.storage.hdf5 import ShardWriter, open_hdf5
from pipeline.storage.shard_list import Video, digest

FAILURE_FIELDS = ("video_id", "stage", "reason", "seconds")


def decode_shard(
    videos: Sequence[Video],
    out: str | Path,
    *,
    dataset: str,
    shard: str,
    segments: int,
    sizes: Sequence[int],
    backend: str,
    pad: str,
    frame_at: float,
    accuracy: str,
    workers: int,
    failures: str | Path,
    limits: Limits | None = None,
) -> None:
    """Decode videos in `workers` processes and write the segments file `out`; row n is video n.

    A video that fails is tried once with the next backend, unless the file itself is refused; once more with the
    same if somebody killed its process. Then it is a row of zeros with status 1 and a line in the table `failures`.
    A killed run goes on where it stopped.
    """
    options = {"segments": segments, "sizes": list(sizes), "pad": pad, "frame_at": frame_at, "accuracy": accuracy}
    spec = {f"frames/{size}": DatasetSpec((segments, size, size, 3), "uint8", (1, size, size, 3)) for size in sizes}
    spec["audio"] = DatasetSpec((segments, RATE), "float32")
    spec |= {
        "num_segments": DatasetSpec((), "int32"),
        "has_audio": DatasetSpec((), "bool"),
        "status": DatasetSpec((), "int32"),
    }
    arrays = {name: (part.shape, part.dtype) for name, part in spec.items() if part.shape}
    attributes = {
        "kind": "segments",
        "dataset": dataset,
        "shard": shard,
        "source": digest(list(videos)),
        "config": options | {"backend": backend},
    }
    attempts = [backend, *(name for name in BACKENDS if name != backend)][:2]
    pool = [Worker(limits or Limits()) for _ in range(workers)]
    idle: SimpleQueue[Worker] = SimpleQueue()
    for worker in pool:
        idle.put(worker)
    stopping, writing = Event(), Lock()

    def attempt(worker: Worker, path: str) -> tuple[dict, str]:
        """A video's row, and why it is not what it could be."""
        reasons, left, spared = [], list(attempts), False
        while left and not stopping.is_set():
            name = left.pop(0)
            try:
                facts, data = worker.read(path, list(arrays.values()), backend=name, **options)
                return dict(zip(arrays, data, strict=True)) | facts | {"status": DECODED}, ""
            except WorkerFailure as failure:
                reasons.append(f"{name}: {failure.reason}")
                if failure.final:
                    break
                if failure.killed and not spared:  # the same backend once more, so that its frames are the same
                    left.insert(0, name)
                    spared = True
        blank = {name: np.zeros(*shape) for name, shape in arrays.items()}
        return blank | {"num_segments": 0, "has_audio": False, "status": FAILED}, "; ".join(reasons)

    def decode(n: int) -> None:
        worker, start = idle.get(), time.monotonic()
        try:
            row, reason = attempt(worker, videos[n].path)
        finally:
            idle.put(worker)
        with writing:
            if stopping.is_set():
                return  # a worker that was ended is no fault of its video
            if reason:
                record.add(videos[n].video_id, "decode", reason, time.monotonic() - start)
            writer.write(n, row)
            bar.update()

    ids = [video.video_id for video in videos]
    with (
        ShardWriter(out, len(videos), spec, attributes, {"video_id": ids}) as writer,
        tqdm(total=len(videos), initial=int(writer.done.sum()), desc="decode", unit="video") as bar,
    ):
        if writer.published and Path(failures).exists():
            return
        record = _Record(writer.parts / "failures.tsv", {ids[n] for n in np.flatnonzero(writer.done)})
        if writer.published:
            with open_hdf5(out, "segments") as finished:
                for n in np.flatnonzero(finished["status"][:] != DECODED):
                    record.lines[ids[n]] = [ids[n], "decode", "failed in an earlier run, whose table is lost", ""]
        threads = ThreadPoolExecutor(workers)
        try:
            for future in as_completed([threads.submit(decode, int(n)) for n in np.flatnonzero(~writer.done)]):
                future.result()
        finally:
            stopping.set()
            for worker in pool:
                worker.stop()
            threads.shutdown(cancel_futures=True)
            for worker in pool:
                worker.close()
        record.publish(failures, ids)


class _Record:
    """The lines of failures.tsv as they come about, beside the finished rows: a killed run leaves both behind."""

    def __init__(self, path: Path, done: set[str]):
        self.path, self.lines = path, {}
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                # A line whose row was not finished, maybe cut short itself, belongs to a video that is due again.
                self.lines = {line[0]: line for line in csv.reader(file, "excel-tab") if line and line[0] in done}

    def add(self, video_id: str, stage: str, reason: str, seconds: float) -> None:
        """Must come before the row itself, so that no failed row lacks its reason."""
        # One line a failure, whatever a library puts into its message.
        self.lines[video_id] = [video_id, stage, " ".join(reason.split()), f"{seconds:.1f}"]
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, "excel-tab", lineterminator="\n").writerow(self.lines[video_id])

    def publish(self, target: str | Path, order: list[str]) -> None:
        """Write the table under its final name."""
        with atomic(target) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, "excel-tab", lineterminator="\n")
            table.writerow(FAILURE_FIELDS)
            table.writerows(self.lines[name] for name in order if name in self.lines)
