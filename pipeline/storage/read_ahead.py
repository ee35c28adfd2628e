"""Reading the next batch while the current one is in use."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(reads: Iterable[Callable[[], T]]) -> Iterator[T]:
    """The results of calls, in order; each call runs in a thread while the caller uses the result before it.

    One result is ready at most besides the one in use. `reads` itself is consumed in the caller's thread, in order,
    so it may draw random numbers. An exception of a call is raised in the place of its result.
    """
    with ThreadPoolExecutor(1) as thread:
        waiting: Future[T] | None = None
        for read in reads:
            following = thread.submit(read)
            if waiting is not None:
                yield waiting.result()
            waiting = following
        if waiting is not None:
            yield waiting.result()
