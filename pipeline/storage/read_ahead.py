"""Reading the next batches while the current one is in use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(reads: Iterable[Callable[[], T]], workers: int = 1) -> Iterator[T]:
    """The results of calls, in order; the next calls run in `workers` threads while the caller uses a result.

    At most `workers` results are ready besides the one in use. `reads` itself is consumed in the caller's thread, in
    order, so it may draw random numbers: the results do not depend on the number of workers. An exception of a call is
    raised in the place of its result.
    """
    with ThreadPoolExecutor(workers) as threads:
        waiting: deque[Future[T]] = deque()
        for read in reads:
            waiting.append(threads.submit(read))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
