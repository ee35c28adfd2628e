"""What the parts of a job took. They run at the same time, so the busiest is what the others wait for."""

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock

import psutil

from pipeline.storage.atomic import atomic

START = "start"  # of the process, imports, weights
WAITING = "waiting for data"  # no batch was ready
NOT_WORK = (START, WAITING)  # parts without a rate


@dataclass
class Timing:
    """Items (seconds of video, or questions), seconds of the whole job, and those in which each part was busy."""

    items: int = 0
    wall: float = 0.0
    jobs: int = 1
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> str:
        """The part that was busy longest."""
        return max(self.parts, key=lambda name: self.parts[name])

    @property
    def start(self) -> float:
        """Seconds of one job before its work begins."""
        return self.parts.get(START, 0.0) / self.jobs


class Stopwatch:
    """Measures one job. Parts may be timed in several threads.

    The job begins when its process did, so that `start` includes the imports. In a process that runs several jobs,
    `start` is too long.
    """

    def __init__(self) -> None:
        self.began = time.monotonic() - (time.time() - psutil.Process().create_time())
        self.timing, self.lock = Timing(), Lock()

    def started(self) -> None:
        """The work begins, or continues after another start: what is in no part yet is `start`."""
        self.add(START, time.monotonic() - self.began - sum(self.timing.parts.values()))

    def add(self, part: str, seconds: float) -> None:
        with self.lock:
            self.timing.parts[part] = self.timing.parts.get(part, 0.0) + seconds

    @contextmanager
    def part(self, name: str, lanes: int = 1) -> Iterator[None]:
        """Times the block; where `lanes` such blocks run side by side, each counts for one of them."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(name, (time.monotonic() - began) / lanes)

    def write(self, path: str | Path | None, items: int) -> None:
        """Write what was measured to a JSON file; nothing without `path` or items, so that a job that found its file
        finished leaves the times of the one that made it."""
        if path is None or not items:
            return
        self.timing.items, self.timing.wall = items, time.monotonic() - self.began
        with atomic(path) as partial:
            partial.write_text(json.dumps(asdict(self.timing)) + "\n", encoding="utf-8")


def read_timings(paths: Iterable[Path]) -> Timing | None:
    """The sum over the jobs whose files exist; None if there is none."""
    found = [Timing(**json.loads(path.read_text(encoding="utf-8"))) for path in paths if path.exists()]
    if not found:
        return None
    total = Timing(sum(each.items for each in found), sum(each.wall for each in found), len(found))
    for each in found:
        for name, seconds in each.parts.items():
            total.parts[name] = total.parts.get(name, 0.0) + seconds
    return total
